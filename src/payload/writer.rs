use bytes::Bytes;
use futures::{Stream, StreamExt};
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::layout::BEFORE_ENTRIES;
use super::{Contents, PayloadError};
use crate::digest::Digest;

/// Writes a payload in sequence: to a file, a pipe, anything that takes bytes.
///
/// The blobs are asked for one after the other, by [`next_blob`](Self::next_blob), in the order of
/// the bill.
#[derive(Debug)]
pub struct PayloadWriter<'a, W> {
    contents: &'a Contents,
    out: W,
    /// The CRC of each entry written so far.
    crcs: Vec<u32>,
}

/// Why a blob did not get into a payload.
#[derive(Debug, thiserror::Error)]
pub enum BlobError<E> {
    /// The blob could not be had.
    #[error(transparent)]
    Body(E),
    /// What came is not what was asked for.
    #[error("the bytes of {digest} have the digest {found}")]
    WrongDigest {
        /// What was asked for.
        digest: Digest,
        /// What the bytes have.
        found: Digest,
    },
    /// What came has another length.
    #[error("{digest} has {found} bytes, and the manifest says {size}")]
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

impl<'a, W: AsyncWrite + Unpin> PayloadWriter<'a, W> {
    /// Writes what is in front of the first blob.
    pub async fn begin(contents: &'a Contents, out: W) -> Result<Self, PayloadError> {
        let mut writer = Self { contents, out, crcs: Vec::with_capacity(contents.layout().entries().len()) };
        writer.write_inline().await?;
        Ok(writer)
    }

    /// The next blob that [`blob`](Self::blob) takes.
    #[must_use]
    pub fn next_blob(&self) -> Option<(&'a Digest, u64)> {
        let entry = self.contents.bill().entries.get(self.crcs.len().checked_sub(BEFORE_ENTRIES)?)?;
        Some((&entry.digest, entry.size))
    }

    /// Writes the next blob from `body`, which must give exactly its bytes; `moved` hears of them.
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
        let layout = &self.contents.layout().entries()[self.crcs.len()];
        self.write(&layout.local_header(0)).await.map_err(BlobError::Payload)?;
        let mut hasher = digest.hasher();
        let mut crc = crc32fast::Hasher::new();
        let mut found = 0_u64;
        let mut body = std::pin::pin!(body);
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(BlobError::Body)?;
            found += chunk.len() as u64;
            if found > size {
                break;
            }
            hasher.update(&chunk);
            crc.update(&chunk);
            self.write(&chunk).await.map_err(BlobError::Payload)?;
            moved(chunk.len() as u64);
        }
        if found != size {
            return Err(BlobError::WrongSize { digest: digest.clone(), size, found });
        }
        let found = hasher.finish();
        if found != *digest {
            return Err(BlobError::WrongDigest { digest: digest.clone(), found });
        }
        let crc = crc.finalize();
        self.write(&layout.data_descriptor(crc)).await.map_err(BlobError::Payload)?;
        self.crcs.push(crc);
        self.write_inline().await.map_err(BlobError::Payload)
    }

    /// Writes the directory, flushes, and gives the output back. All blobs must have been written.
    pub async fn finish(mut self) -> Result<W, PayloadError> {
        debug_assert_eq!(self.crcs.len(), self.contents.layout().entries().len());
        let tail = self.contents.layout().tail(&self.crcs);
        self.write(&tail).await?;
        self.out.flush().await.map_err(Self::io)?;
        Ok(self.out)
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

    async fn write(&mut self, bytes: &[u8]) -> Result<(), PayloadError> {
        self.out.write_all(bytes).await.map_err(Self::io)
    }

    fn io(source: std::io::Error) -> PayloadError {
        PayloadError::Io { doing: "writing the payload", source }
    }
}
