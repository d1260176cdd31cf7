use std::io;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::layout::BEFORE_ENTRIES;
use super::{Contents, PayloadError};
use crate::digest::{Digest, Hasher};

/// Writes a payload in sequence: to a pipe, into the parts of an object, to anything that takes bytes.
///
/// The blobs are asked for one after the other, by [`next_blob`](Self::next_blob), in the order of
/// the bill.
#[derive(Debug)]
pub struct PayloadWriter<'a, S> {
    contents: &'a Contents,
    sink: S,
    /// The CRC of each entry written so far.
    crcs: Vec<u32>,
    /// Where in the payload the next byte goes.
    position: u64,
    /// What is in front of this an earlier writer has written.
    from: u64,
    /// The blob that is being written.
    blob: Option<InBlob>,
}

/// Where the bytes of a payload go, in sequence.
pub trait Sink {
    /// Takes the next bytes. They do not reach over the end of a part.
    fn write(&mut self, bytes: &[u8]) -> impl Future<Output = io::Result<()>> + Send;

    /// The size of each part but the last, in bytes, where the sink divides what it takes into parts.
    fn part_size(&self) -> Option<u64> {
        None
    }

    /// A part is full; `sums` are what another writer needs to go on from here.
    fn part(&mut self, sums: Sums) -> impl Future<Output = io::Result<()>> + Send {
        drop(sums);
        async { Ok(()) }
    }

    /// There are no more bytes.
    fn flush(&mut self) -> impl Future<Output = io::Result<()>> + Send;
}

impl<W: AsyncWrite + Send + Unpin> Sink for W {
    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes).await
    }

    async fn flush(&mut self) -> io::Result<()> {
        AsyncWriteExt::flush(self).await
    }
}

/// What a writer must know of the bytes before a place to go on there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sums {
    /// The CRC of each blob that is whole.
    crcs: Vec<u32>,
    /// Those of the blob that is being written.
    blob: Option<BlobSums>,
}

/// What is known of the first bytes of a blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct BlobSums {
    crc: u32,
    /// The hasher's state, in base64.
    hasher: String,
}

#[derive(Debug)]
struct InBlob {
    hasher: Hasher,
    crc: crc32fast::Hasher,
    /// So many bytes of it are written.
    have: u64,
}

/// Why a blob did not get into a payload.
#[derive(Debug, thiserror::Error)]
pub enum BlobError<E> {
    /// The blob could not be had.
    #[error(transparent)]
    Body(E),
    /// What came is not what was asked for.
    #[error(
        "the bytes of {digest} have the digest {found}; leave the image out, or push it anew where it comes from"
    )]
    WrongDigest {
        /// What was asked for.
        digest: Digest,
        /// What the bytes have.
        found: Digest,
    },
    /// What came has another length.
    #[error(
        "{digest} has {found} bytes, and the manifest says {size}; leave the image out, or push it anew where it comes from"
    )]
    WrongSize {
        /// What was asked for.
        digest: Digest,
        /// What the manifest says.
        size: u64,
        /// What came, as far as it was read.
        found: u64,
    },
    /// The payload could not be written.
    #[error(transparent)]
    Payload(PayloadError),
}

impl<'a, S: Sink> PayloadWriter<'a, S> {
    /// Writes what is in front of the first blob.
    pub async fn begin(contents: &'a Contents, sink: S) -> Result<Self, PayloadError> {
        let mut writer = Self::new(contents, sink, 0);
        writer.write_inline().await?;
        Ok(writer)
    }

    /// Goes on behind the `from` bytes that an earlier writer of the same payload has written, whose sums there were
    /// `sums`; an error if they were not. The bytes are trusted: who reads the payload later finds out.
    pub async fn go_on(
        contents: &'a Contents,
        sink: S,
        from: u64,
        sums: &Sums,
    ) -> Result<Self, PayloadError> {
        let mut writer = Self::new(contents, sink, from);
        writer.write_inline().await?;
        for crc in &sums.crcs {
            let end = writer.next_blob().map(|(_, size)| writer.data_offset().saturating_add(size));
            if end.is_none_or(|end| end > from) {
                return Err(contradiction());
            }
            writer.write_header().await?;
            writer.position = end.unwrap_or(from);
            writer.end_blob(*crc).await?;
        }
        if let Some(sums) = &sums.blob {
            let (digest, size) = writer.next_blob().ok_or_else(contradiction)?;
            let state = BASE64_STANDARD.decode(&sums.hasher).ok();
            let hasher = state.and_then(|state| digest.hasher_at(&state)).ok_or_else(contradiction)?;
            let have = from.checked_sub(writer.data_offset()).filter(|have| *have <= size);
            let have = have.ok_or_else(contradiction)?;
            writer.write_header().await?;
            writer.position = from;
            writer.blob = Some(InBlob { hasher, crc: crc32fast::Hasher::new_with_initial(sums.crc), have });
        }
        // Of a blob that is not begun, the header may be written, in part or whole. The directory, which may be written in
        // part, comes when all blobs are done.
        let is_begun = writer.blob.is_some() || writer.next_blob().is_none();
        let is_behind = !is_begun && from > writer.data_offset();
        if is_behind || from > contents.layout().total_size() {
            return Err(contradiction());
        }
        Ok(writer)
    }

    fn new(contents: &'a Contents, sink: S, from: u64) -> Self {
        let crcs = Vec::with_capacity(contents.layout().entries().len());
        Self { contents, sink, crcs, position: 0, from, blob: None }
    }

    /// The next blob that [`blob`](Self::blob) takes.
    #[must_use]
    pub fn next_blob(&self) -> Option<(&'a Digest, u64)> {
        let entry = self.contents.bill().entries.get(self.crcs.len().checked_sub(BEFORE_ENTRIES)?)?;
        Some((&entry.digest, entry.size))
    }

    /// How many bytes of it an earlier writer has written.
    #[must_use]
    pub fn have(&self) -> u64 {
        self.blob.as_ref().map_or(0, |blob| blob.have)
    }

    /// Writes the next blob from `body`, which must give exactly its bytes, those aside that it [has](Self::have);
    /// `moved` hears of them.
    ///
    /// After an error the payload cannot be completed any more.
    pub async fn blob<E>(
        &mut self,
        body: impl Stream<Item = Result<Bytes, E>>,
        moved: impl Fn(u64),
    ) -> Result<(), BlobError<E>> {
        let Some((digest, size)) = self.next_blob() else {
            return Ok(());
        };
        if self.blob.is_none() {
            self.write_header().await.map_err(BlobError::Payload)?;
            let (hasher, crc) = (digest.hasher(), crc32fast::Hasher::new());
            self.blob = Some(InBlob { hasher, crc, have: 0 });
        }
        let mut body = std::pin::pin!(body);
        while let Some(chunk) = body.next().await {
            let mut chunk = chunk.map_err(BlobError::Body)?;
            let found = self.have().saturating_add(chunk.len() as u64);
            if found > size {
                return Err(BlobError::WrongSize { digest: digest.clone(), size, found });
            }
            let length = chunk.len() as u64;
            while !chunk.is_empty() {
                // The sums are to be those at the end of a part.
                let piece = chunk.split_to(chunk.len().min(self.left_of_part()));
                if let Some(blob) = &mut self.blob {
                    blob.hasher.update(&piece);
                    blob.crc.update(&piece);
                    blob.have += piece.len() as u64;
                }
                self.write(&piece).await.map_err(BlobError::Payload)?;
            }
            moved(length);
        }
        let Some(InBlob { hasher, crc, have }) = self.blob.take() else {
            return Ok(());
        };
        if have != size {
            return Err(BlobError::WrongSize { digest: digest.clone(), size, found: have });
        }
        let found = hasher.finish();
        if found != *digest {
            return Err(BlobError::WrongDigest { digest: digest.clone(), found });
        }
        self.end_blob(crc.finalize()).await.map_err(BlobError::Payload)
    }

    /// Writes the directory, flushes, and gives the sink back. All blobs must have been written.
    pub async fn finish(mut self) -> Result<S, PayloadError> {
        debug_assert_eq!(self.crcs.len(), self.contents.layout().entries().len());
        let tail = self.contents.layout().tail(&self.crcs);
        self.write(&tail).await?;
        self.sink.flush().await.map_err(PayloadError::writing)?;
        Ok(self.sink)
    }

    /// What another writer needs to go on from here.
    fn sums(&self) -> Sums {
        let is_blob = |index: &usize| self.contents.inline(*index).is_none();
        let blob = self.blob.as_ref().map(|blob| BlobSums {
            crc: blob.crc.clone().finalize(),
            hasher: BASE64_STANDARD.encode(blob.hasher.state()),
        });
        Sums { crcs: (0..self.crcs.len()).filter(is_blob).map(|index| self.crcs[index]).collect(), blob }
    }

    fn data_offset(&self) -> u64 {
        self.contents.layout().entries()[self.crcs.len()].data_offset()
    }

    async fn write_header(&mut self) -> Result<(), PayloadError> {
        let header = self.contents.layout().entries()[self.crcs.len()].local_header(0);
        self.write(&header).await
    }

    /// Writes what is behind a blob, up to the next one.
    async fn end_blob(&mut self, crc: u32) -> Result<(), PayloadError> {
        let descriptor = self.contents.layout().entries()[self.crcs.len()].data_descriptor(crc);
        // From here on its sum is among those of the whole ones.
        self.crcs.push(crc);
        self.write(&descriptor).await?;
        self.write_inline().await
    }

    /// Writes the entries that are in memory, up to the next blob.
    async fn write_inline(&mut self) -> Result<(), PayloadError> {
        while let Some(bytes) = self.contents.inline(self.crcs.len()) {
            let crc = crc32fast::hash(bytes);
            let header = self.contents.layout().entries()[self.crcs.len()].local_header(crc);
            self.write(&header).await?;
            self.write(bytes).await?;
            self.crcs.push(crc);
        }
        Ok(())
    }

    /// How many bytes the part takes that the next byte goes into.
    fn left_of_part(&self) -> usize {
        let left = self.sink.part_size().map(|size| size - self.position % size);
        left.and_then(|left| usize::try_from(left).ok()).unwrap_or(usize::MAX)
    }

    async fn write(&mut self, mut bytes: &[u8]) -> Result<(), PayloadError> {
        let written = self.from.saturating_sub(self.position);
        let written = usize::try_from(written).map_or(bytes.len(), |written| written.min(bytes.len()));
        self.position += written as u64;
        bytes = &bytes[written..];
        while !bytes.is_empty() {
            let (piece, rest) = bytes.split_at(bytes.len().min(self.left_of_part()));
            self.sink.write(piece).await.map_err(PayloadError::writing)?;
            self.position += piece.len() as u64;
            bytes = rest;
            if self.sink.part_size().is_some_and(|size| self.position.is_multiple_of(size)) {
                self.sink.part(self.sums()).await.map_err(PayloadError::writing)?;
            }
        }
        Ok(())
    }
}

fn contradiction() -> PayloadError {
    let why = "what an earlier attempt noted is of another payload";
    PayloadError::writing(io::Error::new(io::ErrorKind::InvalidData, why))
}
