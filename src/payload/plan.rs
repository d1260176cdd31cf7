//! What is to go into a payload.

use bytes::Bytes;

use super::bill::{BillImage, BillManifest, BillReferrer};
use crate::digest::Digest;
use crate::platform::Platform;
use crate::reference::{FarName, Reference};

/// An image that is to go into a payload.
#[derive(Clone, Debug)]
pub struct ImagePlan {
    /// Where it comes from.
    pub reference: Reference,
    /// Its own name at the far side, if it has one.
    pub far_name: Option<FarName>,
    /// The root manifest's digest.
    pub digest: Digest,
    /// The root manifest's media type.
    pub media_type: String,
    /// The root manifest's size in bytes.
    pub size: u64,
    /// The platforms that were asked for; none: all that the image has.
    pub platforms: Vec<Platform>,
    /// What its indexes name and this choice of platforms leaves out.
    pub omitted: Vec<Digest>,
    /// All its manifests in push order, the root last; empty if the far side has the image itself.
    pub manifests: Vec<ManifestPlan>,
    /// What belongs to it; a referrer of a referrer comes behind that.
    pub referrers: Vec<ReferrerPlan>,
}

impl ImagePlan {
    /// Whether the payload carries anything of the image.
    #[must_use]
    pub fn carried(&self) -> bool {
        !self.manifests.is_empty()
    }

    /// What the bill says of it; `blobs` are the places of its configs and layers there.
    pub(super) fn bill(&self, blobs: Vec<u32>) -> BillImage {
        BillImage {
            name: self.reference.written().to_owned(),
            far_name: self.far_name.as_ref().map(ToString::to_string),
            reference: self.reference.to_string(),
            digest: Some(self.digest.clone()),
            media_type: self.media_type.clone(),
            size: self.size,
            platforms: self.platforms.clone(),
            omitted: self.omitted.clone(),
            carried: self.carried(),
            manifests: self.manifests.iter().map(ManifestPlan::bill).collect(),
            referrers: self.referrers.iter().map(ReferrerPlan::bill).collect(),
            blobs,
        }
    }

    /// Its manifests, and those of its referrers.
    pub fn all_manifests(&self) -> impl Iterator<Item = &ManifestPlan> {
        self.manifests.iter().chain(self.referrers.iter().flat_map(ReferrerPlan::manifests))
    }
}

/// A manifest that is to go into a payload.
#[derive(Clone, Debug)]
pub struct ManifestPlan {
    /// Its digest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Its bytes, as the registry gave them.
    pub bytes: Bytes,
}

impl ManifestPlan {
    pub(super) fn bill(&self) -> BillManifest {
        BillManifest {
            digest: self.digest.clone(),
            media_type: self.media_type.clone(),
            size: self.bytes.len() as u64,
        }
    }
}

/// A referrer that is to go into a payload.
#[derive(Clone, Debug)]
pub struct ReferrerPlan {
    /// Its manifest.
    pub manifest: ManifestPlan,
    /// The manifest that it is about.
    pub subject: Digest,
    /// The tag that cosign gave it.
    pub tag: Option<String>,
    /// The manifests that it names, in push order, if it is an index.
    pub children: Vec<ManifestPlan>,
}

impl ReferrerPlan {
    /// All its manifests in push order.
    pub fn manifests(&self) -> impl Iterator<Item = &ManifestPlan> {
        self.children.iter().chain([&self.manifest])
    }

    pub(super) fn bill(&self) -> BillReferrer {
        let ManifestPlan { digest, media_type, bytes } = &self.manifest;
        BillReferrer {
            digest: digest.clone(),
            media_type: media_type.clone(),
            size: bytes.len() as u64,
            subject: self.subject.clone(),
            tag: self.tag.clone(),
            manifests: self.children.iter().map(ManifestPlan::bill).collect(),
        }
    }
}
