use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::CliError;
use crate::progress::{Progress, Stage};

/// A command that was told to end cleans up for so long at most.
const LONGEST_END: Duration = Duration::from_secs(15);
/// The bar is drawn so often.
const TICK: Duration = Duration::from_millis(100);
const BAR: &str = "{msg:12} {bar:30} {bytes}/{total_bytes}  {bytes_per_sec}  {eta}";
/// Before it is known how much there is to move: nothing of nothing would be drawn as done.
const WAITING: &str = "{msg}";

/// What every command has: a progress, a bar that shows it to people, and an ear for signals.
pub(super) struct Context {
    progress: Arc<Progress>,
    cancel: CancellationToken,
    bar: ProgressBar,
    signal: Arc<AtomicU8>,
}

impl Context {
    /// `is_shown`: there is a bar, if somebody looks. `is_service`: it hears signals by itself.
    pub(super) fn new(is_shown: bool, is_service: bool) -> Self {
        let is_shown = is_shown && io::stderr().is_terminal();
        let target = if is_shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        let context =
            Self { progress: Arc::default(), cancel: CancellationToken::new(), bar, signal: Arc::default() };
        if is_shown {
            tokio::spawn(show(context.bar.clone(), Arc::clone(&context.progress)));
        }
        if !is_service {
            tokio::spawn(listen(context.cancel.clone(), Arc::clone(&context.signal)));
        }
        context
    }

    pub(super) fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }

    /// Cancelled when the process is told to end.
    pub(super) fn cancel(&self) -> CancellationToken {
        self.cancel.clone()
    }

    /// The bar; hidden where nobody looks at it.
    pub(super) fn bar(&self) -> &ProgressBar {
        &self.bar
    }

    /// The exit status that tells which signal ended the process.
    pub(super) fn signal_status(&self) -> u8 {
        128 + self.signal.load(Ordering::Relaxed)
    }
}

/// Does what may wait long for somebody else; a signal ends the waiting.
pub(super) async fn unless_cancelled<T: Send + 'static>(
    cancel: &CancellationToken,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<io::Result<T>, CliError> {
    let work = tokio::task::spawn_blocking(work);
    match cancel.run_until_cancelled(work).await {
        Some(done) => Ok(done.map_err(io::Error::from).and_then(std::convert::identity)),
        None => Err(CliError::Interrupted),
    }
}

async fn show(bar: ProgressBar, progress: Arc<Progress>) {
    // The templates are constants, and well-formed.
    let (Ok(moving), Ok(waiting)) =
        (ProgressStyle::with_template(BAR), ProgressStyle::with_template(WAITING))
    else {
        return;
    };
    loop {
        let now = progress.snapshot();
        bar.set_style(if now.bytes_total == 0 { waiting.clone() } else { moving.clone() });
        bar.set_message(match now.stage {
            Stage::Resolving => "resolving",
            Stage::Checking => "checking",
            Stage::Transferring => "transferring",
            Stage::Finishing => "finishing",
        });
        bar.set_length(now.bytes_total);
        bar.set_position(now.bytes_done);
        tokio::time::sleep(TICK).await;
    }
}

async fn listen(cancel: CancellationToken, told: Arc<AtomicU8>) {
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return;
    };
    let number = tokio::select! {
        _ = interrupt.recv() => 2_u8,
        _ = terminate.recv() => 15,
    };
    told.store(number, Ordering::Relaxed);
    cancel.cancel();
    // Who asks twice is not kept waiting, and nobody is by a read that never ends.
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        () = tokio::time::sleep(LONGEST_END) => {}
    }
    std::process::exit(i32::from(128 + number));
}
