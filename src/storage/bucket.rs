use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures::TryStreamExt as _;
use object_store::path::Path;
use object_store::{Error, GetOptions, ObjectStoreExt as _, PutMode, PutPayload, UpdateVersion};
use tokio::time::Instant;
use tracing::debug;

use super::access::{Store, connect};
use super::{ObjectAccess, StorageError, refusal};
use crate::backoff;
use crate::object_location::ObjectLocation;
use crate::reason::Reason;

/// An object of a store, there or to be.
#[derive(Clone)]
pub struct StoredObject {
    pub(super) store: Arc<dyn Store>,
    location: ObjectLocation,
    pub(super) path: Path,
    /// Whether this store ever answered.
    answered: Arc<AtomicBool>,
}

impl fmt::Debug for StoredObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StoredObject").field(&self.location).finish_non_exhaustive()
    }
}

/// How long is tried: for one thing that is to be done.
pub(super) struct Tries {
    answered: Arc<AtomicBool>,
    /// What is tried with.
    location: ObjectLocation,
    /// The first failure since the last success, and how many there were.
    failing: Option<(Instant, u32)>,
}

impl StoredObject {
    /// The object at `location`. The store is not asked yet.
    pub fn new(location: ObjectLocation, access: &ObjectAccess) -> Result<Self, StorageError> {
        let store = connect(&location, access)?;
        let path = path(&location)?;
        Ok(Self { store, location, path, answered: Arc::default() })
    }

    /// Where it is.
    #[must_use]
    pub fn location(&self) -> &ObjectLocation {
        &self.location
    }

    /// The object whose key has `suffix` at its end.
    pub fn beside(&self, suffix: &str) -> Result<Self, StorageError> {
        let location = self.location.beside(suffix);
        Ok(Self { path: path(&location)?, location, ..self.clone() })
    }

    /// Its bytes and its version; `None` if there is none. One of more than `limit` bytes is an error.
    pub async fn read(&self, limit: usize) -> Result<Option<(Bytes, UpdateVersion)>, StorageError> {
        let read = self.persist(|| async {
            let found = self.store.get_opts(&self.path, GetOptions::default()).await?;
            let version =
                UpdateVersion { e_tag: found.meta.e_tag.clone(), version: found.meta.version.clone() };
            let mut bytes = Vec::new();
            let mut body = found.into_stream();
            while let Some(chunk) = body.try_next().await? {
                if bytes.len() + chunk.len() > limit {
                    return Ok(None);
                }
                bytes.extend_from_slice(&chunk);
            }
            Ok(Some((Bytes::from(bytes), version)))
        });
        match read.await {
            Ok(None) => Err(StorageError::TooLong(self.location.to_string(), limit)),
            Ok(read) => Ok(read),
            Err(error) if refusal::is_absent(&error) => Ok(None),
            Err(error) => Err(self.told("read", &error)),
        }
    }

    /// Writes it anew, whatever is there.
    pub async fn write(&self, bytes: Bytes) -> Result<(), StorageError> {
        let written = self.persist(|| self.put(bytes.clone(), PutMode::Overwrite)).await;
        written.map(drop).map_err(|error| self.told("write", &error))
    }

    /// Removes it, if it is there.
    pub async fn remove(&self) -> Result<(), StorageError> {
        match self.persist(|| self.store.delete(&self.path)).await {
            Err(error) if !refusal::is_absent(&error) => Err(self.told("remove", &error)),
            _ => Ok(()),
        }
    }

    pub(super) async fn put(&self, bytes: Bytes, mode: PutMode) -> Result<UpdateVersion, Error> {
        let put = self.store.put_opts(&self.path, PutPayload::from(bytes), mode.into()).await?;
        Ok(put.into())
    }

    /// Does what may fail in passing until it is done, or it is to no use.
    pub(super) async fn persist<T, F: Future<Output = Result<T, Error>>>(
        &self,
        work: impl Fn() -> F,
    ) -> Result<T, Error> {
        let mut tries = self.tries();
        loop {
            match work().await {
                Ok(done) => {
                    tries.succeeded();
                    return Ok(done);
                }
                Err(error) => tries.after(error).await?,
            }
        }
    }

    pub(super) fn tries(&self) -> Tries {
        Tries { answered: Arc::clone(&self.answered), location: self.location.clone(), failing: None }
    }

    pub(super) fn told(&self, doing: &'static str, error: &Error) -> StorageError {
        refusal::told(doing, &self.location, error)
    }

    /// What failed on this side.
    pub(crate) fn failed(&self, doing: &'static str, error: &dyn std::error::Error) -> StorageError {
        StorageError::Object {
            doing,
            location: self.location.to_string(),
            problem: error.to_string(),
            hint: String::new(),
            reason: Reason::WorkerFailed,
        }
    }
}

impl Tries {
    pub(super) fn succeeded(&mut self) {
        self.answered.store(true, Ordering::Relaxed);
        self.failing = None;
    }

    /// Waits before the next try; gives the error back if there is to be none.
    pub(super) async fn after(&mut self, error: Error) -> Result<(), Error> {
        if !refusal::is_passing(&error) {
            return Err(error);
        }
        let patience = if self.answered.load(Ordering::Relaxed) {
            backoff::ONCE_MOVING
        } else {
            backoff::BEFORE_ANYTHING_MOVED
        };
        let (since, count) = self.failing.unwrap_or((Instant::now(), 0));
        let pause = backoff::pause(count + 1, backoff::FIRST_PAUSE, backoff::LONGEST_PAUSE);
        if since.elapsed() + pause > patience {
            return Err(error);
        }
        self.failing = Some((since, count + 1));
        debug!(%error, tries = count + 1, ?pause, "{}: trying again", self.location);
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

fn path(location: &ObjectLocation) -> Result<Path, StorageError> {
    Path::parse(&location.key)
        .map_err(|error| refusal::unusable(location, format!("its key is refused: {error}")))
}
