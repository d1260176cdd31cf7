use std::collections::{HashMap, HashSet};

use futures::FutureExt;
use futures::future::BoxFuture;
use tracing::info;

use super::referrers::{Place, Told};
use super::{BuildRequest, ImageRequest};
use crate::digest::Digest;
use crate::payload::{ImagePlan, MANIFESTS_LIMIT, ManifestContent, ManifestPlan, PayloadError};
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
pub(super) enum ResolveError {
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error("{image}: {error}")]
    Payload { image: String, error: PayloadError },
    #[error("no access to {0} was given")]
    NoAccess(Host),
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
    fn reason(&self) -> Reason {
        match self {
            Self::Registry(error) => error.reason(),
            Self::Payload { error, .. } => error.reason(),
            Self::NoAccess(_) => Reason::InvalidSpec,
            Self::Referrers { error, .. } => error.reason(),
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
        told: HashMap::new(),
        unanswered: HashMap::new(),
    };
    let mut failures = Vec::new();
    // What belongs to them is left out of nothing: they need not have brought it.
    let already_transferred = resolver.images(&request.already_transferred, false, &mut failures).await;
    let there: HashMap<String, &ImagePlan> =
        already_transferred.iter().map(|image| (image.reference.to_string(), image)).collect();
    let (skipped, wanted): (Vec<_>, Vec<_>) = unique(&request.images)
        .into_iter()
        .partition(|image| there.contains_key(&image.reference.to_string()));
    for image in &skipped {
        info!("Skipping {} as it has already been transferred", image.reference.written());
    }
    let wanted: Vec<Reference> = wanted.into_iter().map(|image| image.reference).collect();
    let wanted = resolver.images(&wanted, request.referrers, &mut failures).await;
    if !failures.is_empty() {
        return Err(failures);
    }
    let mut wanted = wanted.into_iter();
    let images = unique(&request.images)
        .into_iter()
        .filter_map(|ImageRequest { reference, far_name }| match there.get(&reference.to_string()) {
            Some(image) => Some(ImagePlan { reference, far_name, manifests: Vec::new(), ..(*image).clone() }),
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

pub(super) struct Resolver<'a> {
    pub(super) registries: &'a HashMap<Host, Registry>,
    /// Manifests that were read: several images may name the same one.
    manifests: HashMap<Digest, Manifest>,
    /// Bytes of all manifests together.
    manifests_size: u64,
    /// What registries told of what refers to their manifests.
    pub(super) told: HashMap<Place, Told>,
    unanswered: HashMap<Host, (Reason, String)>,
}

impl Resolver<'_> {
    async fn images(
        &mut self,
        references: &[Reference],
        with_referrers: bool,
        failures: &mut Vec<Failure>,
    ) -> Vec<ImagePlan> {
        let mut images = Vec::new();
        for reference in references {
            match self.image(reference, with_referrers).await {
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

    async fn image(
        &mut self,
        reference: &Reference,
        with_referrers: bool,
    ) -> Result<ImagePlan, ResolveError> {
        if let Some((reason, why)) = self.unanswered.get(reference.host()).cloned() {
            return Err(ResolveError::Unanswered { image: reference.written().to_owned(), reason, why });
        }
        info!(target: STEP, "Resolving {reference}");
        let root = self.read(reference, reference.tag_or_digest()).await?;
        let mut manifests = Vec::new();
        self.visit(reference, root.clone(), 0, &mut manifests).await?;
        let referrers =
            if with_referrers { self.referrers(reference, &manifests).await } else { Ok(Vec::new()) };
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
            manifests,
            referrers,
        })
    }

    /// Adds a manifest behind all that it names, each once.
    pub(super) fn visit<'a>(
        &'a mut self,
        reference: &'a Reference,
        manifest: Manifest,
        depth: usize,
        manifests: &'a mut Vec<ManifestPlan>,
    ) -> BoxFuture<'a, Result<(), ResolveError>> {
        async move {
            let refused = |error| ResolveError::Payload { image: reference.written().to_owned(), error };
            if depth > DEPTH_LIMIT {
                let why = "its indexes are nested too deep".to_owned();
                return Err(refused(PayloadError::Manifest { digest: manifest.digest, why }));
            }
            let content = ManifestContent::parse(&manifest.digest, &manifest.bytes).map_err(refused)?;
            for child in content.children {
                if manifests.iter().any(|known| known.digest == child.digest) {
                    continue;
                }
                let found = self.read(reference, child.digest.as_str()).await?;
                if found.bytes.len() as u64 != child.size {
                    let (one, other) = (child.size, found.bytes.len() as u64);
                    return Err(refused(PayloadError::Sizes { digest: child.digest, one, other }));
                }
                self.visit(reference, found, depth + 1, manifests).await?;
            }
            let Manifest { digest, media_type, bytes } = manifest;
            manifests.push(ManifestPlan { digest, media_type, bytes });
            Ok(())
        }
        .boxed()
    }

    pub(super) async fn read(
        &mut self,
        reference: &Reference,
        tag_or_digest: &str,
    ) -> Result<Manifest, ResolveError> {
        let known = tag_or_digest.parse().ok().and_then(|digest: Digest| self.manifests.get(&digest));
        if let Some(known) = known {
            return Ok(known.clone());
        }
        let registry = self
            .registries
            .get(reference.host())
            .ok_or_else(|| ResolveError::NoAccess(reference.host().clone()))?;
        let manifest = registry.manifest(reference.repository(), tag_or_digest).await?;
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
