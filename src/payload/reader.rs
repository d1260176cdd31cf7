use std::cmp::Ordering;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use futures::Stream;

use super::bill::{BILL_LIMIT, Bill, BillFile};
use super::framing::{self, Framing, Header};
use super::layout::{BEFORE_ENTRIES, BILL_NAME};
use super::{Layout, PayloadError, Verified, docker_charon};
use crate::digest::Digest;

/// One read brings so many bytes of a blob.
const CHUNK: usize = 256 << 10;
/// A reader looks at so many bytes to find out how long the bill is.
const FIRST_READ: usize = 64 << 10;
/// The bill's local header: fixed part and name.
pub(super) const BILL_HEADER_LEN: usize = 30 + BILL_NAME.len();

/// A payload in a file, read by position.
#[derive(Debug)]
pub struct FilePayload {
    file: Arc<File>,
    size: u64,
    bill: Bill,
    digest: Option<Digest>,
    places: HashMap<Digest, Place>,
}

/// Where the content of a digest lies in the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) offset: u64,
    pub(super) size: u64,
}

impl FilePayload {
    /// Opens a payload of Charon's or of docker-charon's.
    ///
    /// Of Charon's, all is checked that can be checked without reading a blob: the bill, that the
    /// file has exactly the size that the bill implies, and that the directory by which other
    /// programs read the file says the same as the bill.
    pub fn open(file: File) -> Result<Self, PayloadError> {
        let size = file.metadata().map_err(io_error)?.len();
        let start = read_start(&file, size)?;
        if let Start::Bill(bill_size) = Start::of(&start)? {
            let bill_bytes = read_bill(&file, size, &start, bill_size)?;
            let bill = Bill::parse(&bill_bytes)?;
            let layout = layout(&bill, bill_bytes.len())?;
            check_end(&file, size, &layout)?;
            check_files(&file, &bill, &layout)?;
            let places = places(&bill, &layout);
            let digest = Some(Digest::sha256(&bill_bytes));
            return Ok(Self { file: Arc::new(file), size, bill, digest, places });
        }
        let (bill, places) = docker_charon::read(&file)?;
        Ok(Self { file: Arc::new(file), size, bill, digest: None, places })
    }

    /// That the checksums and headers of a docker-charon payload hold, which Charon itself does not
    /// go by: its digests tell more. Reads the whole file.
    pub fn check_entries(&self) -> Result<(), PayloadError> {
        docker_charon::check_entries(&self.file)
    }

    /// The bill; of a docker-charon payload, the one that Charon would have written.
    #[must_use]
    pub fn bill(&self) -> &Bill {
        &self.bill
    }

    /// The payload digest; docker-charon's payloads have none.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The file's size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The bytes of a manifest that the bill carries, verified.
    pub fn manifest(&self, digest: &Digest) -> Result<Bytes, PayloadError> {
        let place = self.places.get(digest);
        let place = place.ok_or_else(|| PayloadError::Corrupt(format!("it lacks {digest}")))?;
        let bytes = read_at(&self.file, place)?;
        verify(digest, &bytes)?;
        Ok(Bytes::from(bytes))
    }

    /// The bytes of a blob that the bill carries. The last piece comes only if all were right, else
    /// an error that holds a [`PayloadError`].
    pub fn blob(&self, digest: &Digest) -> impl Stream<Item = io::Result<Bytes>> + Send + use<> {
        let (mut offset, end) =
            self.places.get(digest).map_or((0, 0), |place| (place.offset, place.offset + place.size));
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
}

/// Whether the file begins as Charon's payloads do, whole or not, of this version or a later one.
pub fn is_payload(file: &File) -> io::Result<bool> {
    let metadata = file.metadata()?;
    let mut start = vec![0; FIRST_READ.min(usize::try_from(metadata.len()).unwrap_or(FIRST_READ))];
    if !metadata.is_file() {
        return Ok(false);
    }
    file.read_exact_at(&mut start, 0)?;
    Ok(matches!(Start::of(&start), Ok(Start::Bill(_))))
}

/// The first bytes of a file.
pub(super) fn read_start(file: &File, size: u64) -> Result<Vec<u8>, PayloadError> {
    let mut start = vec![0; FIRST_READ.min(usize::try_from(size).unwrap_or(FIRST_READ))];
    file.read_exact_at(&mut start, 0).map_err(io_error)?;
    Ok(start)
}

/// The bytes of the bill, whose header must be the one that a payload has.
pub(super) fn read_bill(
    file: &File,
    size: u64,
    start: &[u8],
    bill_size: usize,
) -> Result<Vec<u8>, PayloadError> {
    if size < (BILL_HEADER_LEN + bill_size) as u64 {
        return Err(PayloadError::Incomplete(format!("it has {size} bytes, and ends within its bill")));
    }
    let mut bill = vec![0; bill_size];
    file.read_exact_at(&mut bill, BILL_HEADER_LEN as u64).map_err(io_error)?;
    check_bill_header(start, &bill)?;
    Ok(bill)
}

/// The layout that a bill implies.
pub(super) fn layout(bill: &Bill, bill_size: usize) -> Result<Layout, PayloadError> {
    Layout::new(bill, bill_size as u64)
        .ok_or_else(|| PayloadError::Corrupt("its bill names more bytes than a file can have".to_owned()))
}

/// That the file ends where and as its bill implies.
fn check_end(file: &File, size: u64, layout: &Layout) -> Result<(), PayloadError> {
    let total = layout.total_size();
    match size.cmp(&total) {
        Ordering::Less => return Err(PayloadError::Incomplete(format!("it has {size} of {total} bytes"))),
        Ordering::Greater => {
            return Err(PayloadError::Corrupt(format!("it has {size} bytes, and its bill says {total}")));
        }
        Ordering::Equal => {}
    }
    let offset = layout.directory_offset();
    let tail = read_at(file, &Place { offset, size: total - offset })?;
    if layout.crcs_in_tail(&tail).is_none() {
        return Err(PayloadError::Corrupt("its directory and its bill disagree".to_owned()));
    }
    Ok(())
}

fn check_files(file: &File, bill: &Bill, layout: &Layout) -> Result<(), PayloadError> {
    for described in &bill.files {
        let entry = layout.entries().iter().find(|entry| entry.name() == described.path);
        let entry = entry.ok_or_else(|| PayloadError::Corrupt(format!("it lacks {}", described.path)))?;
        let bytes = read_at(file, &Place { offset: entry.data_offset(), size: entry.size() })?;
        verify_file(described, &bytes)?;
    }
    Ok(())
}

pub(super) fn places(bill: &Bill, layout: &Layout) -> HashMap<Digest, Place> {
    let entries = bill.entries.iter().zip(&layout.entries()[BEFORE_ENTRIES..]);
    entries
        .map(|(entry, laid)| (entry.digest.clone(), Place { offset: laid.data_offset(), size: laid.size() }))
        .collect()
}

/// Reads something small: its size was held against a limit.
pub(super) fn read_at(file: &File, place: &Place) -> Result<Vec<u8>, PayloadError> {
    let mut bytes = vec![0; usize::try_from(place.size).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut bytes, place.offset).map_err(io_error)?;
    Ok(bytes)
}

/// What a file begins with.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// A bill of so many bytes.
    Bill(usize),
    /// Another zip.
    OtherZip,
}

impl Start {
    /// Looks at the first bytes of a file.
    pub(super) fn of(start: &[u8]) -> Result<Self, PayloadError> {
        if start.iter().all(|byte| *byte == 0) {
            return Err(PayloadError::Incomplete(match start.len() {
                0 => "it is empty".to_owned(),
                _ => "it begins with zeros".to_owned(),
            }));
        }
        let signature = b"PK\x03\x04".as_slice();
        if !start.starts_with(signature) && !signature.starts_with(start) {
            return Err(PayloadError::NotAPayload("it is no zip".to_owned()));
        }
        let header = start
            .get(..BILL_HEADER_LEN)
            .ok_or_else(|| PayloadError::Incomplete(format!("it has {} bytes", start.len())))?;
        if &header[30..] != BILL_NAME.as_bytes() {
            return Ok(Self::OtherZip);
        }
        let size = u32::from_le_bytes([header[18], header[19], header[20], header[21]]);
        if u64::from(size) > BILL_LIMIT {
            let why = format!("its bill has {size} bytes, at most {BILL_LIMIT} are allowed");
            return Err(PayloadError::Corrupt(why));
        }
        Ok(Self::Bill(size as usize))
    }
}

/// That the header in front of the bill is the one that a payload has.
pub(super) fn check_bill_header(start: &[u8], bill: &[u8]) -> Result<(), PayloadError> {
    // JSON has no zeros in it, but a file that is still being copied may.
    if bill.contains(&0) {
        return Err(PayloadError::Incomplete("a part of its bill is zeros".to_owned()));
    }
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
    digest.check(bytes).map_err(|found| PayloadError::WrongDigest { digest: digest.clone(), found })
}

/// The same for an entry that is no blob, told by its name.
pub(super) fn verify_file(described: &BillFile, bytes: &[u8]) -> Result<(), PayloadError> {
    verify(&described.digest, bytes).map_err(|_| {
        PayloadError::Corrupt(format!("its {} is not the one that its bill tells of", described.path))
    })
}

pub(super) fn io_error(source: io::Error) -> PayloadError {
    PayloadError::Io { doing: "reading the payload", source }
}
