//! The journal beside a partial file: what the next run may take over.
//!
//! All in it are hints. The bill is compared by its digest, and every byte is hashed again.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use rustix::fs::{MemfdFlags, memfd_create};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::payload::MANIFESTS_LIMIT;
use crate::registry::Manifest;
use crate::storage::NO_DETOUR;

/// A line of a journal is never longer: one with the largest manifest in base64.
const LINE_LIMIT: u64 = 6 << 20;
/// Nor is a journal: a note for each quarter of a mebibyte of a terabyte.
const JOURNAL_LIMIT: u64 = 1 << 30;

/// Bytes of a blob are noted in pieces of so many, or larger ones.
pub(super) const PIECE: usize = 256 << 10;
/// What is in a note beside the digest: its frame, and a number as long as it may be.
const NOTE: u64 = r#"{"blob":"","have":18446744073709551615}"#.len() as u64 + 1;

/// How many bytes a journal of these blobs, given with their sizes, becomes at most, unless connections break often.
pub(super) fn longest<'a>(blobs: impl Iterator<Item = (&'a Digest, u64)>) -> u64 {
    let head = 2 * NOTE + 200;
    let notes = |(blob, size): (&Digest, u64)| {
        // One more when it begins, and one for what is left at its end.
        (size / PIECE as u64 + 2).saturating_mul(NOTE + blob.as_str().len() as u64)
    };
    blobs.map(notes).fold(head, u64::saturating_add)
}

/// A journal that is being written: JSON, a line an event, appended.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
}

/// What an earlier run noted.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Notes {
    /// What was asked for, in one word.
    pub(super) run: String,
    /// The payload digest of what was being written: none before that was known.
    pub(super) payload: Option<Digest>,
    /// How many bytes of each blob had been written.
    pub(super) have: HashMap<Digest, u64>,
    /// The manifests that had been read, hashed again.
    pub(super) manifests: HashMap<Digest, Manifest>,
}

#[derive(Serialize, Deserialize)]
struct Head {
    run: String,
    payload: Option<Digest>,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    Blob {
        blob: Digest,
        have: u64,
    },
    #[serde(rename_all = "camelCase")]
    Manifest {
        manifest: Digest,
        media_type: String,
        /// In base64.
        bytes: String,
    },
}

impl Notes {
    /// Reads a journal, as far as it can be read: its last line may be torn.
    pub(super) fn read(path: &Path) -> Option<Self> {
        let file = OpenOptions::new().read(true).custom_flags(NO_DETOUR).open(path).ok()?;
        file.metadata().ok().filter(|found| found.is_file() && found.len() < JOURNAL_LIMIT)?;
        Self::parse(BufReader::new(file))
    }

    /// The same of one that is no file.
    pub(super) fn parse(mut reader: impl BufRead) -> Option<Self> {
        let mut next = || {
            let mut line = Vec::new();
            let length = (&mut reader).take(LINE_LIMIT).read_until(b'\n', &mut line).ok()?;
            (length > 0).then_some(line)
        };
        let Head { run, payload } = serde_json::from_slice(&next()?).ok()?;
        let (mut have, mut manifests, mut size) = (HashMap::new(), HashMap::new(), 0);
        while let Some(line) = next() {
            // A run that was cut short may have torn its last line.
            match serde_json::from_slice(&line) {
                Ok(Line::Blob { blob, have: bytes }) => {
                    have.insert(blob, bytes);
                }
                Ok(Line::Manifest { manifest: digest, media_type, bytes }) => {
                    let bytes = Bytes::from(STANDARD.decode(bytes).unwrap_or_default());
                    size += bytes.len() as u64;
                    if size <= MANIFESTS_LIMIT && digest.check(&bytes).is_ok() {
                        manifests.insert(digest.clone(), Manifest { bytes, digest, media_type });
                    }
                }
                Err(_) => {}
            }
        }
        Some(Self { run, payload, have, manifests })
    }
}

impl Notes {
    /// Makes the next attempt ask the registries again what to fetch. What is here can be of use all
    /// the same.
    pub(super) fn disown(path: &Path) -> io::Result<()> {
        let Some(notes) = Self::read(path) else {
            return Ok(());
        };
        let journal = Journal::begin(path, "", notes.payload.as_ref())?;
        notes.have.iter().try_for_each(|(blob, have)| journal.note(blob, *have))
    }
}

impl Journal {
    /// Begins a journal; one that was there is gone.
    pub(super) fn begin(path: &Path, run: &str, payload: Option<&Digest>) -> io::Result<Self> {
        // Made anew: what had the name is not written to, whatever it was.
        if let Err(error) = fs::remove_file(path)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let mut file = OpenOptions::new().create_new(true).write(true).open(path)?;
        append(&mut file, &Head { run: run.to_owned(), payload: payload.cloned() })?;
        Ok(Self { file })
    }

    /// Begins a journal in memory; what is given with it reads it.
    pub(super) fn in_memory(run: &str) -> io::Result<(Self, Noted)> {
        let mut file = File::from(memfd_create("journal", MemfdFlags::CLOEXEC)?);
        let noted = Noted(file.try_clone()?);
        append(&mut file, &Head { run: run.to_owned(), payload: None })?;
        Ok((Self { file }, noted))
    }

    /// Goes on with the journal that is there.
    pub(super) fn go_on(path: &Path) -> io::Result<Self> {
        let mut file = OpenOptions::new().append(true).custom_flags(NO_DETOUR).open(path)?;
        // The last line may be torn.
        file.write_all(b"\n")?;
        Ok(Self { file })
    }

    /// Notes how many bytes of a blob have been written.
    pub(super) fn note(&self, blob: &Digest, have: u64) -> io::Result<()> {
        append(&mut &self.file, &Line::Blob { blob: blob.clone(), have })
    }

    /// Notes a manifest that was read.
    pub(super) fn note_manifest(&self, manifest: &Manifest) -> io::Result<()> {
        let Manifest { bytes, digest, media_type } = manifest;
        let (manifest, media_type) = (digest.clone(), media_type.clone());
        append(&mut &self.file, &Line::Manifest { manifest, media_type, bytes: STANDARD.encode(bytes) })
    }
}

/// A journal in memory, for who reads what is noted in it.
#[derive(Debug)]
pub(super) struct Noted(File);

impl Noted {
    /// How many bytes there are by now.
    pub(super) fn length(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    /// The first `length` of them.
    pub(super) fn bytes(&self, length: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        // By position: where the next note goes is not touched.
        self.0.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }
}

/// Where the manifests are noted that a plan reads.
#[derive(Debug, Default)]
pub(super) enum ManifestNotes {
    /// Nowhere: nobody wants them, or they cannot be written. (A journal that cannot be written is told of when the
    /// payload cannot be either.)
    #[default]
    None,
    /// In a journal that begins, or goes on, with the first of them: where nothing was read nothing is left.
    Awaited { path: PathBuf, run: String, goes_on: bool },
    /// In this journal.
    Begun(Journal),
}

impl ManifestNotes {
    /// Notes a manifest that was read.
    pub(super) fn note(&mut self, manifest: &Manifest) {
        if let Self::Awaited { path, run, goes_on } = self {
            let journal = if *goes_on { Journal::go_on(path) } else { Journal::begin(path, run, None) };
            *self = journal.map_or(Self::None, Self::Begun);
        }
        if let Self::Begun(journal) = self {
            // Without the note it is read once more: nothing worse.
            let _ = journal.note_manifest(manifest);
        }
    }
}

/// One write a line: lines of several writers do not mix.
fn append(mut file: impl Write, line: &impl Serialize) -> io::Result<()> {
    let mut bytes = serde_json::to_vec(line)?;
    bytes.push(b'\n');
    file.write_all(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_note_of_a_blob_counts_and_a_torn_line_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let (payload, a, b) = (Digest::sha256(b"p"), Digest::sha256(b"a"), Digest::sha256(b"b"));
        let journal = Journal::begin(&path, "run", Some(&payload)).unwrap();
        for (blob, have) in [(&a, 1), (&b, 7), (&a, 2)] {
            journal.note(blob, have).unwrap();
        }
        (&journal.file).write_all(br#"{"blob":"sha256:"#).unwrap();
        Journal::go_on(&path).unwrap().note(&b, 8).unwrap();
        let notes = Notes::read(&path).unwrap();
        assert_eq!((notes.run.as_str(), &notes.payload), ("run", &Some(payload)));
        assert_eq!(notes.have, HashMap::from([(a, 2), (b, 8)]));
    }

    #[test]
    fn a_journal_is_not_longer_than_was_foretold() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let blobs = [(Digest::sha256(b"a"), 9 << 20), (Digest::sha256(b"b"), 1), (Digest::sha256(b"c"), 0)];
        let run = Digest::sha256(b"run").to_string();
        let journal = Journal::begin(&path, &run, Some(&Digest::sha256(b"p"))).unwrap();
        for (blob, size) in &blobs {
            journal.note(blob, 0).unwrap();
            let pieces = (PIECE as u64..*size).step_by(PIECE).chain([*size]);
            pieces.for_each(|have| journal.note(blob, have).unwrap());
        }
        let (length, longest) =
            (fs::metadata(&path).unwrap().len(), longest(blobs.iter().map(|(blob, size)| (blob, *size))));
        assert!(length <= longest && longest < length * 3 / 2, "{length} and {longest}");
    }

    #[test]
    fn a_disowned_journal_belongs_to_no_run_and_keeps_its_notes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let (payload, blob) = (Digest::sha256(b"p"), Digest::sha256(b"a"));
        Journal::begin(&path, "run", Some(&payload)).unwrap().note(&blob, 7).unwrap();
        Notes::disown(&path).unwrap();
        let have = HashMap::from([(blob, 7)]);
        let notes = Notes { run: String::new(), payload: Some(payload), have, manifests: HashMap::new() };
        assert_eq!(Notes::read(&path), Some(notes));
    }

    #[test]
    fn a_manifest_comes_back_byte_by_byte_if_it_is_the_one_that_was_noted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let bytes = Bytes::from("{\n \"ü\": 1}\n\u{1}".repeat(100_000));
        let manifest = Manifest { digest: Digest::sha256(&bytes), media_type: "m".into(), bytes };
        let other = Manifest { digest: Digest::sha256(b"other"), ..manifest.clone() };
        let journal = Journal::begin(&path, "run", None).unwrap();
        journal.note_manifest(&other).unwrap();
        journal.note_manifest(&manifest).unwrap();
        let notes = Notes::read(&path).unwrap();
        assert_eq!(notes.manifests, HashMap::from([(manifest.digest.clone(), manifest)]));
    }

    #[test]
    fn a_link_in_the_journals_place_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (victim, path) = (folder.path().join("victim"), folder.path().join("journal"));
        fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, &path).unwrap();
        assert_eq!(Notes::read(&path), None);
        Journal::go_on(&path).unwrap_err();
        Journal::begin(&path, "run", None).unwrap();
        assert_eq!(fs::read(&victim).unwrap(), b"precious");
    }

    #[test]
    fn what_is_no_journal_tells_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        assert_eq!(Notes::read(&path), None);
        for text in ["", "\n", "{}", "hello", &"x".repeat(10_000)] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(Notes::read(&path), None, "{text:.20}");
        }
    }
}
