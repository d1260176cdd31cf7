//! What an earlier attempt left of a payload, and what of that counts.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use tracing::info;

use super::journal::Notes;
use super::plan::{BlobPlan, Plan};
use super::{BuildRequest, contents};
use crate::digest::Digest;
use crate::payload::{BillImage, Contents, Remains};
use crate::read_at::{LocalFile, ReadAt as _};
use crate::registry::Manifest;

/// What an earlier attempt left: of this run or of another one that wrote the same file.
#[derive(Debug, Default)]
pub(super) struct Left {
    /// What it noted.
    pub(super) notes: Option<Notes>,
    /// The payload's beginning.
    pub(super) remains: Option<Remains>,
}

/// What of the blobs of a payload is there.
#[derive(Debug, Default)]
pub(super) struct Had {
    /// How many bytes of each, by what was noted.
    pub(super) have: HashMap<Digest, u64>,
    /// Where, if not each at its place: in the partial file of another payload.
    pub(super) elsewhere: Option<Remains>,
}

impl Had {
    /// The bytes of each of these blobs that is there in part or as a whole.
    pub(super) fn of<'a>(&'a self, blobs: &'a [BlobPlan]) -> impl Iterator<Item = u64> {
        let there = blobs.iter().filter_map(|blob| Some((*self.have.get(&blob.digest)?).min(blob.size)));
        there.filter(|bytes| *bytes > 0)
    }
}

impl Left {
    /// Reads what lies in a partial file and the journal beside it. It waits for the disk.
    pub(super) fn read(partial: Option<&Arc<File>>, journal: &Path) -> Self {
        let partial = partial.and_then(|partial| LocalFile::new(Arc::clone(partial)).ok());
        let mut notes = Notes::read(journal);
        if let (Some(notes), true) = (&mut notes, partial.as_ref().is_none_or(|partial| partial.size() == 0))
        {
            notes.have.clear();
        }
        let remains = partial.and_then(|partial| Remains::of(Arc::new(partial)));
        Self { notes, remains }
    }

    /// Whether there is a journal.
    pub(super) fn has_journal(&self) -> bool {
        self.notes.is_some()
    }

    /// The plan of an earlier attempt of the same run: no registry is asked what a tag means, since it could mean
    /// something else by now.
    pub(super) fn adopt(&self, request: &BuildRequest) -> Option<(Plan, Contents)> {
        let (notes, remains) = (self.notes.as_ref()?, self.remains.as_ref()?);
        if notes.run != request.run || *notes.payload.as_ref()? != remains.digest {
            return None;
        }
        let plan = Plan::of_remains(remains)?;
        let contents = contents(&plan).ok()?;
        if *contents.digest() != remains.digest {
            return None;
        }
        info!("Going on with what an earlier attempt left of payload {}", contents.digest());
        Some((plan, contents))
    }

    /// The manifests that it had read.
    pub(super) fn manifests(&self) -> HashMap<Digest, Manifest> {
        let mut manifests = self.notes.as_ref().map(|notes| notes.manifests.clone()).unwrap_or_default();
        if let Some(remains) = &self.remains {
            let images = remains.bill.images.iter();
            let had = images.flat_map(BillImage::all_manifests).filter_map(|(digest, media_type)| {
                let (digest, media_type) = (digest.clone(), media_type.to_owned());
                let bytes = remains.manifests.get(&digest)?.clone();
                Some((digest.clone(), Manifest { bytes, digest, media_type }))
            });
            manifests.extend(had);
        }
        manifests
    }

    /// What of it is of use for a payload. What the notes say holds for the payload that they were made of, which may be
    /// another one with the same blobs.
    pub(super) fn had(self, payload: &Digest) -> Had {
        let (have, elsewhere) = match (self.notes, self.remains) {
            (Some(notes), _) if notes.payload.as_ref() == Some(payload) => (notes.have, None),
            (Some(notes), Some(remains)) if notes.payload.as_ref() == Some(&remains.digest) => {
                (notes.have, Some(remains))
            }
            _ => (HashMap::new(), None),
        };
        Had { have, elsewhere }
    }
}
