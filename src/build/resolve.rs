use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::BytesMut;
use futures::future::BoxFuture;
use futures::{FutureExt, TryStreamExt};
use indexmap::IndexMap;
use indexmap::map::Entry;
use tracing::info;

use super::choice::{self, Choice, Verdict};
use super::journal::ManifestNotes;
use super::missing::is_about_image;
use super::referrers::{Place, Told};
use super::{BuildRequest, ImageRequest};
use crate::digest::Digest;
use crate::payload::{
    Base, Descriptor, ImagePlan, MANIFEST_LIMIT, MANIFESTS_LIMIT, ManifestContent, ManifestPlan, PayloadError,
};
use crate::platform::{self, Platform};
use crate::progress::STEP;
use crate::reason::{Failure, Reason};
use crate::reference::{Host, Reference};
use crate::registry::{Manifest, Registry, RegistryError};

/// An index may name indexes, but not without end.
const DEPTH_LIMIT: usize = 8;

/// All images of a build with all their manifests.
#[derive(Debug)]
pub(super) struct Resolved {
    /// The images to carry, in the order in which they were named. One that the far side has itself
    /// comes without manifests.
    pub(super) images: Vec<ImagePlan>,
    /// The images that the far side has.
    pub(super) already_transferred: Vec<ImagePlan>,
    /// The images that cannot be had, and are to be left out.
    pub(super) missing: Vec<(Reference, Failure)>,
    /// How many manifests were read, by registry.
    pub(super) reads: BTreeMap<Host, usize>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum ResolveError {
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error("{image}: {error}")]
    Payload { image: String, error: PayloadError },
    #[error("no access to {0} was given")]
    NoAccess(Host),
    #[error(
        "{image}: it has no {missing}; it has {has}: ask for a platform that it has (platforms, --platform)"
    )]
    Platform { image: String, missing: String, has: String },
    #[error(
        "{image}: its index names {what}, and the registry does not have it ({error}); ask for the platforms that it has (platforms, --platform), so that the others are left out"
    )]
    Child { image: String, what: String, error: RegistryError },
    #[error(
        "{image}: its layer {digest} may not be distributed, and the registry does not have it; have such layers fetched from where the manifest says (foreignLayers: true, --foreign-layers)"
    )]
    ForeignLayer { image: String, digest: Digest },
    #[error(
        "{image}: the bytes of its config {digest} have the digest {found}; leave the image out, or push it anew where it comes from"
    )]
    Config { image: String, digest: Digest, found: Digest },
    /// What belongs to an image cannot be had: that it is unknown whether there is a signature does not mean that
    /// there is none.
    #[error(
        "{error}; {image} can be carried without its signatures and attestations: with --no-referrers, or referrers: false"
    )]
    Referrers { image: String, error: Box<ResolveError> },
    /// A registry that did not answer, or not to these credentials, is not asked for the next image.
    #[error("{image} was not asked for: {why}")]
    Unanswered { image: String, reason: Reason, why: String },
}

impl ResolveError {
    pub(super) fn reason(&self) -> Reason {
        match self {
            Self::Registry(error) | Self::Child { error, .. } => error.reason(),
            Self::Payload { error, .. } => error.reason(),
            Self::NoAccess(_) => Reason::InvalidSpec,
            Self::Platform { .. } => Reason::ImageNotFound,
            Self::Config { .. } => Reason::DigestMismatch,
            Self::ForeignLayer { .. } => Reason::UnsupportedImage,
            Self::Referrers { error, .. } => error.reason(),
            Self::Unanswered { reason, .. } => *reason,
        }
    }
}

/// The manifests that need not be read any more.
#[derive(Debug, Default)]
pub(super) struct ManifestCache {
    /// What earlier attempts read.
    pub(super) manifests: HashMap<Digest, Manifest>,
    /// Where what is read is noted for further attempts.
    pub(super) notes: ManifestNotes,
}

/// Resolves every name once. All are tried; all failures are told, unless they are allowed.
pub(super) async fn resolve(request: &BuildRequest, cache: ManifestCache) -> Result<Resolved, Vec<Failure>> {
    let mut resolver = Resolver {
        registries: &request.registries,
        cache,
        manifests: HashMap::new(),
        manifests_size: 0,
        reads: BTreeMap::new(),
        told: HashMap::new(),
        unanswered: HashMap::new(),
        foreign_layers: request.foreign_layers,
        far_blobs: HashSet::new(),
    };
    // What belongs to images that the far side has is left out of nothing: they need not have brought it.
    let far = request.already_transferred.iter().map(|reference| (reference, request.far_choice()));
    let (already_transferred, mut failures) = apart(resolver.images(far.collect(), false).await);
    resolver.far_blobs = already_transferred.iter().flat_map(blobs).collect();
    let carried = request.bases.iter().flat_map(Base::blobs).map(|(digest, _)| digest.clone());
    resolver.far_blobs.extend(carried);
    let there: HashMap<String, &ImagePlan> =
        already_transferred.iter().map(|image| (image.reference.to_string(), image)).collect();
    let asked = unique(&request.images);
    let is_there = |image: &&ImageRequest| there.contains_key(&image.reference.to_string());
    for image in asked.iter().filter(is_there) {
        info!("Skipping {} as it has already been transferred", image.reference.written());
    }
    let wanted = asked.iter().filter(|image| !is_there(image));
    let choices = wanted.map(|image| (&image.reference, Choice::new(&image.platforms, true)));
    let mut wanted = resolver.images(choices.collect(), request.referrers).await.into_iter();

    let (mut images, mut missing) = (Vec::new(), Vec::new());
    for ImageRequest { reference, far_name, .. } in asked.iter().cloned() {
        if let Some(image) = there.get(&reference.to_string()) {
            let (platforms, omitted, manifests) = (Vec::new(), Vec::new(), Vec::new());
            let image = (*image).clone();
            images.push(ImagePlan { reference, far_name, platforms, omitted, manifests, ..image });
            continue;
        }
        match wanted.next() {
            Some(Ok(image)) => images.push(ImagePlan { far_name, ..image }),
            Some(Err(Unresolved { failure, is_about_image })) => {
                if request.allow_missing && is_about_image {
                    missing.push((reference, failure));
                } else {
                    failures.push(failure);
                }
            }
            None => {}
        }
    }
    if !failures.is_empty() || images.is_empty() {
        failures.extend(missing.into_iter().map(|(_, failure)| failure));
        return Err(failures);
    }
    Ok(Resolved { images, missing, already_transferred, reads: resolver.reads })
}

/// What was resolved, and why the rest was not.
fn apart(results: Vec<Result<ImagePlan, Unresolved>>) -> (Vec<ImagePlan>, Vec<Failure>) {
    let (mut images, mut failures) = (Vec::new(), Vec::new());
    for result in results {
        match result {
            Ok(image) => images.push(image),
            Err(unresolved) => failures.push(unresolved.failure),
        }
    }
    (images, failures)
}

/// The blobs of an image.
pub(super) fn blobs(image: &ImagePlan) -> Vec<Digest> {
    let parsed = image
        .manifests
        .iter()
        .filter_map(|manifest| ManifestContent::parse(&manifest.digest, &manifest.bytes).ok());
    parsed.flat_map(|content| content.blobs().map(|blob| blob.digest.clone()).collect::<Vec<_>>()).collect()
}

/// The same image twice counts once, with the platforms of both, unless it is to have two names at the far side.
fn unique(images: &[ImageRequest]) -> Vec<ImageRequest> {
    let mut unique: IndexMap<_, ImageRequest> = IndexMap::new();
    for image in images {
        match unique.entry((image.reference.to_string(), image.far_name.clone())) {
            Entry::Vacant(place) => {
                place.insert(image.clone());
            }
            Entry::Occupied(mut place) => place.get_mut().also(&image.platforms),
        }
    }
    unique.into_values().collect()
}

/// An image, and what of it.
type Wanted<'a> = (&'a Reference, Choice);

impl BuildRequest {
    /// What is looked for in images that the far side has: what any image to carry is wanted for.
    fn far_choice(&self) -> Choice {
        let is_open = self.images.iter().any(|image| image.platforms.is_empty());
        let wanted: Vec<Platform> = self.images.iter().flat_map(|image| image.platforms.clone()).collect();
        Choice::new(if is_open { &[] } else { &wanted }, false)
    }
}

/// What an image was found to have.
#[derive(Default)]
pub(super) struct Found {
    /// Its manifests in push order.
    pub(super) manifests: Vec<ManifestPlan>,
    /// What its indexes name.
    pub(super) indexes: Vec<ManifestContent>,
    /// The digests of these manifests.
    taken: HashSet<Digest>,
    /// Indexes of which nothing is wanted: how often they are named does not matter.
    declined: HashSet<Digest>,
}

pub(super) struct Resolver<'a> {
    registries: &'a HashMap<Host, Registry>,
    cache: ManifestCache,
    /// Manifests that were read: several images may name the same one.
    manifests: HashMap<Digest, Manifest>,
    /// Bytes of all manifests together.
    manifests_size: u64,
    /// How many manifests were read, by registry.
    reads: BTreeMap<Host, usize>,
    /// What registries told of what refers to their manifests.
    pub(super) told: HashMap<Place, Told>,
    unanswered: HashMap<Host, (Reason, String)>,
    /// Whether layers may be had from outside of registries.
    foreign_layers: bool,
    /// The blobs that the far side has.
    far_blobs: HashSet<Digest>,
}

/// An image that was not resolved.
struct Unresolved {
    failure: Failure,
    /// Whether the registry answers, and has not or does not give this image.
    is_about_image: bool,
}

impl Resolver<'_> {
    async fn images(
        &mut self,
        wanted: Vec<Wanted<'_>>,
        with_referrers: bool,
    ) -> Vec<Result<ImagePlan, Unresolved>> {
        let mut images = Vec::new();
        for (reference, choice) in wanted {
            let resolved = self.image(reference, choice, with_referrers).await;
            images.push(resolved.map_err(|error| self.unresolved(reference, &error)));
        }
        images
    }

    fn unresolved(&mut self, reference: &Reference, error: &ResolveError) -> Unresolved {
        let (reason, message) = (error.reason(), error.to_string());
        // Docker Hub refuses to say anonymously whether an image exists: the next may.
        let signs_in = self
            .registries
            .get(reference.host())
            .is_some_and(|registry| registry.has_credentials(reference.repository()));
        let is_refused = reason == Reason::AuthenticationFailed;
        let is_closed = matches!(reason, Reason::RegistryUnavailable | Reason::RateLimited);
        if is_closed || (is_refused && signs_in) {
            let first = self.unanswered.entry(reference.host().clone());
            first.or_insert_with(|| (reason, message.clone()));
        }
        let is_about_image = match reason {
            // The image can be had: it is not to be lost because its signature cannot.
            _ if matches!(error, ResolveError::Referrers { .. }) => false,
            reason => is_about_image(reason) || (is_refused && !signs_in),
        };
        let failure = Failure::new(reference.written(), reason, message).caused_by(error);
        Unresolved { failure, is_about_image }
    }

    async fn image(
        &mut self,
        reference: &Reference,
        mut choice: Choice,
        with_referrers: bool,
    ) -> Result<ImagePlan, ResolveError> {
        if let Some((reason, why)) = self.unanswered.get(reference.host()).cloned() {
            return Err(ResolveError::Unanswered { image: reference.written().to_owned(), reason, why });
        }
        info!(target: STEP, "Resolving {reference}");
        let root = self.root(reference).await?;
        let mut found = Found::default();
        self.visit(reference, root.clone(), &mut choice, 0, &mut found).await?;
        if let Some((missing, has)) = choice.missing() {
            let (missing, has) = (platform::list(&missing), platform::list(&has));
            return Err(ResolveError::Platform { image: reference.written().to_owned(), missing, has });
        }
        let carried = found.manifests.iter().map(|manifest| &manifest.digest).collect();
        let omitted = choice::omitted(&found.indexes, &carried);
        let referrers = if with_referrers { self.referrers(reference, &found).await } else { Ok(Vec::new()) };
        let referrers = referrers.map_err(|error| {
            let (image, error) = (reference.written().to_owned(), Box::new(error));
            ResolveError::Referrers { image, error }
        })?;
        Ok(ImagePlan {
            reference: reference.clone(),
            far_name: None,
            digest: root.digest,
            media_type: root.media_type,
            size: root.bytes.len() as u64,
            platforms: choice.wanted().to_vec(),
            omitted,
            manifests: found.manifests,
            referrers,
        })
    }

    /// Adds a manifest behind all that it names and that is wanted, each once. An index of which
    /// nothing is wanted is not added; gives whether it was.
    pub(super) fn visit<'a>(
        &'a mut self,
        reference: &'a Reference,
        manifest: Manifest,
        choice: &'a mut Choice,
        depth: usize,
        found: &'a mut Found,
    ) -> BoxFuture<'a, Result<bool, ResolveError>> {
        async move {
            let refused = |error| ResolveError::Payload { image: reference.written().to_owned(), error };
            if depth > DEPTH_LIMIT {
                let why = "its indexes are nested too deep".to_owned();
                return Err(refused(PayloadError::Manifest { digest: manifest.digest, why }));
            }
            let content = ManifestContent::parse(&manifest.digest, &manifest.bytes).map_err(refused)?;
            if !content.is_index() {
                // Who names it has said what it is for, if it is a child.
                if depth == 0 && choice.is_to_carry() && !choice.is_open() {
                    self.is_taken(reference, &content, choice).await?;
                }
                if choice.is_to_carry() {
                    self.check_foreign_layers(reference, &content).await?;
                }
            } else if !self.visit_children(reference, &content, choice, depth, found).await? {
                found.declined.insert(manifest.digest);
                return Ok(false);
            }
            let Manifest { digest, media_type, bytes } = manifest;
            found.taken.insert(digest.clone());
            found.manifests.push(ManifestPlan { digest, media_type, bytes });
            found.indexes.extend(Some(content).filter(ManifestContent::is_index));
            Ok(true)
        }
        .boxed()
    }

    /// Adds the children of an index that are wanted. Gives whether the index is wanted: unless it has
    /// children, and none of them is.
    async fn visit_children(
        &mut self,
        reference: &Reference,
        index: &ManifestContent,
        choice: &mut Choice,
        depth: usize,
        found: &mut Found,
    ) -> Result<bool, ResolveError> {
        let refused = |error| ResolveError::Payload { image: reference.written().to_owned(), error };
        let mut is_wanted = choice.is_open() || index.children.is_empty();
        let mut left_out = HashSet::new();
        for (child, verdict) in index.children.iter().zip(choice.children(index)) {
            // Where all is known no registry is waited for, and others want to run, too.
            tokio::task::yield_now().await;
            if found.taken.contains(&child.digest) {
                is_wanted = true;
                continue;
            }
            if found.declined.contains(&child.digest) {
                continue;
            }
            // What is attested of an image that turned out not to be wanted is not wanted either.
            if verdict == Verdict::Omitted || child.attested().is_some_and(|image| left_out.contains(&image))
            {
                continue;
            }
            let manifest = self.read_child(reference, child).await?;
            if manifest.bytes.len() as u64 != child.size {
                let (one, other) = (child.size, manifest.bytes.len() as u64);
                return Err(refused(PayloadError::Sizes { digest: child.digest.clone(), one, other }));
            }
            if verdict == Verdict::Unknown {
                let content = ManifestContent::parse(&manifest.digest, &manifest.bytes).map_err(refused)?;
                if !content.is_index() && !self.is_taken(reference, &content, choice).await? {
                    left_out.insert(child.digest.clone());
                    continue;
                }
            }
            is_wanted |= self.visit(reference, manifest, choice, depth + 1, found).await?;
        }
        Ok(is_wanted)
    }

    /// Whether an image that no index tells the platform of is wanted: its config tells. What has no
    /// such config is for all platforms.
    async fn is_taken(
        &self,
        reference: &Reference,
        content: &ManifestContent,
        choice: &mut Choice,
    ) -> Result<bool, ResolveError> {
        let Some(config) = choice::image_config(content) else {
            return Ok(true);
        };
        let image = || reference.written().to_owned();
        if config.size > MANIFEST_LIMIT {
            let why = format!("its config has {} bytes", config.size);
            let error = PayloadError::Manifest { digest: config.digest.clone(), why };
            return Err(ResolveError::Payload { image: image(), error });
        }
        let body = self.registry(reference)?.blob(reference.repository(), &config.digest, config.size);
        let bytes = body
            .try_fold(BytesMut::new(), async |mut bytes, chunk| {
                bytes.extend_from_slice(&chunk);
                Ok(bytes)
            })
            .await?;
        config.digest.check(&bytes).map_err(|found| {
            let digest = config.digest.clone();
            ResolveError::Config { image: image(), digest, found }
        })?;
        Ok(choice::platform_of_config(&bytes).is_none_or(|platform| choice.takes(platform)))
    }

    /// That all layers can be had where those that may not be distributed are had from the registry alone.
    async fn check_foreign_layers(
        &self,
        reference: &Reference,
        content: &ManifestContent,
    ) -> Result<(), ResolveError> {
        if self.foreign_layers {
            return Ok(());
        }
        let is_foreign =
            |layer: &&Descriptor| !layer.urls().is_empty() && !self.far_blobs.contains(&layer.digest);
        for layer in content.layers.iter().filter(is_foreign) {
            if !self.registry(reference)?.has_blob(reference.repository(), &layer.digest).await? {
                let (image, digest) = (reference.written().to_owned(), layer.digest.clone());
                return Err(ResolveError::ForeignLayer { image, digest });
            }
        }
        Ok(())
    }

    /// A manifest that an index names.
    async fn read_child(
        &mut self,
        reference: &Reference,
        child: &Descriptor,
    ) -> Result<Manifest, ResolveError> {
        match self.read(reference, child.digest.as_str()).await {
            Err(ResolveError::Registry(error)) if error.is_not_found() => {
                let what = match child.platform() {
                    Some(platform) => format!("{} for {platform}", child.digest),
                    None => child.digest.to_string(),
                };
                Err(ResolveError::Child { image: reference.written().to_owned(), what, error })
            }
            read => read,
        }
    }

    /// The manifest that a reference means. Docker Hub counts reads and not questions: what a tag means is asked for,
    /// and then read only if it is not known.
    async fn root(&mut self, reference: &Reference) -> Result<Manifest, ResolveError> {
        let tag = reference.tag_or_digest();
        if tag.parse::<Digest>().is_err()
            && let Some(digest) = self.registry(reference)?.tag_digest(reference.repository(), tag).await?
        {
            return self.read_tag(reference, tag, &digest).await;
        }
        self.read(reference, tag).await
    }

    /// The manifest that a tag means, which has this digest by the registry's own word.
    pub(super) async fn read_tag(
        &mut self,
        reference: &Reference,
        tag: &str,
        digest: &Digest,
    ) -> Result<Manifest, ResolveError> {
        match self.read(reference, digest.as_str()).await {
            // There is nothing under the digest that was told: what the tag means is read.
            Err(ResolveError::Registry(error)) if error.is_not_found() => self.read(reference, tag).await,
            result => result,
        }
    }

    pub(super) fn registry(&self, reference: &Reference) -> Result<&Registry, ResolveError> {
        let registry = self.registries.get(reference.host());
        registry.ok_or_else(|| ResolveError::NoAccess(reference.host().clone()))
    }

    pub(super) async fn read(
        &mut self,
        reference: &Reference,
        tag_or_digest: &str,
    ) -> Result<Manifest, ResolveError> {
        let digest = tag_or_digest.parse::<Digest>().ok();
        if let Some(known) = digest.as_ref().and_then(|digest| self.manifests.get(digest)) {
            return Ok(known.clone());
        }
        let kept = digest.and_then(|digest| self.cache.manifests.remove(&digest));
        if let Some(kept) = kept {
            return self.keep(reference, kept);
        }
        let manifest = self.registry(reference)?.manifest(reference.repository(), tag_or_digest).await?;
        self.was_read(reference, manifest)
    }

    /// Counts and notes a manifest that was read.
    pub(super) fn was_read(
        &mut self,
        reference: &Reference,
        manifest: Manifest,
    ) -> Result<Manifest, ResolveError> {
        *self.reads.entry(reference.host().clone()).or_default() += 1;
        self.cache.notes.note(&manifest);
        self.keep(reference, manifest)
    }

    /// Keeps a manifest for whoever else names it.
    fn keep(&mut self, reference: &Reference, manifest: Manifest) -> Result<Manifest, ResolveError> {
        if let Some(known) = self.manifests.get(&manifest.digest) {
            return Ok(known.clone());
        }
        self.manifests_size += manifest.bytes.len() as u64;
        if self.manifests_size > MANIFESTS_LIMIT {
            let message = format!("the manifests of all images have over {MANIFESTS_LIMIT} bytes");
            let (image, error) = (reference.written().to_owned(), PayloadError::TooLarge(message));
            return Err(ResolveError::Payload { image, error });
        }
        self.manifests.insert(manifest.digest.clone(), manifest.clone());
        Ok(manifest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_that_is_wanted_twice_is_wanted_once_with_the_platforms_of_both() {
        let wanted = |name: &str, platforms: &[&str]| ImageRequest {
            platforms: platforms.iter().map(|platform| platform.parse().unwrap()).collect(),
            ..ImageRequest::from(Reference::parse(name, &Host::docker_hub()).unwrap())
        };
        let (short, long) = ("ferry:1", "docker.io/library/ferry:1");
        for (second, expected) in
            [(&["linux/arm64", "linux/amd64"][..], &["linux/amd64", "linux/arm64"][..]), (&[], &[])]
        {
            let found = unique(&[wanted(short, &["linux/amd64"]), wanted(long, second)]);
            assert_eq!(found.len(), 1);
            assert_eq!(found[0].platforms, wanted(short, expected).platforms);
        }
    }
}
