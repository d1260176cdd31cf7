//! What an earlier attempt left of a payload in an object.

use std::collections::HashMap;
use std::sync::Arc;

use tracing::warn;

use super::journal::{Journal, Notes};
use super::left::Left;
use super::plan::Plan;
use super::resolve::Library;
use super::{BuildError, BuildRequest};
use crate::payload::{Contents, Remains};
use crate::reason::Class;
use crate::storage::{self, StorageError, StoredObject};

/// The manifests that were read for an object are kept in one of this name while planning waits.
const MANIFESTS: &str = ".partial.manifests";
/// In base64, with their digests.
const MANIFESTS_LIMIT: usize = 128 << 20;

/// What an earlier attempt left.
#[derive(Debug)]
pub(super) struct Earlier {
    /// What it noted, and the payload's beginning.
    pub(super) left: Left,
    /// The upload that it had begun.
    pub(super) upload: Option<storage::Left>,
}

impl Earlier {
    /// What lies beside `object`.
    pub(super) async fn beside(object: &StoredObject) -> Result<Self, StorageError> {
        let upload = storage::Left::of(object).await?;
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
        Ok(Self { left: Left { notes, remains }, upload })
    }

    /// Plans a payload for `object`. What an earlier attempt read of manifests is not read again, and what was read is noted
    /// for the next one where the registries ask for patience.
    pub(super) async fn plan(
        &self,
        request: &BuildRequest,
        object: &StoredObject,
    ) -> Result<(Plan, Contents), BuildError> {
        let manifests = self.left.manifests();
        let known = self.left.notes.iter().flat_map(|notes| notes.manifests.values());
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
