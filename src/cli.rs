//! The command line: one file a command.

mod access;
mod make_payload;
mod output;
mod push_payload;

use std::process::ExitCode;

use clap::{ArgAction, Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use crate::worker;

/// Carry container images into air-gapped registries in a single zip.
#[derive(Debug, Parser)]
#[command(name = "charon", version, arg_required_else_help = true, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    verbosity: Verbosity,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Verbosity {
    /// Say only what goes wrong
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Say more; twice: everything
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
}

#[derive(Debug, Subcommand)]
#[allow(clippy::doc_markdown)] // help for people at a terminal
enum Command {
    MakePayload(make_payload::MakePayload),
    PushPayload(push_payload::PushPayload),
    /// Do one run of a PayloadBuild or PayloadImport, inside its pod
    #[command(hide = true)]
    Worker(worker::Worker),
}

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
enum CliError {
    /// The arguments do not fit together.
    #[error("{0}")]
    Usage(String),
    /// It was tried, and it failed. Each line is one failure.
    #[error("{0}")]
    Failed(String),
}

/// The exit status of a command that failed.
const FAILED: u8 = 1;
/// The exit status of a command line that cannot be understood.
const USAGE: u8 = 2;

impl CliError {
    fn failed(error: &impl std::error::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

/// Runs the program with the arguments of the process.
pub async fn main() -> ExitCode {
    let cli = Cli::parse();
    output::log(&cli.command, &cli.verbosity);
    match cli.command {
        Command::MakePayload(command) => Box::pin(finish(command.run())).await,
        Command::PushPayload(command) => Box::pin(finish(command.run())).await,
        Command::Worker(worker) => ExitCode::from(worker.run().await),
    }
}

/// Runs a command to its end, or until it is interrupted: what it holds is then cleaned up.
async fn finish(command: impl Future<Output = Result<(), CliError>>) -> ExitCode {
    let interrupted = async {
        let (Ok(mut interrupt), Ok(mut terminate)) =
            (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
        else {
            return std::future::pending().await;
        };
        tokio::select! {
            _ = interrupt.recv() => 130,
            _ = terminate.recv() => 143,
        }
    };
    tokio::select! {
        result = command => match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                output::error(&error);
                ExitCode::from(if matches!(error, CliError::Usage(_)) { USAGE } else { FAILED })
            }
        },
        code = interrupted => {
            output::error(&CliError::Failed("interrupted; nothing was left behind under the payload's name".to_owned()));
            ExitCode::from(code)
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        super::Cli::command().debug_assert();
    }
}
