use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;

use super::beside::beside;
use super::room::{Needs, Room};
use crate::read_at::LocalFile;
use crate::reason::Reason;

/// A payload file that is being written: `<path>.partial` until it is whole.
///
/// What is in it when the writing is cut short stays there, for the next run to go on with.
#[derive(Debug)]
pub struct FileTarget {
    path: PathBuf,
    partial: PathBuf,
    file: Arc<File>,
    needs: Option<Needs>,
    forgets_journal: bool,
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
    /// What has the final name was not written by Charon.
    #[error("{0} is no payload of charon's, and is not replaced; move it away, or choose another name")]
    NotOurs(String),
    /// What lies beside an object is no journal that this program reads.
    #[error(
        "{0} is no journal that this charon reads; let the charon that wrote it come to its end, or remove it"
    )]
    NotAJournal(String),
    /// A small object that is not small.
    #[error("{0} has more than {1} bytes, which nothing of charon's has; remove it")]
    TooLong(String, usize),
    /// The store ended an object early.
    #[error("{location} ended early: {missing} bytes at {at} did not come; try again")]
    Short {
        /// The object.
        location: String,
        /// How many bytes.
        missing: u64,
        /// From where on.
        at: u64,
    },
    /// The payload does not fit.
    #[error(
        "{} has no room for the payload: it has {} bytes, and what lies beside it up to {}; {room} are free; make room or choose another volume",
        path.display(),
        needs.payload,
        needs.beside
    )]
    Full {
        /// The folder.
        path: PathBuf,
        /// What is to be written there.
        needs: Needs,
        /// What it may take, in bytes: what is free, and what an earlier attempt left of it.
        room: u64,
    },
    /// A device, a pipe, a socket: nothing that has a size and can be replaced.
    #[error("{} is no regular file, and can be neither read by position nor replaced; name one that is", .0.display())]
    NoFile(PathBuf),
    /// A payload that was to be read is not there.
    #[error("there is no file {}; copy the payload there, or name the right file", .0.display())]
    SourceNotFound(PathBuf),
    /// An object store refused, or did not answer.
    #[error("cannot {doing} {location}: {problem}{hint}")]
    Object {
        /// What was being done.
        doing: &'static str,
        /// The object.
        location: String,
        /// What came back.
        problem: String,
        /// What to do about it.
        hint: String,
        /// Why, in one word.
        reason: Reason,
    },
    /// An object that was to be read is not there.
    #[error("there is no object {0}; copy the payload there, or name the right key")]
    ObjectNotFound(String),
    /// The object became another one in the middle.
    #[error("{0} was replaced while it was read; begin again once nobody writes it any more")]
    SourceChanged(String),
    /// Another program writes the same object, and began later.
    #[error(
        "{0} is another charon's by now, which writes the same object; wait for it, or choose another key"
    )]
    Overtaken(String),
    /// The upload that an earlier attempt began is not there any more.
    #[error(
        "the upload of {0} that was begun is gone: the store gave it up, or another charon ended it; begin again"
    )]
    UploadGone(String),
}

impl StorageError {
    /// Why, in one word.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Io { source, .. } => source.into(),
            Self::Busy(_) | Self::Overtaken(_) | Self::UploadGone(_) => Reason::StorageBusy,
            Self::NoFile(_) => Reason::InvalidSpec,
            Self::NotOurs(_) | Self::NotAJournal(_) | Self::TooLong(..) => Reason::OutputConflict,
            Self::Full { .. } => Reason::StorageFull,
            Self::SourceNotFound(_) | Self::ObjectNotFound(_) => Reason::SourceNotFound,
            Self::Object { reason, .. } => *reason,
            Self::SourceChanged(_) | Self::Short { .. } => Reason::SourceIncomplete,
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
            io::ErrorKind::IsADirectory => "; name a file in it".to_owned(),
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
    /// Opens and locks `<path>.partial`, as an earlier run left it or empty.
    ///
    /// The folder must exist; what is at `path` stays until [`finish`](Self::finish).
    pub fn open(path: &Path) -> Result<Self, StorageError> {
        let path = &written_through(path)?;
        let partial = beside(path, ".partial");
        loop {
            let file = OpenOptions::new()
                .create(true)
                .read(true)
                .write(true)
                .truncate(false)
                .custom_flags(NO_DETOUR)
                .open(&partial)
                .map_err(|error| StorageError::io("write", &partial, error))?;
            check_regular(&file, &partial)?;
            lock(&file, path, &partial)?;
            // Between opening and locking another writer may have renamed the file away.
            let ours = file.metadata().map_err(|error| StorageError::io("read", &partial, error))?;
            match fs::symlink_metadata(&partial) {
                Ok(named) if (named.dev(), named.ino()) == (ours.dev(), ours.ino()) => {}
                _ => continue,
            }
            return Ok(Self {
                path: path.to_owned(),
                partial,
                file: Arc::new(file),
                needs: None,
                forgets_journal: false,
            });
        }
    }

    /// Sets what an earlier run left aside, and begins anew. The old file has no name any more; its
    /// room is free once nobody holds it.
    pub fn begin_anew(&mut self) -> Result<(), StorageError> {
        fs::remove_file(&self.partial).map_err(|error| StorageError::io("remove", &self.partial, error))?;
        let file = OpenOptions::new()
            .create_new(true)
            .read(true)
            .write(true)
            .open(&self.partial)
            .map_err(|error| StorageError::io("write", &self.partial, error))?;
        lock(&file, &self.path, &self.partial)?;
        self.file = Arc::new(file);
        Ok(())
    }

    /// The journal of the writing, a file beside the partial one.
    #[must_use]
    pub fn journal(&self) -> PathBuf {
        beside(&self.partial, ".journal")
    }

    /// Removes the partial file, whatever is in it, and the journal: there is nothing to write.
    pub fn discard(mut self) {
        self.forget_journal();
        // What cannot be emptied stays, and is taken up by the next run.
        let _ = self.file.set_len(0);
    }

    /// The journal is of no use to another run, unless something was written to the file: it goes with it.
    pub fn forget_journal(&mut self) {
        self.forgets_journal = true;
    }

    /// That a payload has room on the file system, what is in the partial file and the journal already counted. From
    /// now on an error of [writing](Self::error) tells both numbers. Gives the room, in bytes.
    pub fn check_room(&mut self, needs: Needs) -> Result<u64, StorageError> {
        self.needs = Some(needs);
        let room = self.room()?;
        room.check(needs)?;
        Ok(room.bytes())
    }

    /// Whether a payload has room beside what is there: an earlier run's partial file.
    pub fn has_room_beside(&self, needs: Needs) -> Result<bool, StorageError> {
        Ok(self.room()?.beside_the_old().check(needs).is_ok())
    }

    fn room(&self) -> Result<Room, StorageError> {
        let failed = |error| StorageError::io("look for room at", &self.partial, error);
        let system = rustix::fs::fstatvfs(&*self.file).map_err(|error| failed(error.into()))?;
        let partial = self.file.metadata().map_err(failed)?;
        Ok(Room::of(folder(&self.path), &system, Some(&partial), &self.journal()))
    }

    /// The file to write to.
    #[must_use]
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Makes the file durable, gives it its final name and removes the journal.
    pub fn finish(&self) -> Result<(), StorageError> {
        self.file.sync_all().map_err(|error| self.error(error))?;
        fs::rename(&self.partial, &self.path)
            .map_err(|error| StorageError::io("rename to", &self.path, error))?;
        // It is only a hint, and the next run does not take it for its own.
        let _ = fs::remove_file(self.journal());
        let folder = folder(&self.path);
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(|error| StorageError::io("sync", folder, error))
    }

    /// An error of writing to the file, told with its name; that there is no room any more, with both numbers.
    #[must_use]
    pub fn error(&self, source: io::Error) -> StorageError {
        match (source.kind(), self.needs, self.room()) {
            (io::ErrorKind::StorageFull, Some(needs), Ok(room)) => room.full(needs),
            _ => StorageError::io("write", &self.path, source),
        }
    }
}

impl Drop for FileTarget {
    /// A partial file without anything in it helps nobody; the journal beside it may, also who is only told to stop. (A
    /// finished file has another name.)
    fn drop(&mut self) {
        if self.file.metadata().is_ok_and(|metadata| metadata.len() == 0) {
            if self.forgets_journal {
                let _ = fs::remove_file(self.journal());
            }
            let _ = fs::remove_file(&self.partial);
        }
    }
}

/// A link that somebody put in our way is not followed, and nobody is waited for at a pipe's other end.
pub(crate) const NO_DETOUR: i32 = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).bits().cast_signed();

/// The file that is meant: a link that the user names leads to it. Only a file is ever replaced.
pub(super) fn written_through(path: &Path) -> Result<PathBuf, StorageError> {
    let failed = |error| StorageError::io("write", path, error);
    let Ok(named) = fs::symlink_metadata(path) else {
        return Ok(path.to_owned());
    };
    let path = if named.is_symlink() { fs::canonicalize(path).map_err(failed)? } else { path.to_owned() };
    match fs::metadata(&path).map_err(failed)? {
        found if found.is_file() => Ok(path),
        found if found.is_dir() => Err(failed(io::ErrorKind::IsADirectory.into())),
        _ => Err(StorageError::NoFile(path)),
    }
}

fn check_regular(file: &File, path: &Path) -> Result<(), StorageError> {
    let found = file.metadata().map_err(|error| StorageError::io("read", path, error))?;
    if found.is_file() { Ok(()) } else { Err(StorageError::NoFile(path.to_owned())) }
}

fn lock(file: &File, path: &Path, partial: &Path) -> Result<(), StorageError> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(StorageError::Busy(path.to_owned())),
        Err(TryLockError::Error(error)) => Err(StorageError::io("lock", partial, error)),
    }
}

pub(super) fn folder(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Opens a payload file for reading. It waits for the disk.
pub(super) fn open_source(path: &Path) -> Result<LocalFile, StorageError> {
    let file = File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => StorageError::SourceNotFound(path.to_owned()),
        _ => StorageError::io("read", path, error),
    })?;
    let failed = |error| StorageError::io("read", path, error);
    let metadata = file.metadata().map_err(failed)?;
    if metadata.is_dir() {
        return Err(failed(io::ErrorKind::IsADirectory.into()));
    }
    // A pipe cannot be read by position.
    if !metadata.is_file() {
        return Err(StorageError::NoFile(path.to_owned()));
    }
    LocalFile::new(Arc::new(file)).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

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
        let target = FileTarget::open(&path).unwrap();
        target.file().write_all_at(b"new", 0).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        target.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        drop(target);
        assert_eq!(names(folder.path()), ["a.zip"]);
    }

    #[test]
    fn what_was_written_before_a_cut_stays_and_the_old_file_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.zip");
        fs::write(&path, "old").unwrap();
        let target = FileTarget::open(&path).unwrap();
        target.file().write_all_at(b"ne", 0).unwrap();
        drop(target);
        assert_eq!(names(folder.path()), ["a.zip", "a.zip.partial"]);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        let target = FileTarget::open(&path).unwrap();
        assert_eq!(target.file().metadata().unwrap().len(), 2);
    }

    #[test]
    fn a_writing_that_never_began_leaves_at_most_a_journal_that_is_of_use() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.zip");
        drop(FileTarget::open(&path).unwrap());
        assert!(names(folder.path()).is_empty());
        let mut target = FileTarget::open(&path).unwrap();
        fs::write(target.journal(), "read so far").unwrap();
        drop(target);
        assert_eq!(names(folder.path()), ["a.zip.partial.journal"]);
        target = FileTarget::open(&path).unwrap();
        target.forget_journal();
        drop(target);
        assert!(names(folder.path()).is_empty());
        target = FileTarget::open(&path).unwrap();
        fs::write(target.journal(), "read so far").unwrap();
        target.file().write_all_at(b"pay", 0).unwrap();
        target.discard();
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn a_link_beside_the_payload_is_not_followed_and_one_in_its_place_is() {
        let folder = tempfile::tempdir().unwrap();
        let (victim, link) = (folder.path().join("victim"), folder.path().join("link.zip"));
        fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, folder.path().join("a.zip.partial")).unwrap();
        FileTarget::open(&folder.path().join("a.zip")).unwrap_err();
        assert_eq!(fs::read(&victim).unwrap(), b"precious");

        std::os::unix::fs::symlink(&victim, &link).unwrap();
        let target = FileTarget::open(&link).unwrap();
        target.file().write_all_at(b"payload", 0).unwrap();
        target.finish().unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&victim).unwrap(), b"payload");
    }

    #[test]
    fn what_is_no_file_is_neither_replaced_nor_read_by_position() {
        for path in ["/dev/null", "/dev/zero"] {
            assert!(matches!(FileTarget::open(Path::new(path)), Err(StorageError::NoFile(_))));
            assert!(matches!(open_source(Path::new(path)), Err(StorageError::NoFile(_))));
        }
    }

    #[test]
    fn two_never_write_one_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.zip");
        let mut first = FileTarget::open(&path).unwrap();
        for _ in 0..2 {
            assert_eq!(FileTarget::open(&path).unwrap_err().reason(), Reason::StorageBusy);
            assert!(first.partial.exists(), "the loser must not remove the winner's file");
            first.begin_anew().unwrap();
        }
        drop(first);
        FileTarget::open(&path).unwrap().finish().unwrap();
    }

    #[test]
    fn no_room_is_told_with_both_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let mut target = FileTarget::open(&folder.path().join("a.zip")).unwrap();
        let needs = |payload| Needs { payload, beside: 7 };
        target.check_room(needs(1)).unwrap();
        let error = target.check_room(needs(1 << 60)).unwrap_err();
        assert_eq!(error.reason(), Reason::StorageFull);
        assert!(error.to_string().contains(&(1_u64 << 60).to_string()), "{error}");
    }
}
