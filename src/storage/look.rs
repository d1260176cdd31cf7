//! What an earlier run left of a payload file, for who only wants to look at it.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::NO_DETOUR;
use super::beside::beside;
use super::file::{StorageError, folder, written_through};

/// A payload file that could be written. Nothing is made and nothing locked.
#[derive(Debug)]
pub struct FileLook {
    /// What an earlier run left in its partial file.
    pub partial: Option<Arc<File>>,
    /// The journal beside that; it need not be there.
    pub journal: PathBuf,
    /// How large the file can become, in bytes, what is in its partial file already counted.
    pub room: u64,
    folder: PathBuf,
}

impl FileLook {
    /// Looks at the payload file `path`. Its folder must exist.
    pub fn at(path: &Path) -> Result<Self, StorageError> {
        let path = &written_through(path)?;
        let (folder, partial) = (folder(path).to_owned(), beside(path, ".partial"));
        let failed = |error| StorageError::io("look for room at", &folder, error);
        let system = rustix::fs::statvfs(&folder).map_err(|error| failed(error.into()))?;
        let taken = fs::symlink_metadata(&partial).map_or(0, |found| found.blocks() * 512);
        let room = system.f_bavail.saturating_mul(system.f_frsize).saturating_add(taken);
        let opened = OpenOptions::new().read(true).custom_flags(NO_DETOUR).open(&partial).ok();
        let is_file = |file: &File| file.metadata().is_ok_and(|found| found.is_file());
        let journal = beside(&partial, ".journal");
        Ok(Self { partial: opened.filter(is_file).map(Arc::new), journal, room, folder })
    }

    /// That a file of `size` bytes has room.
    pub fn check_room(&self, size: u64) -> Result<(), StorageError> {
        if self.room < size {
            return Err(StorageError::Full { path: self.folder.clone(), needed: size, free: self.room });
        }
        Ok(())
    }
}
