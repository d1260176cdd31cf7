use std::fs::File;
use std::io::{self, IsTerminal, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::context::unless_cancelled;
use super::make_payload::is_stream;
use super::registry_options::RegistryOptions;
use super::{CliError, Context, dry_run, output};
use crate::digest::Digest;
use crate::import::{ImportError, ImportReport, Naming, Source, SparseIndex};
use crate::library::{self, named, plan_source, push_source};
use crate::payload::{BILL_HEADER_LEN, Start};
use crate::read_at::LocalFile;
use crate::storage::{ObjectAccess, StorageError};

/// Push a payload into a registry
///
/// Prints the images that are whole in the registry, one a line, when everything is done. An image
/// that cannot be whole gets no tag, and the exit status is 1.
// The docstrings are the help that people read at a terminal.
#[allow(clippy::doc_markdown)]
#[derive(Debug, Args)]
pub(super) struct PushPayload {
    /// The payload: a file, or an object such as s3://BUCKET/KEY; standard input if it is not given
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Push nothing unless everything can be pushed and is there that was said to be already transferred
    #[arg(short, long)]
    strict: bool,
    /// Print what would be pushed and what is missing, and push nothing: the registry is only asked what it has
    #[arg(long)]
    dry_run: bool,
    /// Put this in front of every repository
    #[arg(long, value_name = "PREFIX")]
    prefix: Option<String>,
    /// How images are called in the registry
    #[arg(long, value_enum, default_value_t, value_name = "NAMING")]
    naming: NamingOption,
    /// Look here, too, for what the payload leaves out; may be repeated
    #[arg(long, value_name = "REPOSITORY", value_delimiter = ',')]
    base_repository: Vec<String>,
    /// Give no tag to images that were named by their digest alone; registries collect what has none
    #[arg(long)]
    no_digest_tags: bool,
    /// What becomes of an index that the registry refuses because images of other platforms were left out
    #[arg(long, value_enum, default_value_t, value_name = "CHOICE")]
    sparse_index: SparseIndexOption,
    /// The payload digest that the payload must have, or nothing is pushed
    #[arg(long, value_name = "DIGEST")]
    expected_digest: Option<Digest>,
    #[command(flatten)]
    registry: RegistryOptions,
}

/// The values of `--naming`.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum NamingOption {
    /// As whoever built the payload wrote it, without its host
    #[default]
    AsWritten,
    /// The same with `library/` spelled out
    Canonical,
    /// The full name, host included
    WithHost,
}

impl From<NamingOption> for Naming {
    fn from(option: NamingOption) -> Self {
        match option {
            NamingOption::AsWritten => Self::AsWritten,
            NamingOption::Canonical => Self::Canonical,
            NamingOption::WithHost => Self::WithHost,
        }
    }
}

/// The values of `--sparse-index`.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum SparseIndexOption {
    /// It keeps its digest, and its image fails
    #[default]
    Keep,
    /// It is written anew without them, and its digest changes
    Rewrite,
}

impl From<SparseIndexOption> for SparseIndex {
    fn from(option: SparseIndexOption) -> Self {
        match option {
            SparseIndexOption::Keep => Self::Keep,
            SparseIndexOption::Rewrite => Self::Rewrite,
        }
    }
}

impl PushPayload {
    pub(super) async fn run(self, context: &Context) -> Result<(), CliError> {
        if self.file.is_none() && self.registry.reads_stdin() {
            let why =
                "standard input cannot carry both the password and the payload: name the payload with --file";
            return Err(CliError::Usage(why.to_owned()));
        }
        let options = library::PushPayload {
            file: self.file.clone().unwrap_or_default(),
            object_store: ObjectAccess::default(),
            strict: self.strict,
            prefix: self.prefix,
            naming: self.naming.into(),
            base_repositories: self.base_repository,
            no_digest_tags: self.no_digest_tags,
            sparse_index: self.sparse_index.into(),
            expected_digest: self.expected_digest,
            registry: self.registry.read(context).await?,
            progress: context.progress(),
            cancel: context.cancel(),
        };
        let (name, input) = Input::of(self.file, &options.cancel).await?;
        let failed = |error| of_source(&name, error);
        if self.dry_run {
            let plan = plan_source(&options, input.source(&options)).await.map_err(failed)?;
            return dry_run::tell_import(&plan, self.strict);
        }
        tell(&push_source(&options, input.source(&options)).await.map_err(failed)?)
    }
}

/// Prints what is whole; what is not makes the command fail.
fn tell(report: &ImportReport) -> Result<(), CliError> {
    // An image that the payload only names, and that is not there, was told of in a warning.
    let (incomplete, whole): (Vec<_>, Vec<_>) = report.images.iter().partition(|image| image.is_incomplete());
    for image in whole {
        output::line(&image.name)?;
    }
    let mut failures = incomplete.into_iter().filter_map(|image| image.failure.as_ref()).peekable();
    if failures.peek().is_none() { Ok(()) } else { Err(CliError::of_failures(failures)) }
}

/// An error with the name of what was read, where it is about that.
fn of_source(name: &str, error: library::Error) -> CliError {
    match error {
        library::Error::Import(ImportError::Payload(error)) => CliError::Failed(format!("{name}: {error}")),
        other => other.into(),
    }
}

const STDIN: &str = "standard input";

/// Where the payload comes from.
enum Input {
    /// The one that the options name.
    Named,
    /// A file, read by position.
    File(File),
    /// A payload of Charon's, as it comes.
    Stream(io::Chain<io::Cursor<Vec<u8>>, File>),
}

impl Input {
    /// What is to be read, with its name for messages.
    async fn of(file: Option<PathBuf>, cancel: &CancellationToken) -> Result<(String, Self), CliError> {
        let Some(path) = file else {
            return Ok((STDIN.to_owned(), Self::stdin(cancel).await?));
        };
        let name = path.display().to_string();
        if !is_stream(&path) {
            return Ok((name, Self::Named));
        }
        // A pipe opens when somebody opens its other end.
        let opened = unless_cancelled(cancel, move || File::open(path)).await?;
        let opened = opened.map_err(|error| CliError::Failed(format!("cannot read {name}: {error}")))?;
        let input = Self::of_stream(opened, &name, cancel).await?;
        Ok((name, input))
    }

    /// Standard input; a file is read by position.
    async fn stdin(cancel: &CancellationToken) -> Result<Self, CliError> {
        let stdin = io::stdin();
        if stdin.is_terminal() {
            let why = "no payload: name a file with --file, or redirect standard input";
            return Err(CliError::Usage(why.to_owned()));
        }
        let failed = |error: io::Error| CliError::Failed(format!("cannot read {STDIN}: {error}"));
        let input = stdin.as_fd().try_clone_to_owned().map(File::from).map_err(failed)?;
        if input.metadata().map_err(failed)?.is_file() {
            return Ok(Self::File(input));
        }
        Self::of_stream(input, STDIN, cancel).await
    }

    /// A pipe: a payload of Charon's is read as it comes, and one of docker-charon's from a file that
    /// has no name, since its table of contents comes last.
    async fn of_stream(mut input: File, name: &str, cancel: &CancellationToken) -> Result<Self, CliError> {
        let failed = |error: io::Error| CliError::Failed(format!("cannot read {name}: {error}"));
        // The bill's name tells the two apart; so much of the stream is held for it.
        let (start, input) = unless_cancelled(cancel, move || {
            let mut start = vec![0; BILL_HEADER_LEN];
            let length = read_up_to(&mut input, &mut start)?;
            start.truncate(length);
            Ok((start, input))
        })
        .await?
        .map_err(failed)?;
        let is_docker_charons = matches!(Start::of(&start), Ok(Start::OtherZip));
        let stream = io::Cursor::new(start).chain(input);
        if !is_docker_charons {
            return Ok(Self::Stream(stream));
        }
        info!(
            "Storing {name} in {}: a docker-charon payload cannot be read as it comes",
            std::env::temp_dir().display()
        );
        let spooled = unless_cancelled(cancel, move || spool(stream)).await?;
        let spooled = spooled.map_err(|error| {
            let folder = std::env::temp_dir();
            CliError::Failed(format!(
                "cannot store {name} in {}: {error}; name another folder with TMPDIR, or the payload with --file",
                folder.display()
            ))
        })?;
        Ok(Self::File(spooled))
    }

    async fn source(self, options: &library::PushPayload) -> Result<Source, library::Error> {
        Ok(match self {
            Self::Named => named(options).await?,
            Self::File(file) => {
                let file = LocalFile::new(Arc::new(file));
                let file = file.map_err(|error| StorageError::io("read", STDIN.as_ref(), error))?;
                Source::At(Arc::new(file))
            }
            Self::Stream(stream) => {
                let (start, input) = stream.into_inner();
                let input = tokio::fs::File::from_std(input);
                Source::Stream(Box::new(tokio::io::AsyncReadExt::chain(start, input)))
            }
        })
    }
}

fn read_up_to(input: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match input.read(&mut buffer[length..])? {
            0 => break,
            read => length += read,
        }
    }
    Ok(length)
}

/// A stream's bytes in a file that is gone when it is closed.
fn spool(mut stream: impl Read) -> io::Result<File> {
    let mut file = tempfile::tempfile()?;
    io::copy(&mut stream, &mut file)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}
