//! What an earlier run left of a payload file, for who only wants to look at it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::NO_DETOUR;
use super::beside::beside;
use super::file::{StorageError, folder, written_through};
use super::room::{Needs, Room};

/// A payload file that could be written. Nothing is made and nothing locked.
#[derive(Debug)]
pub struct FileLook {
    /// What an earlier run left in its partial file.
    pub partial: Option<Arc<File>>,
    /// The journal beside that; it need not be there.
    pub journal: PathBuf,
    room: Room,
}

impl FileLook {
    /// Looks at the payload file `path`. Its folder must exist.
    pub fn at(path: &Path) -> Result<Self, StorageError> {
        let path = &written_through(path)?;
        let (folder, partial) = (folder(path).to_owned(), beside(path, ".partial"));
        let failed = |error| StorageError::io("look for room at", &folder, error);
        let system = rustix::fs::statvfs(&folder).map_err(|error| failed(error.into()))?;
        let opened = OpenOptions::new().read(true).custom_flags(NO_DETOUR).open(&partial).ok();
        let is_file = |file: &File| file.metadata().is_ok_and(|found| found.is_file());
        let partial_file = opened.filter(is_file);
        let journal = beside(&partial, ".journal");
        let left = partial_file.as_ref().and_then(|file| file.metadata().ok());
        let room = Room::of(&folder, &system, left.as_ref(), &journal);
        Ok(Self { partial: partial_file.map(Arc::new), journal, room })
    }

    /// How much may be written, in bytes, what an earlier run left already counted.
    #[must_use]
    pub fn room(&self) -> u64 {
        self.room.bytes()
    }

    /// That a payload has room.
    pub fn check_room(&self, needs: Needs) -> Result<(), StorageError> {
        self.room.check(needs)
    }
}
