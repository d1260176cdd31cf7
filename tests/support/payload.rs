//! Payloads as make-payload writes them, of images from registries that no test can ask.

use std::collections::BTreeMap;

use bytes::Bytes;
use charon::digest::Digest;
use charon::payload::{
    Contents, ImagePlan, ManifestPlan, MissingImage, PayloadWriter, Required, RequiredSource,
};
use charon::reference::{Host, Reference};

use crate::image::{Image, digest};

/// A payload of images under these names. What `base` has is left to the far side; an image that is named as `base` is
/// only named.
pub(crate) fn payload(images: &[(&str, &Image)], base: Option<(&str, &Image)>) -> Vec<u8> {
    let plans: Vec<ImagePlan> = images.iter().map(|(name, image)| plan(name, image, base)).collect();
    let mut required = BTreeMap::new();
    let mut blobs: Vec<&Vec<u8>> = Vec::new();
    let carried = images.iter().filter(|(name, _)| base.is_none_or(|(base, _)| base != *name));
    for blob in carried.flat_map(|(_, image)| all_blobs(image)) {
        match base.filter(|(_, base)| all_blobs(base).contains(&blob)) {
            Some((name, _)) => {
                let reference = reference(name).to_string();
                let source = RequiredSource { name: name.to_owned(), reference, far_name: None };
                let (digest, size) = (digest_of(blob), blob.len() as u64);
                required.insert(digest.to_string(), Required { digest, size, sources: vec![source] });
            }
            None if blobs.contains(&blob) => {}
            None => blobs.push(blob),
        }
    }
    write(&plans, &blobs, required.into_values().collect(), Vec::new())
}

/// A payload as it was planned, which carries the blobs of `images`, and for which `missing` images were wanted, too.
pub(crate) fn payload_of(plans: &[ImagePlan], images: &[&Image], missing: Vec<MissingImage>) -> Vec<u8> {
    let blobs: Vec<&Vec<u8>> = images.iter().flat_map(|image| all_blobs(image)).collect();
    write(plans, &blobs, Vec::new(), missing)
}

fn write(
    plans: &[ImagePlan],
    blobs: &[&Vec<u8>],
    required: Vec<Required>,
    missing: Vec<MissingImage>,
) -> Vec<u8> {
    let sizes: Vec<(Digest, u64)> = blobs.iter().map(|blob| (digest_of(blob), blob.len() as u64)).collect();
    let contents = Contents::without(plans, &sizes, required, missing).expect("it is a payload");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime starts");
    runtime.block_on(async {
        let mut writer = PayloadWriter::begin(&contents, Vec::new()).await.expect("memory can be written to");
        for blob in blobs {
            let body = futures::stream::iter([Ok::<_, std::io::Error>(Bytes::from((*blob).clone()))]);
            writer.blob(body, |_| ()).await.expect("the blob is the one that is asked for");
        }
        writer.finish().await.expect("memory can be written to")
    })
}

/// An image that is to go into a payload; that is named as `base` is only named.
pub(crate) fn plan(name: &str, image: &Image, base: Option<(&str, &Image)>) -> ImagePlan {
    let mut manifests = Vec::new();
    if base.is_none_or(|(base, _)| base != name) {
        add_manifests(image, &mut manifests);
    }
    ImagePlan {
        far_name: None,
        reference: reference(name),
        digest: image.digest.parse().expect("it is a digest"),
        media_type: image.media_type.to_owned(),
        size: image.manifest.len() as u64,
        platforms: Vec::new(),
        omitted: Vec::new(),
        manifests,
        referrers: Vec::new(),
    }
}

fn add_manifests(image: &Image, manifests: &mut Vec<ManifestPlan>) {
    for child in &image.children {
        add_manifests(child, manifests);
    }
    manifests.push(manifest_of(image));
}

/// The image's own manifest.
pub(crate) fn manifest_of(image: &Image) -> ManifestPlan {
    ManifestPlan {
        digest: image.digest.parse().expect("it is a digest"),
        media_type: image.media_type.to_owned(),
        bytes: Bytes::from(image.manifest.clone()),
    }
}

fn all_blobs(image: &Image) -> Vec<&Vec<u8>> {
    image.children.iter().flat_map(all_blobs).chain(&image.blobs).collect()
}

fn reference(name: &str) -> Reference {
    Reference::parse(name, &Host::docker_hub()).expect("it is a name")
}

fn digest_of(bytes: &[u8]) -> Digest {
    digest(bytes).parse().expect("it is a digest")
}
