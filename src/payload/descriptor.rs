use std::collections::{BTreeMap, HashSet};

use indexmap::IndexMap;
use serde::Serialize;

use super::bill::{EntryKind, Required};
use super::contents::ImagePlan;
use super::layout::blob_name;
use super::manifest::ManifestContent;
use crate::digest::Digest;
use crate::reference::{Host, Reference};

/// The only kind of manifest that docker-charon asks for and sends.
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// docker-charon's table of contents, `payload_descriptor.json`.
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

/// The bytes of the descriptor, or `None` where docker-charon could not push the payload: unless
/// every image is one Docker manifest with a tag, all of one registry.
///
/// Referrers are not in it: docker-charon pushes the images without them.
pub(super) fn bytes(
    images: &[ImagePlan],
    blobs: &[(Digest, u64, EntryKind)],
    required: &[Required],
) -> Option<Vec<u8>> {
    let hosts: HashSet<&Host> = images.iter().map(|image| image.reference.host()).collect();
    if hosts.len() != 1 {
        return None;
    }
    let mut manifests_paths = IndexMap::new();
    for image in images {
        let (reference, own) = (&image.reference, image.far_name.as_ref());
        let tag = reference.tag().filter(|_| reference.digest().is_none())?;
        if image.media_type != DOCKER_MANIFEST || image.manifests.len() > 1 {
            return None;
        }
        let path = image.carried().then(|| blob_name(&image.digest));
        let name = match own {
            Some(own) => format!("{}:{}", own.repository(), own.tag().unwrap_or(tag)),
            None => format!("{}:{tag}", reference.far_repository()),
        };
        if manifests_paths.insert(name, path).is_some() {
            return None;
        }
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
