//! Where payloads lie: files and standard streams.

mod beside;
mod file;
mod look;

pub(crate) use beside::{beside, write_beside};
pub(crate) use file::NO_DETOUR;
pub use file::{FileTarget, StorageError, open_source};
pub use look::FileLook;
