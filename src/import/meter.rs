use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::{Stream, TryStreamExt};

use crate::progress::Progress;

/// Tells the progress of a blob: no more bytes than are expected to move, each once however often it is sent.
pub(super) struct Meter {
    progress: Arc<Progress>,
    expected: u64,
    told: Arc<AtomicU64>,
}

impl Meter {
    pub(super) fn new(progress: &Arc<Progress>, expected: u64) -> Self {
        Self { progress: Arc::clone(progress), expected, told: Arc::default() }
    }

    /// Passes one sending of the blob on.
    pub(super) fn pass<S: Stream<Item = io::Result<Bytes>>>(
        &self,
        body: S,
    ) -> impl Stream<Item = io::Result<Bytes>> + use<S> {
        let (progress, told) = (Arc::clone(&self.progress), Arc::clone(&self.told));
        let (expected, mut sent) = (self.expected, 0);
        body.inspect_ok(move |piece| {
            sent += piece.len() as u64;
            let counted = expected.min(sent);
            progress.moved(counted.saturating_sub(told.fetch_max(counted, Ordering::Relaxed)));
        })
    }

    /// The blob is there, whichever way it came.
    pub(super) fn complete(&self) {
        let told = self.told.swap(self.expected, Ordering::Relaxed);
        self.progress.moved(self.expected.saturating_sub(told));
    }
}

#[cfg(test)]
mod tests {
    use futures::{StreamExt as _, stream};

    use super::*;

    #[tokio::test]
    async fn a_blob_that_is_sent_twice_counts_once_and_one_that_was_not_expected_to_move_does_not_count() {
        for (expected, counted) in [(6, 6), (0, 0)] {
            let progress = Arc::<Progress>::default();
            let meter = Meter::new(&progress, expected);
            for _ in 0..2 {
                let pieces = ["cha", "ron"].map(|piece| Ok(Bytes::from_static(piece.as_bytes())));
                meter.pass(stream::iter(pieces)).for_each(async |_| ()).await;
            }
            meter.complete();
            assert_eq!(progress.snapshot().bytes_done, counted);
        }
    }
}
