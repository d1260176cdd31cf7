use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::descriptor::{self, Obstacle, View};
use super::manifest::{MANIFEST_LIMIT, MANIFESTS_LIMIT};
use super::referrers::{self, BillReferrer};
use super::{ManifestContent, PayloadError};
use crate::digest::Digest;
use crate::platform::Platform;
use crate::reference::{FarName, Host, Reference};

/// The version of the payload format that this program writes and reads.
pub const FORMAT_VERSION: u32 = 1;
/// A bill is never larger.
pub(super) const BILL_LIMIT: u64 = 16 << 20;
/// A payload never has more entries.
const ENTRIES_LIMIT: usize = 100_000;
/// Sizes are JSON numbers, safe below this.
const SIZE_LIMIT: u64 = 1 << 53;

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
    /// Whether the payload has docker-charon's table of contents.
    #[must_use]
    pub fn has_descriptor(&self) -> bool {
        self.files.iter().any(|file| file.path == descriptor::NAME)
    }

    /// Why docker-charon cannot push the payload, by the rule that its writer went by.
    #[must_use]
    pub fn obstacle(&self) -> Option<Obstacle> {
        let view = |image: &BillImage| {
            let (reference, far_name) = (image.parsed().ok()?, image.far_name().ok()?);
            Some(View::new(reference, far_name, &image.media_type, image.manifests.len()))
        };
        descriptor::names(&self.images.iter().map(view).collect::<Option<Vec<_>>>()?).err()
    }

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

    /// That each image is whole by what its manifests say, given their bytes: every manifest that an
    /// index names comes before it, and every blob is carried or required. Gives what each says.
    pub fn check_manifests(
        &self,
        manifest: impl Fn(&Digest) -> Result<Bytes, PayloadError>,
    ) -> Result<HashMap<Digest, ManifestContent>, PayloadError> {
        let mut contents = HashMap::new();
        for entry in self.entries.iter().filter(|entry| entry.kind == EntryKind::Manifest) {
            let content = ManifestContent::parse(&entry.digest, &manifest(&entry.digest)?)?;
            contents.insert(entry.digest.clone(), content);
        }
        let blobs: HashSet<&Digest> = self.entries.iter().map(|entry| &entry.digest).collect();
        let required: HashSet<&Digest> = self.required.iter().map(|required| &required.digest).collect();
        for image in &self.images {
            let omitted: HashSet<&Digest> = image.omitted.iter().collect();
            let mut left_out = HashSet::new();
            let mut before = HashSet::new();
            for described in &image.manifests {
                let Some(content) = contents.get(&described.digest) else {
                    continue;
                };
                let (kept, absent): (Vec<_>, Vec<_>) =
                    content.children.iter().partition(|child| !omitted.contains(&child.digest));
                left_out.extend(absent.into_iter().map(|child| &child.digest));
                if let Some(child) = kept.into_iter().find(|child| !before.contains(&child.digest)) {
                    return Err(PayloadError::Corrupt(format!(
                        "{} needs the manifest {}, which its bill does not name",
                        image.name, child.digest
                    )));
                }
                let is_lost = |digest| !blobs.contains(digest) && !required.contains(digest);
                if let Some(lost) = content.blobs().find(|blob| is_lost(&blob.digest)) {
                    return Err(PayloadError::Corrupt(format!(
                        "{} needs {}, which its bill neither carries nor requires",
                        image.name, lost.digest
                    )));
                }
                before.insert(&described.digest);
            }
            if let Some(stray) = image.omitted.iter().find(|digest| !left_out.contains(digest)) {
                return Err(PayloadError::Corrupt(format!(
                    "its bill says that {} leaves out {stray}, which no index of it names",
                    image.name
                )));
            }
            referrers::check_manifests(image, &contents, |digest| {
                !blobs.contains(digest) && !required.contains(digest)
            })?;
        }
        Ok(contents)
    }

    /// What holds for every bill that Charon wrote.
    pub(super) fn check(&self) -> Result<(), PayloadError> {
        self.check_content()?;
        self.check_files()?;
        self.check_missing()?;
        match self.images.iter().find(|image| image.digest.is_none()) {
            Some(image) => Err(PayloadError::Corrupt(format!("does not tell the digest of {}", image.name))),
            None => Ok(()),
        }
    }

    /// What holds for every payload, also for docker-charon's.
    pub(super) fn check_content(&self) -> Result<(), PayloadError> {
        let corrupt = |why: String| Err(PayloadError::Corrupt(why));
        if self.entries.len() > ENTRIES_LIMIT {
            return Err(PayloadError::TooLarge(format!(
                "it has {} entries, and at most {ENTRIES_LIMIT} are allowed",
                self.entries.len()
            )));
        }
        let mut manifests_size = 0_u64;
        let mut entries = HashMap::new();
        for entry in &self.entries {
            if entry.encoding != "identity" {
                return Err(PayloadError::UnsupportedEncoding {
                    digest: entry.digest.clone(),
                    encoding: entry.encoding.clone(),
                });
            }
            if entry.size >= SIZE_LIMIT {
                return corrupt(format!("says that {} has {} bytes", entry.digest, entry.size));
            }
            if entry.kind == EntryKind::Manifest {
                manifests_size = manifests_size.saturating_add(entry.size);
                if entry.size > MANIFEST_LIMIT || manifests_size > MANIFESTS_LIMIT {
                    return Err(PayloadError::TooLarge(format!(
                        "its manifests are larger than {MANIFEST_LIMIT} bytes each or {MANIFESTS_LIMIT} together"
                    )));
                }
            }
            if entries.insert(&entry.digest, entry).is_some() {
                return corrupt(format!("names {} twice", entry.digest));
            }
        }
        self.check_images(&entries)?;
        for required in &self.required {
            for source in &required.sources {
                source.parsed()?;
                source.far_name()?;
            }
            if required.size >= SIZE_LIMIT {
                return corrupt(format!("says that {} has {} bytes", required.digest, required.size));
            }
            if entries.contains_key(&required.digest) {
                return corrupt(format!("both carries and requires {}", required.digest));
            }
        }
        Ok(())
    }

    fn check_images(&self, entries: &HashMap<&Digest, &BillEntry>) -> Result<(), PayloadError> {
        let corrupt = |why: String| Err(PayloadError::Corrupt(why));
        let mut names = HashSet::new();
        let mut mentions = 0;
        for image in &self.images {
            // What is no name is told of quoted, and nothing else that was read before is told of.
            image.parsed()?;
            image.far_name()?;
            if !names.insert(&image.name) {
                return corrupt(format!("names the image {} twice", image.name));
            }
            let referring = image.referrers.iter().map(|referrer| 1 + referrer.manifests.len());
            mentions += 1 + image.manifests.len() + image.omitted.len() + referring.sum::<usize>();
            if mentions > ENTRIES_LIMIT {
                return corrupt(format!("names over {ENTRIES_LIMIT} images and manifests"));
            }
            if let Some(manifest) =
                image.manifests.iter().find(|manifest| !is_media_type(&manifest.media_type))
            {
                return corrupt(format!(
                    "gives {} the media type {:?}",
                    manifest.digest, manifest.media_type
                ));
            }
            let carried: HashSet<&Digest> = image.manifests.iter().map(|manifest| &manifest.digest).collect();
            if let Some(both) = image.omitted.iter().find(|digest| carried.contains(digest)) {
                return corrupt(format!("both carries and leaves out {both} of {}", image.name));
            }
            match (image.carried, image.manifests.last()) {
                (true, Some(root)) if Some(&root.digest) == image.digest.as_ref() => {}
                (false, None) => {}
                _ => return corrupt(format!("does not tell which manifests {} has", image.name)),
            }
            let places = self.entries.len() + self.required.len();
            if let Some(place) = image.blobs.iter().find(|place| **place as usize >= places) {
                return corrupt(format!("has no {place}th blob for {}", image.name));
            }
            for manifest in &image.manifests {
                let entry = entries.get(&manifest.digest);
                if !entry
                    .is_some_and(|entry| entry.kind == EntryKind::Manifest && entry.size == manifest.size)
                {
                    return corrupt(format!("lacks the manifest {} of {}", manifest.digest, image.name));
                }
            }
            referrers::check(image, entries)?;
        }
        Ok(())
    }

    fn check_missing(&self) -> Result<(), PayloadError> {
        let corrupt = |why: String| Err(PayloadError::Corrupt(why));
        if self.missing.len() > ENTRIES_LIMIT {
            return corrupt(format!("names over {ENTRIES_LIMIT} images that could not be had"));
        }
        let mut names: HashSet<&String> = self.images.iter().map(|image| &image.name).collect();
        for missing in &self.missing {
            parsed(&missing.name, &missing.reference)?;
            let is_word = |reason: &str| {
                !reason.is_empty()
                    && reason.len() <= 64
                    && reason.bytes().all(|byte| byte.is_ascii_alphanumeric())
            };
            if !is_word(&missing.reason) {
                return corrupt(format!("says {:?} of why it lacks {}", missing.reason, missing.name));
            }
            if !names.insert(&missing.name) {
                return corrupt(format!("both has and lacks {}, or lacks it twice", missing.name));
            }
        }
        Ok(())
    }

    fn check_files(&self) -> Result<(), PayloadError> {
        let paths: Vec<&str> = self.files.iter().map(|file| file.path.as_str()).collect();
        match paths.as_slice() {
            ["oci-layout", "index.json"] | ["oci-layout", "index.json", descriptor::NAME] => {}
            _ => return Err(PayloadError::Corrupt(format!("names the files {paths:?}"))),
        }
        if self.files.iter().any(|file| file.size > BILL_LIMIT) {
            return Err(PayloadError::TooLarge(format!("a file is larger than {BILL_LIMIT} bytes")));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
