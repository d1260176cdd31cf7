//! What a build would do, told before it does anything.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::journal::Notes;
use super::resolve::ManifestCache;
use super::{BuildError, BuildRequest, Output, adopt, known_manifests, missing_failure, plan};
use crate::digest::Digest;
use crate::payload::Remains;
use crate::progress::{Progress, Stage};
use crate::read_at::LocalFile;
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
pub async fn dry_run(request: &BuildRequest, progress: &Arc<Progress>) -> Result<BuildPlan, BuildError> {
    progress.enter(Stage::Resolving);
    let look = match &request.output {
        Output::File(path) => Some(FileLook::at(path)?),
        Output::Object(_) | Output::Stream(_) => None,
    };
    let notes = look.as_ref().and_then(|look| Notes::read(&look.journal));
    let remains = look.as_ref().and_then(|look| {
        let partial = LocalFile::new(Arc::clone(look.partial.as_ref()?)).ok()?;
        Remains::of(Arc::new(partial))
    });
    let known = notes.as_ref().and_then(|notes| Some((notes.run.as_str(), notes.payload.as_ref()?)));
    let (plan, contents) = if let Some(adopted) = adopt(request, known, remains.as_ref()) {
        adopted
    } else {
        let manifests = known_manifests(notes.as_ref(), remains.as_ref());
        plan(request, ManifestCache { manifests, journal: None }).await?
    };
    // What the notes say holds for the payload that they were made of, which may be another one with the same blobs.
    let theirs = [Some(contents.digest()), remains.as_ref().map(|remains| &remains.digest)];
    let have: HashMap<Digest, u64> = match (notes, remains.is_some()) {
        (Some(notes), true) if theirs.contains(&notes.payload.as_ref()) => notes.have,
        _ => HashMap::new(),
    };
    let size = contents.layout().total_size();
    let there = plan.blobs.iter().filter_map(|blob| Some((*have.get(&blob.digest)?).min(blob.size)));
    Ok(BuildPlan {
        digest: contents.digest().clone(),
        size,
        images: plan.images.len(),
        carried: plan.blobs.iter().map(|blob| blob.size).collect(),
        there: there.filter(|bytes| *bytes > 0).collect(),
        left_out: plan.required.iter().map(|blob| blob.size).collect(),
        missing: plan.missing.iter().map(missing_failure).collect(),
        manifests: plan.reads,
        full: look.as_ref().and_then(|look| look.check_room(size).err()),
        room: look.map(|look| look.room),
    })
}
