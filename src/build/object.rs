//! A payload into an object of a store: an upload in parts, in sequence, which another attempt goes on with.

use std::io;
use std::sync::Arc;

use tracing::{info, warn};

use super::base::keep_bill_of;
use super::earlier::Earlier;
use super::plan::Plan;
use super::resolve::ManifestCache;
use super::{BuildError, BuildReport, BuildRequest, whole};
use crate::payload::{Contents, PayloadError, PayloadWriter, Sink, Sums, is_payload};
use crate::progress::{Progress, Stage};
use crate::reason::{Reason, Told};
use crate::storage::{ObjectSource, Parts, StorageError, StoredObject, StoredPayload, Upload};

/// Builds a payload into `object`.
pub(super) async fn build(
    request: BuildRequest,
    object: StoredObject,
    progress: &Arc<Progress>,
) -> Result<BuildReport, BuildError> {
    if request.spares_other_files {
        check_replaceable(&object).await?;
    }
    let earlier = Earlier::beside(&object).await?;
    let (cache, mut keeper) = earlier.manifests(&request.run, &object)?;
    let begun = keeper.during(Box::pin(begin(&request, &object, earlier, cache, progress))).await;
    keeper.settle(begun.as_ref().err()).await;
    let Begun { plan, contents, upload, is_same } = begun?;
    let mut upload = Arc::new(upload);
    let there = upload.begun().map_or(0, |(from, _)| from);
    super::tell_plan(&plan, &contents, there, None, progress);
    let transfer =
        Transfer { request: &request, object: &object, plan: &plan, contents: &contents, progress };
    if let Err(error) = transfer.write(&mut upload, is_same).await {
        match error.reason() {
            Reason::ImageNotFound => upload.disown().await?,
            reason if is_hopeless(reason) => upload.abort().await,
            _ => {}
        }
        return Err(error);
    }
    keep_bill_of(&object, contents.bill_bytes()).await;
    let report = super::report(&plan, &contents);
    info!("Wrote {}, {} bytes, payload digest {}", object.location(), report.size, report.digest);
    Ok(report)
}

/// An upload that was begun, of what was planned.
struct Begun {
    plan: Plan,
    contents: Contents,
    upload: Upload,
    /// An earlier attempt had begun to write the same payload.
    is_same: bool,
}

/// Plans a payload, and begins its upload or goes on with what is left of it.
async fn begin(
    request: &BuildRequest,
    object: &StoredObject,
    Earlier { left, upload, .. }: Earlier,
    cache: ManifestCache,
    progress: &Arc<Progress>,
) -> Result<Begun, BuildError> {
    let (plan, contents) = match left.adopt(request) {
        Some(adopted) => adopted,
        None => super::plan(request, cache).await?,
    };
    progress.enter(Stage::Checking);
    super::check_sizes(&plan, request).await?;
    super::expect(&plan, progress);
    let is_same = upload.as_ref().is_some_and(|left| left.payload() == contents.digest());
    let (total, beginning) = (contents.layout().total_size(), contents.beginning());
    let upload =
        Upload::begin(object.clone(), upload, &request.run, contents.digest(), total, beginning).await?;
    Ok(Begun { plan, contents, upload, is_same })
}

/// Whether what was uploaded can be of no use to another attempt.
fn is_hopeless(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::DigestMismatch
            | Reason::PayloadCorrupt
            | Reason::UnsupportedImage
            | Reason::AccessDenied
            | Reason::OutputConflict
            | Reason::InvalidSpec
    )
}

/// That what lies under the key, if anything, is a payload of Charon's.
async fn check_replaceable(object: &StoredObject) -> Result<(), BuildError> {
    let source = match ObjectSource::open(object.clone()).await {
        Ok(source) => source,
        Err(StorageError::ObjectNotFound(_)) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    if super::blocking(move || Ok(is_payload(&source).map_err(PayloadError::reading)?)).await? {
        return Ok(());
    }
    Err(StorageError::NotOurs(object.location().to_string()).into())
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
    /// Makes the object whole, with an upload that was begun for it. `is_same`: an earlier attempt wrote the same payload.
    async fn write(&self, upload: &mut Arc<Upload>, is_same: bool) -> Result<(), BuildError> {
        // An attempt that was killed behind its last step has left the whole payload, perhaps with its journal.
        let there = self.is_there().await;
        // What lies there is looked at, and need not be readable for what takes its place.
        if if is_same { there? } else { there.unwrap_or(false) } {
            info!("{} is payload {} already", self.object.location(), self.contents.digest());
            upload.abort().await;
            return Ok(());
        }
        let written = self.run(upload).await;
        if !written.as_ref().is_err_and(is_gone) {
            return written;
        }
        // The upload may have been completed, and the store's answer lost.
        if self.is_there().await? {
            settle(upload).await;
            return Ok(());
        }
        info!("The upload that was begun is gone; all is fetched anew");
        *upload = Arc::new(upload.begin_anew(self.contents.beginning()).await?);
        self.run(upload).await
    }

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
        if upload.begun().is_some() {
            // The parts that an earlier attempt uploaded could not be read; now they are.
            self.check(upload).await?;
        }
        settle(upload).await;
        Ok(())
    }

    /// That the object which was completed is this payload. Only what is wrong is removed: not what cannot be read now,
    /// and not what somebody else put there.
    async fn check(&self, upload: &Upload) -> Result<(), BuildError> {
        let location = || self.object.location().to_string();
        match self.verify().await {
            Ok(true) => Ok(()),
            Ok(false) => Err(StorageError::SourceChanged(location()).into()),
            Err(BuildError::Payload(
                error @ (PayloadError::WrongDigest { .. }
                | PayloadError::Corrupt(_)
                | PayloadError::Incomplete(_)),
            )) => {
                upload.hold().await?;
                self.object.remove().await?;
                upload.settle().await?;
                Err(StorageError::Object {
                    doing: "complete",
                    location: location(),
                    problem: format!("what an earlier attempt had uploaded is not what it noted ({error})"),
                    hint: "; it was removed, begin again".to_owned(),
                    reason: Reason::WorkerFailed,
                }
                .into())
            }
            Err(error) => Err(error),
        }
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
    async fn is_there(&self) -> Result<bool, BuildError> {
        match self.verify().await {
            Err(BuildError::Storage(StorageError::ObjectNotFound(_))) => Ok(false),
            // What is there is not it.
            Err(BuildError::Payload(error)) if !matches!(error, PayloadError::Io { .. }) => Ok(false),
            verified => verified,
        }
    }

    /// Reads the object from its beginning to its end: whether it is this payload, and not another one. It is an error if it
    /// is not whole.
    async fn verify(&self) -> Result<bool, BuildError> {
        whole::is_whole(&StoredPayload::Object(self.object.clone()), self.contents.digest()).await
    }
}

/// Removes what lies beside a payload that is whole; that it cannot be removed does no harm.
async fn settle(upload: &Upload) {
    if let Err(error) = upload.settle().await {
        warn!("{error}");
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
