use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt as _};
use object_store::{Error, GetOptions, GetRange, GetResult, ObjectMeta, ObjectStoreExt as _};
use tokio::runtime::Handle;

use super::bucket::{StoredObject, Tries};
use super::{StorageError, refusal};
use crate::read_at::ReadAt;
use crate::reason::Told;

/// Small reads that follow each other are one request: so many bytes come at once.
const WINDOW: u64 = 1 << 20;

/// An object of a store that is read by position. It must stay the same object meanwhile.
#[derive(Clone, Debug)]
pub struct ObjectSource {
    object: StoredObject,
    found: Arc<ObjectMeta>,
    /// The bytes that were read last, and where they begin.
    window: Arc<Mutex<(u64, Bytes)>>,
    runtime: Handle,
}

impl ObjectSource {
    /// Looks for the object.
    pub async fn open(object: StoredObject) -> Result<Self, StorageError> {
        let found = object.persist(|| object.store.head(&object.path)).await;
        let found = match found {
            Ok(found) => found,
            // An answer to HEAD does not tell why.
            Err(Error::NotFound { .. } | Error::PermissionDenied { .. }) => {
                match object.persist(|| object.store.get(&object.path)).await {
                    Ok(found) => found.meta,
                    Err(error) => return Err(missing(&object, &error)),
                }
            }
            Err(error) => return Err(object.told("read", &error)),
        };
        let (found, window) = (Arc::new(found), Arc::default());
        Ok(Self { object, found, window, runtime: Handle::current() })
    }

    async fn read(&self, range: Range<u64>) -> Result<Bytes, StorageError> {
        let read = self.object.persist(|| async { self.get(range.clone()).await?.bytes().await });
        read.await.map_err(|error| self.told(&error))
    }

    /// A range of the same object that was found at first, or nothing.
    async fn get(&self, range: Range<u64>) -> Result<GetResult, Error> {
        let options = GetOptions::new().with_range(Some(GetRange::Bounded(range)));
        let e_tag = self.found.e_tag.clone().filter(|e_tag| !e_tag.is_empty() && !e_tag.starts_with("W/"));
        let found = self.object.store.get_opts(&self.object.path, options.with_if_match(e_tag)).await?;
        // A store may have no tags, of files that somebody put into its folder.
        let told = |meta: &ObjectMeta| (meta.size, meta.last_modified, meta.e_tag.clone());
        if told(&found.meta) != told(&self.found) {
            let path = self.object.path.to_string();
            return Err(Error::Precondition { path, source: "it is another object".into() });
        }
        Ok(found)
    }

    fn told(&self, error: &Error) -> StorageError {
        match error {
            Error::Precondition { .. } => StorageError::SourceChanged(self.object.location().to_string()),
            error if refusal::is_absent(error) => missing(&self.object, error),
            error => self.object.told("read", error),
        }
    }
}

fn missing(object: &StoredObject, error: &Error) -> StorageError {
    if refusal::is_absent(error) {
        return StorageError::ObjectNotFound(object.location().to_string());
    }
    object.told("read", error)
}

impl ReadAt for ObjectSource {
    fn size(&self) -> u64 {
        self.found.size
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        if buffer.is_empty() {
            return Ok(());
        }
        let end = offset.checked_add(buffer.len() as u64).filter(|end| *end <= self.size());
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let (start, bytes) = &*window;
        let is_inside = *start <= offset && end <= start + bytes.len() as u64;
        if !is_inside {
            let until = end.max(offset.saturating_add(WINDOW)).min(self.size());
            let bytes = self.runtime.block_on(self.read(offset..until)).map_err(StorageError::into_io)?;
            *window = (offset, bytes);
        }
        let (start, bytes) = &*window;
        bytes.read_exact_at(buffer, offset - start)?;
        if buffer.len() as u64 > WINDOW {
            // It was large, and is not asked for again.
            *window = (0, Bytes::new());
        }
        Ok(())
    }

    fn stream(&self, range: Range<u64>) -> BoxStream<'static, io::Result<Bytes>> {
        let reader = Reader { source: self.clone(), left: range, tries: self.object.tries(), body: None };
        let chunks = stream::try_unfold(reader, |mut reader| async move {
            let chunk = reader.chunk().await.map_err(StorageError::into_io)?;
            Ok(chunk.map(|chunk| (chunk, reader)))
        });
        chunks.boxed()
    }
}

/// A range of an object on its way; where it is cut, it is taken up again.
struct Reader {
    source: ObjectSource,
    left: Range<u64>,
    tries: Tries,
    body: Option<BoxStream<'static, object_store::Result<Bytes>>>,
}

impl Reader {
    async fn chunk(&mut self) -> Result<Option<Bytes>, StorageError> {
        while !self.left.is_empty() {
            let error = match self.next().await {
                Ok(Some(chunk)) => {
                    self.tries.succeeded();
                    self.left.start += chunk.len() as u64;
                    return Ok(Some(chunk));
                }
                Ok(None) => {
                    let location = self.source.object.location().to_string();
                    let (missing, at) = (self.left.end - self.left.start, self.left.start);
                    return Err(StorageError::Short { location, missing, at });
                }
                Err(error) => error,
            };
            self.body = None;
            self.tries.after(error).await.map_err(|error| self.source.told(&error))?;
        }
        Ok(None)
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        if self.body.is_none() {
            self.body = Some(self.source.get(self.left.clone()).await?.into_stream());
        }
        match &mut self.body {
            Some(body) => body.next().await.transpose(),
            None => Ok(None),
        }
    }
}

impl StorageError {
    /// The same, where only an [`io::Error`] passes.
    pub(crate) fn into_io(self) -> io::Error {
        Told::io(self.reason(), self)
    }
}
