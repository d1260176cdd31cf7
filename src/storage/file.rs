use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::reason::Reason;

/// A payload file that is being written: `<path>.partial` until it is whole.
#[derive(Debug)]
pub struct FileTarget {
    path: PathBuf,
    partial: PathBuf,
    file: File,
    done: bool,
}

/// Why a payload file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The operating system refused.
    #[error("cannot {doing} {}: {source}{hint}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What came back.
        source: io::Error,
        /// What to do about it.
        hint: String,
    },
    /// Another program writes the same file.
    #[error("{} is being written by another charon; wait for it, or choose another name", .0.display())]
    Busy(PathBuf),
    /// The payload does not fit.
    #[error(
        "{} has no room for the payload: it has {needed} bytes, and {free} are free; make room or choose another volume",
        path.display()
    )]
    Full {
        /// The folder.
        path: PathBuf,
        /// The payload's exact size in bytes.
        needed: u64,
        /// What is free, in bytes.
        free: u64,
    },
    /// A payload that was to be read is not there.
    #[error("there is no file {}; copy the payload there, or name the right file", .0.display())]
    SourceNotFound(PathBuf),
}

impl StorageError {
    /// Why, in one word.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Io { source, .. } => super::reason_of(source),
            Self::Busy(_) => Reason::StorageBusy,
            Self::Full { .. } => Reason::StorageFull,
            Self::SourceNotFound(_) => Reason::SourceNotFound,
        }
    }

    /// Tells what happened at `path`, and what to do where that is known.
    #[must_use]
    pub fn io(doing: &'static str, path: &Path, source: io::Error) -> Self {
        let hint = match source.kind() {
            io::ErrorKind::PermissionDenied => access_hint(path),
            io::ErrorKind::ReadOnlyFilesystem => "; it is mounted read-only".to_owned(),
            io::ErrorKind::StorageFull => "; make room or choose another volume".to_owned(),
            io::ErrorKind::NotFound => "; does its folder exist?".to_owned(),
            _ => String::new(),
        };
        Self::Io { doing, path: path.to_owned(), source, hint }
    }
}

/// Who may do what at `path`, and who we are.
fn access_hint(path: &Path) -> String {
    let existing = path.ancestors().find_map(|ancestor| {
        let ancestor = if ancestor.as_os_str().is_empty() { Path::new(".") } else { ancestor };
        fs::metadata(ancestor).ok().map(|metadata| (ancestor, metadata))
    });
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    existing.map_or_else(String::new, |(path, metadata)| {
        format!(
            "; {} belongs to {}:{} with mode {:o}, and charon runs as {uid}:{gid}",
            path.display(),
            metadata.uid(),
            metadata.gid(),
            metadata.mode() & 0o7777,
        )
    })
}

impl FileTarget {
    /// Begins to write the file `path`: creates and locks `<path>.partial`, empty.
    ///
    /// The folder must exist; what is at `path` stays until [`finish`](Self::finish).
    pub fn create(path: &Path) -> Result<Self, StorageError> {
        if path.is_dir() {
            let error = io::Error::from(io::ErrorKind::IsADirectory);
            return Err(StorageError::io("write", path, error));
        }
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        loop {
            let file = OpenOptions::new()
                .create(true)
                .write(true)
                .truncate(false)
                .open(&partial)
                .map_err(|error| StorageError::io("write", &partial, error))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(StorageError::Busy(path.to_owned())),
                Err(TryLockError::Error(error)) => return Err(StorageError::io("lock", &partial, error)),
            }
            // Between opening and locking another writer may have renamed the file away.
            let ours = file.metadata().map_err(|error| StorageError::io("read", &partial, error))?;
            match fs::metadata(&partial) {
                Ok(named) if (named.dev(), named.ino()) == (ours.dev(), ours.ino()) => {}
                _ => continue,
            }
            file.set_len(0).map_err(|error| StorageError::io("empty", &partial, error))?;
            return Ok(Self { path: path.to_owned(), partial, file, done: false });
        }
    }

    /// That `size` bytes have room on the file system.
    pub fn check_room(&self, size: u64) -> Result<(), StorageError> {
        let system = rustix::fs::fstatvfs(&self.file)
            .map_err(|error| StorageError::io("look for room at", &self.partial, error.into()))?;
        let free = system.f_bavail.saturating_mul(system.f_frsize);
        if free < size {
            let path = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
            let path = path.unwrap_or(Path::new(".")).to_owned();
            return Err(StorageError::Full { path, needed: size, free });
        }
        Ok(())
    }

    /// The file to write to.
    pub fn writer(&self) -> Result<File, StorageError> {
        self.file.try_clone().map_err(|error| StorageError::io("write", &self.partial, error))
    }

    /// Makes the file durable and gives it its final name.
    pub fn finish(mut self) -> Result<(), StorageError> {
        self.file.sync_all().map_err(|error| StorageError::io("write", &self.partial, error))?;
        fs::rename(&self.partial, &self.path)
            .map_err(|error| StorageError::io("rename to", &self.path, error))?;
        self.done = true;
        let folder = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(|error| StorageError::io("sync", folder, error))
    }

    /// An error of writing to the file, told with its name.
    #[must_use]
    pub fn error(&self, source: io::Error) -> StorageError {
        StorageError::io("write", &self.path, source)
    }
}

impl Drop for FileTarget {
    /// A partial file that nobody goes on with only takes room.
    fn drop(&mut self) {
        if !self.done {
            let _ = fs::remove_file(&self.partial);
        }
    }
}

/// Opens a payload file for reading.
pub fn open_source(path: &Path) -> Result<File, StorageError> {
    let file = File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => StorageError::SourceNotFound(path.to_owned()),
        _ => StorageError::io("read", path, error),
    })?;
    let metadata = file.metadata().map_err(|error| StorageError::io("read", path, error))?;
    if metadata.is_dir() {
        return Err(StorageError::io("read", path, io::ErrorKind::IsADirectory.into()));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn the_final_name_appears_only_when_the_file_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.zip");
        fs::write(&path, "old").unwrap();
        let target = FileTarget::create(&path).unwrap();
        target.writer().unwrap().write_all(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        target.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(names(folder.path()), ["a.zip"]);
    }

    #[test]
    fn a_file_that_was_given_up_leaves_nothing_and_keeps_the_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.zip");
        fs::write(&path, "old").unwrap();
        drop(FileTarget::create(&path).unwrap());
        assert_eq!(names(folder.path()), ["a.zip"]);
        assert_eq!(fs::read(&path).unwrap(), b"old");
    }

    #[test]
    fn two_never_write_one_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.zip");
        let first = FileTarget::create(&path).unwrap();
        let error = FileTarget::create(&path).unwrap_err();
        assert_eq!(error.reason(), Reason::StorageBusy);
        assert!(first.partial.exists(), "the loser must not remove the winner's file");
        drop(first);
        FileTarget::create(&path).unwrap().finish().unwrap();
    }

    #[test]
    fn what_a_killed_writer_left_behind_is_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.zip");
        fs::write(folder.path().join("a.zip.partial"), "much longer than what comes").unwrap();
        let target = FileTarget::create(&path).unwrap();
        target.writer().unwrap().write_all(b"new").unwrap();
        target.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn no_room_is_told_with_both_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let target = FileTarget::create(&folder.path().join("a.zip")).unwrap();
        target.check_room(1).unwrap();
        let error = target.check_room(u64::MAX).unwrap_err();
        assert_eq!(error.reason(), Reason::StorageFull);
        assert!(error.to_string().contains(&u64::MAX.to_string()), "{error}");
    }
}
