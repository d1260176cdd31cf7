use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::{CliError, FAILED, Verbosity, output};
use crate::plugin::{self, FarError};
use crate::worker::contract::PAYLOAD_MOUNT;

/// Carry a payload between a mounted claim and kubectl-charon, inside its pod
#[derive(Debug, Args)]
pub(super) struct Transfer {
    /// Keep the pod while transfers come, and do none
    #[arg(long)]
    wait: bool,
    /// The folder that payloads are in
    #[arg(long, default_value = PAYLOAD_MOUNT)]
    payloads: PathBuf,
}

impl Transfer {
    pub(super) async fn run(&self) -> ExitCode {
        let done = if self.wait {
            plugin::wait_for_transfers().await.map_err(FarError::Io)
        } else {
            self.serve().await
        };
        let Err(error) = done else { return ExitCode::SUCCESS };
        output::error(&CliError::Failed(error.to_string()), &Verbosity::default());
        match error {
            FarError::Io(_) | FarError::Silent => ExitCode::from(plugin::TRY_AGAIN),
            FarError::Storage(_) | FarError::Refused(_) => ExitCode::from(FAILED),
        }
    }

    async fn serve(&self) -> Result<(), FarError> {
        let input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        let output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        plugin::serve(tokio::fs::File::from_std(input), tokio::fs::File::from_std(output), &self.payloads)
            .await
    }
}
