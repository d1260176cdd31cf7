//! The program `charon`: a command line, a worker and a controller.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    charon::cli::main().await
}
