use std::io::{self, Write};

use indicatif::ProgressBar;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

use super::{CliError, LogFormat, Verbosity};
use crate::progress::STEP;

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

/// Standard error, with the progress bar out of the way.
#[derive(Clone)]
struct BesideBar(ProgressBar);

impl Write for BesideBar {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        let lines = text.split('\n').map(printable).collect::<Vec<_>>().join("\n");
        self.0.suspend(|| io::stderr().write_all(lines.as_bytes()))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl<'a> MakeWriter<'a> for BesideBar {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Sends what the program says while it works to standard error.
pub(super) fn log(verbosity: &Verbosity, is_service: bool, bar: &ProgressBar) {
    // What a library finds wrong is told by our own error, with what was being done.
    let others = if is_service { "info" } else { "off" };
    let level = match verbosity {
        Verbosity { quiet: true, .. } => format!("{others},charon=warn"),
        // The bar tells what the lines of the steps would.
        Verbosity { verbose: 0, .. } if !bar.is_hidden() => format!("{others},charon=info,{STEP}=off"),
        Verbosity { verbose: 0, .. } => format!("{others},charon=info"),
        Verbosity { verbose: 1, .. } => format!("{others},charon=debug"),
        _ => "debug".to_owned(),
    };
    let filter = EnvFilter::try_from_env("CHARON_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_target(false)
        .with_writer(BesideBar(bar.clone()));
    // It can only be set once, and this is the one place where it is.
    let _ = match verbosity.log_format {
        LogFormat::Json => log.json().flatten_event(true).try_init(),
        LogFormat::Text if is_service => log.try_init(),
        LogFormat::Text => log.event_format(Messages).try_init(),
    };
}

/// Names come from files and registries: no terminal takes orders from them.
pub(super) fn printable(line: &str) -> String {
    line.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

/// Says what went wrong, a line a failure, and for whoever wants more its causes below it.
pub(super) fn error(error: &CliError, verbosity: &Verbosity) {
    let mut stderr = io::stderr().lock();
    let mut say = |before: &str, text: &str| {
        for line in text.lines().map(printable) {
            match verbosity.log_format {
                LogFormat::Json => tracing::error!("{line}"),
                // Nobody is left to be told that standard error is closed.
                LogFormat::Text => drop(writeln!(stderr, "{before}{line}")),
            }
        }
    };
    let CliError::Caused(failures) = error else { return say("error: ", &error.to_string()) };
    for (failure, causes) in failures {
        say("error: ", failure);
        for cause in causes.iter().filter(|_| verbosity.verbose > 0) {
            say("  caused by: ", cause);
        }
    }
}

/// Says a result, on standard output.
pub(super) fn line(text: &str) -> Result<(), CliError> {
    let text = text.lines().map(printable).collect::<Vec<_>>().join("\n");
    writeln!(io::stdout().lock(), "{text}").map_err(|error| cannot_write("to standard output", &error))
}

/// That something cannot be written, and what to do about it.
pub(super) fn cannot_write(what: &str, error: &io::Error) -> CliError {
    let advice = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "make room where it goes",
        io::ErrorKind::BrokenPipe => "the program that reads it has ended: see what it said",
        io::ErrorKind::NotFound => "does the folder exist?",
        _ => "check where it goes, and who may write there",
    };
    CliError::Failed(format!("cannot write {what}: {error}; {advice}"))
}

/// How wide a column is.
pub(super) fn width<'a>(heading: &str, texts: impl Iterator<Item = &'a str>) -> usize {
    texts.map(|text| text.chars().count()).max().unwrap_or(0).max(heading.len())
}

/// A table of the images that cannot be had, with the reasons; nothing, if there are none.
pub(super) fn not_to_be_had<'a>(images: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<String> {
    let images: Vec<_> = images.collect();
    if images.is_empty() {
        return Vec::new();
    }
    let width = width("NOT TO BE HAD", images.iter().map(|(name, _)| *name));
    let mut lines = vec![String::new(), format!("{:width$}  REASON", "NOT TO BE HAD")];
    lines.extend(images.into_iter().map(|(name, reason)| format!("{name:width$}  {reason}")));
    lines
}

/// A number of things.
pub(super) fn count(number: usize, thing: &str) -> String {
    if number == 1 { format!("1 {thing}") } else { format!("{number} {thing}s") }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_terminal_takes_no_orders_from_names() {
        assert_eq!(super::printable("a\u{1b}[2Jb\tc"), "a\u{fffd}[2Jb\tc");
    }
}
