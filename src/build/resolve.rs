use std::collections::{HashMap, HashSet};

use futures::FutureExt;
use futures::future::BoxFuture;
use tracing::info;

use super::journal::Journal;
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
enum ResolveError {
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error("{image}: {error}")]
    Payload { image: String, error: PayloadError },
    #[error("no access to {0} was given")]
    NoAccess(Host),
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
            Self::Unanswered { reason, .. } => *reason,
        }
    }
}

/// The manifests that need not be read any more.
#[derive(Debug, Default)]
pub(super) struct Library {
    /// What earlier attempts read.
    pub(super) manifests: HashMap<Digest, Manifest>,
    /// Where what is read is noted for further attempts.
    pub(super) journal: Option<Journal>,
}

/// Resolves every name once. All are tried; all failures are told.
pub(super) async fn resolve(request: &BuildRequest, library: Library) -> Result<Resolved, Vec<Failure>> {
    let mut resolver = Resolver {
        registries: &request.registries,
        library,
        manifests: HashMap::new(),
        manifests_size: 0,
        unanswered: HashMap::new(),
    };
    let mut failures = Vec::new();
    let already_transferred = resolver.images(&request.already_transferred, &mut failures).await;
    let there: HashMap<String, &ImagePlan> =
        already_transferred.iter().map(|image| (image.reference.to_string(), image)).collect();
    let (skipped, wanted): (Vec<_>, Vec<_>) = unique(&request.images)
        .into_iter()
        .partition(|image| there.contains_key(&image.reference.to_string()));
    for image in &skipped {
        info!("Skipping {} as it has already been transferred", image.reference.written());
    }
    let wanted: Vec<Reference> = wanted.into_iter().map(|image| image.reference).collect();
    let wanted = resolver.images(&wanted, &mut failures).await;
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

struct Resolver<'a> {
    registries: &'a HashMap<Host, Registry>,
    library: Library,
    /// Manifests that were read: several images may name the same one.
    manifests: HashMap<Digest, Manifest>,
    /// Bytes of all manifests together.
    manifests_size: u64,
    unanswered: HashMap<Host, (Reason, String)>,
}

impl Resolver<'_> {
    async fn images(&mut self, references: &[Reference], failures: &mut Vec<Failure>) -> Vec<ImagePlan> {
        let mut images = Vec::new();
        for reference in references {
            match self.image(reference).await {
                Ok(image) => images.push(image),
                Err(error) => {
                    let (reason, message) = (error.reason(), error.to_string());
                    // Docker Hub refuses to say anonymously whether an image exists: the next may.
                    let signs_in =
                        || self.registries.get(reference.host()).is_some_and(Registry::has_credentials);
                    if matches!(reason, Reason::RegistryUnavailable | Reason::RateLimited)
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

    async fn image(&mut self, reference: &Reference) -> Result<ImagePlan, ResolveError> {
        if let Some((reason, why)) = self.unanswered.get(reference.host()).cloned() {
            return Err(ResolveError::Unanswered { image: reference.written().to_owned(), reason, why });
        }
        info!(target: STEP, "Resolving {reference}");
        let root = self.root(reference).await?;
        let mut manifests = Vec::new();
        self.visit(reference, root.clone(), 0, &mut manifests).await?;
        Ok(ImagePlan {
            reference: reference.clone(),
            far_name: None,
            digest: root.digest,
            media_type: root.media_type,
            size: root.bytes.len() as u64,
            manifests,
        })
    }

    /// Adds a manifest behind all that it names, each once.
    fn visit<'a>(
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

    /// The manifest that a reference means. Docker Hub counts reads and not questions: what a tag means is asked for,
    /// and then read only if it is not known.
    async fn root(&mut self, reference: &Reference) -> Result<Manifest, ResolveError> {
        let tag = reference.tag_or_digest();
        if tag.parse::<Digest>().is_err()
            && let Some(digest) = self.registry(reference)?.tag_digest(reference.repository(), tag).await?
        {
            match self.read(reference, digest.as_str()).await {
                // There is nothing under the digest that was told: what the tag means is read.
                Err(ResolveError::Registry(error)) if error.is_not_found() => {}
                result => return result,
            }
        }
        self.read(reference, tag).await
    }

    fn registry(&self, reference: &Reference) -> Result<&Registry, ResolveError> {
        let registry = self.registries.get(reference.host());
        registry.ok_or_else(|| ResolveError::NoAccess(reference.host().clone()))
    }

    async fn read(&mut self, reference: &Reference, tag_or_digest: &str) -> Result<Manifest, ResolveError> {
        let digest = tag_or_digest.parse::<Digest>().ok();
        if let Some(known) = digest.as_ref().and_then(|digest| self.manifests.get(digest)) {
            return Ok(known.clone());
        }
        let kept = digest.and_then(|digest| self.library.manifests.remove(&digest));
        let manifest = if let Some(kept) = kept {
            kept
        } else {
            let registry = self.registry(reference)?;
            let manifest = registry.manifest(reference.repository(), tag_or_digest).await?;
            if let Some(journal) = &self.library.journal {
                // Without the note it is read once more: nothing worse.
                let _ = journal.note_manifest(&manifest);
            }
            manifest
        };
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
