//! Payload to registry: the payload is checked, blobs are pushed, manifests after them, tags last.

mod bases;
mod deliver;
mod dry_run;
mod manifests;
mod meter;
mod names;
mod presence;
mod put;
mod referrers;
mod required;
mod right;
mod sparse;
mod target;
#[cfg(test)]
mod tests;
mod turn;
mod why;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use indexmap::IndexMap;
use tokio::io::AsyncRead;
use tracing::{info, warn};

use crate::digest::Digest;
use crate::payload::{Bill, FilePayload, PayloadError, StreamPayload};
pub use crate::platform::SparseIndex;
use crate::progress::{self, Progress, Stage};
use crate::read_at::ReadAt;
use crate::reason::{self, Failure, Reason};
pub use crate::reference::{Naming, TagPolicy};
use crate::registry::{Registry, RegistryError};
use bases::Bases;
use deliver::{ASKED_AT_ONCE, Delivery};
pub use dry_run::{ImportPlan, PlannedImage, dry_run};
use names::Names;
use target::{Part, State, Target};

/// A payload to push.
#[derive(Debug)]
pub struct ImportRequest {
    /// Where it is read from.
    pub source: Source,
    /// The payload digest that it must have.
    pub expected_digest: Option<Digest>,
    /// The registry that it goes to.
    pub registry: Registry,
    /// How images are called there.
    pub naming: Naming,
    /// Goes in front of every repository.
    pub repository_prefix: Option<String>,
    /// Repositories that are looked through, too, for what the payload requires.
    pub base_repositories: Vec<String>,
    /// Whether an image that was named by its digest alone gets a tag, `charon-<32 hex digits>`.
    pub tag_digests: bool,
    /// What becomes of an index that the registry refuses because images of it were left out.
    pub sparse_index: SparseIndex,
    /// Push nothing unless everything can be pushed.
    pub strict: bool,
    /// Ask for every blob and put every manifest of the images whose tags are right already, too: the registry may have
    /// lost what is behind them.
    pub deep: bool,
    /// What becomes of tags that are there already and point to something else.
    pub tag_policy: TagPolicy,
}

/// Where a payload is read from.
pub enum Source {
    /// A file or an object, read by position.
    At(Arc<dyn ReadAt>),
    /// A stream, which passes by once.
    Stream(Box<dyn AsyncRead + Send + Unpin>),
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(source) => f.debug_tuple("At").field(source).finish(),
            Self::Stream(_) => f.write_str("Stream"),
        }
    }
}

/// A payload that was read, as far as it could be pushed.
#[derive(Clone, Debug)]
pub struct ImportReport {
    /// The payload digest; docker-charon's payloads have none.
    pub digest: Option<Digest>,
    /// The payload's size in bytes.
    pub size: u64,
    /// The payload's bill.
    pub bill: Bill,
    /// What became of each image, in payload order.
    pub images: Vec<ImportedImage>,
    /// What was moved.
    pub counts: Counts,
}

/// What became of an image.
#[derive(Clone, Debug)]
pub struct ImportedImage {
    /// Its name, as whoever built the payload wrote it.
    pub name: String,
    /// Its name at the far side, `repository:tag`.
    pub target: String,
    /// The digest that it has there instead of its own: its index was written anew without the images
    /// that had been left out, since the registry refused it as it was.
    pub rewritten: Option<Digest>,
    /// What was done about it.
    pub fate: Fate,
}

/// What is done about an image, or would be.
#[derive(Clone, Debug)]
pub enum Fate {
    /// Nothing: it is there, with all that belongs to it.
    Present,
    /// It is pushed.
    Pushed,
    /// Nothing: something else has its tag there, and was to keep it.
    Kept,
    /// Nothing: it was declared to be there as a whole, and is not, and nothing of it is in the payload.
    AbsentBase(Failure),
    /// It cannot be whole there.
    Failed(Failure),
}

impl Fate {
    /// Why the image is not whole there, if it is not.
    #[must_use]
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Present | Self::Pushed | Self::Kept => None,
            Self::AbsentBase(failure) | Self::Failed(failure) => Some(failure),
        }
    }
}

/// What an import moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Blobs that were uploaded.
    pub blobs_pushed: u32,
    /// Blobs that were mounted from another repository.
    pub blobs_mounted: u32,
    /// Blobs that were there already.
    pub blobs_present: u32,
    /// Bytes of the blobs that were uploaded.
    pub bytes_pushed: u64,
}

/// Why nothing was imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The payload is not whole, or no payload.
    #[error(transparent)]
    Payload(#[from] PayloadError),
    /// It is another payload than the one that was expected.
    #[error(
        "the payload has the digest {found}, expected was {expected}; nothing was pushed: check which file was carried over"
    )]
    WrongPayload {
        /// What was expected.
        expected: Digest,
        /// What the file has.
        found: String,
    },
    /// The registry does not answer, or not to us.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// Everything was wanted, and not everything can be had.
    #[error("nothing was pushed: {}", reason::messages(.0))]
    Strict(Vec<Failure>),
}

impl ImportError {
    /// Why, in one word.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Payload(error) => error.reason(),
            Self::WrongPayload { .. } => Reason::DigestMismatch,
            Self::Registry(error) => error.reason(),
            Self::Strict(failures) => reason::of_all(failures),
        }
    }

    /// What failed, image by image, where it can be told.
    #[must_use]
    pub fn failures(&self) -> &[Failure] {
        match self {
            Self::Strict(failures) => failures,
            _ => &[],
        }
    }
}

impl ImportReport {
    /// What went wrong, image by image.
    #[must_use]
    pub fn failures(&self) -> Vec<Failure> {
        self.images.iter().filter_map(|image| image.fate.failure()).cloned().collect()
    }
}

/// A payload that passes by.
type Passing = StreamPayload<Box<dyn AsyncRead + Send + Unpin>>;

/// A payload being read, either way.
enum Payload {
    File(Arc<FilePayload>),
    Stream(Box<Passing>),
}

impl Payload {
    async fn open(source: Source) -> Result<Self, PayloadError> {
        match source {
            Source::At(source) => Ok(Self::File(Arc::new(FilePayload::open_at(source).await?))),
            Source::Stream(stream) => Ok(Self::Stream(Box::new(Passing::open(stream).await?))),
        }
    }

    fn bill(&self) -> &Bill {
        match self {
            Self::File(payload) => payload.bill(),
            Self::Stream(payload) => payload.bill(),
        }
    }

    fn digest(&self) -> Option<&Digest> {
        match self {
            Self::File(payload) => payload.digest(),
            Self::Stream(payload) => Some(payload.digest()),
        }
    }

    fn size(&self) -> u64 {
        match self {
            Self::File(payload) => payload.size(),
            Self::Stream(payload) => payload.layout().total_size(),
        }
    }

    fn manifest(&self, digest: &Digest) -> Result<Bytes, PayloadError> {
        match self {
            Self::File(payload) => payload.manifest(digest),
            Self::Stream(payload) => payload.manifest(digest),
        }
    }

    /// After the last blob: whether the payload was whole. A file, which was checked when it was
    /// opened, can be read again.
    async fn finish(self) -> Result<Option<Arc<FilePayload>>, PayloadError> {
        match self {
            Self::File(payload) => Ok(Some(payload)),
            Self::Stream(payload) => payload.finish().await.map(|()| None),
        }
    }
}

/// Pushes a payload.
///
/// What can be complete is pushed; an image that cannot gets no tag and a failure in the report.
/// With `strict` nothing is pushed unless everything can be.
pub async fn import(request: ImportRequest, progress: &Arc<Progress>) -> Result<ImportReport, ImportError> {
    let strict = request.strict;
    let refuse = |targets: &[Target]| {
        let failures: Vec<Failure> = targets.iter().filter_map(Target::failure).cloned().collect();
        if strict && !failures.is_empty() { Err(ImportError::Strict(failures)) } else { Ok(()) }
    };
    let mut opened = Opened::new(request, progress).await?;
    opened.check().await?;
    let Opened { mut payload, digest, size, bill, bases, mut targets, delivery, .. } = opened;
    refuse(&targets)?;
    right::check(&mut targets, &delivery).await?;
    refuse(&targets)?;

    let present = delivery.expect(&bill, &targets).await;
    progress.plan(plan(digest.as_ref(), size, &bill, &targets, present));
    progress.enter(Stage::Transferring);
    delivery.blobs(&bill, &mut targets, &mut payload).await?;
    delivery.required(&bill, &mut targets, &bases).await;

    progress.enter(Stage::Finishing);
    let manifests = target::manifests(&bill, |digest| payload.manifest(digest))?;
    let file = payload.finish().await?;
    let pushed = futures::stream::iter(by_repository(&mut targets)).map(async |targets| {
        for target in targets {
            delivery.manifests(target, (&bill, &bases), &manifests, file.as_deref()).await;
        }
    });
    pushed.buffer_unordered(ASKED_AT_ONCE).collect::<()>().await;
    let images = targets
        .iter()
        .map(|target| ImportedImage {
            name: target.name.clone(),
            target: target.far_name(),
            rewritten: target.rewritten_root().cloned(),
            fate: target.fate(),
        })
        .collect();
    Ok(ImportReport { digest, size, bill, images, counts: delivery.counts() })
}

/// What is about to be pushed: all but what the registry has of it already.
fn plan(digest: Option<&Digest>, size: u64, bill: &Bill, targets: &[Target], present: u64) -> progress::Plan {
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let is_lost = |target: &&Target| matches!(target.state, State::AbsentBase(_) | State::Failed(_));
    progress::Plan {
        digest: digest.cloned(),
        size_bytes: size,
        images: count(bill.images.len()),
        images_failed: count(targets.iter().filter(is_lost).count()),
        blobs: count(bill.blobs().count()),
        blobs_reused: count(bill.required.len()),
        bytes_present: present,
        room_bytes: None,
    }
}

/// A payload that was opened, and what is to become of its images.
struct Opened {
    payload: Payload,
    digest: Option<Digest>,
    size: u64,
    bill: Bill,
    bases: Bases,
    targets: Vec<Target>,
    delivery: Arc<Delivery>,
    deep: bool,
    tag_policy: TagPolicy,
}

impl Opened {
    async fn new(request: ImportRequest, progress: &Arc<Progress>) -> Result<Self, ImportError> {
        progress.enter(Stage::Checking);
        let payload = Payload::open(request.source).await?;
        let digest = payload.digest().cloned();
        if let Some(expected) = request.expected_digest.filter(|expected| Some(expected) != digest.as_ref()) {
            let found = digest
                .map_or_else(|| "none, since docker-charon made it".to_owned(), |digest| digest.to_string());
            return Err(ImportError::WrongPayload { expected, found });
        }
        let bill = payload.bill().clone();
        let size = payload.size();
        let prefix = request.repository_prefix.as_deref();
        let names = Names::new(request.registry.host(), prefix, request.naming, request.tag_digests);
        for missing in &bill.missing {
            warn!(
                "{} is not in this payload: it could not be had when that was made ({})",
                missing.name, missing.reason
            );
        }
        let manifest = |digest: &Digest| payload.manifest(digest);
        let targets = target::targets(&bill, &names, request.sparse_index, manifest)?;
        let delivery = Arc::new(Delivery::new(request.registry, Arc::clone(progress)));
        let bases = Bases::new(&bill, &names, &targets, request.base_repositories);
        let (deep, tag_policy) = (request.deep, request.tag_policy);
        Ok(Self { payload, digest, size, bill, bases, targets, delivery, deep, tag_policy })
    }

    /// Finds out, before anything is written, what is there already and whether all is there that the
    /// payload requires.
    async fn check(&mut self) -> Result<(), ImportError> {
        let Self { bill, bases, targets, delivery, deep, tag_policy, .. } = self;
        let (deep, policy) = (*deep, *tag_policy);
        let asked = targets.iter_mut().filter(|target| !target.has_failed());
        let asked = futures::stream::iter(asked).map(|target| check_presence(target, delivery, deep, policy));
        asked.buffer_unordered(ASKED_AT_ONCE).try_collect::<()>().await?;

        let wanted = targets.iter_mut().filter(|target| target.is_wanted());
        let wanted = futures::stream::iter(wanted).map(|target| delivery.check_required(target, bill, bases));
        wanted.buffer_unordered(ASKED_AT_ONCE).try_collect::<()>().await
    }
}

/// The images of each repository, which may share manifests: an index must not be put before its images are there,
/// whoever puts them.
fn by_repository(targets: &mut [Target]) -> impl Iterator<Item = Vec<&mut Target>> {
    let mut repositories: IndexMap<String, Vec<&mut Target>> = IndexMap::new();
    for target in targets {
        repositories.entry(target.repository.clone()).or_default().push(target);
    }
    repositories.into_values()
}

/// Whether an image is there already. Where that is looked into `deep`, a tag does not prove it.
async fn check_presence(
    target: &mut Target,
    delivery: &Delivery,
    deep: bool,
    policy: TagPolicy,
) -> Result<(), ImportError> {
    let asked = target.asked();
    let mut found = delivery.registry().manifest_digest(&target.repository, &asked).await;
    // A tag that nobody may look at is not to be overwritten where one that is there is kept.
    let is_written_anyway = target.is_wanted() && (policy == TagPolicy::Overwrite || target.tag.is_none());
    if let Err(error) = &found
        && is_written_anyway
        && error.is_hidden()
    {
        warn!("{error}; some registries say so of what is not there yet, and it is taken for that");
        found = Ok(None);
    }
    match found {
        Ok(Some(found)) if target.root.as_ref().is_none_or(|root| *root == found) => {
            if deep && target.is_wanted() {
                target.state = State::Wanted(Part::BehindTag);
            } else {
                check_parts(target, delivery).await?;
            }
        }
        Ok(Some(found)) if !deep && target.would_be(&found) => {
            target.take_rewritten(delivery.host());
            check_referrers(target, delivery).await?;
        }
        Ok(_) if !target.is_wanted() => {
            let (host, repository) = (delivery.host(), &target.repository);
            warn!("{} was declared already transferred, but {host}/{repository} has no {asked}", target.name);
            target.state = State::AbsentBase(target.missing_base());
        }
        Ok(Some(found)) if !target.would_be(&found) => match policy {
            TagPolicy::Overwrite => {}
            TagPolicy::KeepExisting => {
                info!("Keeping {}, which is {found} in the destination registry", target.far_name());
                target.state = State::Kept;
            }
            TagPolicy::Fail => {
                let (host, name) = (delivery.host(), target.far_name());
                let why = format!(
                    "{host}/{name} is there already, and is {found}; delete that tag, give the image another name (spec.images[].as), or choose another tagPolicy"
                );
                target.fail(Reason::TagConflict, &why);
            }
        },
        Ok(_) => {}
        Err(error) => target.fail_or(error)?,
    }
    Ok(())
}

/// Whether all is there that the tag of an image leads to, and all that belongs to it.
async fn check_parts(target: &mut Target, delivery: &Delivery) -> Result<(), ImportError> {
    match delivery.lacks_children(target).await {
        Ok(false) => return check_referrers(target, delivery).await,
        Ok(true) => {
            info!("{} is in the destination registry, not all of its platforms are", target.far_name());
            target.state = State::Wanted(Part::BehindTag);
        }
        Err(error) => target.fail_or(error)?,
    }
    Ok(())
}

/// Whether all is there that belongs to an image which is there.
async fn check_referrers(target: &mut Target, delivery: &Delivery) -> Result<(), ImportError> {
    match delivery.lacks_referrers(target).await {
        Ok(false) => {
            info!("Skipping {} as it's already in the destination registry", target.far_name());
            target.state = State::Present;
        }
        Ok(true) => {
            info!("{} is in the destination registry, not all that belongs to it", target.far_name());
            target.state = State::Wanted(Part::Referrers);
        }
        Err(error) => target.fail_or(error)?,
    }
    Ok(())
}
