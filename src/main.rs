//! The program `charon`: a command line, a worker and a controller.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    Box::pin(charon::cli::main()).await
}
