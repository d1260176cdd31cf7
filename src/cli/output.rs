use std::io::{self, Write};

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::{CliError, Command, Verbosity};

/// People at a terminal see messages; times and levels are for those who collect the log of a service.
struct Messages;

impl<S, N> FormatEvent<S, N> for Messages
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
        match *event.metadata().level() {
            Level::ERROR => writer.write_str("error: ")?,
            Level::WARN => writer.write_str("warning: ")?,
            _ => {}
        }
        context.field_format().format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

/// Sends what the program says while it works to standard error.
pub(super) fn log(command: &Command, verbosity: &Verbosity) {
    let filter = match verbosity {
        Verbosity { quiet: true, .. } => "warn",
        Verbosity { verbose: 0, .. } => "info",
        Verbosity { verbose: 1, .. } => "charon=debug,info",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_env("CHARON_LOG").unwrap_or_else(|_| EnvFilter::new(filter));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_target(false);
    // It can only be set once, and this is the one place where it is.
    let _ = match command {
        Command::MakePayload(_) | Command::PushPayload(_) => {
            log.with_ansi(false).event_format(Messages).try_init()
        }
        Command::Worker(_) => log.with_ansi(false).try_init(),
    };
}

/// Says what went wrong, a line a failure.
pub(super) fn error(error: &CliError) {
    let mut stderr = io::stderr().lock();
    for line in error.to_string().lines() {
        // Nobody is left to be told that standard error is closed.
        let _ = writeln!(stderr, "error: {line}");
    }
}

/// Says a result, on standard output.
pub(super) fn line(text: &str) -> Result<(), CliError> {
    writeln!(io::stdout().lock(), "{text}")
        .map_err(|error| CliError::Failed(format!("cannot write to standard output: {error}")))
}
