//! Where the bills of earlier payloads are found: in the payload, or in the copy of its bill that stays behind
//! when the payload leaves.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use tracing::warn;

use crate::digest::Digest;
use crate::payload::{Base, PayloadError};
use crate::reason::Reason;
use crate::storage::{self, Location, ObjectAccess, StorageError, beside, write_beside};

/// What the copy of a payload's bill is called, behind the payload's own name.
const KEPT: &str = ".bill.json";

/// Why an earlier payload cannot be the base of a new one.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    /// Neither the payload nor its bill is there.
    #[error("there is neither {} nor {}, to tell what the far side has; bring one of them back, or build without this base", .0.display(), kept_bill(.0).display())]
    NotFound(PathBuf),
    /// What is there is another payload.
    #[error(
        "{} is the payload {found}, wanted is {wanted}; it may be being built anew: wait, or bring the right one back",
        path.display()
    )]
    Other {
        /// The payload.
        path: PathBuf,
        /// The payload digest that it should have.
        wanted: Digest,
        /// The one that it has.
        found: Digest,
    },
    /// The file is no payload and no bill, or not whole.
    #[error("{}: {error}", path.display())]
    Payload {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: PayloadError,
    },
    /// The file cannot be read.
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

/// Where the copy of the bill of the payload at `path` lies.
fn kept_bill(path: &Path) -> PathBuf {
    beside(path, KEPT)
}

/// Reads the bill of the payload at `path`, or the copy of it beside where the payload was. One of another digest
/// than the one that is wanted, if any is, is none.
pub async fn open_base(path: &Path, wanted: Option<&Digest>) -> Result<Base, BaseError> {
    let mut other = None;
    for path in [path.to_owned(), kept_bill(path)] {
        let source = match storage::open(&Location::File(path.clone()), &ObjectAccess::default()).await {
            Ok(source) => source,
            Err(StorageError::SourceNotFound(_)) => continue,
            Err(error) => return Err(error.into()),
        };
        let read = tokio::task::spawn_blocking(move || Base::read(&*source)).await;
        match (read.map_err(PayloadError::reading).and_then(std::convert::identity), wanted) {
            (Ok(base), Some(wanted)) if base.digest() != wanted => {
                let (wanted, found) = (wanted.clone(), base.digest().clone());
                other.get_or_insert(BaseError::Other { path, wanted, found });
            }
            (Ok(base), _) => return Ok(base),
            // The right one may lie beside it.
            (Err(error), Some(_)) => other = Some(BaseError::Payload { path, error }),
            (Err(error), None) => return Err(BaseError::Payload { path, error }),
        }
    }
    Err(other.unwrap_or_else(|| BaseError::NotFound(path.to_owned())))
}

/// Leaves a copy of the bill beside the payload at `path`, so that the payload may leave. The payload is whole
/// without it.
pub(super) fn keep_bill(path: &Path, bill: &Bytes) {
    if let Err(error) = write_beside(path, KEPT, bill) {
        warn!(
            "cannot write {}: {error}; later builds on this one need the payload itself",
            kept_bill(path).display()
        );
    }
}
