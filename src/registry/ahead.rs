//! Blobs that are wanted in order, and fast: the next pieces are on their way while one is used.

use std::ops::Range;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio_util::task::AbortOnDropHandle;

use super::client::Registry;
use super::error::RegistryError;
use crate::digest::Digest;

/// Each request brings so many bytes; smaller ones cost more time than they save memory.
const PIECE: u64 = 2 << 20;
/// So many pieces are held or on their way at once.
const AT_ONCE: usize = 6;

impl Registry {
    /// The bytes `range` of a blob of `size` bytes, in order, as [`Registry::blob_range`] gives them, but several
    /// pieces at once, of which a few mebibytes are held.
    ///
    /// The first piece comes alone, as it arrives: where the registry knows no ranges, the rest comes in one answer. Where
    /// only so many requests may be under way it is held whole, too: who is not read on yet keeps nobody waiting.
    #[must_use]
    pub fn blob_ahead(
        &self,
        repository: &str,
        digest: &Digest,
        size: u64,
        range: Range<u64>,
    ) -> BoxStream<'static, Result<Bytes, RegistryError>> {
        let blob =
            Blob { registry: self.clone(), repository: repository.to_owned(), digest: digest.clone(), size };
        let is_small = range.end.saturating_sub(range.start) <= PIECE;
        if !self.is_narrow() && (is_small || self.lacks_ranges()) {
            return blob.whole(range);
        }
        let piece = range.start..range.end.min(range.start + PIECE);
        let rest = piece.end..range.end;
        let first = if self.is_narrow() {
            let blob = blob.clone();
            stream::once(async move { blob.piece_by_itself(piece).await }).boxed()
        } else {
            blob.whole(piece)
        };
        if is_small {
            return first;
        }
        // Which of the two it is to be, is known when the first piece was there.
        let after =
            async move { if blob.registry.lacks_ranges() { blob.whole(rest) } else { blob.pieces(rest) } };
        first.chain(stream::once(after).flatten()).boxed()
    }
}

#[derive(Clone)]
struct Blob {
    registry: Registry,
    repository: String,
    digest: Digest,
    size: u64,
}

impl Blob {
    fn whole(&self, range: Range<u64>) -> BoxStream<'static, Result<Bytes, RegistryError>> {
        self.registry.blob_range(&self.repository, &self.digest, self.size, range).boxed()
    }

    /// A piece, held whole.
    async fn piece(self, range: Range<u64>) -> Result<Bytes, RegistryError> {
        let mut bytes = Vec::with_capacity(usize::try_from(range.end - range.start).unwrap_or_default());
        let mut body = self.whole(range);
        while let Some(chunk) = body.try_next().await? {
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.into())
    }

    /// The same in a task of its own, so that it goes on while another one is written.
    fn piece_by_itself(self, range: Range<u64>) -> impl Future<Output = Result<Bytes, RegistryError>> {
        let task = AbortOnDropHandle::new(tokio::spawn(self.piece(range)));
        async move { task.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())) }
    }

    fn pieces(&self, range: Range<u64>) -> BoxStream<'static, Result<Bytes, RegistryError>> {
        let (blob, end) = (self.clone(), range.end);
        let starts = stream::iter((range.start..end).step_by(usize::try_from(PIECE).unwrap_or(usize::MAX)));
        let fetched = starts.map(move |start| blob.clone().piece_by_itself(start..end.min(start + PIECE)));
        fetched.buffered(AT_ONCE).boxed()
    }
}
