//! The commands `get` and `put`.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use indicatif::DecimalBytes;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::near::{self, Incoming, Placed};
use super::resource::{self, BuildName};
use super::session::Session;
use super::wire::{Prefix, hash};
use super::{Cluster, PluginError};
use crate::digest::Digest;
use crate::payload::FilePayload;
use crate::progress::Progress;
use crate::read_at::{LocalFile, ReadAt as _};
use crate::storage::StorageError;

/// Get the payload of a PayloadBuild out of its claim
///
/// A short-lived pod reads it there. What an earlier attempt left in FILE.partial is compared and kept. The sha256 of the
/// file is printed as sha256sum does.
// The docstrings are the help that people read at a terminal.
#[allow(clippy::doc_markdown)]
#[derive(Clone, Debug, Args)]
pub struct Get {
    /// The PayloadBuild, such as pbuild/app-1.4; it must be ready
    #[arg(value_name = "pbuild/NAME")]
    build: BuildName,
    /// Where the payload goes; by default its own name, here
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The image of the pod: Charon's, with /charon in it; by default that of the run
    #[arg(long)]
    image: Option<String>,
    #[command(flatten)]
    cluster: Cluster,
}

/// Put a payload into a claim
///
/// A short-lived pod writes it there, under NAME.partial until it is whole and has the right sha256: an import that waits for
/// it never sees a part. What an earlier attempt left is compared and kept. The sha256 of the file is printed as sha256sum does.
// The docstrings are the help that people read at a terminal.
#[allow(clippy::doc_markdown)]
#[derive(Clone, Debug, Args)]
pub struct Put {
    /// The payload
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The claim: a PersistentVolumeClaim of the namespace
    #[arg(long, value_name = "CLAIM")]
    pvc: String,
    /// The payload's path in the volume; by default the file's name
    #[arg(long, value_name = "PATH")]
    path: Option<String>,
    /// Replace another payload that has the path; what is no payload is never replaced
    #[arg(long)]
    replace: bool,
    /// The image of the pod: Charon's, with /charon in it; by default that of an import that reads the claim, else of the last run of the
    /// namespace
    #[arg(long)]
    image: Option<String>,
    #[command(flatten)]
    cluster: Cluster,
}

/// Does what `get` says; gives the file's sha256 and its name.
pub async fn get(
    args: &Get,
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<(Digest, String), PluginError> {
    let (client, namespace) = args.cluster.connect().await?;
    let built = args.build.find(&client, &namespace).await?;
    let image = args.image.as_deref();
    let model = resource::model(&client, &namespace, image, &built.status, &built.worker).await?;
    let from = &built.claim.path;
    let output = args.output.clone().unwrap_or_else(|| from.rsplit('/').next().unwrap_or(from).into());
    let shown = output.display().to_string();
    let here = here(&output, built.expected.size).await?;
    let mut session = Session::new(client, namespace, model, built.claim.claim_name.clone(), true);
    if let Some(here) = here {
        let same = session.transfer(progress, cancel, async |wire| near::is_same(wire, from, &here).await);
        if Box::pin(same).await? {
            info!("{shown} is there already, and is the same");
            return Ok((here.sha256, shown));
        }
        return Err(another(&output));
    }
    let opened = Incoming::open(output, built.expected).await;
    let mut incoming = opened.map_err(|error| PluginError::new(error.to_string()))?;
    let got = session.transfer(progress, cancel, async |wire| incoming.get(wire, from, progress).await);
    let sha256 = Box::pin(got).await?;
    let size = incoming.size();
    incoming.finish().await.map_err(|error| PluginError::new(error.to_string()))?;
    info!("{}", moved("got", progress, size));
    Ok((sha256, shown))
}

/// Does what `put` says; gives the file's sha256 and its name.
pub async fn put(
    args: &Put,
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<(Digest, String), PluginError> {
    let source = open_payload(&args.file).await?;
    let path = match (&args.path, args.file.file_name()) {
        (Some(path), _) => path.clone(),
        (None, Some(name)) => name.to_string_lossy().into_owned(),
        (None, None) => return Err(PluginError::new(format!("{} has no name", args.file.display()))),
    };
    let (client, namespace) = args.cluster.connect().await?;
    let image = args.image.as_deref();
    let model = resource::model_for_claim(&client, &namespace, image, &args.pvc).await?;
    let mut session = Session::new(client, namespace, model, args.pvc.clone(), false);
    let put = session.transfer(progress, cancel, async |wire| {
        near::put(wire, &source, &path, args.replace, progress).await
    });
    let placed = Box::pin(put).await?;
    let shown = format!("{}/{path}", args.pvc);
    Ok(match placed {
        Placed::Sent(sha256) => {
            info!("{}", moved("sent", progress, source.size()));
            (sha256, shown)
        }
        Placed::AlreadyThere(sha256) => {
            info!("{shown} is there already, and is the same");
            (sha256, shown)
        }
    })
}

fn moved(done: &str, progress: &Progress, size: u64) -> String {
    let moved = progress.snapshot().bytes_done;
    match size.saturating_sub(moved) {
        0 => format!("{done} {}", DecimalBytes(size)),
        there => format!("{done} {}; {} were there from before", DecimalBytes(moved), DecimalBytes(there)),
    }
}

/// The file that has the name already, if it may be the one that is wanted.
async fn here(path: &Path, size: u64) -> Result<Option<Prefix>, PluginError> {
    let failed = |error| PluginError::new(StorageError::io("read", path, error).to_string());
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed)?,
    };
    let local = LocalFile::new(Arc::new(file)).map_err(failed)?;
    if local.size() != size {
        return Err(another(path));
    }
    let hashed = tokio::task::spawn_blocking(move || hash(&local, size)).await.map_err(io::Error::from);
    let sha256 = hashed.and_then(std::convert::identity).map_err(failed)?.finish();
    Ok(Some(Prefix { bytes: size, sha256 }))
}

/// A file would have to give way.
fn another(path: &Path) -> PluginError {
    PluginError::new(format!(
        "{} is there, and is another file; move it away, or name another one with --output",
        path.display()
    ))
}

async fn open_payload(path: &Path) -> Result<LocalFile, PluginError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(PluginError::new(StorageError::SourceNotFound(path.to_owned()).to_string()));
        }
        opened => opened.and_then(|file| LocalFile::new(Arc::new(file))),
    };
    let file = file.map_err(|error| PluginError::new(StorageError::io("read", path, error).to_string()))?;
    let payload = FilePayload::open_at(Arc::new(file.clone())).await;
    payload.map_err(|error| PluginError::new(format!("{}: {error}", path.display())))?;
    Ok(file)
}
