//! A payload into an object of a store: an upload in parts, in sequence, which another attempt goes on with.

use std::io;
use std::sync::Arc;

use tokio_util::io::StreamReader;
use tracing::{info, warn};

use super::plan::Plan;
use super::{BuildError, BuildReport, BuildRequest};
use crate::payload::{
    Contents, FilePayload, PayloadError, PayloadWriter, Remains, Sink, StreamPayload, Sums, is_payload,
};
use crate::progress::{Progress, Stage};
use crate::read_at::ReadAt as _;
use crate::reason::{Class, Reason, Told};
use crate::storage::{Left, ObjectSource, Parts, StorageError, StoredObject, Upload};

/// Builds a payload into `object`.
pub(super) async fn build(
    request: BuildRequest,
    object: StoredObject,
    progress: &Arc<Progress>,
) -> Result<BuildReport, BuildError> {
    if request.spares_other_files {
        check_replaceable(&object).await?;
    }
    let left = Left::of(&object).await?;
    let remains = left.as_ref().and_then(|left| Remains::of(Arc::new(left.head.clone()?)));
    let noted = left.as_ref().map(|left| (left.run(), left.payload()));
    let (plan, contents) = match super::adopt(&request, noted, remains.as_ref()) {
        Some(adopted) => adopted,
        None => super::plan(&request, super::ManifestCache::default()).await?,
    };
    drop(remains);
    progress.enter(Stage::Checking);
    super::check_sizes(&plan, &request).await?;
    super::expect(&plan, progress);

    let is_same = left.as_ref().is_some_and(|left| left.payload() == contents.digest());
    let (total, beginning) = (contents.layout().total_size(), contents.beginning());
    let upload = Upload::begin(object.clone(), left, &request.run, contents.digest(), total, beginning);
    let mut upload = Arc::new(upload.await?);
    let transfer =
        Transfer { request: &request, object: &object, plan: &plan, contents: &contents, progress };
    // An attempt that was killed behind its last step has left the whole payload, and its journal.
    let mut written = if is_same && transfer.is_there().await {
        upload.abort().await;
        Ok(())
    } else {
        transfer.run(&upload).await
    };
    if written.as_ref().is_err_and(is_gone) {
        info!("The upload that an earlier attempt began is gone; all is fetched anew");
        upload = Arc::new(upload.begin_anew(contents.beginning()).await?);
        written = transfer.run(&upload).await;
    }
    if let Err(error) = written {
        match error.reason() {
            Reason::ImageNotFound => upload.disown().await?,
            reason if reason.class() == Class::Final => upload.abort().await,
            _ => {}
        }
        return Err(error);
    }
    let report = super::report(&plan, &contents);
    info!("Wrote {}, {} bytes, payload digest {}", object.location(), report.size, report.digest);
    Ok(report)
}

/// That what lies under the key, if anything, is a payload of Charon's.
async fn check_replaceable(object: &StoredObject) -> Result<(), BuildError> {
    let source = match ObjectSource::open(object.clone()).await {
        Ok(source) => source,
        Err(StorageError::ObjectNotFound(_)) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    if blocking(move || is_payload(&source).map_err(reading)).await? {
        return Ok(());
    }
    Err(StorageError::NotOurs(object.location().to_string().into()).into())
}

/// All that one attempt to upload needs.
struct Transfer<'a> {
    request: &'a BuildRequest,
    object: &'a StoredObject,
    plan: &'a Plan,
    contents: &'a Contents,
    progress: &'a Arc<Progress>,
}

impl Transfer<'_> {
    /// Uploads what is missing, and completes the object.
    async fn run(&self, upload: &Arc<Upload>) -> Result<(), BuildError> {
        super::expect(self.plan, self.progress);
        let writer = match upload.begun() {
            None => PayloadWriter::begin(self.contents, ToParts::of(upload)).await?,
            Some((from, sums)) => {
                let sums = serde_json::from_value::<Sums>(sums.clone()).unwrap_or_default();
                let writer = PayloadWriter::go_on(self.contents, ToParts::of(upload), from, &sums).await;
                let gone = || StorageError::UploadGone(self.object.location().to_string());
                // What it noted is of no use.
                let writer = writer.map_err(|_| gone())?;
                info!("Going on behind {from} bytes that an earlier attempt uploaded");
                self.count(&writer);
                writer
            }
        };
        let foreign = super::foreign(self.request.foreign_layers, self.plan)?;
        let written = super::write(self.plan, foreign.as_ref(), self.progress, writer).await?;
        self.progress.enter(Stage::Finishing);
        written.0.finish().await?;
        if self.request.spares_other_files {
            // It may have been put there meanwhile.
            check_replaceable(self.object).await?;
        }
        upload.complete().await?;
        if upload.begun().is_some()
            && let Err(error) = self.verify().await
        {
            // The parts that an earlier attempt uploaded could not be read; now they were.
            self.object.remove().await?;
            upload.settle().await?;
            return Err(StorageError::Object {
                doing: "complete",
                location: self.object.location().to_string(),
                problem: format!("what an earlier attempt had uploaded is not what it noted ({error})"),
                hint: "; it was removed, begin again".to_owned(),
                reason: Reason::WorkerFailed,
            }
            .into());
        }
        if let Err(error) = upload.settle().await {
            warn!("{error}");
        }
        Ok(())
    }

    /// Counts what an earlier attempt uploaded as done.
    fn count<S: Sink>(&self, writer: &PayloadWriter<'_, S>) {
        let next = writer.next_blob().map(|(digest, _)| digest);
        let done = self.plan.blobs.iter().take_while(|blob| Some(&blob.digest) != next);
        for blob in done {
            self.progress.moved(blob.size);
            self.progress.blob_done();
        }
        self.progress.moved(writer.have());
    }

    /// Whether the object is this payload already, every byte of it.
    async fn is_there(&self) -> bool {
        let Ok(source) = ObjectSource::open(self.object.clone()).await else {
            return false;
        };
        let payload = blocking(move || FilePayload::open_at(Arc::new(source))).await;
        payload.is_ok_and(|payload| payload.digest() == Some(self.contents.digest()))
            && self.verify().await.is_ok()
    }

    /// Reads the object from its beginning to its end: that it is this payload, whole.
    async fn verify(&self) -> Result<(), BuildError> {
        info!("Verifying {}", self.object.location());
        let source = ObjectSource::open(self.object.clone()).await?;
        let bytes = source.stream(0..source.size());
        let mut payload = StreamPayload::open(StreamReader::new(bytes)).await?;
        if payload.digest() != self.contents.digest() {
            return Err(PayloadError::Corrupt("it is another payload".to_owned()).into());
        }
        for _ in 0..payload.bill().blobs().count() {
            payload.next_blob(None).await?;
        }
        Ok(payload.finish().await?)
    }
}

/// Whether the store knows nothing of the upload that was to be gone on with.
fn is_gone(error: &BuildError) -> bool {
    let gone = match error {
        BuildError::Storage(error) => Some(error),
        BuildError::Payload(PayloadError::Io { source, .. }) => Told::find::<StorageError>(source),
        _ => None,
    };
    matches!(gone, Some(StorageError::UploadGone(_)))
}

/// The parts of an upload, as what a payload is written into.
struct ToParts(Parts, u64);

impl ToParts {
    fn of(upload: &Arc<Upload>) -> Self {
        Self(upload.parts(), upload.part_size())
    }
}

impl Sink for ToParts {
    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write(bytes);
        Ok(())
    }

    fn part_size(&self) -> Option<u64> {
        Some(self.1)
    }

    async fn part(&mut self, sums: Sums) -> io::Result<()> {
        let sums = serde_json::to_value(sums)?;
        self.0.part(Some(sums)).await.map_err(StorageError::into_io)
    }

    async fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Does what waits for the store, where that may be done.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PayloadError> + Send + 'static,
) -> Result<T, PayloadError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| reading(error.into()))?
}

fn reading(source: io::Error) -> PayloadError {
    PayloadError::Io { doing: "reading the payload", source }
}
