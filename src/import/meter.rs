use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::{Stream, TryStreamExt};

use crate::progress::Progress;

/// Tells the progress of a blob, each byte once however often it is sent.
pub(super) struct Meter {
    progress: Arc<Progress>,
    size: u64,
    told: Arc<AtomicU64>,
}

impl Meter {
    pub(super) fn new(progress: &Arc<Progress>, size: u64) -> Self {
        Self { progress: Arc::clone(progress), size, told: Arc::default() }
    }

    /// Passes one sending of the blob on.
    pub(super) fn pass<S: Stream<Item = io::Result<Bytes>>>(
        &self,
        body: S,
    ) -> impl Stream<Item = io::Result<Bytes>> + use<S> {
        let (progress, told, mut sent) = (Arc::clone(&self.progress), Arc::clone(&self.told), 0);
        body.inspect_ok(move |piece| {
            sent += piece.len() as u64;
            progress.moved(sent.saturating_sub(told.fetch_max(sent, Ordering::Relaxed)));
        })
    }

    /// The blob is there, whichever way it came.
    pub(super) fn complete(&self) {
        self.progress.moved(self.size.saturating_sub(self.told.swap(self.size, Ordering::Relaxed)));
    }
}
