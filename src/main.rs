//! The program `charon`: a command line, a worker and a controller.

use std::process::ExitCode;

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return charon::cli::cannot_start(&error),
    };
    let code = runtime.block_on(Box::pin(charon::cli::main()));
    // A read of standard input that nobody waits for any more must not keep the process.
    runtime.shutdown_background();
    code
}
