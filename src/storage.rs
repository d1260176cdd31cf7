//! Where payloads lie: files and standard streams.

mod file;

pub use file::{FileTarget, StorageError, open_source};

use crate::reason::Reason;

/// Why a file could not be read or written, in one word.
#[must_use]
pub fn reason_of(error: &std::io::Error) -> Reason {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Reason::StorageFull,
        ErrorKind::ReadOnlyFilesystem => Reason::StorageReadOnly,
        ErrorKind::PermissionDenied => Reason::StorageAccessDenied,
        ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::IsADirectory => Reason::StorageNotFound,
        _ => Reason::WorkerFailed,
    }
}
