//! What an earlier attempt left where the payload goes.

use std::collections::HashMap;
use std::sync::Arc;

use tracing::warn;

use super::journal::{Journal, Notes};
use super::plan::Plan;
use super::resolve::Library;
use super::{BuildError, BuildRequest, known_manifests};
use crate::payload::{Contents, Remains};
use crate::read_at::LocalFile;
use crate::reason::Class;
use crate::storage::{FileLook, Left, StorageError, StoredObject};

/// The manifests that were read for an object are kept in one of this name while planning waits.
const MANIFESTS: &str = ".partial.manifests";
/// In base64, with their digests.
const MANIFESTS_LIMIT: usize = 128 << 20;

/// What an earlier attempt left.
#[derive(Debug, Default)]
pub(super) struct Earlier {
    /// What it noted.
    pub(super) notes: Option<Notes>,
    /// The payload's beginning.
    pub(super) remains: Option<Remains>,
    /// The upload of an object that it had begun.
    pub(super) upload: Option<Left>,
}

impl Earlier {
    /// What is in the partial file of a payload, and in the journal beside it.
    pub(super) fn in_file(look: &FileLook) -> Self {
        let partial = look.partial.as_ref().and_then(|partial| LocalFile::new(Arc::clone(partial)).ok());
        let remains = partial.and_then(|partial| Remains::of(Arc::new(partial)));
        Self { notes: Notes::read(&look.journal), remains, upload: None }
    }

    /// What lies beside `object`.
    pub(super) async fn beside(object: &StoredObject) -> Result<Self, StorageError> {
        let upload = Left::of(object).await?;
        let planning = object.beside(MANIFESTS)?.read(MANIFESTS_LIMIT).await?;
        let planning = planning.and_then(|(bytes, _)| Notes::parse(bytes.as_ref()));
        let notes = match (&upload, planning) {
            (None, planning) => planning,
            (Some(upload), planning) => Some(Notes {
                run: upload.run().to_owned(),
                payload: Some(upload.payload().clone()),
                have: HashMap::new(),
                manifests: planning.map(|notes| notes.manifests).unwrap_or_default(),
            }),
        };
        let head = upload.as_ref().and_then(|upload| upload.head.clone());
        let remains = head.and_then(|head| Remains::of(Arc::new(head)));
        Ok(Self { notes, remains, upload })
    }

    /// The plan of an earlier attempt of the same run.
    pub(super) fn adopted(&self, request: &BuildRequest) -> Option<(Plan, Contents)> {
        let known = self.notes.as_ref().and_then(|notes| Some((notes.run.as_str(), notes.payload.as_ref()?)));
        super::adopt(request, known, self.remains.as_ref())
    }

    /// Plans a payload for `object`. What an earlier attempt read of manifests is not read again, and what was read is noted
    /// for the next one where the registries ask for patience.
    pub(super) async fn plan(
        &self,
        request: &BuildRequest,
        object: &StoredObject,
    ) -> Result<(Plan, Contents), BuildError> {
        let manifests = known_manifests(self.notes.as_ref(), self.remains.as_ref());
        let known = self.notes.iter().flat_map(|notes| notes.manifests.values());
        let noted = Journal::in_memory(&request.run).and_then(|(journal, told)| {
            known.clone().try_for_each(|manifest| journal.note_manifest(manifest))?;
            Ok((journal, told))
        });
        let (journal, told) = noted.ok().unzip();
        let planned = super::plan(request, Library { manifests, journal }).await;
        let kept = object.beside(MANIFESTS)?;
        match (&planned, told) {
            (Err(error), Some(told)) if error.reason().class() == Class::Wait => {
                let written = match told() {
                    Ok(bytes) => kept.write(bytes.into()).await.map_err(|error| error.to_string()),
                    Err(error) => Err(error.to_string()),
                };
                // Without them all is read once more: nothing worse.
                if let Err(error) = written {
                    warn!("{error}; the next attempt reads all manifests again");
                }
            }
            // The upload's beginning has them from here on.
            (Ok(_), _) if known.count() > 0 => kept.remove().await?,
            _ => {}
        }
        planned
    }
}
