//! Registries to payload: references become a plan, the plan becomes a file or a stream.

mod base;
mod choice;
mod dry_run;
mod fetch;
mod journal;
mod missing;
mod object;
mod plan;
mod referrers;
mod resolve;
mod source;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use tokio::io::{AsyncWrite, BufWriter};
use tokio::task::JoinError;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info};

use crate::digest::Digest;
use crate::payload::{
    Base, BillImage, BlobError, Contents, FORMAT_VERSION, ImagePlan, MissingImage, PayloadError,
    PayloadWriter, PlacedPayload, Remains, Sink, is_payload,
};
use crate::platform::Platform;
use crate::progress::{Progress, STEP, Stage};
use crate::read_at::LocalFile;
use crate::reason::{self, Class, Failure, Reason};
use crate::reference::{FarName, Host, Reference};
use crate::registry::{Foreign, Manifest, Registry, RegistryError};
use crate::storage::{FileTarget, StorageError, StoredObject};
pub use base::{BaseError, open_base};
pub use dry_run::{Amount, BuildPlan, dry_run};
use fetch::Fetch;
use journal::{Journal, Notes};
use plan::{BlobPlan, Plan};
use resolve::ManifestCache;

/// Bytes are gathered until there are so many: a write to a file costs a hop to another thread.
const WRITE_BUFFER: usize = 1 << 20;
/// The sizes of larger blobs are asked for before the first byte goes into a stream.
const ASKED_ABOVE: u64 = 1 << 20;
/// So many of them at once.
const ASKED_AT_ONCE: usize = 8;
/// Of so many blobs the beginnings are fetched at once, where they are written one after the other.
const BLOBS_AHEAD: usize = 3;

/// A payload to build.
#[allow(clippy::struct_excessive_bools)] // each is a choice of its own
#[derive(Debug)]
pub struct BuildRequest {
    /// The images to carry.
    pub images: Vec<ImageRequest>,
    /// Images that the far side has: what they share with `images` is not carried.
    pub already_transferred: Vec<Reference>,
    /// Earlier payloads: what they carry or required, the far side has.
    pub bases: Vec<Base>,
    /// Layers that may not be distributed are fetched from where their manifests say, if their registries
    /// do not have them.
    pub foreign_layers: bool,
    /// Images that cannot be had are left out, unless none can: see [`BuildReport::missing`].
    pub allow_missing: bool,
    /// Whether signatures, attestations and SBOMs are carried with the images.
    pub referrers: bool,
    /// A client for each host that the images name.
    pub registries: HashMap<Host, Registry>,
    /// Where the payload goes.
    pub output: Output,
    /// What is asked for, in one word: a build goes on with what another of the same run left.
    pub run: String,
    /// A file under the final name that is no payload of Charon's is left alone, and nothing is built.
    pub spares_other_files: bool,
}

/// An image to carry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRequest {
    /// Where it is read.
    pub reference: Reference,
    /// Its own name at the far side, if it is to have one.
    pub far_name: Option<FarName>,
    /// The platforms that are carried of it; none: all that it has.
    pub platforms: Vec<Platform>,
}

impl From<Reference> for ImageRequest {
    fn from(reference: Reference) -> Self {
        Self { reference, far_name: None, platforms: Vec::new() }
    }
}

/// Where a payload goes.
pub enum Output {
    /// Into a file, which has its name only once it is whole.
    File(PathBuf),
    /// Into an object of a store, which is there only once it is whole.
    Object(StoredObject),
    /// Into a stream.
    Stream(Box<dyn AsyncWrite + Send + Unpin>),
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Object(object) => f.debug_tuple("Object").field(object.location()).finish(),
            Self::Stream(_) => f.write_str("Stream"),
        }
    }
}

/// A payload that was built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildReport {
    /// The payload digest.
    pub digest: Digest,
    /// The payload's size in bytes.
    pub size: u64,
    /// The payload format's version.
    pub format_version: u32,
    /// How many images it names.
    pub images: usize,
    /// How many blobs it carries.
    pub blobs: usize,
    /// How many blobs it leaves to the far side.
    pub blobs_reused: usize,
    /// The images that were asked for and could not be had: the payload is without them.
    pub missing: Vec<Failure>,
}

/// Why a payload was not built. There is no file under the final name then.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Some images cannot be had.
    #[error("{}", several(.0))]
    Images(Vec<Failure>),
    /// The payload cannot be made of them.
    #[error(transparent)]
    Payload(#[from] PayloadError),
    /// The payload cannot be written.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl BuildError {
    /// Why, in one word.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Images(failures) => reason::of_all(failures),
            Self::Payload(error) => error.reason(),
            Self::Storage(error) => error.reason(),
        }
    }

    /// What failed, image by image, where it can be told.
    #[must_use]
    pub fn failures(&self) -> &[Failure] {
        match self {
            Self::Images(failures) => failures,
            Self::Payload(_) | Self::Storage(_) => &[],
        }
    }
}

fn several(failures: &[Failure]) -> String {
    failures.iter().map(|failure| failure.message.as_str()).collect::<Vec<_>>().join("\n")
}

/// Builds a payload.
///
/// Every image is resolved once, at the start. If one of them cannot be had, all are tried and all
/// failures are told, and there is no file under the final name. What was fetched into a file stays
/// in its partial file, and the next build of the same `run` goes on with it.
pub async fn build(request: BuildRequest, progress: &Arc<Progress>) -> Result<BuildReport, BuildError> {
    progress.enter(Stage::Resolving);
    let path = match &request.output {
        Output::File(path) => path.clone(),
        Output::Object(object) => {
            let object = object.clone();
            return Box::pin(object::build(request, object, progress)).await;
        }
        Output::Stream(_) => return Box::pin(build_stream(request, progress)).await,
    };
    if request.spares_other_files {
        check_replaceable(&path)?;
    }
    let mut target = FileTarget::open(&path)?;
    let notes = Notes::read(&target.journal());
    let partial = LocalFile::new(Arc::clone(target.file()));
    let remains = partial.ok().and_then(|partial| Remains::of(Arc::new(partial)));
    let known = notes.as_ref().and_then(|notes| Some((notes.run.as_str(), notes.payload.as_ref()?)));
    let adopted = adopt(&request, known, remains.as_ref());
    let (plan, contents) = if let Some(adopted) = adopted {
        adopted
    } else {
        plan_file(&request, &mut target, notes.as_ref(), remains.as_ref()).await?
    };
    progress.enter(Stage::Checking);
    expect(&plan, progress);

    let size = contents.layout().total_size();
    // What the notes say holds for the payload that they were made of, here or set aside.
    let (have, old) = match (notes, remains) {
        (Some(notes), _) if notes.payload.as_ref() == Some(contents.digest()) => (notes.have, None),
        (Some(notes), Some(remains)) if notes.payload.as_ref() == Some(&remains.digest) => {
            (notes.have, set_aside(&mut target, remains, size)?)
        }
        _ => (HashMap::new(), None),
    };
    target.check_room(size)?;
    let report = report(&plan, &contents);
    let bill = contents.bill_bytes();
    let failed = |error| BuildError::Storage(target.error(error));
    let is_same = !have.is_empty() && old.is_none();
    let journal = if is_same {
        Journal::go_on(&target.journal())
    } else {
        Journal::begin(&target.journal(), &request.run, Some(contents.digest()))
    };
    let journal = journal.map_err(failed)?;
    let payload = PlacedPayload::begin(contents, Arc::clone(target.file())).map_err(failed)?;
    let fetch = Fetch {
        payload,
        journal,
        have,
        old,
        foreign: foreign(request.foreign_layers, &plan)?,
        progress: Arc::clone(progress),
    };

    progress.enter(Stage::Transferring);
    let fetch = Arc::new(fetch);
    if let Err(error) = fetch::fetch(&plan, &fetch).await {
        return Err(match error {
            BuildError::Payload(PayloadError::Io { source, .. }) => failed(source),
            error => {
                // What is gone will not come back: the tags may lead elsewhere by now.
                if matches!(error.reason(), Reason::ImageNotFound | Reason::DigestMismatch) {
                    Notes::disown(&target.journal()).map_err(failed)?;
                }
                error
            }
        });
    }
    fetch.payload.finish().map_err(failed)?;
    if request.spares_other_files {
        // It may have been put there meanwhile.
        check_replaceable(&path)?;
    }
    progress.enter(Stage::Finishing);
    debug!("Syncing {}", path.display());
    let finish = move || {
        // First: where the payload is, there its bill is, too, whenever this is cut short.
        base::keep_bill(&path, &bill);
        target.finish()?;
        Ok::<_, StorageError>(path)
    };
    let path = tokio::task::spawn_blocking(finish)
        .await
        .map_err(|error| PayloadError::Io { doing: "syncing the payload", source: error.into() })??;
    info!("Wrote {}, {} bytes, payload digest {}", path.display(), report.size, report.digest);
    Ok(report)
}

/// That what lies at `path`, if anything, is a payload of Charon's.
fn check_replaceable(path: &Path) -> Result<(), StorageError> {
    let failed = |error| StorageError::io("look at", path, error);
    match File::open(path) {
        Ok(file) if file.metadata().map_err(failed)?.is_file() => {
            let file = LocalFile::new(Arc::new(file)).map_err(failed)?;
            let is_ours = is_payload(&file).map_err(failed)?;
            if is_ours { Ok(()) } else { Err(StorageError::NotOurs(path.to_owned())) }
        }
        Ok(_) => Err(StorageError::NotOurs(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

/// Plans a payload in a file. What an earlier attempt read of manifests is not read again, and what is read now is
/// noted for the next.
async fn plan_file(
    request: &BuildRequest,
    target: &mut FileTarget,
    notes: Option<&Notes>,
    remains: Option<&Remains>,
) -> Result<(Plan, Contents), BuildError> {
    let manifests = known_manifests(notes, remains);
    let path = target.journal();
    let journal =
        if notes.is_some() { Journal::go_on(&path) } else { Journal::begin(&path, &request.run, None) };
    // A journal that cannot be written is told of when the payload cannot be either.
    let planned = plan(request, ManifestCache { manifests, journal: journal.ok() }).await;
    if planned.as_ref().is_err_and(|error| error.reason().class() == Class::Wait) {
        // What may pass comes again, and need not read again what was read.
        target.keep_journal();
    } else if notes.is_none() {
        // From here on the partial file has them, and needs the room.
        let _ = fs::remove_file(path);
    }
    planned
}

/// The manifests that earlier attempts read.
fn known_manifests(notes: Option<&Notes>, remains: Option<&Remains>) -> HashMap<Digest, Manifest> {
    let mut manifests = notes.map(|notes| notes.manifests.clone()).unwrap_or_default();
    if let Some(remains) = remains {
        let images = remains.bill.images.iter();
        let had = images.flat_map(BillImage::all_manifests).filter_map(|(digest, media_type)| {
            let (digest, media_type) = (digest.clone(), media_type.to_owned());
            let bytes = remains.manifests.get(&digest)?.clone();
            Some((digest.clone(), Manifest { bytes, digest, media_type }))
        });
        manifests.extend(had);
    }
    manifests
}

/// Resolves all names, and plans the payload.
async fn plan(request: &BuildRequest, cache: ManifestCache) -> Result<(Plan, Contents), BuildError> {
    let resolved = resolve::resolve(request, cache).await.map_err(BuildError::Images)?;
    let planned = if request.allow_missing {
        missing::plan(request, resolved).await
    } else {
        Plan::new(resolved, &request.bases, &request.registries)
    };
    let plan = planned.map_err(BuildError::Images)?;
    let contents = contents(&plan)?;
    Ok((plan, contents))
}

/// The contents of a payload, which its importer will find whole.
fn contents(plan: &Plan) -> Result<Contents, PayloadError> {
    let (required, missing) = (plan.required.clone(), plan.missing.clone());
    let contents = Contents::without(&plan.images, &plan.blob_sizes(), required, missing)?;
    let manifests = plan.images.iter().flat_map(ImagePlan::all_manifests);
    let bytes_of: HashMap<&Digest, &Bytes> =
        manifests.map(|manifest| (&manifest.digest, &manifest.bytes)).collect();
    let manifest =
        |digest: &Digest| Ok(bytes_of.get(digest).map(|bytes| (*bytes).clone()).unwrap_or_default());
    match contents.bill().check_manifests(manifest) {
        Err(PayloadError::Corrupt(why)) => Err(PayloadError::Unsound(why)),
        checked => checked.map(|_| contents),
    }
}

/// Who fetches layers from outside of registries, where that is wanted and may be needed.
fn foreign(is_wanted: bool, plan: &Plan) -> Result<Option<Foreign>, BuildError> {
    if !is_wanted || plan.blobs.iter().all(|blob| blob.urls.is_empty()) {
        return Ok(None);
    }
    let refused = |error: RegistryError| {
        let failure = Failure::new("foreign layers", error.reason(), error.to_string());
        BuildError::Images(vec![failure.caused_by(&error)])
    };
    Foreign::new().map(Some).map_err(refused)
}

/// Takes over the plan of an earlier attempt of the same run, from what it left: no registry is
/// asked what a tag means, since it could mean something else by now.
fn adopt(
    request: &BuildRequest,
    noted: Option<(&str, &Digest)>,
    remains: Option<&Remains>,
) -> Option<(Plan, Contents)> {
    let ((run, payload), remains) = (noted?, remains?);
    if run != request.run || *payload != remains.digest {
        return None;
    }
    let plan = Plan::of_remains(remains, &request.registries)?;
    let contents = contents(&plan).ok()?;
    if *contents.digest() != remains.digest {
        return None;
    }
    info!("Going on with what an earlier attempt left of payload {}", contents.digest());
    Some((plan, contents))
}

/// What another run left may hold blobs that this one needs. It is kept, without a name, as long
/// as there is room for both.
fn set_aside(target: &mut FileTarget, remains: Remains, size: u64) -> Result<Option<Remains>, BuildError> {
    target.begin_anew()?;
    if target.room()? < size {
        // What is dropped here makes room.
        info!("There is no room to keep what an earlier run left; all is fetched anew");
        return Ok(None);
    }
    Ok(Some(remains))
}

async fn build_stream(request: BuildRequest, progress: &Arc<Progress>) -> Result<BuildReport, BuildError> {
    let (plan, contents) = plan(&request, ManifestCache::default()).await?;
    progress.enter(Stage::Checking);
    check_sizes(&plan, &request).await?;
    expect(&plan, progress);
    let report = report(&plan, &contents);
    if let Output::Stream(stream) = request.output {
        let foreign = foreign(request.foreign_layers, &plan)?;
        let out = BufWriter::with_capacity(WRITE_BUFFER, stream);
        let writer = PayloadWriter::begin(&contents, out).await?;
        write(&plan, foreign.as_ref(), progress, writer).await?;
    }
    info!("Wrote the payload, {} bytes, payload digest {}", report.size, report.digest);
    Ok(report)
}

/// What has gone into a stream cannot be taken back: that a manifest lies about the size of a blob
/// is to be known before. (A blob's registry may not tell; then its bytes will.)
async fn check_sizes(plan: &Plan, request: &BuildRequest) -> Result<(), BuildError> {
    if request.allow_missing {
        // All blobs were asked for when it was planned.
        return Ok(());
    }
    let large = plan.blobs.iter().filter(|blob| blob.size > ASKED_ABOVE);
    let told = futures::stream::iter(large).map(async |blob| {
        let told = blob.origin.registry.blob_size(&blob.origin.repository, &blob.digest).await;
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

fn expect(plan: &Plan, progress: &Progress) {
    let size = plan.blobs.iter().map(|blob| blob.size).sum();
    progress.expect(u32::try_from(plan.blobs.len()).unwrap_or(u32::MAX), size);
}

fn report(plan: &Plan, contents: &Contents) -> BuildReport {
    BuildReport {
        digest: contents.digest().clone(),
        size: contents.layout().total_size(),
        format_version: FORMAT_VERSION,
        images: plan.images.len(),
        blobs: plan.blobs.len(),
        blobs_reused: plan.required.len(),
        missing: plan.missing.iter().map(missing_failure).collect(),
    }
}

/// What is told of an image that the payload is without. The registry's own words were told when it was
/// asked: they may differ from one time to the next, and a bill must not.
pub(crate) fn missing_failure(missing: &MissingImage) -> Failure {
    let reason = reason::parse(&missing.reason).unwrap_or(Reason::ImageNotFound);
    let message = format!("{}: it could not be had ({}), and is left out", missing.name, missing.reason);
    Failure::new(&missing.name, reason, message)
}

/// Writes a payload in sequence, from the next blob of `writer` on.
async fn write<S: Sink>(
    plan: &Plan,
    foreign: Option<&Foreign>,
    progress: &Progress,
    mut writer: PayloadWriter<'_, S>,
) -> Result<S, BuildError> {
    progress.enter(Stage::Transferring);
    let (next, have) = (writer.next_blob().map(|(digest, _)| digest), writer.have());
    let done = plan.blobs.iter().take_while(|blob| Some(&blob.digest) != next).count();
    // While one blob is written, the beginnings of the next ones are on their way.
    let bodies = plan.blobs.iter().enumerate().skip(done).map(|(index, blob)| {
        let from = if index == done { have } else { 0 };
        let mut body = source::blob_ahead(blob, from..blob.size, foreign);
        let begun = tokio::spawn(async move { (body.next().await, body) });
        (index, blob, AbortOnDropHandle::new(begun))
    });
    let bodies = futures::stream::iter(bodies).map(async |(index, blob, begun)| {
        let failed = |error: JoinError| PayloadError::Io { doing: "fetching", source: error.into() };
        let (first, rest) = begun.await.map_err(failed)?;
        Ok::<_, BuildError>((index, blob, futures::stream::iter(first).chain(rest)))
    });
    let mut bodies = std::pin::pin!(bodies.buffered(BLOBS_AHEAD));
    while let Some(next) = bodies.next().await {
        let (index, blob, body) = next?;
        let (count, repository) = (plan.blobs.len(), &blob.origin.repository);
        info!(target: STEP, "[{}/{count}] Pulling {repository}/{}", index + 1, blob.digest);
        let written = writer.blob(body, |bytes| progress.moved(bytes)).await;
        written.map_err(|error| match error {
            BlobError::Payload(error) => error.into(),
            error => BuildError::Images(blob_failures(plan, &blob.digest, fetch::reason(&error), &error)),
        })?;
        progress.blob_done();
    }
    Ok(writer.finish().await?)
}

/// A blob that cannot be had fails every image that has it.
fn blob_failures(
    plan: &Plan,
    digest: &Digest,
    reason: Reason,
    error: &(impl std::error::Error + 'static),
) -> Vec<Failure> {
    let images = plan.images_with(digest).map(|image| image.reference.written());
    images.map(|image| Failure::new(image, reason, format!("{image}: {error}")).caused_by(error)).collect()
}
