//! Blobs into a file: several at once, the largest first, each at its own place, going on where an
//! earlier run stopped.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;
use tracing::info;

use super::journal::{Journal, PIECE};
use super::plan::{BlobPlan, Plan};
use super::{BuildError, source};
use crate::digest::Digest;
use crate::payload::{BlobError, PayloadError, PlacedBlob, PlacedPayload, Remains};
use crate::progress::{Progress, STEP};
use crate::reason::Reason;
use crate::registry::{Foreign, RegistryError};

/// What came is written when so much is together: large writes take the least of a file system.
const WRITTEN: usize = 1 << 20;
/// Of a payload of less than so many times as much, a part of it: what a kill loses, of each of four blobs so much that
/// was not written yet, is to be a hundredth.
const OF_PAYLOAD: u64 = 400;
/// Or, where it comes slowly or not at all, after so long: what is not written is lost with the process.
const KEPT: Duration = Duration::from_secs(1);

/// All that fetching needs.
pub(super) struct Fetch {
    pub(super) payload: PlacedPayload,
    pub(super) journal: Journal,
    /// So much of a blob is written at once, a power of two.
    pub(super) written: usize,
    /// How much of each blob there is already, by what the journal of an earlier run says.
    pub(super) have: HashMap<Digest, u64>,
    /// Where that lies, if not in the file itself: another run had left it.
    pub(super) old: Option<Remains>,
    /// Who fetches layers from outside of registries, where that is wanted.
    pub(super) foreign: Option<Foreign>,
    pub(super) progress: Arc<Progress>,
}

/// How much of a blob is written at once, of a payload of `size` bytes.
pub(super) fn written(size: u64) -> usize {
    let part = usize::try_from(size / OF_PAYLOAD).map_or(WRITTEN, |part| part.clamp(PIECE, WRITTEN));
    1 << part.ilog2()
}

/// Fetches all blobs of a plan. All are tried, all failures told; what was fetched stays.
pub(super) async fn fetch(plan: &Plan, fetch: &Arc<Fetch>) -> Result<(), BuildError> {
    let mut blobs: Vec<BlobPlan> = plan.blobs.clone();
    blobs.sort_by_key(|blob| blob.size);
    let count = blobs.len();
    let fetched = futures::stream::iter(blobs.into_iter().rev().enumerate()).map(|(index, blob)| {
        let fetch = Arc::clone(fetch);
        AbortOnDropHandle::new(tokio::spawn(async move {
            let repository = &blob.origin.repository;
            info!(target: STEP, "[{}/{count}] Pulling {repository}/{}", index + 1, blob.digest);
            let result = fetch.blob(&blob).await;
            (blob.digest, result)
        }))
    });
    let origins = plan.blobs.iter().flat_map(BlobPlan::origins);
    let at_once = origins.map(|origin| origin.registry.blobs_at_once()).min();
    let mut fetched = fetched.buffer_unordered(at_once.unwrap_or(1));
    let mut failures = Vec::new();
    while let Some(joined) = fetched.next().await {
        let (digest, result) = joined.map_err(|error| writing(error.into()))?;
        match result {
            Ok(()) => fetch.progress.blob_done(),
            Err(BlobError::Payload(error)) => return Err(error.into()),
            Err(error) => {
                let reason = reason(&error);
                fetch.progress.failed(&error.to_string());
                failures.extend(super::blob_failures(plan, &digest, reason, &error));
                if is_hopeless(reason) {
                    break;
                }
            }
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(BuildError::Images(failures)) }
}

/// Whether what one blob met, the next one would meet as well.
fn is_hopeless(reason: Reason) -> bool {
    matches!(reason, Reason::RegistryUnavailable | Reason::AuthenticationFailed | Reason::RateLimited)
}

pub(super) fn reason(error: &BlobError<RegistryError>) -> Reason {
    match error {
        BlobError::Payload(error) => error.reason(),
        BlobError::Body(error) => error.reason(),
        BlobError::WrongDigest { .. } | BlobError::WrongSize { .. } => Reason::DigestMismatch,
    }
}

impl Fetch {
    async fn blob(&self, plan: &BlobPlan) -> Result<(), BlobError<RegistryError>> {
        let missing = || io::Error::other(format!("the payload has no place for {}", plan.digest));
        let mut place = self.payload.blob(&plan.digest).ok_or_else(|| writing_blob(missing()))?;
        let have = self.have.get(&plan.digest).copied().unwrap_or(0);
        blocking(|| {
            if let Some(old) = &self.old {
                old.copy(&mut place, have, |written| self.journal.note(&plan.digest, written))?;
            } else if place.take_over(have).is_err() {
                // A file that is shorter than the journal says holds nothing to take over.
                place.start_again();
            }
            self.journal.note(&plan.digest, place.written())
        })
        .map_err(writing_blob)?;
        self.progress.moved(place.written());
        let taken_over = place.written();
        self.rest(plan, &mut place).await?;
        let mut found = place.finish().map_err(writing_blob)?;
        if found.is_err() && taken_over > 0 {
            // What the earlier run left was not what it noted: the whole blob once more.
            place.start_again();
            self.rest(plan, &mut place).await?;
            found = place.finish().map_err(writing_blob)?;
        }
        found.map_err(|found| BlobError::WrongDigest { digest: plan.digest.clone(), found })
    }

    /// Fetches what is missing of a blob.
    async fn rest(
        &self,
        plan: &BlobPlan,
        place: &mut PlacedBlob<'_>,
    ) -> Result<(), BlobError<RegistryError>> {
        if place.written() == plan.size {
            return Ok(());
        }
        let range = place.written()..plan.size;
        let mut body = source::blob_range(plan, range, self.foreign.as_ref());
        let mut piece = Piece::default();
        loop {
            let mut chunk = match timeout(KEPT, body.next()).await {
                Ok(Some(Ok(chunk))) => chunk,
                Ok(Some(Err(error))) => {
                    // What came before the cut need not come again.
                    self.write(plan, place, &piece)?;
                    return Err(BlobError::Body(error));
                }
                Ok(None) => return self.write(plan, place, &piece),
                Err(_silence) => {
                    self.write(plan, place, &mem::take(&mut piece))?;
                    continue;
                }
            };
            place.hash(&chunk);
            let mut room = place.left_of(self.written) - piece.length;
            while chunk.len() >= room {
                piece.push(chunk.split_to(room));
                self.write(plan, place, &mem::take(&mut piece))?;
                room = self.written;
            }
            piece.push(chunk);
            if piece.length >= PIECE && piece.begun.elapsed() >= KEPT {
                self.write(plan, place, &mem::take(&mut piece))?;
            }
        }
    }

    fn write(
        &self,
        plan: &BlobPlan,
        place: &mut PlacedBlob<'_>,
        piece: &Piece,
    ) -> Result<(), BlobError<RegistryError>> {
        if piece.chunks.is_empty() {
            return Ok(());
        }
        let written = blocking(|| {
            let mut slices: Vec<IoSlice<'_>> = piece.chunks.iter().map(|chunk| IoSlice::new(chunk)).collect();
            place.write(&mut slices)?;
            self.journal.note(&plan.digest, place.written())
        });
        written.map_err(writing_blob)?;
        self.progress.moved(piece.length as u64);
        Ok(())
    }
}

/// What came of a blob and is not written yet.
struct Piece {
    chunks: Vec<Bytes>,
    /// In bytes.
    length: usize,
    begun: Instant,
}

impl Default for Piece {
    fn default() -> Self {
        Self { chunks: Vec::new(), length: 0, begun: Instant::now() }
    }
}

impl Piece {
    fn push(&mut self, chunk: Bytes) {
        self.length += chunk.len();
        self.chunks.push(chunk);
    }
}

/// Does what may wait for a disk; other tasks of this thread go elsewhere meanwhile, where they can.
fn blocking<T>(work: impl FnOnce() -> T) -> T {
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::MultiThread => tokio::task::block_in_place(work),
        _ => work(),
    }
}

fn writing(source: io::Error) -> BuildError {
    PayloadError::writing(source).into()
}

fn writing_blob(source: io::Error) -> BlobError<RegistryError> {
    BlobError::Payload(PayloadError::writing(source))
}
