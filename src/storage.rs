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

use std::sync::Arc;

use crate::read_at::ReadAt;

/// Opens a payload for reading.
pub async fn open(location: &Location, access: &ObjectAccess) -> Result<Arc<dyn ReadAt>, StorageError> {
    Ok(match location {
        Location::File(path) => {
            let (open, failed) = (path.clone(), |error| StorageError::io("read", path, error));
            let opened = tokio::task::spawn_blocking(move || file::open_source(&open)).await;
            Arc::new(opened.map_err(|error| failed(error.into()))??)
        }
        Location::Object(object) => {
            Arc::new(ObjectSource::open(StoredObject::new(object.clone(), access)?).await?)
        }
    })
}
