//! Blobs take turns at being sent.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The turn of one blob: it has it from when it is to be sent until all of it was.
pub(super) struct Turn {
    turns: Arc<Semaphore>,
    permit: Permit,
}

type Permit = Arc<Mutex<Option<OwnedSemaphorePermit>>>;

impl Turn {
    /// A turn that is to be taken, of so many at once as `turns` has.
    pub(super) fn of(turns: &Arc<Semaphore>) -> Self {
        Self { turns: Arc::clone(turns), permit: Permit::default() }
    }

    /// Waits for it, unless the blob has it.
    pub(super) async fn take(&self) {
        if self.permit.lock().unwrap_or_else(PoisonError::into_inner).is_none() {
            let permit = Arc::clone(&self.turns).acquire_owned().await;
            // A semaphore that nobody closes gives what it has.
            *self.permit.lock().unwrap_or_else(PoisonError::into_inner) = permit.ok();
        }
    }

    /// Passes `size` bytes on, and then ends it: a registry may take a while to write down what it got.
    pub(super) fn until_sent<S: Stream<Item = io::Result<Bytes>>>(
        &self,
        size: u64,
        body: S,
    ) -> impl Stream<Item = io::Result<Bytes>> + use<S> {
        let (permit, mut sent) = (Arc::clone(&self.permit), 0);
        body.inspect_ok(move |piece| {
            sent += piece.len() as u64;
            if sent >= size {
                permit.lock().unwrap_or_else(PoisonError::into_inner).take();
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt as _, StreamExt as _, stream};

    use super::*;

    #[tokio::test]
    async fn a_blob_has_its_turn_until_all_of_it_was_sent_and_not_until_it_was_confirmed() {
        let turns = Arc::new(Semaphore::new(1));
        let (turn, next) = (Turn::of(&turns), Turn::of(&turns));
        turn.take().await;
        let pieces = ["cha", "ron"].map(|piece| Ok(Bytes::from_static(piece.as_bytes())));
        let mut sent = std::pin::pin!(turn.until_sent(6, stream::iter(pieces)));
        sent.next().await;
        assert!(next.take().now_or_never().is_none());
        sent.next().await;
        assert!(next.take().now_or_never().is_some());
        // To be sent to another repository it waits again.
        assert!(turn.take().now_or_never().is_none());
        drop(next);
        assert!(turn.take().now_or_never().is_some());
    }
}
