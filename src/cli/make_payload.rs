use std::fs::{self, File};
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use clap::Args;
use tokio_util::sync::CancellationToken;

use super::context::unless_cancelled;
use super::registry_options::RegistryOptions;
use super::{CliError, Context, dry_run, output};
use crate::build::BuildError;
use crate::library::{self, make_payload, make_payload_to, plan_payload, plan_payload_stream};
use crate::payload::PayloadError;
use crate::platform::Platform;
use crate::storage::ObjectAccess;

/// Create a payload, a zip, from images of a registry
///
/// The zip can be pushed into another registry by `charon push-payload`, on another system. What
/// was already transferred there need not be carried again: see --already-transferred.
// The docstrings are the help that people read at a terminal.
#[allow(clippy::doc_markdown)]
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools)] // each is an option
pub(super) struct MakePayload {
    /// The images to carry: several arguments, or one with commas
    #[arg(required = true, value_name = "IMAGES", value_delimiter = ',')]
    images: Vec<String>,
    /// Images that the far side has, delimited by commas; may be repeated
    #[arg(short, long, value_name = "IMAGES", value_delimiter = ',')]
    already_transferred: Vec<String>,
    /// An earlier payload, or its bill (FILE.bill.json), which stays behind when it leaves; a file, or an object such as s3://BUCKET/KEY: what it carries or required, the far side has; may be repeated
    #[arg(long, value_name = "FILE", env = "CHARON_BASE")]
    base: Vec<PathBuf>,
    /// The platforms to carry, such as linux/amd64, delimited by commas; may be repeated. All if it is not given
    #[arg(long, value_name = "PLATFORM", value_delimiter = ',')]
    platform: Vec<Platform>,
    /// Fetch layers that may not be distributed from where their manifests say, if the registry does not have them: by HTTPS, from the public internet alone
    #[arg(long)]
    foreign_layers: bool,
    /// Leave out images that cannot be had, and say which, instead of failing
    #[arg(long)]
    allow_missing: bool,
    /// Leave out the signatures, attestations and SBOMs of the images
    #[arg(long)]
    no_referrers: bool,
    /// Where the payload goes: a file, or an object such as s3://BUCKET/KEY; standard output if it is not given
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Print how large the payload would be and what would have to be fetched, and write nothing: the registries' manifests are read as for the payload itself
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    registry: RegistryOptions,
}

impl MakePayload {
    pub(super) async fn run(self, context: &Context) -> Result<(), CliError> {
        let options = library::MakePayload {
            images: self.images,
            already_transferred: self.already_transferred,
            bases: self.base,
            platforms: self.platform,
            foreign_layers: self.foreign_layers,
            allow_missing: self.allow_missing,
            no_referrers: self.no_referrers,
            file: self.file.clone().unwrap_or_default(),
            object_store: ObjectAccess::default(),
            registry: self.registry.read(context).await?,
            progress: context.progress(),
            cancel: context.cancel(),
        };
        if self.dry_run {
            let plan = match &self.file {
                Some(path) if !is_stream(path) => plan_payload(&options).await?,
                _ => plan_payload_stream(&options).await?,
            };
            return dry_run::tell_build(plan);
        }
        match &self.file {
            Some(path) if is_stream(path) => {
                let stream = open_stream(path.clone(), &options.cancel).await?;
                let made = make_payload_to(&options, stream).await;
                made.map_err(|error| of_stream(&path.display().to_string(), error))?
            }
            Some(_) => make_payload(&options).await?,
            None => {
                let made = make_payload_to(&options, stdout()?).await;
                made.map_err(|error| of_stream(STDOUT, error))?
            }
        };
        Ok(())
    }
}

const STDOUT: &str = "standard output";

/// An error with the name of what was written to, where it is about that.
fn of_stream(name: &str, error: library::Error) -> CliError {
    match error {
        library::Error::Build(BuildError::Payload(PayloadError::Io { source, .. })) => {
            output::cannot_write(&format!("the payload to {name}"), &source)
        }
        other => other.into(),
    }
}

/// Whether a path leads to a pipe, a device or a socket, as `/dev/stdout` and `>(…)` do.
pub(super) fn is_stream(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir())
}

async fn open_stream(path: PathBuf, cancel: &CancellationToken) -> Result<tokio::fs::File, CliError> {
    let name = path.display().to_string();
    let stream = unless_cancelled(cancel, move || File::options().write(true).open(path)).await?;
    let stream = stream.map_err(|error| output::cannot_write(&format!("to {name}"), &error))?;
    if stream.is_terminal() { Err(no_terminal()) } else { Ok(tokio::fs::File::from_std(stream)) }
}

fn no_terminal() -> CliError {
    let why = "a payload is no text for a terminal: name a file with --file, or redirect standard output"
        .to_owned();
    CliError::Usage(why)
}

/// Standard output as a file: bytes go there in large pieces.
fn stdout() -> Result<tokio::fs::File, CliError> {
    let stdout = io::stdout();
    if stdout.is_terminal() {
        return Err(no_terminal());
    }
    let stdout = stdout.as_fd().try_clone_to_owned();
    let stdout = stdout.map_err(|error| output::cannot_write(&format!("to {STDOUT}"), &error))?;
    Ok(tokio::fs::File::from_std(File::from(stdout)))
}
