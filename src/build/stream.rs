//! A payload into a stream, in sequence; and what an object, which is written in sequence, too, has in common with it.

use std::collections::HashMap;
use std::sync::Arc;

use futures::StreamExt;
use tokio::io::{AsyncWrite, BufWriter};
use tokio_util::task::AbortOnDropHandle;
use tracing::info;

use super::plan::{BlobPlan, Plan};
use super::resolve::Library;
use super::{
    BuildError, BuildReport, BuildRequest, blob_failures, expect, fetch, foreign, plan, report, source,
    tell_plan,
};
use crate::payload::{BlobError, PayloadError, PayloadWriter, Sink};
use crate::progress::{Progress, STEP, Stage};
use crate::reason::{Failure, Reason};
use crate::reference::Host;
use crate::registry::{Foreign, Registry, RegistryError};

/// Bytes are gathered until there are so many: a write to a file costs a hop to another thread.
const WRITE_BUFFER: usize = 1 << 20;
/// The sizes of larger blobs are asked for before the first byte goes into a stream.
const ASKED_ABOVE: u64 = 1 << 20;
/// So many of them at once.
const ASKED_AT_ONCE: usize = 8;
/// Of so many blobs the beginnings are fetched at once, where they are written one after the other.
const BLOBS_AHEAD: usize = 3;

/// Builds a payload into `stream`.
pub(super) async fn build(
    request: BuildRequest,
    stream: Box<dyn AsyncWrite + Send + Unpin>,
    progress: &Arc<Progress>,
) -> Result<BuildReport, BuildError> {
    let (plan, contents) = plan(&request, Library::default()).await?;
    progress.enter(Stage::Checking);
    check_sizes(&plan, &request.registries).await?;
    expect(&plan, progress);
    let report = report(&plan, &contents);
    tell_plan(&plan, &contents, 0, None, progress);
    let foreign = foreign(request.foreign_layers, &plan)?;
    let out = BufWriter::with_capacity(WRITE_BUFFER, stream);
    let writer = PayloadWriter::begin(&contents, out).await?;
    write(&plan, &request.registries, foreign.as_ref(), progress, writer).await?;
    info!("Wrote the payload, {} bytes, payload digest {}", report.size, report.digest);
    Ok(report)
}

/// What has gone into a stream cannot be taken back: that a manifest lies about the size of a blob
/// is to be known before. (A blob's registry may not tell; then its bytes will.)
pub(super) async fn check_sizes(plan: &Plan, registries: &HashMap<Host, Registry>) -> Result<(), BuildError> {
    let large = plan.blobs.iter().filter(|blob| blob.size > ASKED_ABOVE);
    let asked = large.filter_map(|blob| Some((blob, registries.get(&blob.host)?)));
    let told = futures::stream::iter(asked).map(async |(blob, registry)| {
        let told = registry.blob_size(&blob.repository, &blob.digest).await;
        (blob, told.ok().flatten())
    });
    let told: Vec<(&BlobPlan, Option<u64>)> = told.buffered(ASKED_AT_ONCE).collect().await;
    let mut failures = Vec::new();
    for (blob, found) in told {
        if let Some(found) = found.filter(|found| *found != blob.size) {
            let (digest, size) = (blob.digest.clone(), blob.size);
            let error: BlobError<RegistryError> = BlobError::WrongSize { digest, size, found };
            failures.extend(blob_failures(plan, &blob.digest, fetch::reason(&error), &error));
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(BuildError::Images(failures)) }
}

/// Writes a payload in sequence, from the next blob of `writer` on.
pub(super) async fn write<S: Sink>(
    plan: &Plan,
    registries: &HashMap<Host, Registry>,
    foreign: Option<&Foreign>,
    progress: &Progress,
    mut writer: PayloadWriter<'_, S>,
) -> Result<S, BuildError> {
    progress.enter(Stage::Transferring);
    let (next, have) = (writer.next_blob().map(|(digest, _)| digest), writer.have());
    let done = plan.blobs.iter().take_while(|blob| Some(&blob.digest) != next).count();
    // While one blob is written, the beginnings of the next ones are on their way.
    let bodies = plan.blobs.iter().enumerate().skip(done).map(|(index, blob)| {
        let registry = registries.get(&blob.host).ok_or_else(|| unknown_host(&blob.host))?;
        let from = if index == done { have } else { 0 };
        let mut body = source::blob_ahead(blob, from..blob.size, registry, foreign);
        let begun = tokio::spawn(async move { (body.next().await, body) });
        Ok::<_, BuildError>((index, blob, AbortOnDropHandle::new(begun)))
    });
    let bodies = futures::stream::iter(bodies).map(async |next| {
        let (index, blob, begun) = next?;
        let (first, rest) = begun.await.map_err(|error| PayloadError::io("fetching", error))?;
        Ok::<_, BuildError>((index, blob, futures::stream::iter(first).chain(rest)))
    });
    let mut bodies = std::pin::pin!(bodies.buffered(BLOBS_AHEAD));
    while let Some(next) = bodies.next().await {
        let (index, blob, body) = next?;
        info!(target: STEP, "[{}/{}] Pulling {}/{}", index + 1, plan.blobs.len(), blob.repository, blob.digest);
        let written = writer.blob(body, |bytes| progress.moved(bytes)).await;
        written.map_err(|error| match error {
            BlobError::Payload(error) => error.into(),
            error => BuildError::Images(blob_failures(plan, &blob.digest, fetch::reason(&error), &error)),
        })?;
        progress.blob_done();
    }
    Ok(writer.finish().await?)
}

fn unknown_host(host: &Host) -> BuildError {
    let message = format!("no access to {host} was given");
    BuildError::Images(vec![Failure::new(host.as_str(), Reason::InvalidSpec, message)])
}
