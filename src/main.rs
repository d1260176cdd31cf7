//! The program `charon`: a command line, a worker and a controller.

use std::process::ExitCode;

fn main() -> ExitCode {
    keep_one_heap();
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

/// glibc gives each thread a heap of its own, none of which has use for what another freed: the same
/// transfer takes 58 MiB with a heap a thread, 29 with one, and no more time.
#[cfg(target_env = "gnu")]
#[allow(unsafe_code, reason = "a call to C; it only sets a number, before there is a second thread")]
fn keep_one_heap() {
    // A heap a thread is what there is where it refuses: only memory is lost.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

#[cfg(not(target_env = "gnu"))]
fn keep_one_heap() {}
