//! The program `charon`: a command line, a worker and a controller.

use std::process::ExitCode;

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return charon::cli::cannot_start(&error),
    };
    let code = runtime.block_on(Box::pin(charon::cli::main()));
    // A read of standard input that nobody waits for any more must not keep the process, and a task that is at work
    // must not find its runtime half gone: all of it ends with the process.
    std::mem::forget(runtime);
    code
}
