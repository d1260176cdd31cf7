use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::access::RegistryOptions;
use super::{CliError, output};
use crate::import::{ImportRequest, Source, import};
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
    #[command(flatten)]
    registry: RegistryOptions,
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
            expected_digest: None,
            registry: self.registry.registry()?,
            repository_prefix: None,
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
