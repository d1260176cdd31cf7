use std::path::PathBuf;
use std::sync::Arc;

use tokio::io::AsyncRead;
use tokio_util::sync::CancellationToken;

use super::{Error, RegistryOptions, unless_cancelled};
use crate::digest::Digest;
use crate::import::{self, ImportPlan, ImportReport, ImportRequest, Naming, Source, SparseIndex, TagPolicy};
use crate::progress::Progress;
use crate::reference::is_repository;
use crate::storage::{self, Location, ObjectAccess};

/// A payload to push: the options of `charon push-payload`.
#[derive(Clone, Debug, Default)]
pub struct PushPayload {
    /// The file to read, or the URL of an object such as `s3://bucket/key`. [`push_payload_from`] does not look at it.
    pub file: PathBuf,
    /// How the store of an object is reached.
    pub object_store: ObjectAccess,
    /// Push nothing unless everything can be pushed.
    pub strict: bool,
    /// Goes in front of every repository.
    pub prefix: Option<String>,
    /// How images are called in the registry.
    pub naming: Naming,
    /// Repositories that are looked through, too, for what the payload leaves out.
    pub base_repositories: Vec<String>,
    /// Give no tag to images that were named by their digest alone.
    pub no_digest_tags: bool,
    /// What becomes of an index that the registry refuses because images of it were left out.
    pub sparse_index: SparseIndex,
    /// Ask for every blob of images whose tags are right already, too, and push what the registry has lost of them.
    pub deep: bool,
    /// The payload digest that the payload must have.
    pub expected_digest: Option<Digest>,
    /// How the registry is reached.
    pub registry: RegistryOptions,
    /// Told how far it is.
    pub progress: Arc<Progress>,
    /// Stops the work; what was pushed stays, without tags.
    pub cancel: CancellationToken,
}

/// Pushes the payload in a file, Charon's or docker-charon's.
///
/// An image that cannot be whole in the registry gets no tag; the report tells which and why.
pub async fn push_payload(options: &PushPayload) -> Result<ImportReport, Error> {
    push_source(options, named(options)).await
}

/// Pushes a payload as it passes by, without a temporary file.
///
/// A docker-charon payload cannot be read so, since its table of contents comes last.
pub async fn push_payload_from(
    options: &PushPayload,
    stream: impl AsyncRead + Send + Unpin + 'static,
) -> Result<ImportReport, Error> {
    push_source(options, async { Ok(Source::Stream(Box::new(stream))) }).await
}

/// What [`push_payload`] would do. The registry is asked what it has, and nothing is written.
pub async fn plan_push(options: &PushPayload) -> Result<ImportPlan, Error> {
    plan_source(options, named(options)).await
}

/// The payload that the options name.
pub(crate) async fn named(options: &PushPayload) -> Result<Source, Error> {
    let location = Location::parse(&options.file).map_err(|error| Error::Usage(error.to_string()))?;
    Ok(Source::At(storage::open(&location, &options.object_store).await?))
}

/// Pushes a payload.
pub(crate) async fn push_source(
    options: &PushPayload,
    source: impl Future<Output = Result<Source, Error>>,
) -> Result<ImportReport, Error> {
    let request = request(options, source).await?;
    let registry = request.registry.clone();
    let pushed =
        unless_cancelled(&options.cancel, Box::pin(import::import(request, &options.progress))).await;
    if matches!(pushed, Err(Error::Cancelled)) {
        registry.settle().await;
    }
    pushed
}

/// Tells what pushing it would do.
pub(crate) async fn plan_source(
    options: &PushPayload,
    source: impl Future<Output = Result<Source, Error>>,
) -> Result<ImportPlan, Error> {
    let request = request(options, source).await?;
    unless_cancelled(&options.cancel, Box::pin(import::dry_run(request, &options.progress))).await
}

/// What is wrong with the options is told before what is wrong with the payload.
async fn request(
    options: &PushPayload,
    source: impl Future<Output = Result<Source, Error>>,
) -> Result<ImportRequest, Error> {
    if let Some(other) = options.base_repositories.iter().find(|repository| !is_repository(repository)) {
        return Err(Error::Usage(format!(
            "{other:?} is no base repository: name one of the target registry, without host and tag"
        )));
    }
    let registry = unless_cancelled(&options.cancel, options.registry.client()).await?;
    let source = unless_cancelled(&options.cancel, source).await?;
    Ok(ImportRequest {
        source,
        expected_digest: options.expected_digest.clone(),
        registry,
        naming: options.naming,
        repository_prefix: options.prefix.clone(),
        base_repositories: options.base_repositories.clone(),
        tag_digests: !options.no_digest_tags,
        sparse_index: options.sparse_index,
        deep: options.deep,
        strict: options.strict,
        tag_policy: TagPolicy::Overwrite,
    })
}
