//! A payload that lies whole under its name before anything of it is fetched: an attempt may have been killed behind its
//! last step, or the same was built before.

use tokio_util::io::StreamReader;
use tokio_util::task::AbortOnDropHandle;
use tracing::info;

use super::BuildError;
use crate::digest::Digest;
use crate::payload::{FilePayload, PayloadError, StreamPayload};
use crate::storage::StoredPayload;

/// Reads what lies there from its beginning to its end: whether it is the payload of digest `payload`, and not another
/// one. It is an error if it is not whole.
pub(super) async fn is_whole(stored: &StoredPayload, payload: &Digest) -> Result<bool, BuildError> {
    let source = stored.open().await?;
    let (payload, place) = (payload.clone(), stored.to_string());
    // In a task of its own: the bytes of a file come without a pause, and who is told to stop is to hear of it.
    let verified = AbortOnDropHandle::new(tokio::spawn(async move {
        let found = StreamPayload::open(StreamReader::new(source.stream(0..source.size()))).await?;
        if *found.digest() != payload {
            return Ok(false);
        }
        info!("Verifying {place}");
        found.verify(|_| ()).await.map(|()| true)
    }));
    let verified: Result<bool, PayloadError> = verified.await.map_err(PayloadError::reading)?;
    Ok(verified?)
}

/// Whether it is that payload by all that can be told without reading a blob.
pub(super) async fn is_said_to_be(stored: &StoredPayload, payload: &Digest) -> bool {
    let Ok(source) = stored.open().await else { return false };
    FilePayload::open_at(source).await.is_ok_and(|found| found.digest() == Some(payload))
}
