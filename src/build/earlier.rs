//! What an earlier attempt left of a payload in an object, and the manifests that this one leaves to the next.

use std::collections::HashMap;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{Either, select};
use tracing::{debug, warn};

use super::BuildError;
use super::journal::{Journal, ManifestNotes, Noted, Notes};
use super::left::Left;
use super::resolve::ManifestCache;
use crate::payload::Remains;
use crate::reason::Class;
use crate::storage::{self, StorageError, StoredObject};

/// The manifests that were read for an object are kept in one of this name until the upload's beginning has them.
const MANIFESTS: &str = ".partial.manifests";
/// In base64, with their digests.
const MANIFESTS_LIMIT: usize = 128 << 20;
/// What is read is kept so often while a payload is planned: a kill loses no more.
const EVERY: Duration = Duration::from_secs(2);

/// What an earlier attempt left.
#[derive(Debug)]
pub(super) struct Earlier {
    /// What it noted, and the payload's beginning.
    pub(super) left: Left,
    /// The upload that it had begun.
    pub(super) upload: Option<storage::Left>,
    /// Whether it kept manifests.
    keeps_manifests: bool,
}

impl Earlier {
    /// What lies beside `object`.
    pub(super) async fn beside(object: &StoredObject) -> Result<Self, StorageError> {
        let upload = storage::Left::of(object).await?;
        let kept = object.beside(MANIFESTS)?.read(MANIFESTS_LIMIT).await?;
        let keeps_manifests = kept.is_some();
        let planning = kept.and_then(|(bytes, _)| Notes::parse(bytes.as_ref()));
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
        Ok(Self { left: Left { notes, remains }, upload, keeps_manifests })
    }

    /// The manifests that need not be read any more for run `run`; and who keeps them and those that are read from now on.
    pub(super) fn manifests(
        &self,
        run: &str,
        object: &StoredObject,
    ) -> Result<(ManifestCache, Keeper), StorageError> {
        let known = self.left.notes.iter().flat_map(|notes| notes.manifests.values());
        let begun = Journal::in_memory(run).and_then(|(journal, noted)| {
            known.into_iter().try_for_each(|manifest| journal.note_manifest(manifest))?;
            let kept = noted.length()?;
            Ok((ManifestNotes::Begun(journal), (noted, kept)))
        });
        // Without them all is read once more: nothing worse.
        let (journal, noted) = begun.ok().unzip();
        let cache = ManifestCache { manifests: self.left.manifests(), notes: journal.unwrap_or_default() };
        Ok((cache, Keeper { object: object.beside(MANIFESTS)?, is_there: self.keeps_manifests, noted }))
    }
}

/// Keeps the manifests that are read for an object in another one, until they are in the beginning of its upload.
#[derive(Debug)]
pub(super) struct Keeper {
    object: StoredObject,
    /// Whether there is such an object.
    is_there: bool,
    /// What was noted, and how many bytes of that are kept.
    noted: Option<(Noted, u64)>,
}

impl Keeper {
    /// Does `work`, and keeps meanwhile what it reads.
    pub(super) async fn during<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            if let Either::Left((done, _)) = select(work.as_mut(), pin!(tokio::time::sleep(EVERY))).await {
                return done;
            }
            // A write that was begun comes to its end: nothing of it arrives behind what follows.
            let kept = match select(work.as_mut(), pin!(self.keep())).await {
                Either::Left((done, keeping)) => {
                    let _ = keeping.await;
                    return done;
                }
                Either::Right((kept, _)) => kept,
            };
            if let Err(error) = kept {
                debug!("{error}");
            }
        }
    }

    /// Writes what was noted, if there is more than is kept.
    async fn keep(&mut self) -> Result<(), StorageError> {
        let Some((noted, kept)) = &mut self.noted else { return Ok(()) };
        let read = |kept: u64| -> io::Result<_> {
            let length = noted.length()?;
            Ok(if length > kept { Some((length, noted.bytes(length)?)) } else { None })
        };
        if let Some((length, bytes)) = read(*kept).map_err(|error| self.object.failed("write", &error))? {
            self.object.write(bytes.into()).await?;
            (*kept, self.is_there) = (length, true);
        }
        Ok(())
    }

    /// What becomes of them when the upload has begun, or `error` came before. What may pass comes again, and need not
    /// read again what was read.
    pub(super) async fn settle(mut self, error: Option<&BuildError>) {
        if error.is_none_or(|error| error.reason().class() == Class::Final) {
            if self.is_there
                && let Err(error) = self.object.remove().await
            {
                warn!("{error}");
            }
            return;
        }
        match self.keep().await {
            Ok(()) if self.is_there => warn!(
                "the manifests that were read are kept in {}, for the next attempt; remove it if there is to be none",
                self.object.location()
            ),
            Ok(()) => {}
            Err(error) => warn!("{error}; the next attempt reads all manifests again"),
        }
    }
}
