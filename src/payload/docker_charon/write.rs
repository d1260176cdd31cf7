//! Writes docker-charon's table of contents into Charon's payloads.

use std::collections::{BTreeMap, HashSet};

use indexmap::IndexMap;

use super::obstacle::{View, names};
use super::{BlobPath, Descriptor};
use crate::digest::Digest;
use crate::payload::bill::{EntryKind, Required};
use crate::payload::layout::blob_name;
use crate::payload::manifest::ManifestContent;
use crate::payload::plan::ImagePlan;
use crate::reference::{Host, Reference};

/// The bytes of the descriptor, or `None` where docker-charon could not push the payload: see [`Obstacle`].
///
/// Referrers are not in it: docker-charon pushes the images without them.
pub(in crate::payload) fn descriptor(
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
            blobs_paths.insert(digest.clone(), BlobPath::InZip { zip_path: blob_name(digest) });
        }
    }
    for blob in required {
        let source = blob.sources.first()?;
        let repository = match source.far_name().ok()? {
            Some(own) => own.repository().to_owned(),
            None => Reference::parse(&source.name, &Host::docker_hub()).ok()?.far_repository().to_owned(),
        };
        blobs_paths.insert(blob.digest.clone(), BlobPath::InRegistry { repository });
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
