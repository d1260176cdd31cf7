use super::bill::{Bill, BillFile, DESCRIPTOR_NAME, EntryKind};
use super::framing::{self, Framing, Header};

/// The name of the bill's entry.
pub(super) const BILL_NAME: &str = "charon.json";

/// So many entries come before those that the bill lists: the bill itself, `oci-layout` and `index.json`.
pub(super) const BEFORE_ENTRIES: usize = 3;

/// Where every byte of a payload lies: a pure function of its bill.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    entries: Vec<LayoutEntry>,
    directory_offset: u64,
    total_size: u64,
}

/// One entry of the zip.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayoutEntry {
    name: String,
    size: u64,
    framing: Framing,
    header_offset: u64,
}

/// Where the content of a digest lies in the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) offset: u64,
    pub(super) size: u64,
}

impl Layout {
    /// The layout of the payload whose bill is `bill`, of `bill_size` bytes; `None` if it would be
    /// longer than any file can be.
    #[must_use]
    pub fn new(bill: &Bill, bill_size: u64) -> Option<Self> {
        let descriptor_is_last = |path: &str| path == DESCRIPTOR_NAME;
        let file = |file: &BillFile| (file.path.clone(), file.size, Framing::InHeader);
        let (last, first): (Vec<_>, Vec<_>) =
            bill.files.iter().partition(|file| descriptor_is_last(&file.path));
        let blobs = bill.entries.iter().map(|entry| {
            let framing = match entry.kind {
                EntryKind::Manifest => Framing::InHeader,
                EntryKind::Blob => Framing::Behind,
            };
            (blob_name(&entry.digest), entry.size, framing)
        });
        let mut offset = 0_u64;
        let mut entries = Vec::with_capacity(bill.entries.len() + 4);
        for (name, size, framing) in std::iter::once((BILL_NAME.to_owned(), bill_size, Framing::InHeader))
            .chain(first.into_iter().map(file))
            .chain(blobs)
            .chain(last.into_iter().map(file))
        {
            let entry = LayoutEntry { name, size, framing, header_offset: offset };
            offset = entry
                .data_offset()
                .checked_add(size)?
                .checked_add(framing::data_descriptor_len(size, framing))
                .filter(|offset| i64::try_from(*offset).is_ok())?;
            entries.push(entry);
        }
        let directory_offset = offset;
        for entry in &entries {
            let size = framing::central_header_len(&entry.name, entry.size, entry.header_offset);
            offset = offset.checked_add(size)?;
        }
        let end = framing::end_records_len(entries.len() as u64, directory_offset, offset - directory_offset);
        let total_size = offset.checked_add(end).filter(|size| i64::try_from(*size).is_ok())?;
        Some(Self { entries, directory_offset, total_size })
    }

    /// The entries, in file order; the bill is the first.
    #[must_use]
    pub fn entries(&self) -> &[LayoutEntry] {
        &self.entries
    }

    /// Where the central directory begins.
    #[must_use]
    pub fn directory_offset(&self) -> u64 {
        self.directory_offset
    }

    /// The whole file's size in bytes.
    #[must_use]
    pub fn total_size(&self) -> u64 {
        self.total_size
    }

    /// The central directory and the end records, given each entry's CRC-32.
    pub(super) fn tail(&self, crcs: &[u32]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (entry, crc) in self.entries.iter().zip(crcs) {
            bytes.extend(framing::central_header(&entry.header(*crc), entry.header_offset));
        }
        let directory_size = bytes.len() as u64;
        bytes.extend(framing::end_records(self.entries.len() as u64, self.directory_offset, directory_size));
        bytes
    }

    /// The CRCs that the tail of a file tells, if the tail is otherwise exactly the one that this
    /// layout implies. So nothing is in the file that the bill does not name, nothing overlaps, and
    /// other programs read what Charon reads.
    pub(super) fn crcs_in_tail(&self, tail: &[u8]) -> Option<Vec<u32>> {
        let mut at = 0;
        let mut crcs = Vec::with_capacity(self.entries.len());
        for entry in &self.entries {
            let field = at + framing::CENTRAL_CRC.start..at + framing::CENTRAL_CRC.end;
            crcs.push(u32::from_le_bytes(tail.get(field)?.try_into().ok()?));
            let size = framing::central_header_len(&entry.name, entry.size, entry.header_offset);
            at = at.checked_add(usize::try_from(size).ok()?)?;
        }
        (self.tail(&crcs) == tail).then_some(crcs)
    }
}

impl LayoutEntry {
    /// The entry's name in the zip.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The content's size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Where the entry's content begins.
    #[must_use]
    pub fn data_offset(&self) -> u64 {
        self.header_offset + framing::local_header_len(&self.name, self.size)
    }

    fn header(&self, crc: u32) -> Header<'_> {
        Header { name: &self.name, size: self.size, framing: self.framing, crc }
    }

    /// The bytes in front of the content. `crc` is the content's, where it is known.
    pub(super) fn local_header(&self, crc: u32) -> Vec<u8> {
        framing::local_header(&self.header(crc))
    }

    /// The bytes behind the content.
    pub(super) fn data_descriptor(&self, crc: u32) -> Vec<u8> {
        framing::data_descriptor(&self.header(crc))
    }
}

/// The name of a blob's entry, that of an OCI image layout.
pub(super) fn blob_name(digest: &crate::digest::Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}
