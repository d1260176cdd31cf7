//! The bytes of a zip around its content (APPNOTE 6.3), the same on any machine.

/// How an entry's CRC travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// In the local header: the content was in memory when the header was written.
    InHeader,
    /// In a data descriptor behind the content. The sizes are in the local header all the same
    /// (APPNOTE 4.4.4 would have them zero): so a stream can be read, and every reader that was
    /// tried accepts it.
    Behind,
}

/// An entry as its headers tell it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header<'a> {
    pub(super) name: &'a str,
    pub(super) size: u64,
    pub(super) framing: Framing,
    pub(super) crc: u32,
}

const LOCAL_HEADER: u32 = 0x0403_4b50;
const DATA_DESCRIPTOR: u32 = 0x0807_4b50;
const CENTRAL_HEADER: u32 = 0x0201_4b50;
const END_64: u32 = 0x0606_4b50;
const END_64_LOCATOR: u32 = 0x0706_4b50;
const END: u32 = 0x0605_4b50;

/// The first value that a 32-bit field cannot hold; the field then says this, and the truth is in a zip64 extra.
const MAX_32: u64 = 0xFFFF_FFFF;
const MAX_16: u64 = 0xFFFF;
const VERSION: u16 = 20;
const VERSION_ZIP64: u16 = 45;
/// Made on Unix (3) by version 4.5.
const MADE_BY: u16 = 0x032D;
/// A regular file that its owner writes and everybody reads.
const ATTRIBUTES: u32 = 0o100_644 << 16;
/// 1 January 1980, the first day that a zip knows.
const DOS_DATE: u16 = 0x0021;
const CRC_BEHIND: u16 = 1 << 3;
/// Where a central header's CRC lies.
pub(super) const CENTRAL_CRC: std::ops::Range<usize> = 16..20;

#[derive(Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn u16(mut self, value: u16) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    /// `value`, or the mark that says it is in the zip64 extra.
    fn u32_or_mark(self, value: u64) -> Self {
        self.u32(u32::try_from(value).unwrap_or(u32::MAX))
    }

    fn u16_or_mark(self, value: u64) -> Self {
        self.u16(u16::try_from(value).unwrap_or(u16::MAX))
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }
}

fn is_zip64(value: u64) -> bool {
    value >= MAX_32
}

fn short(length: usize) -> u16 {
    // Names are `blobs/<algorithm>/<hex>` or constants: far below 65,535 bytes.
    u16::try_from(length).unwrap_or(u16::MAX)
}

/// The local header in front of an entry's content.
pub(super) fn local_header(header: &Header<'_>) -> Vec<u8> {
    let zip64 = is_zip64(header.size);
    let behind = header.framing == Framing::Behind;
    let extra =
        if zip64 { Bytes::default().u16(1).u16(16).u64(header.size).u64(header.size).0 } else { Vec::new() };
    Bytes::default()
        .u32(LOCAL_HEADER)
        .u16(if zip64 { VERSION_ZIP64 } else { VERSION })
        .u16(if behind { CRC_BEHIND } else { 0 })
        .u16(0)
        .u16(0)
        .u16(DOS_DATE)
        .u32(if behind { 0 } else { header.crc })
        .u32_or_mark(header.size)
        .u32_or_mark(header.size)
        .u16(short(header.name.len()))
        .u16(short(extra.len()))
        .raw(header.name.as_bytes())
        .raw(&extra)
        .0
}

/// The length of [`local_header`]'s bytes.
pub(super) fn local_header_len(name: &str, size: u64) -> u64 {
    30 + name.len() as u64 + if is_zip64(size) { 20 } else { 0 }
}

/// What stands behind an entry's content.
pub(super) fn data_descriptor(header: &Header<'_>) -> Vec<u8> {
    if header.framing == Framing::InHeader {
        return Vec::new();
    }
    let bytes = Bytes::default().u32(DATA_DESCRIPTOR).u32(header.crc);
    if is_zip64(header.size) {
        bytes.u64(header.size).u64(header.size).0
    } else {
        bytes.u32_or_mark(header.size).u32_or_mark(header.size).0
    }
}

/// The length of [`data_descriptor`]'s bytes.
pub(super) fn data_descriptor_len(size: u64, framing: Framing) -> u64 {
    match framing {
        Framing::InHeader => 0,
        Framing::Behind if is_zip64(size) => 24,
        Framing::Behind => 16,
    }
}

/// The entry's record in the central directory; `offset` is that of its local header.
pub(super) fn central_header(header: &Header<'_>, offset: u64) -> Vec<u8> {
    let values: Vec<u64> =
        [header.size, header.size, offset].into_iter().filter(|value| is_zip64(*value)).collect();
    let mut extra = Bytes::default();
    if !values.is_empty() {
        extra = extra.u16(1).u16(short(values.len() * 8));
        for value in &values {
            extra = extra.u64(*value);
        }
    }
    Bytes::default()
        .u32(CENTRAL_HEADER)
        .u16(MADE_BY)
        .u16(if values.is_empty() { VERSION } else { VERSION_ZIP64 })
        .u16(if header.framing == Framing::Behind { CRC_BEHIND } else { 0 })
        .u16(0)
        .u16(0)
        .u16(DOS_DATE)
        .u32(header.crc)
        .u32_or_mark(header.size)
        .u32_or_mark(header.size)
        .u16(short(header.name.len()))
        .u16(short(extra.0.len()))
        .u16(0)
        .u16(0)
        .u16(0)
        .u32(ATTRIBUTES)
        .u32_or_mark(offset)
        .raw(header.name.as_bytes())
        .raw(&extra.0)
        .0
}

/// The length of [`central_header`]'s bytes.
pub(super) fn central_header_len(name: &str, size: u64, offset: u64) -> u64 {
    let values = 2 * u64::from(is_zip64(size)) + u64::from(is_zip64(offset));
    46 + name.len() as u64 + if values == 0 { 0 } else { 4 + 8 * values }
}

/// The records that end the file.
pub(super) fn end_records(entries: u64, directory_offset: u64, directory_size: u64) -> Vec<u8> {
    let mut bytes = Bytes::default();
    if is_end_zip64(entries, directory_offset, directory_size) {
        bytes = bytes
            .u32(END_64)
            .u64(44)
            .u16(MADE_BY)
            .u16(VERSION_ZIP64)
            .u32(0)
            .u32(0)
            .u64(entries)
            .u64(entries)
            .u64(directory_size)
            .u64(directory_offset)
            .u32(END_64_LOCATOR)
            .u32(0)
            .u64(directory_offset + directory_size)
            .u32(1);
    }
    bytes
        .u32(END)
        .u16(0)
        .u16(0)
        .u16_or_mark(entries)
        .u16_or_mark(entries)
        .u32_or_mark(directory_size)
        .u32_or_mark(directory_offset)
        .u16(0)
        .0
}

/// The length of [`end_records`]' bytes.
pub(super) fn end_records_len(entries: u64, directory_offset: u64, directory_size: u64) -> u64 {
    if is_end_zip64(entries, directory_offset, directory_size) { 56 + 20 + 22 } else { 22 }
}

fn is_end_zip64(entries: u64, directory_offset: u64, directory_size: u64) -> bool {
    entries >= MAX_16 || is_zip64(directory_offset) || is_zip64(directory_size)
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn lengths_are_those_of_the_bytes(
            name in "[a-z/]{1,80}",
            size in proptest::prop_oneof![0..100_u64, 0xFFFF_FFFD..0x1_0000_0010_u64],
            offset in proptest::prop_oneof![0..100_u64, 0xFFFF_FFFD..0x1_0000_0010_u64],
            entries in proptest::prop_oneof![0..10_u64, 0xFFFD..0x1_0010_u64],
            behind: bool,
        ) {
            let framing = if behind { Framing::Behind } else { Framing::InHeader };
            let header = Header { name: &name, size, framing, crc: 7 };
            let len = |bytes: Vec<u8>| bytes.len() as u64;
            proptest::prop_assert_eq!(len(local_header(&header)), local_header_len(&name, size));
            proptest::prop_assert_eq!(len(data_descriptor(&header)), data_descriptor_len(size, framing));
            proptest::prop_assert_eq!(len(central_header(&header, offset)), central_header_len(&name, size, offset));
            proptest::prop_assert_eq!(len(end_records(entries, offset, size)), end_records_len(entries, offset, size));
        }
    }
}
