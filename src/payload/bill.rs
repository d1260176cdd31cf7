//! What a payload holds, in words: its first entry.

mod check;
mod referrers;

use serde::{Deserialize, Serialize};

use super::error::PayloadError;
use crate::digest::Digest;
use crate::platform::Platform;
use crate::reference::{FarName, Host, Reference};
pub use referrers::{REFERRERS_DEPTH, cosign_tags};

/// The version of the payload format that this program writes and reads.
pub const FORMAT_VERSION: u32 = 1;
/// A bill is never larger.
pub(super) const BILL_LIMIT: u64 = 16 << 20;
/// What docker-charon's table of contents is called.
pub(super) const DESCRIPTOR_NAME: &str = "payload_descriptor.json";

/// What a payload holds: its first entry, `charon.json`.
///
/// The sha256 of its bytes is the payload digest; it commits to every digest and size in the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bill {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// The images, in the order in which they were asked for.
    pub images: Vec<BillImage>,
    /// The entries that are no blobs.
    pub files: Vec<BillFile>,
    /// The entries under `blobs/`, in file order.
    pub entries: Vec<BillEntry>,
    /// Blobs that are not carried, since the far side has them; sorted by digest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub required: Vec<Required>,
    /// Images that were asked for and could not be had, in the order in which they were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<MissingImage>,
}

/// One image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BillImage {
    /// What the user wrote.
    pub name: String,
    /// Another name at the far side, `repository[:tag]`.
    #[serde(rename = "as", default, skip_serializing_if = "Option::is_none")]
    pub far_name: Option<String>,
    /// What it resolved to, `host/repository[:tag][@digest]`.
    pub reference: String,
    /// What the tag meant at that moment. Absent only of an image that a docker-charon payload
    /// names without carrying it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// The root manifest's media type.
    pub media_type: String,
    /// The root manifest's size in bytes.
    pub size: u64,
    /// The platforms that were asked for; none: all that the image has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub platforms: Vec<Platform>,
    /// The manifests that its indexes name and the choice of platforms left out, in the order in which
    /// they are named: a subset and a broken payload are told apart by them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub omitted: Vec<Digest>,
    /// False: the image is itself already at the far side, and nothing of it is in the payload.
    pub carried: bool,
    /// All its manifests in push order: children first, the root last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub manifests: Vec<BillManifest>,
    /// What belongs to it: signatures, attestations, SBOMs. A referrer of a referrer comes behind that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub referrers: Vec<BillReferrer>,
    /// Its configs and layers, by their places in `entries` and, behind those, in `required`, ascending:
    /// a later build learns from the bill alone which images brought a blob.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blobs: Vec<u32>,
}

/// One manifest of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BillManifest {
    /// The manifest's digest.
    pub digest: Digest,
    /// Its media type: an OCI manifest may not carry its own.
    pub media_type: String,
    /// Its size in bytes.
    pub size: u64,
}

/// One referrer of an image, or of one of its referrers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BillReferrer {
    /// Its manifest's digest.
    pub digest: Digest,
    /// Its manifest's media type.
    pub media_type: String,
    /// Its manifest's size in bytes.
    pub size: u64,
    /// The manifest that it is about.
    pub subject: Digest,
    /// The tag that cosign gave it. Without, it says of itself what its subject is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// The manifests that it names, in push order, if it is an index.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub manifests: Vec<BillManifest>,
}

/// One entry that is no blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BillFile {
    /// Its name in the zip.
    pub path: String,
    /// Its size in bytes.
    pub size: u64,
    /// The digest of its bytes.
    pub digest: Digest,
}

/// One entry under `blobs/`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BillEntry {
    /// The digest of its content.
    pub digest: Digest,
    /// The content's size in bytes.
    pub size: u64,
    /// What it is.
    pub kind: EntryKind,
    /// How it is stored; `identity` is as it is.
    pub encoding: String,
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum EntryKind {
    /// A manifest or an index.
    Manifest,
    /// A config or a layer.
    Blob,
}

/// A blob that the far side must have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Required {
    /// The blob.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// The images that brought it.
    pub sources: Vec<RequiredSource>,
}

/// An image that brought a required blob to the far side.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RequiredSource {
    /// What the user wrote.
    pub name: String,
    /// What it resolved to.
    pub reference: String,
    /// Another name at the far side, `repository[:tag]`.
    #[serde(rename = "as", default, skip_serializing_if = "Option::is_none")]
    pub far_name: Option<String>,
}

/// An image that was asked for and could not be had: the payload was made without it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MissingImage {
    /// What the user wrote.
    pub name: String,
    /// What it resolved to.
    pub reference: String,
    /// Why, in one word: a [`crate::reason::Reason`]. A text, since a later version may have more of them.
    pub reason: String,
}

/// Whether a text can be sent as a media type, and printed.
pub(super) fn is_media_type(text: &str) -> bool {
    !text.is_empty() && text.len() <= 255 && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Read alone and first, so that a bill of a later version is refused by its version.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    format_version: u64,
}

impl BillImage {
    /// The digests and media types of all its manifests, and of those of its referrers.
    pub fn all_manifests(&self) -> impl Iterator<Item = (&Digest, &str)> {
        let of_referrers = self.referrers.iter().flat_map(BillReferrer::all_manifests);
        let own = self.manifests.iter().map(|manifest| (&manifest.digest, manifest.media_type.as_str()));
        own.chain(of_referrers)
    }

    /// Its reference, with the name as it was written.
    pub fn parsed(&self) -> Result<Reference, PayloadError> {
        parsed(&self.name, &self.reference)
    }

    /// Its own name at the far side, if it has one.
    pub fn far_name(&self) -> Result<Option<FarName>, PayloadError> {
        far_name(&self.name, self.far_name.as_deref())
    }
}

impl BillReferrer {
    /// The digests and media types of all its manifests, in push order.
    pub fn all_manifests(&self) -> impl Iterator<Item = (&Digest, &str)> {
        let children = self.manifests.iter().map(|child| (&child.digest, child.media_type.as_str()));
        children.chain([(&self.digest, self.media_type.as_str())])
    }

    /// The digests of all its manifests, in push order.
    pub fn all_digests(&self) -> impl Iterator<Item = &Digest> {
        self.all_manifests().map(|(digest, _)| digest)
    }
}

impl RequiredSource {
    /// Its reference, with the name as it was written.
    pub fn parsed(&self) -> Result<Reference, PayloadError> {
        parsed(&self.name, &self.reference)
    }

    /// Its own name at the far side, if it has one.
    pub fn far_name(&self) -> Result<Option<FarName>, PayloadError> {
        far_name(&self.name, self.far_name.as_deref())
    }
}

fn far_name(name: &str, own: Option<&str>) -> Result<Option<FarName>, PayloadError> {
    let refused = |error| PayloadError::Corrupt(format!("its bill names the image {name:?}: {error}"));
    own.map(str::parse).transpose().map_err(refused)
}

/// A name without a host was meant for the registry that the full reference tells.
fn parsed(name: &str, reference: &str) -> Result<Reference, PayloadError> {
    let refused = |error| PayloadError::Corrupt(format!("its bill names the image {name:?}: {error}"));
    let full = Reference::parse(reference, &Host::docker_hub()).map_err(refused)?;
    Reference::parse(name, full.host()).map_err(refused)
}

impl Bill {
    /// Reads and checks a bill: everything that can be known to be wrong without reading on.
    pub fn parse(bytes: &[u8]) -> Result<Self, PayloadError> {
        let corrupt = |why: String| PayloadError::Corrupt(format!("its bill, charon.json, {why}"));
        let version: Version =
            serde_json::from_slice(bytes).map_err(|error| corrupt(format!("cannot be read: {error}")))?;
        if version.format_version != u64::from(FORMAT_VERSION) {
            return Err(PayloadError::UnsupportedVersion { found: version.format_version });
        }
        let bill: Self =
            serde_json::from_slice(bytes).map_err(|error| corrupt(format!("cannot be read: {error}")))?;
        bill.check().map_err(|error| match error {
            PayloadError::Corrupt(why) | PayloadError::TooLarge(why) => corrupt(why),
            other => other,
        })?;
        Ok(bill)
    }

    /// The bytes of `charon.json`.
    pub(super) fn to_bytes(&self) -> Result<Vec<u8>, PayloadError> {
        let bytes = serde_json::to_vec(self).map_err(|error| PayloadError::io("writing the bill", error))?;
        if bytes.len() as u64 > BILL_LIMIT {
            return Err(PayloadError::TooLarge(format!("the bill would have {} bytes", bytes.len())));
        }
        Ok(bytes)
    }

    /// The entries that are blobs, in file order.
    pub fn blobs(&self) -> impl Iterator<Item = &BillEntry> {
        self.entries.iter().filter(|entry| entry.kind == EntryKind::Blob)
    }
}

#[cfg(test)]
mod tests;
