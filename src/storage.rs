//! Where payloads lie: files and standard streams.

mod file;

pub use file::{FileTarget, StorageError, open_source};
