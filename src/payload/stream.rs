use std::collections::HashMap;
use std::io;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, BufReader};
use tokio::sync::mpsc;

use super::bill::{Bill, BillEntry, EntryKind};
use super::layout::BEFORE_ENTRIES;
use super::reader::{self, BILL_HEADER_LEN, Start, check_bill_header, verify};
use super::{Layout, LayoutEntry, PayloadError};
use crate::digest::Digest;

/// One read brings so many bytes of a blob.
const CHUNK: usize = 256 << 10;
/// What is small is gathered: a read of a file or a pipe costs a hop to another thread.
const READ_BUFFER: usize = 64 << 10;

/// A payload that passes by once: standard input, a pipe.
///
/// Manifests come first and are held in memory; blobs are taken one after the other with
/// [`next_blob`](Self::next_blob); [`finish`](Self::finish) tells whether the payload was whole.
#[derive(Debug)]
pub struct StreamPayload<R> {
    input: BufReader<R>,
    bill: Bill,
    digest: Digest,
    layout: Layout,
    manifests: HashMap<Digest, Bytes>,
    /// The CRC of each entry read so far.
    crcs: Vec<u32>,
    /// The first blob whose bytes were wrong, and the digest that they have.
    wrong: Option<(Digest, Digest)>,
}

impl<R: AsyncRead + Unpin> StreamPayload<R> {
    /// Reads the bill and everything in front of the first blob.
    pub async fn open(input: R) -> Result<Self, PayloadError> {
        let mut input = BufReader::with_capacity(READ_BUFFER, input);
        let mut start = vec![0; BILL_HEADER_LEN];
        let length = read_up_to(&mut input, &mut start).await?;
        let Start::Bill(bill_size) = Start::of(&start[..length])? else {
            let why = "it is a zip whose first entry is not charon.json";
            return Err(PayloadError::NotAPayload(why.to_owned()));
        };
        let mut bill_bytes = vec![0; bill_size];
        input.read_exact(&mut bill_bytes).await.map_err(ended)?;
        check_bill_header(&start, &bill_bytes)?;
        let bill = Bill::parse(&bill_bytes)?;
        let layout = reader::layout(&bill, bill_size)?;
        let mut payload = Self {
            input,
            digest: Digest::sha256(&bill_bytes),
            layout,
            manifests: HashMap::new(),
            crcs: vec![crc32fast::hash(&bill_bytes)],
            wrong: None,
            bill,
        };
        for index in 0..2 {
            payload.read_file(index).await?;
        }
        while let Some(entry) =
            payload.next_entry().filter(|entry| entry.kind == EntryKind::Manifest).cloned()
        {
            let bytes = payload.read_inline(|bytes| verify(&entry.digest, bytes)).await?;
            payload.manifests.insert(entry.digest, bytes);
        }
        Ok(payload)
    }

    /// The bill.
    #[must_use]
    pub fn bill(&self) -> &Bill {
        &self.bill
    }

    /// The payload digest.
    #[must_use]
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Where everything lies.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The bytes of a manifest that the bill carries, verified.
    pub fn manifest(&self, digest: &Digest) -> Result<Bytes, PayloadError> {
        self.manifests.get(digest).cloned().ok_or_else(|| {
            PayloadError::Corrupt(format!("its manifest {digest} does not come before its blobs"))
        })
    }

    /// Reads the next blob to its end and sends its bytes to `to`, if anybody wants them. The last
    /// piece is sent only if all bytes were right, else an error that holds a [`PayloadError`].
    /// A receiver that went away does not matter.
    ///
    /// After [`PayloadError::WrongDigest`] the stream can be read on, after another error it cannot.
    pub async fn next_blob(
        &mut self,
        to: Option<mpsc::Sender<io::Result<Bytes>>>,
    ) -> Result<(), PayloadError> {
        let Some(digest) = self.next_entry().map(|entry| entry.digest.clone()) else {
            return Ok(());
        };
        let layout = self.layout_entry()?.clone();
        self.expect(&layout, &layout.local_header(0)).await?;
        let mut hasher = digest.hasher();
        let mut crc = crc32fast::Hasher::new();
        let mut withheld = Bytes::new();
        let mut left = layout.size();
        while left > 0 {
            let chunk = self.read_chunk(left).await?;
            left -= chunk.len() as u64;
            hasher.update(&chunk);
            crc.update(&chunk);
            let before = std::mem::replace(&mut withheld, chunk);
            if let Some(to) = to.as_ref().filter(|_| !before.is_empty()) {
                // The receiver may have ended early; the stream must be read on all the same.
                let _ = to.send(Ok(before)).await;
            }
        }
        let found = hasher.finish();
        let wrong = || PayloadError::WrongDigest { digest: digest.clone(), found: found.clone() };
        if let Some(to) = to {
            let last = if found == digest {
                Ok(withheld)
            } else {
                Err(io::Error::new(io::ErrorKind::InvalidData, wrong()))
            };
            let _ = to.send(last).await;
        }
        let crc = crc.finalize();
        self.crcs.push(crc);
        if found != digest {
            // Whatever checksum stands behind it.
            self.read_bytes(layout.data_descriptor(crc).len()).await?;
            self.wrong.get_or_insert_with(|| (digest.clone(), found.clone()));
            return Err(wrong());
        }
        self.expect(&layout, &layout.data_descriptor(crc)).await
    }

    /// Reads the rest and tells whether the payload was whole: the directory says the same as the
    /// bill and as the bytes that passed, and nothing stands behind it.
    pub async fn finish(mut self) -> Result<(), PayloadError> {
        for index in 2..self.bill.files.len() {
            self.read_file(index).await?;
        }
        let tail = self.layout.tail(&self.crcs);
        let found = self.read_bytes(tail.len()).await?;
        if found != tail {
            // A blob with wrong bytes is why they disagree, and tells more.
            if let Some((digest, found)) = self.wrong {
                return Err(PayloadError::WrongDigest { digest, found });
            }
            return Err(PayloadError::Corrupt("its directory and its content disagree".to_owned()));
        }
        if read_up_to(&mut self.input, &mut [0]).await? != 0 {
            return Err(PayloadError::Corrupt("something stands behind its end".to_owned()));
        }
        Ok(())
    }

    /// Reads all that is left and tells whether the payload was whole; `read` hears of each blob's size.
    pub async fn verify(mut self, read: impl Fn(u64)) -> Result<(), PayloadError> {
        let sizes: Vec<u64> = self.bill.blobs().map(|blob| blob.size).collect();
        for size in sizes {
            self.next_blob(None).await?;
            read(size);
        }
        self.finish().await
    }

    /// The bill's entry that comes next, if it is not one of its files.
    fn next_entry(&self) -> Option<&BillEntry> {
        self.bill.entries.get(self.crcs.len().checked_sub(BEFORE_ENTRIES)?)
    }

    fn layout_entry(&self) -> Result<&LayoutEntry, PayloadError> {
        self.layout
            .entries()
            .get(self.crcs.len())
            .ok_or_else(|| PayloadError::Corrupt("it has fewer entries than its bill".to_owned()))
    }

    async fn read_file(&mut self, index: usize) -> Result<(), PayloadError> {
        let described = self.bill.files[index].clone();
        self.read_inline(|bytes| reader::verify_file(&described, bytes)).await.map(drop)
    }

    /// The content of the next entry, whose header carries its checksum. What it is comes before what its header says:
    /// altered content is told as such.
    async fn read_inline(
        &mut self,
        verify: impl Fn(&[u8]) -> Result<(), PayloadError>,
    ) -> Result<Bytes, PayloadError> {
        let layout = self.layout_entry()?.clone();
        let header = self.read_bytes(layout.local_header(0).len()).await?;
        // Bounded: the bill was refused if it told of a larger file or manifest.
        let bytes = self.read_bytes(usize::try_from(layout.size()).unwrap_or(usize::MAX)).await?;
        verify(&bytes)?;
        let crc = crc32fast::hash(&bytes);
        if header != layout.local_header(crc) {
            return Err(disagrees(&layout));
        }
        self.crcs.push(crc);
        Ok(bytes)
    }

    async fn expect(&mut self, entry: &LayoutEntry, bytes: &[u8]) -> Result<(), PayloadError> {
        if self.read_bytes(bytes.len()).await? == bytes { Ok(()) } else { Err(disagrees(entry)) }
    }

    async fn read_bytes(&mut self, length: usize) -> Result<Bytes, PayloadError> {
        let mut bytes = vec![0; length];
        self.input.read_exact(&mut bytes).await.map_err(ended)?;
        Ok(bytes.into())
    }

    async fn read_chunk(&mut self, left: u64) -> Result<Bytes, PayloadError> {
        let length = CHUNK.min(usize::try_from(left).unwrap_or(CHUNK));
        let mut chunk = BytesMut::zeroed(length);
        self.input.read_exact(&mut chunk).await.map_err(ended)?;
        Ok(chunk.freeze())
    }
}

fn disagrees(entry: &LayoutEntry) -> PayloadError {
    PayloadError::Corrupt(format!("the zip's header of {} and its bill disagree", entry.name()))
}

fn ended(error: io::Error) -> PayloadError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => PayloadError::Incomplete("the stream ended early".to_owned()),
        _ => PayloadError::reading(error),
    }
}

async fn read_up_to(input: &mut (impl AsyncRead + Unpin), buffer: &mut [u8]) -> Result<usize, PayloadError> {
    let mut length = 0;
    while length < buffer.len() {
        match input.read(&mut buffer[length..]).await.map_err(PayloadError::reading)? {
            0 => break,
            read => length += read,
        }
    }
    Ok(length)
}
