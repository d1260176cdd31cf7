use std::collections::{BTreeMap, HashSet};
use std::fmt;

use indexmap::{IndexMap, IndexSet};
use serde::Serialize;

use super::bill::{EntryKind, Required};
use super::contents::ImagePlan;
use super::layout::blob_name;
use super::manifest::ManifestContent;
use crate::digest::Digest;
use crate::reference::{FarName, Host, Reference};

/// The only kind of manifest that docker-charon asks for and sends.
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// What docker-charon's table of contents is called.
pub(super) const NAME: &str = "payload_descriptor.json";

/// docker-charon's table of contents.
#[derive(Serialize)]
struct Descriptor {
    /// In payload order: docker-charon prints them so.
    manifests_paths: IndexMap<String, Option<String>>,
    blobs_paths: BTreeMap<String, BlobPath>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum BlobPath {
    InZip { zip_path: String },
    InRegistry { repository: String },
}

/// Why docker-charon cannot push a payload: it knows images of one Docker manifest with a tag, all of one registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// An image is of another kind.
    Kind(String),
    /// An image is named by its digest.
    Digest(String),
    /// The images are of several registries.
    Registries,
    /// Two images have one name at the far side.
    Name,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kind(name) => write!(f, "{name} is not one image of Docker's types"),
            Self::Digest(name) => write!(f, "{name} is named by its digest"),
            Self::Registries => f.write_str("its images are of several registries"),
            Self::Name => f.write_str("two of its images have one name there"),
        }
    }
}

/// What counts of an image for docker-charon.
pub(super) struct View {
    pub(super) reference: Reference,
    pub(super) far_name: Option<FarName>,
    /// Whether it is one manifest of Docker's type.
    pub(super) is_dockers: bool,
}

impl View {
    pub(super) fn new(
        reference: Reference,
        far_name: Option<FarName>,
        media_type: &str,
        manifests: usize,
    ) -> Self {
        Self { reference, far_name, is_dockers: media_type == DOCKER_MANIFEST && manifests <= 1 }
    }
}

/// The names that docker-charon would give to images, in their order.
pub(super) fn names(images: &[View]) -> Result<IndexSet<String>, Obstacle> {
    let written = |image: &View| image.reference.written().to_owned();
    if let Some(image) = images.iter().find(|image| !image.is_dockers) {
        return Err(Obstacle::Kind(written(image)));
    }
    let mut tagged = Vec::new();
    for image in images {
        let tag = image.reference.tag().filter(|_| image.reference.digest().is_none());
        tagged.push((image, tag.ok_or_else(|| Obstacle::Digest(written(image)))?));
    }
    let hosts: HashSet<&Host> = images.iter().map(|image| image.reference.host()).collect();
    if hosts.len() > 1 {
        return Err(Obstacle::Registries);
    }
    let name = |(View { reference, far_name, .. }, tag): (&View, &str)| match far_name {
        Some(own) => format!("{}:{}", own.repository(), own.tag().unwrap_or(tag)),
        None => format!("{}:{tag}", reference.far_repository()),
    };
    let names: IndexSet<String> = tagged.into_iter().map(name).collect();
    if names.len() < images.len() { Err(Obstacle::Name) } else { Ok(names) }
}

/// The bytes of the descriptor, or `None` where docker-charon could not push the payload: see [`Obstacle`].
///
/// Referrers are not in it: docker-charon pushes the images without them.
pub(super) fn bytes(
    images: &[ImagePlan],
    blobs: &[(Digest, u64, EntryKind)],
    required: &[Required],
) -> Option<Vec<u8>> {
    let view = |image: &ImagePlan| {
        let (reference, far_name) = (image.reference.clone(), image.far_name.clone());
        View::new(reference, far_name, &image.media_type, image.manifests.len())
    };
    let names = names(&images.iter().map(view).collect::<Vec<_>>()).ok()?;
    let paths = images.iter().map(|image| image.carried().then(|| blob_name(&image.digest)));
    let manifests_paths: IndexMap<String, Option<String>> = names.into_iter().zip(paths).collect();
    if manifests_paths.is_empty() {
        return None;
    }
    let mut blobs_paths = BTreeMap::new();
    let has_referrers = images.iter().any(|image| !image.referrers.is_empty());
    let own = if has_referrers { Some(own_blobs(images)?) } else { None };
    for (digest, _, kind) in blobs {
        if *kind == EntryKind::Blob && own.as_ref().is_none_or(|own| own.contains(digest)) {
            blobs_paths.insert(digest.to_string(), BlobPath::InZip { zip_path: blob_name(digest) });
        }
    }
    for blob in required {
        let source = blob.sources.first()?;
        let repository = match source.far_name().ok()? {
            Some(own) => own.repository().to_owned(),
            None => Reference::parse(&source.name, &Host::docker_hub()).ok()?.far_repository().to_owned(),
        };
        blobs_paths.insert(blob.digest.to_string(), BlobPath::InRegistry { repository });
    }
    serde_json::to_vec(&Descriptor { manifests_paths, blobs_paths }).ok()
}

/// What the images themselves name.
fn own_blobs(images: &[ImagePlan]) -> Option<HashSet<Digest>> {
    let mut own = HashSet::new();
    for manifest in images.iter().flat_map(|image| &image.manifests) {
        let content = ManifestContent::parse(&manifest.digest, &manifest.bytes).ok()?;
        own.extend(content.blobs().map(|blob| blob.digest.clone()));
    }
    Some(own)
}
