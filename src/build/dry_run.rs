//! What a build would do, told before it does anything.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::earlier::Earlier;
use super::file::needs;
use super::left::{Had, Left};
use super::resolve::ManifestCache;
use super::{BuildError, BuildRequest, Output, blocking, missing_failure, plan, whole};
use crate::digest::Digest;
use crate::progress::{Progress, Stage};
use crate::reason::Failure;
use crate::reference::Host;
use crate::storage::{FileLook, StorageError, StoredPayload};

/// A payload as it would be built.
#[derive(Debug)]
pub struct BuildPlan {
    /// The payload digest.
    pub digest: Digest,
    /// The payload's exact size in bytes.
    pub size: u64,
    /// How many images it names.
    pub images: usize,
    /// The blobs that it carries.
    pub carried: Amount,
    /// What of those is there, in the payload itself, in the partial file or in parts of an object: it is not fetched again.
    pub there: Amount,
    /// The blobs that it leaves to the far side.
    pub left_out: Amount,
    /// The images that were asked for and cannot be had, where those may be left out.
    pub missing: Vec<Failure>,
    /// How many manifests have to be read, by registry; Docker Hub counts them. Looking has cost as many.
    pub manifests: BTreeMap<Host, usize>,
    /// How large the file can become, in bytes; absent for a stream and for an object.
    pub room: Option<u64>,
    full: Option<StorageError>,
}

/// Blobs, and their bytes together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// How many.
    pub blobs: usize,
    /// How many bytes.
    pub bytes: u64,
}

impl FromIterator<u64> for Amount {
    fn from_iter<I: IntoIterator<Item = u64>>(sizes: I) -> Self {
        sizes.into_iter().fold(Self::default(), |Self { blobs, bytes }, size| Self {
            blobs: blobs + 1,
            bytes: bytes.saturating_add(size),
        })
    }
}

impl BuildPlan {
    /// How many bytes have to be fetched.
    #[must_use]
    pub fn to_fetch(&self) -> u64 {
        self.carried.bytes.saturating_sub(self.there.bytes)
    }

    /// That the payload has room where it goes.
    pub fn check_room(self) -> Result<(), StorageError> {
        self.full.map_or(Ok(()), Err)
    }
}

/// Plans a build. Registries are read, and nothing is written.
pub async fn dry_run(
    request: &BuildRequest,
    output: &Output,
    progress: &Arc<Progress>,
) -> Result<BuildPlan, BuildError> {
    progress.enter(Stage::Resolving);
    let (look, left, upload) = match output {
        Output::File(path) => {
            let path = path.clone();
            let look = move || {
                let look = FileLook::at(&path)?;
                let left = Left::read(look.partial.as_ref(), &look.journal);
                Ok((look, left))
            };
            let (look, left) = blocking(look).await?;
            (Some(look), left, None)
        }
        Output::Object(object) => {
            let Earlier { left, upload, .. } = Earlier::beside(object).await?;
            (None, left, upload)
        }
        Output::Stream(_) => (None, Left::default(), None),
    };
    let (plan, contents) = match left.adopt(request) {
        Some(adopted) => adopted,
        None => {
            plan(request, ManifestCache { manifests: left.manifests(), ..ManifestCache::default() }).await?
        }
    };
    let stored = match output {
        Output::File(path) => Some(StoredPayload::File(path.clone())),
        Output::Object(object) => Some(StoredPayload::Object(object.clone())),
        Output::Stream(_) => None,
    };
    let is_there = match stored {
        Some(stored) => whole::is_said_to_be(&stored, contents.digest()).await,
        None => false,
    };
    let had = match upload.filter(|upload| upload.payload() == contents.digest()) {
        _ if is_there => Had { have: contents.blobs_up_to(contents.layout().total_size()), elsewhere: None },
        Some(upload) => Had { have: contents.blobs_up_to(upload.uploaded()), elsewhere: None },
        None if look.is_some() => left.had(contents.digest()),
        // Of another payload's parts nothing can be taken.
        None => Had::default(),
    };
    Ok(BuildPlan {
        digest: contents.digest().clone(),
        size: contents.layout().total_size(),
        images: plan.images.len(),
        carried: plan.blobs.iter().map(|blob| blob.size).collect(),
        there: had.of(&plan.blobs).collect(),
        left_out: plan.required.iter().map(|blob| blob.size).collect(),
        missing: plan.missing.iter().map(missing_failure).collect(),
        manifests: plan.reads,
        full: look.as_ref().filter(|_| !is_there).and_then(|look| look.check_room(needs(&contents)).err()),
        room: look.as_ref().map(FileLook::room),
    })
}
