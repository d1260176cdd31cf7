//! Whether a payload fits where it goes.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::StatVfs;

use super::StorageError;

/// What a payload takes on its volume until it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// The payload's exact size in bytes.
    pub payload: u64,
    /// What lies beside it, at most: the journal and the copy of the bill, in bytes.
    pub beside: u64,
}

/// What there is for a payload.
#[derive(Debug)]
pub(super) struct Room {
    folder: PathBuf,
    /// What is free, in bytes.
    free: u64,
    /// What an earlier attempt took for its partial file and its journal, in bytes: this one writes over them.
    taken: u64,
    /// The unit in which the file system hands out room, in bytes.
    block: u64,
}

impl Room {
    /// What a file system has, where an earlier attempt may have left a partial file and a journal.
    pub(super) fn of(folder: &Path, system: &StatVfs, partial: Option<&Metadata>, journal: &Path) -> Self {
        let taken = |found: &Metadata| found.blocks() * 512;
        let journal = fs::symlink_metadata(journal).ok();
        Self {
            folder: folder.to_owned(),
            free: system.f_bavail.saturating_mul(system.f_frsize),
            taken: partial.map_or(0, taken) + journal.as_ref().map_or(0, taken),
            block: system.f_frsize.max(1),
        }
    }

    /// How much may be written, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.free.saturating_add(self.taken)
    }

    /// The same where what an earlier attempt took stays.
    pub(super) fn beside_the_old(self) -> Self {
        Self { taken: 0, ..self }
    }

    pub(super) fn check(&self, needs: Needs) -> Result<(), StorageError> {
        let Needs { payload, beside } = self.in_blocks(needs);
        if payload.saturating_add(beside) > self.bytes() { Err(self.full(needs)) } else { Ok(()) }
    }

    pub(super) fn full(&self, needs: Needs) -> StorageError {
        StorageError::Full { path: self.folder.clone(), needs: self.in_blocks(needs), room: self.bytes() }
    }

    /// The same with what the last blocks of the files have left over: it is counted to what lies beside.
    fn in_blocks(&self, Needs { payload, beside }: Needs) -> Needs {
        let blocks = |bytes: u64| bytes.div_ceil(self.block).saturating_mul(self.block);
        // Two files lie beside it.
        let beside = blocks(beside).saturating_add(self.block);
        Needs { payload, beside: beside.saturating_add(blocks(payload).saturating_sub(payload)) }
    }
}
