//! Where payloads lie: files, standard streams, objects of stores.

mod access;
mod beside;
mod bucket;
mod file;
mod location;
mod look;
mod refusal;
mod room;
mod source;
mod upload;

pub use access::{ObjectAccess, ObjectKeys};
pub(crate) use beside::{beside, write_beside};
pub use bucket::StoredObject;
pub(crate) use file::NO_DETOUR;
pub use file::{FileTarget, StorageError};
pub use location::Location;
pub use look::FileLook;
pub use room::Needs;
pub use source::ObjectSource;
pub(crate) use upload::{Left, Parts, Upload};

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::read_at::ReadAt;

/// A payload where it lies, in a file or in an object, with what reaches it.
#[derive(Clone, Debug)]
pub enum StoredPayload {
    /// In a file.
    File(PathBuf),
    /// In an object of a store.
    Object(StoredObject),
}

impl StoredPayload {
    /// The payload at `location`. Nothing is asked yet.
    pub fn new(location: Location, access: &ObjectAccess) -> Result<Self, StorageError> {
        Ok(match location {
            Location::File(path) => Self::File(path),
            Location::Object(object) => Self::Object(StoredObject::new(object, access)?),
        })
    }

    /// What lies beside it, under its name and `suffix`.
    pub fn beside(&self, suffix: &str) -> Result<Self, StorageError> {
        Ok(match self {
            Self::File(path) => Self::File(beside(path, suffix)),
            Self::Object(object) => Self::Object(object.beside(suffix)?),
        })
    }

    /// Opens it for reading.
    pub async fn open(&self) -> Result<Arc<dyn ReadAt>, StorageError> {
        Ok(match self {
            Self::File(path) => {
                let open = path.clone();
                let opened = tokio::task::spawn_blocking(move || file::open_source(&open)).await;
                Arc::new(opened.map_err(|error| StorageError::io("read", path, error.into()))??)
            }
            Self::Object(object) => Arc::new(ObjectSource::open(object.clone()).await?),
        })
    }
}

impl fmt::Display for StoredPayload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Object(object) => object.location().fmt(f),
        }
    }
}

/// Opens a payload for reading.
pub async fn open(location: &Location, access: &ObjectAccess) -> Result<Arc<dyn ReadAt>, StorageError> {
    StoredPayload::new(location.clone(), access)?.open().await
}
