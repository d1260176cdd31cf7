//! The command line: one file a command.

mod completion;
mod context;
mod controller;
mod crds;
mod dry_run;
mod inspect;
mod kubectl;
mod make_payload;
mod man;
mod output;
mod push_payload;
mod registry_options;
mod transfer;
mod verify;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use clap::builder::FalseyValueParser;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgAction, ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::import::ImportError;
use crate::payload::FilePayload;
use crate::read_at::ReadAt;
use crate::reason::{self, Failure};
use crate::storage::{self, Location, ObjectAccess};
use crate::{library, worker};
use context::Context;

/// Carry container images into air-gapped registries in a single zip.
#[derive(Debug, Parser)]
#[command(name = "charon", version, arg_required_else_help = true, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    verbosity: Verbosity,
    #[command(subcommand)]
    command: Command,
}

/// Stands behind what each command has of its own.
const MESSAGES: &str = "Messages";

#[derive(Clone, Debug, Default, Args)]
struct Verbosity {
    /// Say only what goes wrong
    #[arg(short, long, global = true, help_heading = MESSAGES)]
    quiet: bool,
    /// Say more; twice: everything
    #[arg(short, long, global = true, action = ArgAction::Count, help_heading = MESSAGES)]
    verbose: u8,
    /// How to say it
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        value_name = "FORMAT",
        help_heading = MESSAGES
    )]
    log_format: LogFormat,
}

impl Verbosity {
    fn shows_bar(&self) -> bool {
        !self.quiet && self.log_format == LogFormat::Text
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// For people
    #[default]
    Text,
    /// For programs: one JSON object a line
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    MakePayload(Box<make_payload::MakePayload>),
    PushPayload(Box<push_payload::PushPayload>),
    Inspect(inspect::Inspect),
    Verify(verify::Verify),
    Completion(completion::Completion),
    Man(man::ManPages),
    Controller(Box<controller::ControllerArgs>),
    Crds(crds::CrdsArgs),
    /// Do one run of a PayloadBuild or PayloadImport, inside its pod
    #[command(hide = true)]
    Worker(worker::Worker),
    #[command(hide = true)]
    Transfer(transfer::Transfer),
}

impl Command {
    /// Whether it runs for people at a terminal, or as a part of the cluster.
    fn is_service(&self) -> bool {
        matches!(self, Self::Controller(_) | Self::Worker(_) | Self::Transfer(_))
    }
}

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
enum CliError {
    /// The arguments do not fit together.
    #[error("{0}")]
    Usage(String),
    /// It was tried, and it failed. Each line is one failure.
    #[error("{0}")]
    Failed(String),
    /// The same with what lies behind each failure.
    #[error("{}", .0.iter().map(|(failure, _)| failure.as_str()).collect::<Vec<_>>().join("\n"))]
    Caused(Vec<(String, Vec<String>)>),
    /// A signal ended it.
    #[error("interrupted")]
    Interrupted,
}

/// The exit status of a command that failed.
const FAILED: u8 = 1;
/// The exit status of a command line that cannot be understood.
const USAGE: u8 = 2;

impl CliError {
    fn of_failures<'a>(failures: impl IntoIterator<Item = &'a Failure>) -> Self {
        let each = failures.into_iter();
        Self::Caused(each.map(|failure| (failure.message.clone(), failure.causes.clone())).collect())
    }

    fn of_file(file: &Path, error: &impl std::error::Error) -> Self {
        Self::Failed(format!("{}: {error}", file.display()))
    }
}

/// Opens the payload that an argument names.
async fn open(file: &Path) -> Result<Arc<dyn ReadAt>, CliError> {
    let location = Location::parse(file).map_err(|error| CliError::Usage(error.to_string()))?;
    let source = storage::open(&location, &ObjectAccess::default()).await;
    source.map_err(|error| CliError::Failed(error.to_string()))
}

/// Reads what is in front of a payload's blobs.
async fn open_payload(file: &Path, source: Arc<dyn ReadAt>) -> Result<FilePayload, CliError> {
    FilePayload::open_at(source).await.map_err(|error| CliError::of_file(file, &error))
}

impl From<library::Error> for CliError {
    fn from(error: library::Error) -> Self {
        match error {
            library::Error::Usage(_) | library::Error::Reference(_) => Self::Usage(error.to_string()),
            library::Error::Cancelled => Self::Interrupted,
            library::Error::Import(ImportError::Strict(mut failures)) => {
                if let Some(first) = failures.first_mut() {
                    first.message.insert_str(0, "nothing was pushed: ");
                }
                Self::of_failures(&failures)
            }
            _ => match error.failures() {
                [] => Self::Caused(vec![(error.to_string(), reason::causes(&error))]),
                failures => Self::of_failures(failures),
            },
        }
    }
}

/// The command line. Of an option that is given twice the last counts, so that a script's own can be
/// followed by its user's.
fn command() -> clap::Command {
    let command = Cli::command().args_override_self(true).mut_args(with_variable);
    command.mut_subcommands(
        |command| {
            if command.is_hide_set() { command } else { command.mut_args(with_variable) }
        },
    )
}

/// Every option has a variable. One that is set to nothing is not set.
fn with_variable(argument: clap::Arg) -> clap::Arg {
    let Some(long) = argument.get_long() else { return argument };
    let name = format!("CHARON_{}", long.replace('-', "_").to_uppercase());
    let is_empty = std::env::var_os(&name).is_some_and(|value| value.is_empty());
    let argument = match argument.get_action() {
        ArgAction::SetTrue => argument.value_parser(FalseyValueParser::new()),
        _ => argument,
    };
    if is_empty { argument } else { argument.env(name) }
}

/// Options that exclude each other. clap's own rule would count variables, too.
const EXCLUSIVE: [[&str; 2]; 2] = [["quiet", "verbose"], ["password", "password_stdin"]];

fn check_exclusive(matches: &ArgMatches, mut command: clap::Command) {
    for names in EXCLUSIVE {
        if names.iter().all(|name| is_typed(matches, name)) {
            let [one, other] = names.map(|name| name.replace('_', "-"));
            let message = format!("the argument '--{one}' cannot be used with '--{other}'");
            command.error(ErrorKind::ArgumentConflict, message).exit();
        }
    }
}

/// Whether an option stands on the command line itself.
fn is_typed(matches: &ArgMatches, name: &str) -> bool {
    let of_command = matches.subcommand().map(|(_, of_command)| of_command);
    [Some(matches), of_command].into_iter().flatten().any(|matches| {
        matches.try_contains_id(name).is_ok() && matches.value_source(name) == Some(ValueSource::CommandLine)
    })
}

/// Says that the program cannot begin: the system gives it no threads.
#[must_use]
pub fn cannot_start(error: &std::io::Error) -> ExitCode {
    output::error(&CliError::Failed(format!("cannot start: {error}")), &Verbosity::default());
    ExitCode::from(FAILED)
}

/// Runs the program with the arguments of the process.
pub async fn main() -> ExitCode {
    if std::env::args_os().next().is_some_and(|program| kubectl::is_called(&program)) {
        return Box::pin(plugin()).await;
    }
    let matches = command().get_matches();
    check_exclusive(&matches, command());
    let mut cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    // Of an option and a variable the option counts.
    cli.verbosity.quiet &= !is_typed(&matches, "verbose");
    let is_service = cli.command.is_service();
    let context = Context::new(!is_service && cli.verbosity.shows_bar(), is_service);
    output::log(&cli.verbosity, is_service, context.bar());
    let result = match cli.command {
        Command::MakePayload(command) => Box::pin(command.run(&context)).await,
        Command::PushPayload(command) => Box::pin(command.run(&context)).await,
        Command::Inspect(command) => command.run().await,
        Command::Verify(command) => command.run(&context).await,
        Command::Completion(command) => command.run(),
        Command::Man(command) => command.run(),
        Command::Controller(command) => Box::pin(controller::run(*command)).await,
        Command::Crds(command) => crds::run(command),
        Command::Worker(worker) => return ExitCode::from(Box::pin(worker.run()).await),
        Command::Transfer(transfer) => return transfer.run().await,
    };
    end(result, &context, &cli.verbosity)
}

/// Runs the program as kubectl's plugin. kubectl's options have no variables, and neither have these.
async fn plugin() -> ExitCode {
    let matches = kubectl::command().get_matches();
    check_exclusive(&matches, kubectl::command());
    let cli = kubectl::Kubectl::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let verbosity = cli.verbosity.clone();
    let context = Context::new(cli.has_bar() && verbosity.shows_bar(), false);
    output::log(&verbosity, false, context.bar());
    let result = cli.run(&context).await;
    end(result, &context, &verbosity)
}

/// Says what went wrong; gives the exit status.
fn end(result: Result<(), CliError>, context: &Context, verbosity: &Verbosity) -> ExitCode {
    context.bar().finish_and_clear();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::error(&error, verbosity);
            ExitCode::from(match error {
                CliError::Usage(_) => USAGE,
                CliError::Failed(_) | CliError::Caused(_) => FAILED,
                CliError::Interrupted => context.signal_status(),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_well_formed() {
        super::command().debug_assert();
        super::kubectl::command().debug_assert();
    }

    /// What docs/cli.md has of the options: a table a command, made of what `--help` says.
    fn tables() -> String {
        let mut text = String::new();
        let command = super::command();
        for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
            let about = command.get_about().map(ToString::to_string).unwrap_or_default();
            let name = command.get_name();
            text.extend(["\n## charon ", name, "\n\n", &about, ".\n\n| option | meaning |\n|---|---|\n"]);
            let of_all = super::command();
            let own = command.get_arguments();
            let all = own.chain(of_all.get_arguments().filter(|argument| argument.is_global_set()));
            for argument in all.filter(|argument| !matches!(argument.get_id().as_str(), "help" | "version")) {
                text += &row(argument);
            }
        }
        text
    }

    fn row(argument: &clap::Arg) -> String {
        let names = [
            argument.get_short().map(|short| format!("-{short}")),
            argument.get_long().map(|long| format!("--{long}")),
        ];
        let mut name = names.into_iter().flatten().collect::<Vec<_>>().join(", ");
        if argument.get_action().takes_values() {
            let values = argument.get_value_names().unwrap_or_default().join(" ");
            name = if argument.is_positional() { values } else { format!("{name} {values}") };
        }
        let mut meaning =
            argument.get_help().map(ToString::to_string).unwrap_or_default().replace('|', "\\|");
        let values = argument.get_possible_values();
        let is_flag = !argument.get_action().takes_values();
        if !is_flag && !values.is_empty() && !argument.is_hide_possible_values_set() {
            let told = |value: &clap::builder::PossibleValue| {
                let help = value.get_help().map(|help| format!(": {help}")).unwrap_or_default();
                format!("`{}`{help}", value.get_name())
            };
            let values = values.iter().map(told).collect::<Vec<_>>().join("; ");
            meaning.extend([". ", &values]);
        }
        let default =
            argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect::<Vec<_>>();
        if !is_flag && !default.is_empty() {
            meaning.extend([" (default: `", &default.join(" "), "`)"]);
        }
        format!("| `{name}` | {meaning} |\n")
    }

    #[test]
    fn docs_tell_of_each_option_what_its_help_says() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/cli.md");
        let docs = std::fs::read_to_string(&path).unwrap();
        let start = docs.find("\n## charon ").expect("a heading a command");
        let expected = format!("{}{}", &docs[..start], tables());
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(&path, &expected).unwrap();
            return;
        }
        assert!(docs == expected, "docs/cli.md is not what --help says; UPDATE_DOCS=1 writes it");
    }
}
