use std::cmp::Ordering;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures::Stream;

use super::bill::{BILL_LIMIT, Bill, BillFile, EntryKind};
use super::docker_charon;
use super::error::PayloadError;
use super::framing::{self, Framing, Header};
use super::layout::{BEFORE_ENTRIES, BILL_NAME, Layout, Place};
use super::verified::Verified;
use crate::digest::Digest;
use crate::read_at::{LocalFile, ReadAt};

/// A reader looks at so many bytes to find out how long the bill is.
const FIRST_READ: usize = 64 << 10;
/// The bill's local header: fixed part and name.
pub(crate) const BILL_HEADER_LEN: usize = 30 + BILL_NAME.len();

/// A payload in a file or an object of a store, read by position.
#[derive(Debug)]
pub struct FilePayload {
    source: Arc<dyn ReadAt>,
    bill: Bill,
    digest: Option<Digest>,
    places: HashMap<Digest, Place>,
    /// The manifests' bytes, as they lie there.
    manifests: HashMap<Digest, Bytes>,
}

impl FilePayload {
    /// Opens a payload of Charon's or of docker-charon's.
    ///
    /// Of Charon's, all is checked that can be checked without reading a blob: the bill, that the
    /// file has exactly the size that the bill implies, and that the directory by which other
    /// programs read the file says the same as the bill.
    pub fn open(file: File) -> Result<Self, PayloadError> {
        Self::read(Arc::new(LocalFile::new(Arc::new(file)).map_err(PayloadError::reading)?))
    }

    /// The same, wherever the payload lies, on a thread that may wait for it. Afterwards nothing but blobs is read.
    pub async fn open_at(source: Arc<dyn ReadAt>) -> Result<Self, PayloadError> {
        tokio::task::spawn_blocking(move || Self::read(source)).await.map_err(PayloadError::reading)?
    }

    fn read(source: Arc<dyn ReadAt>) -> Result<Self, PayloadError> {
        let start = read_start(&*source)?;
        let (bill, digest, places) = if let Start::Bill(bill_size) = Start::of(&start)? {
            let bill_bytes = read_bill(&*source, &start, bill_size)?;
            let bill = Bill::parse(&bill_bytes)?;
            let layout = layout(&bill, bill_bytes.len())?;
            check_end(&*source, &layout)?;
            check_files(&*source, &bill, &layout)?;
            let places = places(&bill, &layout);
            (bill, Some(Digest::sha256(&bill_bytes)), places)
        } else {
            let (bill, places) = docker_charon::read(&*source)?;
            (bill, None, places)
        };
        let mut manifests = HashMap::new();
        for entry in bill.entries.iter().filter(|entry| entry.kind == EntryKind::Manifest) {
            if let Some(place) = places.get(&entry.digest) {
                manifests.insert(entry.digest.clone(), Bytes::from(read_at(&*source, place)?));
            }
        }
        Ok(Self { source, bill, digest, places, manifests })
    }

    /// That the checksums and headers of a docker-charon payload hold, which Charon itself does not
    /// go by: its digests tell more. Reads the whole file.
    pub fn check_entries(&self) -> Result<(), PayloadError> {
        docker_charon::check_entries(&*self.source)
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
        self.source.size()
    }

    /// The bytes of a manifest that the bill carries, verified.
    pub fn manifest(&self, digest: &Digest) -> Result<Bytes, PayloadError> {
        let bytes = self.manifests.get(digest);
        let bytes = bytes.ok_or_else(|| PayloadError::Corrupt(format!("it lacks {digest}")))?;
        verify(digest, bytes)?;
        Ok(bytes.clone())
    }

    /// The bytes of a blob that the bill carries. The last piece comes only if all were right, else
    /// an error that holds a [`PayloadError`].
    pub fn blob(&self, digest: &Digest) -> impl Stream<Item = io::Result<Bytes>> + Send + use<> {
        let range = self.places.get(digest).map_or(0..0, |place| place.offset..place.offset + place.size);
        Verified::new(self.source.stream(range), digest.clone())
    }
}

/// Whether it begins as Charon's payloads do, whole or not, of this version or a later one.
pub fn is_payload(source: &dyn ReadAt) -> io::Result<bool> {
    let start = first_bytes(source)?;
    Ok(matches!(Start::of(&start), Ok(Start::Bill(_))))
}

fn first_bytes(source: &dyn ReadAt) -> io::Result<Vec<u8>> {
    let mut start = vec![0; FIRST_READ.min(usize::try_from(source.size()).unwrap_or(FIRST_READ))];
    source.read_exact_at(&mut start, 0)?;
    Ok(start)
}

/// The first bytes of a payload.
pub(super) fn read_start(source: &dyn ReadAt) -> Result<Vec<u8>, PayloadError> {
    first_bytes(source).map_err(PayloadError::reading)
}

/// The bytes of the bill, whose header must be the one that a payload has.
pub(super) fn read_bill(
    source: &dyn ReadAt,
    start: &[u8],
    bill_size: usize,
) -> Result<Vec<u8>, PayloadError> {
    let size = source.size();
    if size < (BILL_HEADER_LEN + bill_size) as u64 {
        return Err(PayloadError::Incomplete(format!("it has {size} bytes, and ends within its bill")));
    }
    let mut bill = vec![0; bill_size];
    source.read_exact_at(&mut bill, BILL_HEADER_LEN as u64).map_err(PayloadError::reading)?;
    check_bill_header(start, &bill)?;
    Ok(bill)
}

/// The layout that a bill implies.
pub(super) fn layout(bill: &Bill, bill_size: usize) -> Result<Layout, PayloadError> {
    Layout::new(bill, bill_size as u64)
        .ok_or_else(|| PayloadError::Corrupt("its bill names more bytes than a file can have".to_owned()))
}

/// That the file ends where and as its bill implies.
fn check_end(source: &dyn ReadAt, layout: &Layout) -> Result<(), PayloadError> {
    let (size, total) = (source.size(), layout.total_size());
    match size.cmp(&total) {
        Ordering::Less => return Err(PayloadError::Incomplete(format!("it has {size} of {total} bytes"))),
        Ordering::Greater => {
            return Err(PayloadError::Corrupt(format!("it has {size} bytes, and its bill says {total}")));
        }
        Ordering::Equal => {}
    }
    let offset = layout.directory_offset();
    let tail = read_at(source, &Place { offset, size: total - offset })?;
    if layout.crcs_in_tail(&tail).is_none() {
        return Err(PayloadError::Corrupt("its directory and its bill disagree".to_owned()));
    }
    Ok(())
}

fn check_files(source: &dyn ReadAt, bill: &Bill, layout: &Layout) -> Result<(), PayloadError> {
    for described in &bill.files {
        let entry = layout.entries().iter().find(|entry| entry.name() == described.path);
        let entry = entry.ok_or_else(|| PayloadError::Corrupt(format!("it lacks {}", described.path)))?;
        let bytes = read_at(source, &Place { offset: entry.data_offset(), size: entry.size() })?;
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
pub(super) fn read_at(source: &dyn ReadAt, place: &Place) -> Result<Vec<u8>, PayloadError> {
    let mut bytes = vec![0; usize::try_from(place.size).unwrap_or(usize::MAX)];
    source.read_exact_at(&mut bytes, place.offset).map_err(PayloadError::reading)?;
    Ok(bytes)
}

/// What a file begins with.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// A bill of so many bytes.
    Bill(usize),
    /// Another zip.
    OtherZip,
}

impl Start {
    /// Looks at the first bytes of a file.
    pub(crate) fn of(start: &[u8]) -> Result<Self, PayloadError> {
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
