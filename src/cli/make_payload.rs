use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::path::PathBuf;

use clap::Args;

use super::registry_options::RegistryOptions;
use super::{CliError, Context};
use crate::library::{self, make_payload, make_payload_to};

/// Create a payload, a zip, from images of a registry
///
/// The zip can be pushed into another registry by `charon push-payload`, on another system. What
/// was already transferred there need not be carried again: see --already-transferred.
#[derive(Debug, Args)]
pub(super) struct MakePayload {
    /// The images to carry, delimited by commas or spaces
    #[arg(required = true, value_name = "IMAGES", value_delimiter = ',')]
    images: Vec<String>,
    /// Images that the far side has, delimited by commas; may be repeated
    #[arg(short, long, value_name = "IMAGES", value_delimiter = ',', env = "CHARON_ALREADY_TRANSFERRED")]
    already_transferred: Vec<String>,
    /// Where the payload goes; standard output if it is not given
    #[arg(short, long, value_name = "FILE", env = "CHARON_FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    registry: RegistryOptions,
}

impl MakePayload {
    pub(super) async fn run(self, context: &Context) -> Result<(), CliError> {
        let options = library::MakePayload {
            images: self.images,
            already_transferred: self.already_transferred,
            file: self.file.clone().unwrap_or_default(),
            registry: self.registry.read(context).await?,
            progress: context.progress(),
            cancel: context.cancel(),
        };
        match self.file {
            Some(_) => make_payload(&options).await?,
            None => make_payload_to(&options, stdout()?).await?,
        };
        Ok(())
    }
}

/// Standard output as a file: bytes go there in large pieces.
fn stdout() -> Result<tokio::fs::File, CliError> {
    let stdout = io::stdout();
    if stdout.is_terminal() {
        return Err(CliError::Usage(
            "a payload is no text for a terminal: name a file with --file, or redirect standard output"
                .to_owned(),
        ));
    }
    let stdout = stdout.as_fd().try_clone_to_owned();
    let stdout =
        stdout.map_err(|error| CliError::Failed(format!("cannot write to standard output: {error}")))?;
    Ok(tokio::fs::File::from_std(File::from(stdout)))
}
