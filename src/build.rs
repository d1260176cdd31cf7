//! Registries to payload: references become a plan, the plan becomes a file, an object or a stream.

mod base;
mod choice;
mod dry_run;
mod earlier;
mod fetch;
mod file;
mod journal;
mod left;
mod missing;
mod object;
mod plan;
mod referrers;
mod resolve;
mod source;
mod stream;
mod whole;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::AsyncWrite;

use crate::digest::Digest;
use crate::payload::{Base, Contents, FORMAT_VERSION, ImagePlan, MissingImage, PayloadError};
use crate::platform::Platform;
use crate::progress::{self, Progress, Stage};
use crate::reason::{self, Failure, Reason};
use crate::reference::{FarName, Host, Reference};
use crate::registry::{Foreign, Registry, RegistryError};
use crate::storage::{StorageError, StoredObject};
pub use base::{BaseError, open_base};
pub use dry_run::{Amount, BuildPlan, dry_run};
use plan::Plan;
use resolve::ManifestCache;
use stream::{check_sizes, write};

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

impl ImageRequest {
    /// Wants these platforms, too; none: all that it has.
    fn also(&mut self, platforms: &[Platform]) {
        if self.platforms.is_empty() || platforms.is_empty() {
            self.platforms.clear();
            return;
        }
        for platform in platforms {
            if !self.platforms.contains(platform) {
                self.platforms.push(platform.clone());
            }
        }
    }
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
    #[error("{}", reason::messages(.0))]
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

/// Builds a payload.
///
/// Every image is resolved once, at the start. If one of them cannot be had, all are tried and all
/// failures are told, and there is no file under the final name. What was fetched into a file stays
/// in its partial file, and the next build of the same `run` goes on with it.
pub async fn build(
    request: BuildRequest,
    output: Output,
    progress: &Arc<Progress>,
) -> Result<BuildReport, BuildError> {
    progress.enter(Stage::Resolving);
    match output {
        Output::File(path) => Box::pin(file::build(request, path, progress)).await,
        Output::Object(object) => Box::pin(object::build(request, object, progress)).await,
        Output::Stream(stream) => Box::pin(stream::build(request, stream, progress)).await,
    }
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
    let Some(blob) = plan.blobs.iter().find(|blob| is_wanted && !blob.urls.is_empty()) else {
        return Ok(None);
    };
    let refused = |error: RegistryError| {
        let failure = Failure::new("foreign layers", error.reason(), error.to_string());
        BuildError::Images(vec![failure.caused_by(&error)])
    };
    Foreign::beside(&blob.origin.registry).map(Some).map_err(refused)
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

/// Tells what is about to be fetched: all of `plan` but the first `there` bytes, which an earlier attempt left. For
/// a file it is known what its volume has `room` for.
fn tell_plan(plan: &Plan, contents: &Contents, there: u64, room: Option<u64>, progress: &Progress) {
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    progress.plan(progress::Plan {
        digest: Some(contents.digest().clone()),
        size_bytes: contents.layout().total_size(),
        images: count(plan.images.len()),
        images_failed: count(plan.missing.len()),
        blobs: count(plan.blobs.len()),
        blobs_reused: count(plan.required.len()),
        bytes_present: there,
        room_bytes: room,
    });
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

/// Does what waits for a disk or a store, on a thread where that may be done.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BuildError> + Send + 'static,
) -> Result<T, BuildError> {
    tokio::task::spawn_blocking(work).await.map_err(PayloadError::writing)?
}
