use std::collections::HashMap;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::bill::{Bill, EntryKind};
use super::layout::BEFORE_ENTRIES;
use super::reader::{self, Start};
use super::{Contents, PayloadError};
use crate::digest::{Digest, Hasher};
use crate::read_at::ReadAt;

/// One read of what is already in the file brings so many bytes.
const CHUNK: usize = 1 << 20;

/// Writes a payload by position: the blobs may come in any order, several at once, in pieces, and
/// go on where an earlier run stopped.
#[derive(Debug)]
pub struct PlacedPayload {
    contents: Contents,
    file: Arc<File>,
    /// The CRC of each entry of the layout that is whole in the file.
    crcs: Mutex<Vec<Option<u32>>>,
}

impl PlacedPayload {
    /// Begins to write into `file`: all entries that are held in memory.
    pub fn begin(contents: Contents, file: Arc<File>) -> io::Result<Self> {
        let mut crcs = vec![None; contents.layout().entries().len()];
        for (index, entry) in contents.layout().entries().iter().enumerate() {
            if let Some(bytes) = contents.inline(index) {
                let crc = crc32fast::hash(bytes);
                let header = entry.local_header(crc);
                file.write_all_at(&header, entry.data_offset() - header.len() as u64)?;
                file.write_all_at(bytes, entry.data_offset())?;
                crcs[index] = Some(crc);
            }
        }
        Ok(Self { contents, file, crcs: Mutex::new(crcs) })
    }

    /// What is being written.
    #[must_use]
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// The place of a blob that the payload carries.
    #[must_use]
    pub fn blob(&self, digest: &Digest) -> Option<PlacedBlob<'_>> {
        let entries = &self.contents.bill().entries;
        let entry =
            entries.iter().position(|entry| entry.digest == *digest && entry.kind == EntryKind::Blob)?;
        let index = entry + BEFORE_ENTRIES;
        let laid = self.contents.layout().entries().get(index)?;
        Some(PlacedBlob {
            payload: self,
            index,
            offset: laid.data_offset(),
            size: laid.size(),
            digest: digest.clone(),
            written: 0,
            hasher: digest.hasher(),
            crc: crc32fast::Hasher::new(),
        })
    }

    /// Writes the directory. All blobs must be whole.
    pub fn finish(&self) -> io::Result<()> {
        let crcs = self.crcs.lock().map_err(|_| io::Error::other("a writer of the payload panicked"))?;
        let crcs: Option<Vec<u32>> = crcs.iter().copied().collect();
        let crcs = crcs.ok_or_else(|| io::Error::other("a blob of the payload is not whole"))?;
        let tail = self.contents.layout().tail(&crcs);
        self.file.write_all_at(&tail, self.contents.layout().directory_offset())?;
        // What an earlier run may have left behind the end.
        self.file.set_len(self.contents.layout().total_size())
    }
}

/// A blob that is being written at its place.
#[derive(Debug)]
pub struct PlacedBlob<'a> {
    payload: &'a PlacedPayload,
    index: usize,
    offset: u64,
    size: u64,
    digest: Digest,
    written: u64,
    hasher: Hasher,
    crc: crc32fast::Hasher,
}

impl PlacedBlob<'_> {
    /// How many of its bytes are there.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Takes over what an earlier run left at this place, of which `have` bytes are said to be
    /// right. They are hashed again: the digest decides at the end.
    pub fn take_over(&mut self, have: u64) -> io::Result<()> {
        let end = have.min(self.size);
        let mut chunk = vec![0; CHUNK];
        while self.written < end {
            let length = CHUNK.min(usize::try_from(end - self.written).unwrap_or(CHUNK));
            self.payload.file.read_exact_at(&mut chunk[..length], self.offset + self.written)?;
            self.hasher.update(&chunk[..length]);
            self.crc.update(&chunk[..length]);
            self.written += length as u64;
        }
        Ok(())
    }

    /// Hashes the next bytes, which are to be written next: while they are still in the processor's cache.
    pub fn hash(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.crc.update(bytes);
    }

    /// How many bytes there are from the next one to where the file begins another `piece`: a write that ends there takes the
    /// least of the file system, which keeps what it has not yet on its disk in pieces of its own.
    #[must_use]
    pub fn left_of(&self, piece: usize) -> usize {
        let begun = (self.offset + self.written) % piece as u64;
        piece - usize::try_from(begun).unwrap_or_default()
    }

    /// Writes the next bytes, which were hashed.
    pub fn write(&mut self, mut bytes: &mut [IoSlice<'_>]) -> io::Result<()> {
        while !bytes.is_empty() {
            match rustix::io::pwritev(&self.payload.file, bytes, self.offset + self.written) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    self.written += written as u64;
                    IoSlice::advance_slices(&mut bytes, written);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Forgets all that was written.
    pub fn start_again(&mut self) {
        self.written = 0;
        self.hasher = self.digest.hasher();
        self.crc = crc32fast::Hasher::new();
    }

    /// Completes the blob if its bytes are right; gives what was found if they are not.
    pub fn finish(&mut self) -> io::Result<Result<(), Digest>> {
        let found = self.hasher.clone().finish();
        if found != self.digest {
            return Ok(Err(found));
        }
        let crc = self.crc.clone().finalize();
        let entry = &self.payload.contents.layout().entries()[self.index];
        let header = entry.local_header(0);
        self.payload.file.write_all_at(&header, self.offset - header.len() as u64)?;
        self.payload.file.write_all_at(&entry.data_descriptor(crc), self.offset + self.size)?;
        let mut crcs =
            self.payload.crcs.lock().map_err(|_| io::Error::other("a writer of the payload panicked"))?;
        crcs[self.index] = Some(crc);
        Ok(Ok(()))
    }
}

/// What a run that was cut short left can still tell.
#[derive(Debug)]
pub struct Remains {
    /// The digest of the bill's bytes.
    pub digest: Digest,
    /// Its bill.
    pub bill: Bill,
    /// The manifests that it carries, verified.
    pub manifests: HashMap<Digest, Bytes>,
    source: Arc<dyn ReadAt>,
    layout: super::Layout,
}

impl Remains {
    /// Looks at the beginning of a payload; `None` if not all that stands in front of the blobs is there.
    #[must_use]
    pub fn of(source: Arc<dyn ReadAt>) -> Option<Self> {
        Self::read(source).ok().flatten()
    }

    fn read(source: Arc<dyn ReadAt>) -> Result<Option<Self>, PayloadError> {
        let start = reader::read_start(&*source)?;
        let Start::Bill(bill_size) = Start::of(&start)? else {
            return Ok(None);
        };
        let bytes = reader::read_bill(&*source, &start, bill_size)?;
        let bill = Bill::parse(&bytes)?;
        let layout = reader::layout(&bill, bytes.len())?;
        let places = reader::places(&bill, &layout);
        let mut manifests = HashMap::new();
        for entry in bill.entries.iter().filter(|entry| entry.kind == EntryKind::Manifest) {
            let Some(place) = places.get(&entry.digest) else {
                return Ok(None);
            };
            let bytes = reader::read_at(&*source, place)?;
            reader::verify(&entry.digest, &bytes)?;
            manifests.insert(entry.digest.clone(), Bytes::from(bytes));
        }
        Ok(Some(Self { digest: Digest::sha256(&bytes), bill, manifests, source, layout }))
    }

    /// Copies what there is of a blob, said to be `have` bytes, into a new payload. They are hashed
    /// as they pass: the digest decides at the end. `copied` hears how many there are by then.
    pub fn copy(
        &self,
        blob: &mut PlacedBlob<'_>,
        have: u64,
        copied: impl Fn(u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let name = super::layout::blob_name(&blob.digest);
        let entries = self.layout.entries();
        let Some(entry) = entries.iter().find(|entry| entry.name() == name && entry.size() == blob.size)
        else {
            return Ok(());
        };
        let end = have.min(blob.size);
        let mut chunk = vec![0; CHUNK];
        while blob.written < end {
            let length = CHUNK.min(usize::try_from(end - blob.written).unwrap_or(CHUNK));
            let offset = entry.data_offset() + blob.written;
            if self.source.read_exact_at(&mut chunk[..length], offset).is_err() {
                // The file is shorter than it was said to be: there is nothing more to take.
                break;
            }
            blob.hash(&chunk[..length]);
            blob.write(&mut [IoSlice::new(&chunk[..length])])?;
            copied(blob.written)?;
        }
        Ok(())
    }
}
