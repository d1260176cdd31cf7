use std::collections::{HashMap, HashSet};

use bytes::BytesMut;
use futures::future::BoxFuture;
use futures::{FutureExt, TryStreamExt};
use tracing::info;

use super::choice::{self, Choice, Verdict};
use super::{BuildRequest, ImageRequest};
use crate::digest::Digest;
use crate::payload::{
    Descriptor, ImagePlan, MANIFEST_LIMIT, MANIFESTS_LIMIT, ManifestContent, ManifestPlan, PayloadError,
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
}

#[derive(Debug, thiserror::Error)]
enum ResolveError {
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
    #[error("{image}: its config {digest} has the digest {found}; the registry gives what it does not have")]
    Config { image: String, digest: Digest, found: Digest },
    /// A registry that did not answer, or not to these credentials, is not asked for the next image.
    #[error("{image} was not asked for: {why}")]
    Unanswered { image: String, reason: Reason, why: String },
}

impl ResolveError {
    fn reason(&self) -> Reason {
        match self {
            Self::Registry(error) => error.reason(),
            Self::Payload { error, .. } => error.reason(),
            Self::NoAccess(_) => Reason::InvalidSpec,
            Self::Platform { .. } => Reason::ImageNotFound,
            Self::Child { error, .. } => error.reason(),
            Self::Config { .. } => Reason::DigestMismatch,
            Self::Unanswered { reason, .. } => *reason,
        }
    }
}

/// Resolves every name once. All are tried; all failures are told.
pub(super) async fn resolve(request: &BuildRequest) -> Result<Resolved, Vec<Failure>> {
    let mut resolver = Resolver {
        registries: &request.registries,
        manifests: HashMap::new(),
        manifests_size: 0,
        unanswered: HashMap::new(),
    };
    let mut failures = Vec::new();
    let far: Vec<Wanted<'_>> =
        request.already_transferred.iter().map(|reference| (reference, request.far_choice())).collect();
    let already_transferred = resolver.images(far, &mut failures).await;
    let there: HashMap<String, &ImagePlan> =
        already_transferred.iter().map(|image| (image.reference.to_string(), image)).collect();
    let (skipped, wanted): (Vec<_>, Vec<_>) = unique(&request.images)
        .into_iter()
        .partition(|image| there.contains_key(&image.reference.to_string()));
    for image in &skipped {
        info!("Skipping {} as it has already been transferred", image.reference.written());
    }
    let choices = wanted.iter().map(|image| (&image.reference, Choice::new(&image.platforms, true)));
    let wanted = resolver.images(choices.collect(), &mut failures).await;
    if !failures.is_empty() {
        return Err(failures);
    }
    let mut wanted = wanted.into_iter();
    let images = unique(&request.images)
        .into_iter()
        .filter_map(|ImageRequest { reference, far_name, .. }| match there.get(&reference.to_string()) {
            Some(image) => {
                let (platforms, omitted, manifests) = (Vec::new(), Vec::new(), Vec::new());
                let image = (*image).clone();
                Some(ImagePlan { reference, far_name, platforms, omitted, manifests, ..image })
            }
            None => wanted.next().map(|image| ImagePlan { far_name, ..image }),
        })
        .collect();
    Ok(Resolved { images, already_transferred })
}

/// The same image twice counts once, unless it is to have two names at the far side.
fn unique(images: &[ImageRequest]) -> Vec<ImageRequest> {
    let mut seen = HashSet::new();
    let is_first = |image: &&ImageRequest| seen.insert((image.reference.to_string(), image.far_name.clone()));
    images.iter().filter(is_first).cloned().collect()
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
struct Found {
    /// Its manifests in push order.
    manifests: Vec<ManifestPlan>,
    /// What its indexes name.
    indexes: Vec<ManifestContent>,
}

struct Resolver<'a> {
    registries: &'a HashMap<Host, Registry>,
    /// Manifests that were read: several images may name the same one.
    manifests: HashMap<Digest, Manifest>,
    /// Bytes of all manifests together.
    manifests_size: u64,
    unanswered: HashMap<Host, (Reason, String)>,
}

impl Resolver<'_> {
    async fn images(&mut self, wanted: Vec<Wanted<'_>>, failures: &mut Vec<Failure>) -> Vec<ImagePlan> {
        let mut images = Vec::new();
        for (reference, choice) in wanted {
            match self.image(reference, choice).await {
                Ok(image) => images.push(image),
                Err(error) => {
                    let (reason, message) = (error.reason(), error.to_string());
                    // Docker Hub refuses to say anonymously whether an image exists: the next may.
                    let signs_in =
                        || self.registries.get(reference.host()).is_some_and(Registry::has_credentials);
                    if reason == Reason::RegistryUnavailable
                        || (reason == Reason::AuthenticationFailed && signs_in())
                    {
                        let first = self.unanswered.entry(reference.host().clone());
                        first.or_insert_with(|| (reason, message.clone()));
                    }
                    failures.push(Failure { item: reference.written().to_owned(), reason, message });
                }
            }
        }
        images
    }

    async fn image(&mut self, reference: &Reference, mut choice: Choice) -> Result<ImagePlan, ResolveError> {
        if let Some((reason, why)) = self.unanswered.get(reference.host()).cloned() {
            return Err(ResolveError::Unanswered { image: reference.written().to_owned(), reason, why });
        }
        info!(target: STEP, "Resolving {reference}");
        let root = self.read(reference, reference.tag_or_digest()).await?;
        let mut found = Found::default();
        self.visit(reference, root.clone(), &mut choice, 0, &mut found).await?;
        if let Some((missing, has)) = choice.missing() {
            let (missing, has) = (platform::list(&missing), platform::list(&has));
            return Err(ResolveError::Platform { image: reference.written().to_owned(), missing, has });
        }
        let carried = found.manifests.iter().map(|manifest| &manifest.digest).collect();
        let omitted = choice::omitted(&found.indexes, &carried);
        Ok(ImagePlan {
            reference: reference.clone(),
            far_name: None,
            digest: root.digest,
            media_type: root.media_type,
            size: root.bytes.len() as u64,
            platforms: choice.wanted().to_vec(),
            omitted,
            manifests: found.manifests,
        })
    }

    /// Adds a manifest behind all that it names and that is wanted, each once. An index of which
    /// nothing is wanted is not added; gives whether it was.
    fn visit<'a>(
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
                if depth == 0 && choice.judges_single_manifests() {
                    self.is_taken(reference, &content, choice).await?;
                }
            } else if !self.visit_children(reference, &content, choice, depth, found).await? {
                return Ok(false);
            }
            let Manifest { digest, media_type, bytes } = manifest;
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
        for (child, verdict) in index.children.iter().zip(choice.children(index)) {
            if found.manifests.iter().any(|known| known.digest == child.digest) {
                is_wanted = true;
                continue;
            }
            if verdict == Verdict::Omitted {
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

    fn registry(&self, reference: &Reference) -> Result<&Registry, ResolveError> {
        let registry = self.registries.get(reference.host());
        registry.ok_or_else(|| ResolveError::NoAccess(reference.host().clone()))
    }

    async fn read(&mut self, reference: &Reference, tag_or_digest: &str) -> Result<Manifest, ResolveError> {
        let known = tag_or_digest.parse().ok().and_then(|digest: Digest| self.manifests.get(&digest));
        if let Some(known) = known {
            return Ok(known.clone());
        }
        let manifest = self.registry(reference)?.manifest(reference.repository(), tag_or_digest).await?;
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
