//! The program as a plugin of kubectl's, which runs `kubectl-charon` for `kubectl charon`.

use std::ffi::OsStr;
use std::io::{self, IsTerminal, Write};
use std::path::Path;

use clap::{CommandFactory, Parser, Subcommand};
use jiff::Timestamp;

use super::context::Context;
use super::{CliError, Verbosity, output};
use crate::plugin::{self, Get, Lookout, PluginError, Put, Runs, StatusArgs};

/// The name that makes the program a plugin.
const NAME: &str = "kubectl-charon";

/// Carry payloads out of claims and into them, and watch all runs.
///
/// It works with your kubeconfig and your rights; docs/kubectl-charon.md lists what it takes.
#[derive(Debug, Parser)]
#[command(name = NAME, bin_name = "kubectl charon", version, arg_required_else_help = true, max_term_width = 100)]
pub(super) struct Kubectl {
    #[command(flatten)]
    pub(super) verbosity: Verbosity,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Get(Get),
    Put(Put),
    Status(StatusArgs),
}

/// Whether a program of this name is the plugin.
pub(super) fn is_called(program: &OsStr) -> bool {
    Path::new(program).file_stem().is_some_and(|name| name == NAME)
}

pub(super) fn command() -> clap::Command {
    Kubectl::command().args_override_self(true)
}

impl Kubectl {
    /// Whether something moves whose progress can be shown.
    pub(super) fn has_bar(&self) -> bool {
        !matches!(self.command, Command::Status(_))
    }

    pub(super) async fn run(self, context: &Context) -> Result<(), CliError> {
        let (progress, cancel) = (context.progress(), context.cancel());
        let (sha256, name) = match self.command {
            Command::Get(get) => plugin::get(&get, &progress, &cancel).await?,
            Command::Put(put) => plugin::put(&put, &progress, &cancel).await?,
            Command::Status(status) => return show(&status, context).await,
        };
        context.bar().finish_and_clear();
        output::line(&format!("{}  {name}", sha256.hex()))
    }
}

async fn show(args: &StatusArgs, context: &Context) -> Result<(), CliError> {
    let lookout = Lookout::new(args).await?;
    let mut runs = lookout.look().await?;
    let with_namespaces = args.all_namespaces;
    if io::stdout().is_terminal() {
        let _screen = Screen::open().map_err(|error| cannot_write(&error))?;
        let draw = |runs: &Runs, wrong: Option<&str>| {
            draw(runs, with_namespaces, wrong).map_err(|error| PluginError::Failed(error.to_string()))
        };
        runs = lookout.follow(runs, &context.cancel(), draw).await?;
    }
    let table = runs.table(Timestamp::now(), with_namespaces);
    if table.is_empty() {
        tracing::info!("there is no PayloadBuild and no PayloadImport in {}", lookout.place());
        return Ok(());
    }
    output::line(&table.lines().join("\n"))
}

/// The terminal's other screen, for as long as this lives: what stood there before is there afterwards.
struct Screen;

impl Screen {
    fn open() -> io::Result<Self> {
        write("\x1b[?1049h\x1b[?25l")?;
        Ok(Self)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Nobody is left to be told where the terminal is gone.
        let _ = write("\x1b[?25h\x1b[?1049l");
    }
}

fn draw(runs: &Runs, with_namespaces: bool, wrong: Option<&str>) -> io::Result<()> {
    let size = rustix::termios::tcgetwinsize(io::stdout());
    let (columns, lines) = size.map_or((80, 24), |size| (size.ws_col.into(), usize::from(size.ws_row)));
    let below = wrong.map(|wrong| format!("the API server does not answer: {wrong}"));
    let table = runs.table(Timestamp::now(), with_namespaces);
    let table = table.screen(columns, lines.saturating_sub(usize::from(below.is_some())));
    let below = below.iter().map(|below| below.chars().take(columns).collect());
    let lines: Vec<_> = table.into_iter().chain(below).map(|line| output::printable(&line)).collect();
    write(&format!("\x1b[H{}\x1b[K\x1b[J", lines.join("\x1b[K\r\n")))
}

fn write(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

fn cannot_write(error: &io::Error) -> CliError {
    output::cannot_write("to standard output", error)
}

impl From<PluginError> for CliError {
    fn from(error: PluginError) -> Self {
        match error {
            PluginError::Failed(message) => Self::Failed(message),
            PluginError::Cancelled => Self::Interrupted,
        }
    }
}
