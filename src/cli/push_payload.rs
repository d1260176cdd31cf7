use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, ValueEnum};

use super::access::RegistryOptions;
use super::{CliError, output};
use crate::digest::Digest;
use crate::import::{ImportRequest, Naming, Source, import};
use crate::progress::Progress;
use crate::storage::open_source;

/// Push a payload into a registry
///
/// Prints the images that are whole in the registry, one a line, when everything is done. An image
/// that cannot be whole gets no tag, and the exit status is 1.
#[derive(Debug, Args)]
pub(super) struct PushPayload {
    /// The payload; standard input if it is not given
    #[arg(short, long, value_name = "FILE", env = "CHARON_FILE")]
    file: Option<PathBuf>,
    /// Push nothing if anything is missing that was said to be already transferred
    #[arg(short, long, env = "CHARON_STRICT")]
    strict: bool,
    /// Put this in front of every repository
    #[arg(long, value_name = "PREFIX", env = "CHARON_PREFIX")]
    prefix: Option<String>,
    /// How images are called in the registry
    #[arg(long, value_enum, default_value_t, value_name = "NAMING", env = "CHARON_NAMING")]
    naming: NamingOption,
    /// Look here, too, for what the payload leaves out; may be repeated
    #[arg(long, value_name = "REPOSITORY", value_delimiter = ',', env = "CHARON_BASE_REPOSITORY")]
    base_repository: Vec<String>,
    /// Give no tag to images that were named by their digest alone; registries collect what has none
    #[arg(long, env = "CHARON_NO_DIGEST_TAGS")]
    no_digest_tags: bool,
    /// The payload digest that the payload must have, or nothing is pushed
    #[arg(long, value_name = "DIGEST", env = "CHARON_EXPECTED_DIGEST")]
    expected_digest: Option<Digest>,
    #[command(flatten)]
    registry: RegistryOptions,
}

/// The values of `--naming`.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum NamingOption {
    /// As whoever built the payload wrote it, without its host
    #[default]
    AsWritten,
    /// The same with `library/` spelled out
    Canonical,
    /// The full name, host included
    WithHost,
}

impl From<NamingOption> for Naming {
    fn from(option: NamingOption) -> Self {
        match option {
            NamingOption::AsWritten => Self::AsWritten,
            NamingOption::Canonical => Self::Canonical,
            NamingOption::WithHost => Self::WithHost,
        }
    }
}

impl PushPayload {
    pub(super) async fn run(self) -> Result<(), CliError> {
        let source = match &self.file {
            Some(path) => Source::File(open_source(path).map_err(|error| CliError::failed(&error))?),
            None if self.registry.reads_stdin() => {
                let why = "standard input cannot carry both the password and the payload: name the payload with --file";
                return Err(CliError::Usage(why.to_owned()));
            }
            None => stdin()?,
        };
        let request = ImportRequest {
            source,
            expected_digest: self.expected_digest,
            registry: self.registry.registry()?,
            naming: self.naming.into(),
            repository_prefix: self.prefix,
            base_repositories: self.base_repository,
            tag_digests: !self.no_digest_tags,
            strict: self.strict,
        };
        let report = import(request, &Arc::new(Progress::default()))
            .await
            .map_err(|error| CliError::failed(&error))?;
        // An image that the payload only names, and that is not there, was told of in a warning.
        let (incomplete, whole): (Vec<_>, Vec<_>) =
            report.images.iter().partition(|image| image.is_incomplete());
        for image in whole {
            output::line(&image.name)?;
        }
        let failures: Vec<&str> = incomplete
            .iter()
            .filter_map(|image| image.failure.as_ref().map(|failure| failure.message.as_str()))
            .collect();
        if failures.is_empty() { Ok(()) } else { Err(CliError::Failed(failures.join("\n"))) }
    }
}

/// Standard input: a file is read by position, anything else as it comes.
fn stdin() -> Result<Source, CliError> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        let why = "no payload: name a file with --file, or redirect standard input";
        return Err(CliError::Usage(why.to_owned()));
    }
    let read = stdin.as_fd().try_clone_to_owned().map(File::from);
    let read = read.and_then(|file| Ok((file.metadata()?.is_file(), file)));
    let (is_file, file) =
        read.map_err(|error| CliError::Failed(format!("cannot read standard input: {error}")))?;
    Ok(if is_file { Source::File(file) } else { Source::Stream(Box::new(tokio::fs::File::from_std(file))) })
}
