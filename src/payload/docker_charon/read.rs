//! Reads payloads that docker-charon wrote.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, Read, Seek, SeekFrom};

use serde::Deserialize;
use zip::result::ZipError;
use zip::{CompressionMethod, ZipArchive};

use super::{BlobPath, DOCKER_MANIFEST, Descriptor};
use crate::digest::Digest;
use crate::payload::bill::{
    BILL_LIMIT, Bill, BillEntry, BillImage, BillManifest, DESCRIPTOR_NAME as DESCRIPTOR, EntryKind,
    FORMAT_VERSION, Required, RequiredSource,
};
use crate::payload::error::PayloadError;
use crate::payload::layout::Place;
use crate::payload::manifest::{MANIFEST_LIMIT, ManifestContent};
use crate::read_at::ReadAt;
use crate::reference::{self, Host, Reference};

/// What stands before the name in a zip's local header.
const LOCAL_HEADER: usize = 30;
/// Only what is asked of a manifest here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MediaType {
    media_type: Option<String>,
}

/// Reads the descriptor and all manifests: gives the bill that Charon would have written, and where
/// the content of each digest lies in the file.
pub(in crate::payload) fn read(source: &dyn ReadAt) -> Result<(Bill, HashMap<Digest, Place>), PayloadError> {
    let mut zip = Zip::open(source)?;
    let descriptor = zip.read(DESCRIPTOR, BILL_LIMIT)?;
    let descriptor: Descriptor = serde_json::from_slice(&descriptor)
        .map_err(|error| PayloadError::Corrupt(format!("its {DESCRIPTOR} cannot be read: {error}")))?;
    let mut content = Content::default();
    for (name, path) in &descriptor.manifests_paths {
        content.image(&mut zip, &descriptor.blobs_paths, name, path.as_deref())?;
    }
    let mut entries = content.manifests;
    entries.extend(content.blobs);
    let bill = Bill {
        format_version: FORMAT_VERSION,
        images: content.images,
        files: Vec::new(),
        entries,
        required: content.required.into_values().collect(),
        missing: Vec::new(),
    };
    bill.check_content()?;
    Ok((bill, content.places))
}

/// Reads every entry to its end: that its checksum holds, and that the header in front of it is its own,
/// as docker-charon will want it.
pub(in crate::payload) fn check_entries(source: &dyn ReadAt) -> Result<(), PayloadError> {
    let mut zip = Zip::open(source)?;
    for index in 0..zip.archive.len() {
        let mut entry = zip.archive.by_index(index).map_err(|error| {
            PayloadError::Corrupt(format!("the entry {index} of its directory cannot be read: {error}"))
        })?;
        let name = String::from_utf8_lossy(entry.name_raw()).into_owned();
        let corrupt = |error: io::Error| PayloadError::Corrupt(format!("its {name} cannot be read: {error}"));
        let mut header = vec![0; LOCAL_HEADER + entry.name_raw().len()];
        source.read_exact_at(&mut header, entry.header_start()).map_err(corrupt)?;
        let length = u16::from_le_bytes([header[26], header[27]]);
        if usize::from(length) != entry.name_raw().len() || !header.ends_with(entry.name_raw()) {
            return Err(PayloadError::Corrupt(format!("the header of its {name} has another name")));
        }
        io::copy(&mut entry, &mut io::sink()).map_err(corrupt)?;
    }
    Ok(())
}

#[derive(Default)]
struct Content {
    /// The manifests that were read, by their paths: many names may be of one.
    read: HashMap<String, (Digest, u64, String)>,
    images: Vec<BillImage>,
    manifests: Vec<BillEntry>,
    blobs: Vec<BillEntry>,
    required: BTreeMap<Digest, Required>,
    places: HashMap<Digest, Place>,
    seen: HashSet<Digest>,
}

impl Content {
    fn image(
        &mut self,
        zip: &mut Zip<'_>,
        blobs: &BTreeMap<Digest, BlobPath>,
        name: &str,
        path: Option<&str>,
    ) -> Result<(), PayloadError> {
        let reference = Reference::parse(name, &Host::docker_hub())
            .map_err(|error| PayloadError::Corrupt(format!("its {DESCRIPTOR} names {name:?}: {error}")))?;
        let Some(path) = path else {
            // Named only: docker-charon asks for it by its tag, and its digest is not told.
            self.images.push(BillImage {
                name: name.to_owned(),
                far_name: None,
                reference: reference.to_string(),
                digest: None,
                media_type: DOCKER_MANIFEST.to_owned(),
                size: 0,
                platforms: Vec::new(),
                omitted: Vec::new(),
                carried: false,
                manifests: Vec::new(),
                referrers: Vec::new(),
                blobs: Vec::new(),
            });
            return Ok(());
        };
        if !self.read.contains_key(path) {
            let read = self.manifest(zip, blobs, name, path)?;
            self.read.insert(path.to_owned(), read);
        }
        let Some((digest, size, media_type)) = self.read.get(path).cloned() else {
            return Ok(());
        };
        let manifest = BillManifest { digest: digest.clone(), media_type: media_type.clone(), size };
        self.images.push(BillImage {
            name: name.to_owned(),
            far_name: None,
            reference: reference.to_string(),
            digest: Some(digest),
            media_type,
            size,
            platforms: Vec::new(),
            omitted: Vec::new(),
            carried: true,
            manifests: vec![manifest],
            referrers: Vec::new(),
            blobs: Vec::new(),
        });
        Ok(())
    }

    /// Reads a manifest, and takes note of what it names.
    fn manifest(
        &mut self,
        zip: &mut Zip<'_>,
        blobs: &BTreeMap<Digest, BlobPath>,
        name: &str,
        path: &str,
    ) -> Result<(Digest, u64, String), PayloadError> {
        let bytes = zip.read(path, MANIFEST_LIMIT)?;
        let digest = Digest::sha256(&bytes);
        let media_type = serde_json::from_slice::<MediaType>(&bytes).ok().and_then(|told| told.media_type);
        let media_type = media_type.unwrap_or_else(|| DOCKER_MANIFEST.to_owned());
        let size = bytes.len() as u64;
        if self.seen.insert(digest.clone()) {
            self.places.insert(digest.clone(), zip.place(path, size)?);
            self.manifests.push(entry(&digest, size, EntryKind::Manifest));
        }
        for blob in ManifestContent::parse(&digest, &bytes)?.blobs() {
            if !self.seen.insert(blob.digest.clone()) {
                continue;
            }
            match blobs.get(&blob.digest) {
                Some(BlobPath::InZip { zip_path }) => {
                    let place = zip.place(zip_path, blob.size)?;
                    self.blobs.push(entry(&blob.digest, place.size, EntryKind::Blob));
                    self.places.insert(blob.digest.clone(), place);
                }
                Some(BlobPath::InRegistry { repository }) => {
                    // docker-charon keeps the blank of `-a 'one:1, two:1'`.
                    let repository = repository.trim();
                    if !reference::is_repository(repository) {
                        let why =
                            format!("its {DESCRIPTOR} names the repository {repository:?}, which is none");
                        return Err(PayloadError::Corrupt(why));
                    }
                    let source = RequiredSource {
                        name: repository.to_owned(),
                        reference: repository.to_owned(),
                        far_name: None,
                    };
                    let (digest, size) = (blob.digest.clone(), blob.size);
                    let required = Required { digest, size, sources: vec![source] };
                    self.required.insert(blob.digest.clone(), required);
                }
                None => {
                    let why = format!("its {DESCRIPTOR} lacks the blob {} of {name}", blob.digest);
                    return Err(PayloadError::Corrupt(why));
                }
            }
        }
        Ok((digest, size, media_type))
    }
}

fn entry(digest: &Digest, size: u64, kind: EntryKind) -> BillEntry {
    BillEntry { digest: digest.clone(), size, kind, encoding: "identity".to_owned() }
}

/// The zip, by any path that the descriptor names: a path only looks an entry up, it never becomes one on disk.
struct Zip<'a> {
    archive: ZipArchive<Cursor<'a>>,
    /// The file's size in bytes.
    size: u64,
}

impl<'a> Zip<'a> {
    fn open(source: &'a dyn ReadAt) -> Result<Self, PayloadError> {
        let archive = ZipArchive::new(Cursor { source, position: 0 }).map_err(|error| {
            PayloadError::Incomplete(format!(
                "it is a zip without its directory, which stands at the end ({error})"
            ))
        })?;
        if archive.index_for_name("charon.json").is_some() {
            let why = "its bill, charon.json, is not where a payload begins";
            return Err(PayloadError::Corrupt(why.to_owned()));
        }
        if archive.index_for_name(DESCRIPTOR).is_none() {
            let why = format!("it is a zip with neither charon.json at its start nor {DESCRIPTOR}");
            return Err(PayloadError::NotAPayload(why));
        }
        Ok(Self { archive, size: source.size() })
    }

    fn read(&mut self, name: &str, limit: u64) -> Result<Vec<u8>, PayloadError> {
        let mut entry = self.archive.by_name(name).map_err(|error| unreadable(name, &error))?;
        if entry.size() > limit {
            return Err(PayloadError::TooLarge(format!(
                "its {name} has {} bytes, at most {limit} are allowed",
                entry.size()
            )));
        }
        let mut bytes = Vec::new();
        let read = entry.by_ref().take(limit + 1).read_to_end(&mut bytes);
        read.map_err(|error| PayloadError::Corrupt(format!("its {name} cannot be read: {error}")))?;
        Ok(bytes)
    }

    /// Where the content of an entry lies, which must be `size` bytes.
    fn place(&mut self, name: &str, size: u64) -> Result<Place, PayloadError> {
        let entry = self.archive.by_name(name).map_err(|error| unreadable(name, &error))?;
        match entry.data_start() {
            Some(_) if entry.size() != size => Err(PayloadError::Corrupt(format!(
                "its {name} has {} bytes, and {size} were expected",
                entry.size()
            ))),
            Some(offset) if offset.checked_add(size).is_none_or(|end| end > self.size) => {
                Err(PayloadError::Corrupt(format!("its {name} would end behind the file's end")))
            }
            Some(offset) if entry.compression() == CompressionMethod::Stored && !entry.encrypted() => {
                Ok(Place { offset, size })
            }
            _ => Err(PayloadError::Corrupt(format!(
                "its {name} is compressed, which docker-charon never does"
            ))),
        }
    }
}

/// What is read by position, read in sequence.
struct Cursor<'a> {
    source: &'a dyn ReadAt,
    position: u64,
}

impl Read for Cursor<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.source.size().saturating_sub(self.position);
        let length = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        self.source.read_exact_at(&mut buffer[..length], self.position)?;
        self.position += length as u64;
        Ok(length)
    }
}

impl Seek for Cursor<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(offset) => self.source.size().checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

fn unreadable(name: &str, error: &ZipError) -> PayloadError {
    PayloadError::Corrupt(match error {
        ZipError::FileNotFound => format!("its {DESCRIPTOR} names {name:?}, which the zip has not"),
        error => format!("its {DESCRIPTOR} names {name:?}, which cannot be read: {error}"),
    })
}
