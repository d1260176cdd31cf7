use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use tokio::sync::OwnedSemaphorePermit;

use crate::progress::Progress;

/// Tells the progress of a blob, each byte once however often it is sent, and ends its turn once all of it was sent.
pub(super) struct Meter {
    progress: Arc<Progress>,
    size: u64,
    told: Arc<AtomicU64>,
    turn: Turn,
}

/// What a blob has while it is sent, and another waits for.
pub(super) type Turn = Arc<Mutex<Option<OwnedSemaphorePermit>>>;

impl Meter {
    pub(super) fn new(progress: &Arc<Progress>, size: u64, turn: Turn) -> Self {
        Self { progress: Arc::clone(progress), size, told: Arc::default(), turn }
    }

    /// Passes one sending of the blob on.
    pub(super) fn pass<S: Stream<Item = io::Result<Bytes>>>(
        &self,
        body: S,
    ) -> impl Stream<Item = io::Result<Bytes>> + use<S> {
        let (progress, told, turn) =
            (Arc::clone(&self.progress), Arc::clone(&self.told), Arc::clone(&self.turn));
        let (size, mut sent) = (self.size, 0);
        body.inspect_ok(move |piece| {
            sent += piece.len() as u64;
            progress.moved(sent.saturating_sub(told.fetch_max(sent, Ordering::Relaxed)));
            if sent >= size {
                turn.lock().unwrap_or_else(PoisonError::into_inner).take();
            }
        })
    }

    /// The blob is there, whichever way it came.
    pub(super) fn complete(&self) {
        self.progress.moved(self.size.saturating_sub(self.told.swap(self.size, Ordering::Relaxed)));
    }
}

#[cfg(test)]
mod tests {
    use futures::{StreamExt as _, stream};
    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn a_blob_has_its_turn_until_all_of_it_was_sent_and_not_until_it_was_confirmed() {
        let turns = Arc::new(Semaphore::new(1));
        let turn = Turn::new(Mutex::new(turns.clone().try_acquire_owned().ok()));
        let meter = Meter::new(&Arc::default(), 6, turn);
        let pieces = ["cha", "ron"].map(|piece| Ok(Bytes::from_static(piece.as_bytes())));
        let mut sent = std::pin::pin!(meter.pass(stream::iter(pieces)));
        sent.next().await;
        assert_eq!(turns.available_permits(), 0);
        sent.next().await;
        assert_eq!(turns.available_permits(), 1);
    }
}
