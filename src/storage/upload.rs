//! A payload on its way into an object: an upload in parts, and the journal beside it with which another attempt goes on.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use object_store::multipart::PartId;
use object_store::{Error, PutMode, PutPayload, UpdateVersion};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::{Mutex as AsyncMutex, Semaphore};
use tokio::task::{JoinError, JoinSet};
use tokio_util::task::TaskTracker;
use tracing::warn;

use super::bucket::StoredObject;
use super::{StorageError, refusal};
use crate::digest::Digest;

/// What is in front of the blobs is kept in an object of this name until the upload is complete.
const HEAD: &str = ".partial";
const JOURNAL: &str = ".partial.journal";
const JOURNAL_VERSION: u32 = 1;
/// A journal with the tags of 9,000 parts and the sums of 100,000 blobs is far shorter.
const JOURNAL_LIMIT: usize = 16 << 20;
/// A head holds a bill and all manifests, which have limits of their own.
const HEAD_LIMIT: usize = 96 << 20;
/// No part but the last is smaller.
const SMALLEST_PART: u64 = 8 << 20;
/// Stores take 10,000 parts; some are left over.
const PARTS: u64 = 9000;
/// So many bytes are on their way at once, or one part where parts are larger: a store takes a limited number of parts, so
/// that they, and the memory that they are gathered in, grow with the largest objects.
const ON_THEIR_WAY: u64 = 16 << 20;

/// Parts that are on their way when an upload is given up are waited for so long.
const SETTLING: Duration = Duration::from_secs(30);

/// What an upload has reached, as an object of JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Journal {
    version: u32,
    /// Whoever wrote it last. Two writers tell each other apart by it.
    writer: String,
    /// What was asked for, in one word.
    run: String,
    /// The payload digest.
    payload: Digest,
    /// The store's name for the upload.
    upload: Option<String>,
    /// The size of each part but the last, in bytes.
    part_size: u64,
    /// The store's tag of each part, from the first on.
    parts: Vec<String>,
    /// The writer's sums at the end of the last of these parts.
    sums: Option<Value>,
}

/// What an earlier attempt left.
#[derive(Debug)]
pub(crate) struct Left {
    journal: Journal,
    version: UpdateVersion,
    /// The payload's beginning.
    pub(crate) head: Option<Bytes>,
}

/// An upload that was begun. What is uploaded stays in the store until it is completed or given up.
#[derive(Debug)]
pub(crate) struct Upload {
    object: StoredObject,
    journal: StoredObject,
    head: StoredObject,
    id: String,
    part_size: u64,
    /// How many parts an earlier attempt had uploaded, and its sums there.
    begun: (usize, Option<Value>),
    state: Arc<State>,
    /// The parts that are on their way.
    on_their_way: TaskTracker,
}

/// The store's tag of a part, and the writer's sums at its end.
type Part = (String, Option<Value>);

#[derive(Debug)]
struct State {
    journal: StoredObject,
    /// The parts that are uploaded, and of which the journal does not tell yet: each waits for all in front of it.
    waiting: Mutex<BTreeMap<usize, Part>>,
    /// The journal as it was written last.
    written: AsyncMutex<(Journal, Option<UpdateVersion>)>,
    /// Whether the store turned out to know no conditions.
    without_conditions: AtomicBool,
}

impl Left {
    /// Looks for what an earlier attempt left beside `object`.
    pub(crate) async fn of(object: &StoredObject) -> Result<Option<Self>, StorageError> {
        let Some((bytes, version)) = object.beside(JOURNAL)?.read(JOURNAL_LIMIT).await? else {
            return Ok(None);
        };
        let journal = serde_json::from_slice::<Journal>(&bytes).ok();
        let Some(journal) = journal.filter(|journal| journal.version == JOURNAL_VERSION) else {
            return Err(StorageError::NotAJournal(object.beside(JOURNAL)?.location().to_string()));
        };
        let head = object.beside(HEAD)?.read(HEAD_LIMIT).await?;
        Ok(Some(Self { journal, version, head: head.map(|(bytes, _)| bytes) }))
    }

    /// What was asked for, in one word.
    pub(crate) fn run(&self) -> &str {
        &self.journal.run
    }

    /// The digest of the payload that was being written.
    pub(crate) fn payload(&self) -> &Digest {
        &self.journal.payload
    }

    /// How many bytes of it are uploaded, from its beginning on.
    pub(crate) fn uploaded(&self) -> u64 {
        let parts = if self.journal.sums.is_some() { self.journal.parts.len() } else { 0 };
        self.journal.part_size.saturating_mul(parts as u64)
    }
}

impl Upload {
    /// Goes on with what an earlier attempt left of the same payload, or begins anew. From then on, whoever else writes
    /// the object is stopped.
    ///
    /// `total` is the payload's size in bytes, `head` what is in front of its blobs.
    pub(crate) async fn begin(
        object: StoredObject,
        left: Option<Left>,
        run: &str,
        payload: &Digest,
        total: u64,
        head: Bytes,
    ) -> Result<Self, StorageError> {
        let part_size = part_size(total);
        let (old, version) = left.map_or((None, None), |left| (Some(left.journal), Some(left.version)));
        let mut claim = Journal {
            version: JOURNAL_VERSION,
            writer: format!("{:016x}", fastrand::u64(..)),
            run: run.to_owned(),
            payload: payload.clone(),
            upload: None,
            part_size,
            parts: Vec::new(),
            sums: None,
        };
        let (same, other) = match old {
            Some(old) if old.payload == *payload && old.part_size == part_size => (Some(old), None),
            old => (None, old.and_then(|old| old.upload)),
        };
        if let Some(old) = same {
            let parts = if old.sums.is_some() { old.parts } else { Vec::new() };
            claim = Journal { upload: old.upload, parts, sums: old.sums, ..claim };
        }
        let upload = Self::with(object.clone(), claim, version, head).await?;
        if let Some(id) = other {
            abort(&object, &id).await;
        }
        Ok(upload)
    }

    async fn with(
        object: StoredObject,
        mut claim: Journal,
        version: Option<UpdateVersion>,
        head: Bytes,
    ) -> Result<Self, StorageError> {
        let (journal, head_object) = (object.beside(JOURNAL)?, object.beside(HEAD)?);
        let state = State {
            journal: journal.clone(),
            waiting: Mutex::default(),
            written: AsyncMutex::new((claim.clone(), version)),
            without_conditions: AtomicBool::new(false),
        };
        state.write(claim.clone()).await?;
        if claim.upload.is_none() {
            head_object.write(head).await?;
            let created = object.persist(|| object.store.create_multipart(&object.path)).await;
            claim.upload = Some(created.map_err(|error| object.told("begin to write", &error))?);
            state.write(claim.clone()).await?;
        }
        let id = claim.upload.unwrap_or_default();
        let (part_size, begun) = (claim.part_size, (claim.parts.len(), claim.sums));
        Ok(Self {
            object,
            journal,
            head: head_object,
            id,
            part_size,
            begun,
            state: Arc::new(state),
            on_their_way: TaskTracker::new(),
        })
    }

    /// The size of each part but the last, in bytes.
    pub(crate) fn part_size(&self) -> u64 {
        self.part_size
    }

    /// How many bytes an earlier attempt uploaded, and its sums there.
    pub(crate) fn begun(&self) -> Option<(u64, &Value)> {
        let (parts, sums) = &self.begun;
        Some((*parts as u64 * self.part_size, sums.as_ref()?))
    }

    /// Begins anew, without what an earlier attempt uploaded.
    pub(crate) async fn begin_anew(&self, head: Bytes) -> Result<Self, StorageError> {
        let (journal, version) = self.state.written.lock().await.clone();
        let journal = Journal { upload: None, parts: Vec::new(), sums: None, ..journal };
        let anew = Self::with(self.object.clone(), journal, version, head).await?;
        abort(&self.object, &self.id).await;
        Ok(anew)
    }

    /// Takes the bytes that are still to be uploaded.
    pub(crate) fn parts(self: &Arc<Self>) -> Parts {
        let at_once = (ON_THEIR_WAY / self.part_size).max(1);
        Parts {
            upload: Arc::clone(self),
            next: self.begun.0,
            buffer: BytesMut::new(),
            permits: Arc::new(Semaphore::new(usize::try_from(at_once).unwrap_or(1))),
            tasks: JoinSet::new(),
        }
    }

    /// Makes the object of its parts: from then on it is there. The journal stays until [`Upload::settle`].
    pub(crate) async fn complete(&self) -> Result<(), StorageError> {
        self.hold().await?;
        let told = self.state.written.lock().await.0.parts.clone();
        // The last part has no sums: the journal never tells of it.
        let last = self.state.waiting().values().map(|(tag, _)| tag.clone()).collect::<Vec<_>>();
        let tags: Vec<PartId> =
            told.into_iter().chain(last).map(|content_id| PartId { content_id }).collect();
        let complete = || self.object.store.complete_multipart(&self.object.path, &self.id, tags.clone());
        match self.object.persist(complete).await {
            Ok(_) => Ok(()),
            Err(error) if refusal::is_absent(&error) || refusal::is_without_parts(&error) => Err(self.gone()),
            Err(error) => Err(self.object.told("complete", &error)),
        }
    }

    /// That nobody else writes the object by now: who has been overtaken learns it here at the latest.
    pub(crate) async fn hold(&self) -> Result<(), StorageError> {
        let journal = self.state.written.lock().await.0.clone();
        self.state.write(journal).await
    }

    /// Removes what lies beside the object, unless it is another writer's.
    pub(crate) async fn settle(&self) -> Result<(), StorageError> {
        self.hold().await?;
        self.head.remove().await?;
        self.journal.remove().await
    }

    /// Gives it up: nothing stays in the store. Another writer may have taken it over; then all stays.
    pub(crate) async fn abort(&self) {
        if let Err(error) = self.hold().await {
            warn!("{error}");
            return;
        }
        // What arrives behind the end of an upload stays.
        self.on_their_way.close();
        let _ = tokio::time::timeout(SETTLING, self.on_their_way.wait()).await;
        abort(&self.object, &self.id).await;
        if let Err(error) = self.settle().await {
            warn!("{error}");
        }
    }

    /// Makes the next attempt ask the registries again what to fetch. What is uploaded can be of use all the same.
    pub(crate) async fn disown(&self) -> Result<(), StorageError> {
        let journal = self.state.written.lock().await.0.clone();
        self.state.write(Journal { run: String::new(), ..journal }).await
    }

    fn told(&self, ended: Result<Result<(), StorageError>, JoinError>) -> Result<(), StorageError> {
        ended.unwrap_or_else(|error| Err(self.object.failed("write a part of", &error)))
    }

    fn gone(&self) -> StorageError {
        StorageError::UploadGone(self.object.location().to_string())
    }

    async fn upload(&self, index: usize, bytes: Bytes, sums: Option<Value>) -> Result<(), StorageError> {
        let put = || {
            let payload = PutPayload::from(bytes.clone());
            self.object.store.put_part(&self.object.path, &self.id, index, payload)
        };
        let part = match self.object.persist(put).await {
            Ok(part) => part,
            Err(error) if refusal::is_absent(&error) => return Err(self.gone()),
            Err(error) => return Err(self.object.told("write a part of", &error)),
        };
        drop(bytes);
        self.state.uploaded(index, part.content_id, sums).await
    }
}

async fn abort(object: &StoredObject, id: &String) {
    match object.persist(|| object.store.abort_multipart(&object.path, id)).await {
        Ok(()) => {}
        Err(error) if refusal::is_absent(&error) => {}
        Err(error) => warn!("{}", object.told("give up the upload of", &error)),
    }
}

impl State {
    fn waiting(&self) -> MutexGuard<'_, BTreeMap<usize, Part>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a part. The journal tells of it once all before it are there, too; of the last one, which has no sums and
    /// another size, it does not.
    async fn uploaded(&self, index: usize, tag: String, sums: Option<Value>) -> Result<(), StorageError> {
        self.waiting().insert(index, (tag, sums));
        let mut written = self.written.lock().await;
        let first = written.0.parts.len();
        let mut journal = written.0.clone();
        {
            let waiting = self.waiting();
            let in_turn =
                (first..).zip(waiting.range(first..)).take_while(|(next, (index, _))| next == *index);
            for (_, (_, (tag, sums))) in in_turn {
                let Some(sums) = sums else { break };
                journal.parts.push(tag.clone());
                journal.sums = Some(sums.clone());
            }
        }
        if journal.parts.len() == first {
            return Ok(());
        }
        self.put(&mut written, journal).await?;
        let told = written.0.parts.len();
        self.waiting().retain(|index, _| *index >= told);
        Ok(())
    }

    async fn write(&self, journal: Journal) -> Result<(), StorageError> {
        let mut written = self.written.lock().await;
        self.put(&mut written, journal).await
    }

    /// Puts the journal in the place of the one that was written last, and of no other.
    async fn put(
        &self,
        written: &mut (Journal, Option<UpdateVersion>),
        journal: Journal,
    ) -> Result<(), StorageError> {
        let failed = |error: &Error| self.journal.told("write", error);
        let bytes = serde_json::to_vec(&journal);
        let bytes = Bytes::from(bytes.map_err(|error| self.journal.failed("write", &error))?);
        let mode = || match &written.1 {
            _ if self.without_conditions.load(Ordering::Relaxed) => PutMode::Overwrite,
            None => PutMode::Create,
            Some(version) => PutMode::Update(version.clone()),
        };
        let version = match self.journal.persist(|| self.journal.put(bytes.clone(), mode())).await {
            Ok(version) => version,
            Err(error) if refusal::is_without_conditions(&error) => {
                self.without_conditions.store(true, Ordering::Relaxed);
                warn!(
                    "the object store knows no conditional writes: nobody is told when two builds write {} at the same time",
                    self.journal.location()
                );
                let put = self.journal.persist(|| self.journal.put(bytes.clone(), PutMode::Overwrite)).await;
                put.map_err(|error| failed(&error))?
            }
            Err(Error::Precondition { .. } | Error::AlreadyExists { .. } | Error::NotModified { .. }) => {
                // It may be our own: the answer to a first try was lost.
                match self.journal.read(JOURNAL_LIMIT).await? {
                    Some((found, version)) if found == bytes => version,
                    _ => return Err(StorageError::Overtaken(self.journal.location().to_string())),
                }
            }
            // Another writer has ended, and removed it.
            Err(error) if written.1.is_some() && refusal::is_absent(&error) => {
                return Err(StorageError::Overtaken(self.journal.location().to_string()));
            }
            Err(error) => return Err(failed(&error)),
        };
        *written = (journal, Some(version));
        Ok(())
    }
}

/// The size of each part but the last, for an object of `total` bytes.
fn part_size(total: u64) -> u64 {
    total.div_ceil(PARTS).next_multiple_of(1 << 20).max(SMALLEST_PART)
}

/// Takes a payload's bytes in sequence, and uploads them in parts, a few at once.
#[derive(Debug)]
pub(crate) struct Parts {
    upload: Arc<Upload>,
    next: usize,
    buffer: BytesMut,
    permits: Arc<Semaphore>,
    tasks: JoinSet<Result<(), StorageError>>,
}

impl Parts {
    /// Takes the next bytes, which must end with the part at the latest.
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        if self.buffer.capacity() == 0 {
            self.buffer.reserve(usize::try_from(self.upload.part_size).unwrap_or(bytes.len()));
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The part is full, and `sums` are the writer's sums at its end; the last one needs none.
    pub(crate) async fn part(&mut self, sums: Option<Value>) -> Result<(), StorageError> {
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        while let Some(ended) = self.tasks.try_join_next() {
            self.upload.told(ended)?;
        }
        let (upload, index, bytes) = (Arc::clone(&self.upload), self.next, self.buffer.split().freeze());
        self.buffer = BytesMut::new();
        self.next += 1;
        let on_their_way = upload.on_their_way.clone();
        self.tasks.spawn(on_their_way.track_future(async move {
            let uploaded = upload.upload(index, bytes, sums).await;
            drop(permit);
            uploaded
        }));
        Ok(())
    }

    /// Uploads what is left, and waits until all is uploaded.
    pub(crate) async fn finish(mut self) -> Result<(), StorageError> {
        if !self.buffer.is_empty() {
            self.part(None).await?;
        }
        while let Some(ended) = self.tasks.join_next().await {
            self.upload.told(ended)?;
        }
        Ok(())
    }
}

impl Drop for Parts {
    /// What is on its way arrives, or does not: the upload waits for it before it is given up.
    fn drop(&mut self) {
        self.tasks.detach_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_objects_parts_are_of_one_size_and_never_too_many() {
        const GIB: u64 = 1 << 30;
        assert_eq!(part_size(1), 8 << 20);
        assert_eq!(part_size(70 * GIB), 8 << 20);
        assert_eq!(part_size(71 * GIB), 9 << 20);
        for total in [GIB, 100 * GIB, 5000 * GIB] {
            assert!(total.div_ceil(part_size(total)) <= PARTS, "{total}");
        }
    }
}
