use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::CliError;
use super::access::RegistryOptions;
use crate::build::{BuildRequest, Output, build};
use crate::progress::Progress;
use crate::reference::Reference;

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
    pub(super) async fn run(self) -> Result<(), CliError> {
        let images = self.references(&self.images)?;
        if images.is_empty() {
            return Err(CliError::Usage("no image is named".to_owned()));
        }
        let already_transferred = self.references(&self.already_transferred)?;
        let registries = self.registry.registries(&[&images, &already_transferred])?;
        let output = match self.file {
            Some(path) => Output::File(path),
            None => Output::Stream(Box::new(stdout()?)),
        };
        let request = BuildRequest { images, already_transferred, registries, output };
        build(request, &Arc::new(Progress::default())).await.map_err(|error| CliError::failed(&error))?;
        Ok(())
    }

    fn references(&self, names: &[String]) -> Result<Vec<Reference>, CliError> {
        let names = names.iter().map(|name| name.trim()).filter(|name| !name.is_empty());
        names.map(|name| self.registry.reference(name)).collect()
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
