//! What a build would do, told before it does anything.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::file::needs;
use super::left::Left;
use super::resolve::Library;
use super::{BuildError, BuildRequest, Output, blocking, missing_failure, plan};
use crate::digest::Digest;
use crate::progress::{Progress, Stage};
use crate::reason::Failure;
use crate::reference::Host;
use crate::storage::{FileLook, StorageError};

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
    /// What of those an earlier attempt left in the partial file: it is hashed again, and not fetched.
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
    let (look, left) = match output {
        Output::File(path) => {
            let path = path.clone();
            let look = move || {
                let look = FileLook::at(&path)?;
                let left = Left::read(look.partial.as_ref(), &look.journal);
                Ok((look, left))
            };
            blocking(look).await.map(|(look, left)| (Some(look), Some(left)))?
        }
        Output::Object(_) | Output::Stream(_) => (None, None),
    };
    let adopted = left.as_ref().and_then(|left| left.adopt(request));
    let (plan, contents) = if let Some(adopted) = adopted {
        adopted
    } else {
        let manifests = left.as_ref().map(Left::manifests).unwrap_or_default();
        plan(request, Library { manifests, journal: None }).await?
    };
    let had = left.map(|left| left.had(contents.digest()));
    Ok(BuildPlan {
        digest: contents.digest().clone(),
        size: contents.layout().total_size(),
        images: plan.images.len(),
        carried: plan.blobs.iter().map(|blob| blob.size).collect(),
        there: had.iter().flat_map(|had| had.of(&plan.blobs)).collect(),
        left_out: plan.required.iter().map(|blob| blob.size).collect(),
        missing: plan.missing.iter().map(missing_failure).collect(),
        manifests: plan.reads,
        full: look.as_ref().and_then(|look| look.check_room(needs(&contents)).err()),
        room: look.as_ref().map(FileLook::room),
    })
}
