use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use futures::Stream;

use super::bill::{BILL_LIMIT, Bill};
use super::framing::{self, Framing, Header};
use super::layout::BILL_NAME;
use super::{Layout, PayloadError, Verified};
use crate::digest::Digest;

/// One read brings so many bytes of a blob.
const CHUNK: usize = 256 << 10;
/// A reader looks at so many bytes to find out how long the bill is.
pub(super) const FIRST_READ: usize = 64 << 10;
/// The bill's local header: fixed part and name.
pub(super) const BILL_HEADER_LEN: usize = 30 + BILL_NAME.len();

/// A payload in a file, read by position.
#[derive(Debug)]
pub struct FilePayload {
    file: Arc<File>,
    bill: Bill,
    digest: Digest,
    layout: Layout,
    /// The place of each digest in the layout's entries.
    index: HashMap<Digest, usize>,
}

impl FilePayload {
    /// Opens a payload and checks all that can be checked without reading a blob: the bill, that
    /// the file has exactly the size that the bill implies, and that the directory by which other
    /// programs read the file says the same as the bill.
    pub fn open(file: File) -> Result<Self, PayloadError> {
        let found = file.metadata().map_err(io_error)?.len();
        let mut start = vec![0; FIRST_READ.min(usize::try_from(found).unwrap_or(FIRST_READ))];
        file.read_exact_at(&mut start, 0).map_err(io_error)?;
        let bill_size = bill_size(&start)?;
        let bill_end = BILL_HEADER_LEN + bill_size;
        if found < bill_end as u64 {
            return Err(PayloadError::Incomplete(format!("it has {found} bytes, and ends within its bill")));
        }
        let mut bill_bytes = vec![0; bill_size];
        file.read_exact_at(&mut bill_bytes, BILL_HEADER_LEN as u64).map_err(io_error)?;
        check_bill_header(&start, &bill_bytes)?;
        let bill = Bill::parse(&bill_bytes)?;
        let layout = Layout::new(&bill, bill_size as u64).ok_or_else(|| {
            PayloadError::Corrupt("its bill names more bytes than a file can have".to_owned())
        })?;
        let total = layout.total_size();
        if found < total {
            return Err(PayloadError::Incomplete(format!("it has {found} of {total} bytes")));
        }
        if found > total {
            return Err(PayloadError::Corrupt(format!("it has {found} bytes, and its bill says {total}")));
        }
        let tail_size = usize::try_from(total - layout.directory_offset()).unwrap_or(usize::MAX);
        let mut tail = vec![0; tail_size];
        file.read_exact_at(&mut tail, layout.directory_offset()).map_err(io_error)?;
        if layout.crcs_in_tail(&tail).is_none() {
            return Err(PayloadError::Corrupt("its directory and its bill disagree".to_owned()));
        }
        let index = bill.entries.iter().enumerate().map(|(i, entry)| (entry.digest.clone(), i + 3)).collect();
        let payload = Self { file: Arc::new(file), digest: Digest::sha256(&bill_bytes), bill, layout, index };
        payload.check_files()?;
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
        let entry = self
            .index
            .get(digest)
            .and_then(|index| self.layout.entries().get(*index))
            .ok_or_else(|| PayloadError::Corrupt(format!("it lacks {digest}")))?;
        // Bounded: the bill was refused if it told of a larger manifest.
        let mut bytes = vec![0; usize::try_from(entry.size()).unwrap_or(usize::MAX)];
        self.file.read_exact_at(&mut bytes, entry.data_offset()).map_err(io_error)?;
        verify(digest, &bytes)?;
        Ok(Bytes::from(bytes))
    }

    /// The bytes of a blob that the bill carries. The last piece comes only if all were right, else
    /// an error that holds a [`PayloadError`].
    pub fn blob(&self, digest: &Digest) -> impl Stream<Item = io::Result<Bytes>> + Send + use<> {
        let entry = self.index.get(digest).and_then(|index| self.layout.entries().get(*index));
        let (mut offset, end) =
            entry.map_or((0, 0), |entry| (entry.data_offset(), entry.data_offset() + entry.size()));
        let file = Arc::clone(&self.file);
        let chunks = futures::stream::poll_fn(move |_| {
            if offset >= end {
                return std::task::Poll::Ready(None);
            }
            let length = CHUNK.min(usize::try_from(end - offset).unwrap_or(CHUNK));
            let mut chunk = vec![0; length];
            // A read of a quarter of a mebibyte from a local file is shorter than a hop to another thread.
            let read = file.read_exact_at(&mut chunk, offset).map(|()| Bytes::from(chunk));
            offset = if read.is_ok() { offset + length as u64 } else { end };
            std::task::Poll::Ready(Some(read))
        });
        Verified::new(chunks, digest.clone())
    }

    fn check_files(&self) -> Result<(), PayloadError> {
        for file in &self.bill.files {
            let entry = self.layout.entries().iter().find(|entry| entry.name() == file.path);
            let entry = entry.ok_or_else(|| PayloadError::Corrupt(format!("it lacks {}", file.path)))?;
            let mut bytes = vec![0; usize::try_from(entry.size()).unwrap_or(usize::MAX)];
            self.file.read_exact_at(&mut bytes, entry.data_offset()).map_err(io_error)?;
            verify(&file.digest, &bytes)?;
        }
        Ok(())
    }
}

/// The size of the bill, from the first bytes of a payload.
pub(super) fn bill_size(start: &[u8]) -> Result<usize, PayloadError> {
    if start.iter().all(|byte| *byte == 0) {
        return Err(PayloadError::Incomplete(match start.len() {
            0 => "it is empty".to_owned(),
            _ => "it begins with zeros".to_owned(),
        }));
    }
    let not_a_payload = |why: &str| PayloadError::NotAPayload(why.to_owned());
    if !b"PK\x03\x04".starts_with(&start[..start.len().min(4)]) && !start.starts_with(b"PK\x03\x04") {
        return Err(not_a_payload("it is no zip"));
    }
    let header = start
        .get(..BILL_HEADER_LEN)
        .ok_or_else(|| PayloadError::Incomplete(format!("it has {} bytes", start.len())))?;
    if &header[30..] != BILL_NAME.as_bytes() {
        return Err(not_a_payload("it is a zip whose first entry is not charon.json"));
    }
    let size = u32::from_le_bytes([header[18], header[19], header[20], header[21]]);
    if u64::from(size) > BILL_LIMIT {
        return Err(PayloadError::Corrupt(format!(
            "its bill has {size} bytes, at most {BILL_LIMIT} are allowed"
        )));
    }
    Ok(size as usize)
}

/// That the header in front of the bill is the one that a payload has.
pub(super) fn check_bill_header(start: &[u8], bill: &[u8]) -> Result<(), PayloadError> {
    let header = Header {
        name: BILL_NAME,
        size: bill.len() as u64,
        framing: Framing::InHeader,
        crc: crc32fast::hash(bill),
    };
    if start.starts_with(&framing::local_header(&header)) {
        Ok(())
    } else {
        Err(PayloadError::Corrupt("its bill does not have the checksum of its header".to_owned()))
    }
}

pub(super) fn verify(digest: &Digest, bytes: &[u8]) -> Result<(), PayloadError> {
    let mut hasher = digest.hasher();
    hasher.update(bytes);
    let found = hasher.finish();
    if found == *digest { Ok(()) } else { Err(PayloadError::WrongDigest { digest: digest.clone(), found }) }
}

pub(super) fn io_error(source: io::Error) -> PayloadError {
    PayloadError::Io { doing: "reading the payload", source }
}
