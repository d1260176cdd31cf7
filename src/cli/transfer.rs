use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::{CliError, FAILED, output};
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
        let (message, code) = if self.wait {
            match plugin::wait_for_transfers().await {
                Ok(()) => return ExitCode::SUCCESS,
                Err(error) => (format!("cannot see who else is here: {error}"), FAILED),
            }
        } else {
            match plugin::serve(tokio::io::stdin(), tokio::io::stdout(), &self.payloads).await {
                Ok(()) => return ExitCode::SUCCESS,
                Err(error @ (FarError::Io(_) | FarError::Silent)) => (error.to_string(), plugin::TRY_AGAIN),
                Err(error) => (error.to_string(), FAILED),
            }
        };
        output::error(&CliError::Failed(message), &super::Verbosity::default());
        ExitCode::from(code)
    }
}
