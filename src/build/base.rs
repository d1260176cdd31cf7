//! Where the bills of earlier payloads are found: in the payload, or in the copy of its bill that stays behind
//! when the payload leaves.

use std::path::Path;

use bytes::Bytes;
use tracing::warn;

use crate::digest::Digest;
use crate::payload::{Base, PayloadError};
use crate::reason::Reason;
use crate::storage::{StorageError, StoredObject, StoredPayload, beside, write_beside};

/// What the copy of a payload's bill is called, behind the payload's own name.
const KEPT: &str = ".bill.json";

/// Why an earlier payload cannot be the base of a new one.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    /// Neither the payload nor its bill is there.
    #[error(
        "there is neither {0} nor {0}{KEPT}, to tell what the far side has; bring one of them back, or build without this base"
    )]
    NotFound(String),
    /// What is there is another payload.
    #[error(
        "{place} is the payload {found}, wanted is {wanted}; it may be being built anew: wait, or bring the right one back"
    )]
    Other {
        /// Where it lies.
        place: String,
        /// The payload digest that it should have.
        wanted: Digest,
        /// The one that it has.
        found: Digest,
    },
    /// What is there is no payload and no bill, or not whole.
    #[error("{place}: {error}")]
    Payload {
        /// Where it lies.
        place: String,
        /// What is wrong with it.
        error: PayloadError,
    },
    /// It cannot be read.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl BaseError {
    /// Why, in one word.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::NotFound(_) | Self::Other { .. } => Reason::WaitingForBase,
            Self::Payload { error, .. } => error.reason(),
            Self::Storage(error) => error.reason(),
        }
    }
}

/// Reads the bill of an earlier payload, or the copy of it beside where the payload was. One of another digest
/// than the one that is wanted, if any is, is none.
pub async fn open_base(payload: &StoredPayload, wanted: Option<&Digest>) -> Result<Base, BaseError> {
    let mut other = None;
    for stored in [payload.clone(), payload.beside(KEPT)?] {
        let source = match stored.open().await {
            Ok(source) => source,
            Err(StorageError::SourceNotFound(_) | StorageError::ObjectNotFound(_)) => continue,
            Err(error) => return Err(error.into()),
        };
        let place = stored.to_string();
        let read = tokio::task::spawn_blocking(move || Base::read(&*source)).await;
        match (read.map_err(PayloadError::reading).and_then(std::convert::identity), wanted) {
            (Ok(base), Some(wanted)) if base.digest() != wanted => {
                let (wanted, found) = (wanted.clone(), base.digest().clone());
                other.get_or_insert(BaseError::Other { place, wanted, found });
            }
            (Ok(base), _) => return Ok(base),
            // The right one may lie beside it.
            (Err(error), Some(_)) => other = Some(BaseError::Payload { place, error }),
            (Err(error), None) => return Err(BaseError::Payload { place, error }),
        }
    }
    Err(other.unwrap_or_else(|| BaseError::NotFound(payload.to_string())))
}

/// Leaves a copy of the bill beside the payload at `path`, so that the payload may leave. The payload is whole
/// without it.
pub(super) fn keep_bill(path: &Path, bill: &Bytes) {
    if let Err(error) = write_beside(path, KEPT, bill) {
        warn!(
            "cannot write {}: {error}; later builds on this one need the payload itself",
            beside(path, KEPT).display()
        );
    }
}

/// The same beside an object.
pub(super) async fn keep_bill_of(object: &StoredObject, bill: Bytes) {
    let kept = async { object.beside(KEPT)?.write(bill).await };
    if let Err(error) = kept.await {
        warn!("{error}; later builds on this one need the payload itself");
    }
}
