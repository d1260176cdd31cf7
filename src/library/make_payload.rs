use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::io::AsyncWrite;
use tokio_util::sync::CancellationToken;

use super::{Error, RegistryOptions, unless_cancelled};
use crate::build::{self, BuildPlan, BuildReport, BuildRequest, ImageRequest, Output, open_base};
use crate::digest::Digest;
use crate::payload::Base;
use crate::platform::{self, Platform};
use crate::progress::Progress;
use crate::reference::Reference;
use crate::storage::{Location, ObjectAccess, StoredPayload};

/// A payload to make: the options of `charon make-payload`.
#[derive(Clone, Debug, Default)]
pub struct MakePayload {
    /// The images to carry: `python:3.9`, `quay.io/team/app@sha256:…`.
    pub images: Vec<String>,
    /// Images that the far side has: what they share with `images` is not carried.
    pub already_transferred: Vec<String>,
    /// Earlier payloads, or the bills (`<payload>.bill.json`) that stayed behind of them, each a file or the URL of an object:
    /// what they carry or required, the far side has.
    pub bases: Vec<PathBuf>,
    /// The platforms that are carried of each image; none: all that it has. An image must have all of them;
    /// one that is for no platform, such as a chart, is carried.
    pub platforms: Vec<Platform>,
    /// Leave out the signatures, attestations and SBOMs of the images.
    pub no_referrers: bool,
    /// Layers that may not be distributed are fetched from where their manifests say, by HTTPS and from the
    /// public internet alone, if their registries do not have them.
    pub foreign_layers: bool,
    /// Images that cannot be had are left out, unless none can: [`BuildReport::missing`] tells which.
    pub allow_missing: bool,
    /// The file to write, or the URL of an object such as `s3://bucket/key`. [`make_payload_to`] does not look at it.
    pub file: PathBuf,
    /// How the store of an object is reached.
    pub object_store: ObjectAccess,
    /// How registries are reached.
    pub registry: RegistryOptions,
    /// Told how far it is.
    pub progress: Arc<Progress>,
    /// Stops the work. What was fetched stays in `<file>.partial`, and the next call for the same images
    /// goes on with it.
    pub cancel: CancellationToken,
}

/// Makes a payload from images of one or several registries, in a file.
///
/// The file has its name only once it is whole.
/// [`library`](crate::library) has an example.
pub async fn make_payload(options: &MakePayload) -> Result<BuildReport, Error> {
    make(options, named(options)?).await
}

/// Makes a payload and writes it to a stream, in one pass and without a temporary file.
pub async fn make_payload_to(
    options: &MakePayload,
    stream: impl AsyncWrite + Send + Unpin + 'static,
) -> Result<BuildReport, Error> {
    make(options, Output::Stream(Box::new(stream))).await
}

/// What [`make_payload`] would do. Registries are read, and nothing is written.
pub async fn plan_payload(options: &MakePayload) -> Result<BuildPlan, Error> {
    plan(options, named(options)?).await
}

/// The same of [`make_payload_to`].
pub async fn plan_payload_stream(options: &MakePayload) -> Result<BuildPlan, Error> {
    plan(options, Output::Stream(Box::new(tokio::io::sink()))).await
}

/// Where the options say that the payload goes.
fn named(options: &MakePayload) -> Result<Output, Error> {
    Ok(match StoredPayload::new(location(&options.file)?, &options.object_store)? {
        StoredPayload::File(path) => Output::File(path),
        StoredPayload::Object(object) => Output::Object(object),
    })
}

fn location(file: &Path) -> Result<Location, Error> {
    Location::parse(file).map_err(|error| Error::Usage(error.to_string()))
}

/// The same images, asked for again, are the same run.
fn run(
    options: &MakePayload,
    images: &[Reference],
    already_transferred: &[Reference],
    bases: &[Base],
) -> String {
    let names =
        |references: &[Reference]| references.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let platforms = platform::list(&options.platforms);
    let MakePayload { no_referrers, foreign_layers, allow_missing, .. } = options;
    let bases = bases.iter().map(|base| base.digest().as_str()).collect::<Vec<_>>().join(",");
    let asked = format!(
        "{} for {platforms} without {}, upon {bases}, foreign layers: {foreign_layers}, fewer: {allow_missing}, no referrers: {no_referrers}",
        names(images),
        names(already_transferred)
    );
    Digest::sha256(asked.as_bytes()).to_string()
}

async fn make(options: &MakePayload, output: Output) -> Result<BuildReport, Error> {
    let request = request(options).await?;
    unless_cancelled(&options.cancel, Box::pin(build::build(request, output, &options.progress))).await
}

async fn plan(options: &MakePayload, output: Output) -> Result<BuildPlan, Error> {
    let request = request(options).await?;
    unless_cancelled(&options.cancel, Box::pin(build::dry_run(&request, &output, &options.progress))).await
}

async fn request(options: &MakePayload) -> Result<BuildRequest, Error> {
    let images = options.registry.references(&options.images)?;
    if images.is_empty() {
        return Err(Error::Usage("no image is named".to_owned()));
    }
    let already_transferred = options.registry.references(&options.already_transferred)?;
    let mut bases = Vec::new();
    for path in &options.bases {
        let base = StoredPayload::new(location(path)?, &options.object_store)?;
        bases.push(open_base(&base, None).await?);
    }
    let named = [images.clone(), already_transferred.clone()].concat();
    let registries = unless_cancelled(&options.cancel, options.registry.clients(&named)).await?;
    let run = run(options, &images, &already_transferred, &bases);
    let image =
        |reference| ImageRequest { platforms: options.platforms.clone(), ..ImageRequest::from(reference) };
    Ok(BuildRequest {
        images: images.into_iter().map(image).collect(),
        already_transferred,
        bases,
        referrers: !options.no_referrers,
        foreign_layers: options.foreign_layers,
        allow_missing: options.allow_missing,
        registries,
        run,
        // As docker-charon, whoever names a file on the command line means it.
        spares_other_files: false,
    })
}
