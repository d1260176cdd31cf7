//! The program `charon`: a command line, a worker and a controller.

use std::process::ExitCode;

fn main() -> ExitCode {
    set_up_heap();
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

/// One heap for all threads, which keeps a MiB of what was freed.
///
/// glibc gives each thread a heap of its own, none of which has use for what another freed: the same transfer takes 58 MiB
/// with a heap a thread, 29 with one, and no more time. And it hands back what is free at the end of a heap, to fetch it again
/// for the next piece of a blob: 20,000 times in an import of 1.2 GB.
#[cfg(target_env = "gnu")]
#[allow(unsafe_code, reason = "calls to C; they only set numbers, before there is a second thread")]
fn set_up_heap() {
    // Where it refuses, it is as it is by default: only memory and time are lost.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 1 << 20);
        // To set the one ends that glibc learns the other, which is below the size of a piece.
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 20);
    };
}

#[cfg(not(target_env = "gnu"))]
fn set_up_heap() {}
