//! Images that cannot be had and may be left out: whether their blobs are there is found out before the first byte
//! moves, since what has gone into a payload cannot be taken back.

use std::collections::HashMap;

use futures::{StreamExt, TryStreamExt};
use indexmap::IndexMap;
use tracing::warn;

use super::plan::{self, BlobPlan, FarBlobs, Origin, Plan};
use super::resolve::{self, Resolved};
use super::stream::ASKED_AT_ONCE;
use super::{BuildRequest, fetch};
use crate::digest::Digest;
use crate::payload::{BlobError, ImagePlan, MissingImage};
use crate::reason::{Failure, Reason};
use crate::reference::{Host, Reference};
use crate::registry::RegistryError;

/// Whether the registry answers, and has not, does not give, or has otherwise what was asked for.
pub(super) fn is_about_image(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::ImageNotFound | Reason::UnsupportedImage | Reason::AccessDenied | Reason::DigestMismatch
    )
}

/// An image that is left out, which is told.
fn left_out(reference: &Reference, failure: &Failure) -> MissingImage {
    warn!("{}; the payload is made without it", failure.message);
    let reason = failure.reason.to_string();
    MissingImage { name: reference.written().to_owned(), reference: reference.to_string(), reason }
}

/// Plans a payload of the images that can be had with all their blobs.
pub(super) async fn plan(request: &BuildRequest, resolved: Resolved) -> Result<Plan, Vec<Failure>> {
    let there = plan::far_blobs(&resolved.already_transferred, &request.bases)?;
    let mut asked = Asked { foreign_layers: request.foreign_layers, told: HashMap::new() };
    let mut lost: IndexMap<String, Failure> = IndexMap::new();
    loop {
        let images = resolved.images.iter().filter(|image| !lost.contains_key(image.reference.written()));
        // Who contradicts an image that is lost may be right.
        let (mut plan, contradicting) = consistent(request, images.cloned().collect(), &there)?;
        let failures = asked.lost(&plan).await?;
        if !failures.is_empty() {
            lost.extend(failures);
            continue;
        }
        lost.extend(contradicting);
        let references = resolved.images.iter().map(|image| &image.reference);
        let lost = references.filter_map(|reference| Some((reference, lost.get(reference.written())?)));
        let unresolved = resolved.missing.iter().map(|(reference, failure)| (reference, failure));
        let mut missing: Vec<(&Reference, &Failure)> = unresolved.chain(lost).collect();
        let place = |(missing, _): &(&Reference, &Failure)| {
            request.images.iter().position(|image| image.reference.written() == missing.written())
        };
        missing.sort_by_cached_key(place);
        if plan.images.is_empty() {
            return Err(missing.into_iter().map(|(_, failure)| failure.clone()).collect());
        }
        let missing = missing.into_iter().map(|(reference, failure)| left_out(reference, failure)).collect();
        (plan.missing, plan.reads) = (missing, resolved.reads);
        return Ok(plan);
    }
}

/// Plans a payload of the images that do not contradict one before them, and tells why the others do.
fn consistent(
    request: &BuildRequest,
    mut images: Vec<ImagePlan>,
    there: &FarBlobs,
) -> Result<(Plan, IndexMap<String, Failure>), Vec<Failure>> {
    let mut contradicting = IndexMap::new();
    loop {
        match Plan::of(images.clone(), there, &request.registries) {
            Ok(plan) => return Ok((plan, contradicting)),
            Err(failures) if failures.iter().all(|failure| is_about_image(failure.reason)) => {
                contradicting.extend(failures.into_iter().map(|failure| (failure.item.clone(), failure)));
                images.retain(|image| !contradicting.contains_key(image.reference.written()));
            }
            Err(failures) => return Err(failures),
        }
    }
}

/// What registries told of blobs: each is asked once.
struct Asked {
    foreign_layers: bool,
    told: HashMap<(Host, String, Digest), Option<Lost>>,
}

/// Why a blob cannot be had from a repository.
#[derive(Clone)]
struct Lost {
    reason: Reason,
    why: String,
}

impl Asked {
    /// The images of which a blob cannot be had from anywhere, by their names.
    async fn lost(&mut self, plan: &Plan) -> Result<IndexMap<String, Failure>, Vec<Failure>> {
        // What may be had from elsewhere is not asked for there: that would be as much as fetching it.
        let blobs = plan.blobs.iter().filter(|blob| !self.foreign_layers || blob.urls.is_empty());
        let told = &self.told;
        let answers = futures::stream::iter(blobs).map(async |blob| {
            let mut answers = Vec::new();
            for origin in blob.origins() {
                let key = (origin.registry.host().clone(), origin.repository.clone(), blob.digest.clone());
                let answer = match told.get(&key) {
                    Some(answer) => answer.clone(),
                    None => ask(origin, blob)
                        .await
                        .map_err(|error| super::blob_failures(plan, &blob.digest, error.reason(), &error))?,
                };
                let is_there = answer.is_none();
                answers.push((key, answer));
                if is_there {
                    break;
                }
            }
            Ok::<_, Vec<Failure>>((blob, answers))
        });
        let answers: Vec<_> = answers.buffered(ASKED_AT_ONCE).try_collect().await?;
        let mut lost = IndexMap::new();
        for (blob, answers) in answers {
            if let Some((_, Some(why))) = answers.last() {
                lost.extend(images_without(plan, &blob.digest, why)?);
            }
            self.told.extend(answers);
        }
        Ok(lost)
    }
}

/// What the loss of a blob means for the images that have it. An image is not to be lost because its signature is.
fn images_without(
    plan: &Plan,
    digest: &Digest,
    Lost { reason, why }: &Lost,
) -> Result<Vec<(String, Failure)>, Vec<Failure>> {
    let mut failures = Vec::new();
    for image in plan.images_with(digest) {
        let name = image.reference.written();
        if !resolve::blobs(image).contains(digest) {
            let message = format!(
                "{name}: {why}; it can be carried without its signatures and attestations: with --no-referrers, or referrers: false"
            );
            return Err(vec![Failure::new(name, *reason, message)]);
        }
        failures.push((name.to_owned(), Failure::new(name, *reason, format!("{name}: {why}"))));
    }
    Ok(failures)
}

/// Whether a repository has a blob, and of the size that its manifest says: none if so.
async fn ask(
    Origin { registry, repository }: &Origin,
    blob: &BlobPlan,
) -> Result<Option<Lost>, RegistryError> {
    let (digest, size) = (blob.digest.clone(), blob.size);
    match registry.blob_size(repository, &digest).await {
        Ok(Some(found)) if found == size => return Ok(None),
        Ok(Some(found)) => {
            let error: BlobError<RegistryError> = BlobError::WrongSize { digest, size, found };
            return Ok(Some(Lost { reason: fetch::reason(&error), why: error.to_string() }));
        }
        // Not all answer to HEAD, and Harbor's proxies deny so what they give.
        Ok(None) | Err(_) => {}
    }
    let mut body = registry.blob_range(repository, &digest, size, 0..size.min(1)).boxed();
    match body.next().await {
        Some(Err(error)) if is_about_image(error.reason()) => {
            Ok(Some(Lost { reason: error.reason(), why: error.to_string() }))
        }
        Some(Err(error)) => Err(error),
        Some(Ok(_)) | None => Ok(None),
    }
}
