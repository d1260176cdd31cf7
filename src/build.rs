//! Registries to payload: references become a plan, the plan becomes a file or a stream.

mod plan;
mod resolve;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use futures::TryStreamExt;
use tokio::io::{AsyncWrite, AsyncWriteExt, BufWriter};
use tracing::info;

use crate::digest::Digest;
use crate::payload::{BlobError, Contents, FORMAT_VERSION, PayloadError, PayloadWriter};
use crate::progress::{Progress, STEP, Stage};
use crate::reason::{self, Failure, Reason};
use crate::reference::{Host, Reference};
use crate::registry::{Registry, RegistryError};
use crate::storage::{FileTarget, StorageError};
use plan::Plan;

/// Bytes are gathered until there are so many: a write to a file costs a hop to another thread.
const WRITE_BUFFER: usize = 1 << 20;

/// A payload to build.
#[derive(Debug)]
pub struct BuildRequest {
    /// The images to carry.
    pub images: Vec<Reference>,
    /// Images that the far side has: what they share with `images` is not carried.
    pub already_transferred: Vec<Reference>,
    /// A client for each host that the images name.
    pub registries: HashMap<Host, Registry>,
    /// Where the payload goes.
    pub output: Output,
}

/// Where a payload goes.
pub enum Output {
    /// Into a file, which has its name only once it is whole.
    File(PathBuf),
    /// Into a stream.
    Stream(Box<dyn AsyncWrite + Send + Unpin>),
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Stream(_) => f.write_str("Stream"),
        }
    }
}

/// A payload that was built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildReport {
    /// The payload digest.
    pub digest: Digest,
    /// The payload's size in bytes.
    pub size: u64,
    /// The payload format's version.
    pub format_version: u32,
    /// How many images it names.
    pub images: usize,
    /// How many blobs it carries.
    pub blobs: usize,
    /// How many blobs it leaves to the far side.
    pub blobs_reused: usize,
}

/// Why a payload was not built. There is no file under the final name then.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Some images cannot be had.
    #[error("{}", several(.0))]
    Images(Vec<Failure>),
    /// The payload cannot be made of them.
    #[error(transparent)]
    Payload(#[from] PayloadError),
    /// The payload cannot be written.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl BuildError {
    /// Why, in one word.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Images(failures) => reason::of_all(failures),
            Self::Payload(error) => error.reason(),
            Self::Storage(error) => error.reason(),
        }
    }

    /// What failed, image by image, where it can be told.
    #[must_use]
    pub fn failures(&self) -> &[Failure] {
        match self {
            Self::Images(failures) => failures,
            Self::Payload(_) | Self::Storage(_) => &[],
        }
    }
}

fn several(failures: &[Failure]) -> String {
    failures.iter().map(|failure| failure.message.as_str()).collect::<Vec<_>>().join("\n")
}

/// Builds a payload.
///
/// Every image is resolved once, at the start. If one of them cannot be had, all are tried and all
/// failures are told, and nothing is written.
pub async fn build(request: BuildRequest, progress: &Arc<Progress>) -> Result<BuildReport, BuildError> {
    progress.enter(Stage::Resolving);
    let resolved = resolve::resolve(&request).await.map_err(BuildError::Images)?;
    let plan = Plan::new(resolved).map_err(BuildError::Images)?;
    let contents = Contents::new(&plan.images, &plan.blob_sizes(), plan.required.clone())?;

    progress.enter(Stage::Checking);
    let blobs_size = plan.blobs.iter().map(|blob| blob.size).sum();
    progress.expect(u32::try_from(plan.blobs.len()).unwrap_or(u32::MAX), blobs_size);
    let size = contents.layout().total_size();
    match request.output {
        Output::File(path) => {
            let target = FileTarget::create(&path)?;
            target.check_room(size)?;
            let file = tokio::fs::File::from_std(target.writer()?);
            let written = write(&plan, &contents, &request.registries, progress, file).await;
            let file = written.map_err(|error| match error {
                BuildError::Payload(PayloadError::Io { source, .. }) => target.error(source).into(),
                other => other,
            })?;
            // The last write may still be on its way.
            let file = file.into_std().await;
            drop(file);
            progress.enter(Stage::Finishing);
            tokio::task::spawn_blocking(move || target.finish())
                .await
                .map_err(|error| PayloadError::Io { doing: "syncing the payload", source: error.into() })??;
            info!("Wrote {}, {size} bytes, payload digest {}", path.display(), contents.digest());
        }
        Output::Stream(stream) => {
            write(&plan, &contents, &request.registries, progress, stream).await?;
            info!("Wrote the payload, {size} bytes, payload digest {}", contents.digest());
        }
    }
    Ok(BuildReport {
        digest: contents.digest().clone(),
        size,
        format_version: FORMAT_VERSION,
        images: plan.images.len(),
        blobs: plan.blobs.len(),
        blobs_reused: plan.required.len(),
    })
}

async fn write<W: AsyncWrite + Unpin>(
    plan: &Plan,
    contents: &Contents,
    registries: &HashMap<Host, Registry>,
    progress: &Progress,
    out: W,
) -> Result<W, BuildError> {
    progress.enter(Stage::Transferring);
    let out = BufWriter::with_capacity(WRITE_BUFFER, out);
    let mut writer = PayloadWriter::begin(contents, out).await?;
    for (index, blob) in plan.blobs.iter().enumerate() {
        info!(target: STEP, "[{}/{}] Pulling {}/{}", index + 1, plan.blobs.len(), blob.repository, blob.digest);
        let registry = registries.get(&blob.host).ok_or_else(|| unknown_host(&blob.host))?;
        let body = registry.blob(&blob.repository, &blob.digest, blob.size);
        let written = writer.blob(body.into_stream(), |bytes| progress.moved(bytes)).await;
        written.map_err(|error| blob_failed(plan, &blob.digest, error))?;
        progress.blob_done();
    }
    let mut out = writer.finish().await?;
    out.flush().await.map_err(|source| PayloadError::Io { doing: "writing the payload", source })?;
    Ok(out.into_inner())
}

/// A blob that cannot be had fails every image that has it.
fn blob_failed(plan: &Plan, digest: &Digest, error: BlobError<RegistryError>) -> BuildError {
    let reason = match &error {
        BlobError::Payload(_) => None,
        BlobError::Body(error) => Some(error.reason()),
        BlobError::WrongDigest { .. } | BlobError::WrongSize { .. } => Some(Reason::DigestMismatch),
    };
    match (error, reason) {
        (BlobError::Payload(error), _) => error.into(),
        (error, reason) => BuildError::Images(
            plan.images_with(digest)
                .map(|image| Failure {
                    item: image.reference.written().to_owned(),
                    reason: reason.unwrap_or(Reason::RegistryUnavailable),
                    message: format!("{}: {error}", image.reference.written()),
                })
                .collect(),
        ),
    }
}

fn unknown_host(host: &Host) -> BuildError {
    BuildError::Images(vec![Failure {
        item: host.to_string(),
        reason: Reason::InvalidSpec,
        message: format!("no access to {host} was given"),
    }])
}
