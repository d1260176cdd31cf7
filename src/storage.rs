//! Where payloads lie: files and standard streams.

mod file;

pub(crate) use file::NO_DETOUR;
pub use file::{FileTarget, StorageError, open_source};
