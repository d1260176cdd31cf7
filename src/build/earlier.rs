//! What an earlier attempt left where the payload goes.

use std::collections::HashMap;
use std::sync::Arc;

use super::journal::Notes;
use crate::payload::Remains;
use crate::read_at::LocalFile;
use crate::storage::{FileLook, Left, StorageError, StoredObject};

/// What an earlier attempt left.
#[derive(Debug, Default)]
pub(super) struct Earlier {
    /// What it noted.
    pub(super) notes: Option<Notes>,
    /// The payload's beginning.
    pub(super) remains: Option<Remains>,
    /// The upload of an object that it had begun.
    pub(super) upload: Option<Left>,
}

impl Earlier {
    /// What is in the partial file of a payload, and in the journal beside it.
    pub(super) fn in_file(look: &FileLook) -> Self {
        let partial = look.partial.as_ref().and_then(|partial| LocalFile::new(Arc::clone(partial)).ok());
        let remains = partial.and_then(|partial| Remains::of(Arc::new(partial)));
        Self { notes: Notes::read(&look.journal), remains, upload: None }
    }

    /// What lies beside `object`.
    pub(super) async fn beside(object: &StoredObject) -> Result<Self, StorageError> {
        let Some(upload) = Left::of(object).await? else {
            return Ok(Self::default());
        };
        let notes = Notes {
            run: upload.run().to_owned(),
            payload: Some(upload.payload().clone()),
            have: HashMap::new(),
            manifests: HashMap::new(),
        };
        let remains = upload.head.clone().and_then(|head| Remains::of(Arc::new(head)));
        Ok(Self { notes: Some(notes), remains, upload: Some(upload) })
    }
}
