//! Bytes that are read by position, wherever they lie.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;

/// One read brings so many bytes of a stream. It is hashed while it is in the processor's cache, and several wait for a
/// connection to take them.
const CHUNK: usize = 64 << 10;

/// Bytes at positions: a file, an object of a store.
pub trait ReadAt: fmt::Debug + Send + Sync {
    /// How many bytes there are.
    fn size(&self) -> u64;

    /// Fills `buffer` with the bytes from `offset` on. It may wait for a network: not to be called by what must not block.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// The bytes of `range`, as they come.
    fn stream(&self, range: Range<u64>) -> BoxStream<'static, io::Result<Bytes>>;
}

/// A file of this machine, whose size is the one that it had when it was opened.
#[derive(Clone, Debug)]
pub struct LocalFile {
    file: Arc<File>,
    size: u64,
}

impl LocalFile {
    /// A file that is open.
    pub fn new(file: Arc<File>) -> io::Result<Self> {
        let size = file.metadata()?.len();
        Ok(Self { file, size })
    }
}

impl ReadAt for LocalFile {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn stream(&self, range: Range<u64>) -> BoxStream<'static, io::Result<Bytes>> {
        let file = Arc::clone(&self.file);
        let mut offset = range.start;
        let chunks = futures::stream::poll_fn(move |_| {
            if offset >= range.end {
                return std::task::Poll::Ready(None);
            }
            let length = CHUNK.min(usize::try_from(range.end - offset).unwrap_or(CHUNK));
            let mut chunk = vec![0; length];
            // So short a read of a local file takes less time than a hop to another thread.
            let read = file.read_exact_at(&mut chunk, offset).map(|()| Bytes::from(chunk));
            offset = if read.is_ok() { offset + length as u64 } else { range.end };
            std::task::Poll::Ready(Some(read))
        });
        chunks.boxed()
    }
}

impl ReadAt for Bytes {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = start.checked_add(buffer.len()).and_then(|end| self.get(start..end));
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn stream(&self, range: Range<u64>) -> BoxStream<'static, io::Result<Bytes>> {
        let place = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX).min(self.len());
        let bytes = self.slice(place(range.start)..place(range.end));
        futures::stream::iter([Ok(bytes)]).boxed()
    }
}
