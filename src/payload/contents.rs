use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use serde::Serialize;

use super::bill::{
    Bill, BillEntry, BillFile, BillImage, BillManifest, EntryKind, FORMAT_VERSION, MissingImage, Required,
};
use super::layout::BEFORE_ENTRIES;
use super::referrers::ReferrerPlan;
use super::{Layout, LayoutEntry, PayloadError, base, descriptor};
use crate::digest::Digest;
use crate::platform::Platform;
use crate::reference::{FarName, Reference};

/// A payload before it is written: its bill, its layout, and all that is held in memory.
#[derive(Debug)]
pub struct Contents {
    bill: Bill,
    digest: Digest,
    layout: Layout,
    /// What goes into each entry of the layout; `None` is a blob, which is fetched.
    inline: Vec<Option<Bytes>>,
}

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

impl Contents {
    /// Lays a payload out: all manifests of `images`, then `blobs` in the order given, each digest
    /// once. `required` are the blobs that the far side has.
    pub fn new(
        images: &[ImagePlan],
        blobs: &[(Digest, u64)],
        required: Vec<Required>,
    ) -> Result<Self, PayloadError> {
        Self::without(images, blobs, required, Vec::new())
    }

    /// The same of a payload for which `missing` images were wanted, too, and could not be had.
    pub fn without(
        images: &[ImagePlan],
        blobs: &[(Digest, u64)],
        mut required: Vec<Required>,
        missing: Vec<MissingImage>,
    ) -> Result<Self, PayloadError> {
        required.sort_by(|a, b| a.digest.cmp(&b.digest));
        let mut bytes_of: HashMap<&Digest, &Bytes> = HashMap::new();
        let mut entries = Vec::new();
        for manifest in images.iter().flat_map(ImagePlan::all_manifests) {
            if bytes_of.insert(&manifest.digest, &manifest.bytes).is_none() {
                entries.push((manifest.digest.clone(), manifest.bytes.len() as u64, EntryKind::Manifest));
            }
        }
        let blobs = blobs.iter().filter(|(digest, _)| !bytes_of.contains_key(digest));
        entries.extend(blobs.map(|(digest, size)| (digest.clone(), *size, EntryKind::Blob)));

        let mut files = vec![("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())];
        files.push(("index.json", index_json(images)?));
        if let Some(bytes) = descriptor::bytes(images, &entries, &required) {
            files.push((descriptor::NAME, bytes));
        }
        let places = base::places(images, &entries, &required)?;
        let bill = Bill {
            format_version: FORMAT_VERSION,
            images: images.iter().zip(places).map(|(image, blobs)| bill_image(image, blobs)).collect(),
            files: files
                .iter()
                .map(|(path, bytes)| BillFile {
                    path: (*path).to_owned(),
                    size: bytes.len() as u64,
                    digest: Digest::sha256(bytes),
                })
                .collect(),
            entries: entries
                .iter()
                .map(|(digest, size, kind)| BillEntry {
                    digest: digest.clone(),
                    size: *size,
                    kind: *kind,
                    encoding: "identity".to_owned(),
                })
                .collect(),
            required,
            missing,
        };
        bill.check()?;
        let bill_bytes = Bytes::from(bill.to_bytes()?);
        let layout = Layout::new(&bill, bill_bytes.len() as u64)
            .ok_or_else(|| PayloadError::TooLarge("the payload would be longer than any file".to_owned()))?;

        let mut files = files.into_iter().map(|(_, bytes)| Some(Bytes::from(bytes)));
        let digest = Digest::sha256(&bill_bytes);
        let mut inline = vec![Some(bill_bytes)];
        inline.extend(files.by_ref().take(2));
        inline
            .extend(entries.iter().map(|(digest, _, _)| bytes_of.get(digest).map(|bytes| (*bytes).clone())));
        inline.extend(files);
        Ok(Self { bill, digest, layout, inline })
    }

    /// The bill.
    #[must_use]
    pub fn bill(&self) -> &Bill {
        &self.bill
    }

    /// The payload digest.
    #[must_use]
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The bytes of `charon.json`.
    #[must_use]
    pub fn bill_bytes(&self) -> Bytes {
        // It is the first entry, and held in memory.
        self.inline(0).cloned().unwrap_or_default()
    }

    /// Where everything lies.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// What is in front of the first blob, as it stands in the payload.
    #[must_use]
    pub fn beginning(&self) -> Bytes {
        let mut beginning = Vec::new();
        for (entry, bytes) in self.layout.entries().iter().zip(&self.inline) {
            let Some(bytes) = bytes else { break };
            beginning.extend(entry.local_header(crc32fast::hash(bytes)));
            beginning.extend_from_slice(bytes);
        }
        beginning.into()
    }

    /// How many bytes of each blob stand in front of `end` in the payload.
    pub(crate) fn blobs_up_to(&self, end: u64) -> HashMap<Digest, u64> {
        let entries = self.bill.entries.iter().zip(&self.layout.entries()[BEFORE_ENTRIES..]);
        let blobs = entries.filter(|(entry, _)| entry.kind == EntryKind::Blob);
        let have = |(entry, place): (&BillEntry, &LayoutEntry)| {
            (entry.digest.clone(), end.saturating_sub(place.data_offset()).min(entry.size))
        };
        blobs.map(have).collect()
    }

    /// What is in memory of the layout's entry `index`; `None`: a blob.
    pub(super) fn inline(&self, index: usize) -> Option<&Bytes> {
        self.inline.get(index).and_then(Option::as_ref)
    }
}

fn bill_image(image: &ImagePlan, blobs: Vec<u32>) -> BillImage {
    BillImage {
        name: image.reference.written().to_owned(),
        far_name: image.far_name.as_ref().map(ToString::to_string),
        reference: image.reference.to_string(),
        digest: Some(image.digest.clone()),
        media_type: image.media_type.clone(),
        size: image.size,
        platforms: image.platforms.clone(),
        omitted: image.omitted.clone(),
        carried: image.carried(),
        manifests: image.manifests.iter().map(ManifestPlan::bill).collect(),
        referrers: image.referrers.iter().map(ReferrerPlan::bill).collect(),
        blobs,
    }
}

/// The index of the OCI image layout: a descriptor an image, under the names that other tools look up; one a referrer
/// without a name, by whose subject they find it; one for each tag of cosign's.
fn index_json(images: &[ImagePlan]) -> Result<Vec<u8>, PayloadError> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Index<'a> {
        schema_version: u32,
        media_type: &'a str,
        manifests: Vec<Descriptor<'a>>,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Descriptor<'a> {
        media_type: &'a str,
        digest: &'a Digest,
        size: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        annotations: Option<Annotations>,
    }
    #[derive(Serialize)]
    struct Annotations {
        #[serde(rename = "org.opencontainers.image.ref.name")]
        ref_name: String,
        #[serde(rename = "io.containerd.image.name")]
        containerd_name: String,
    }
    let named = |name: String| Some(Annotations { ref_name: name.clone(), containerd_name: name });
    let mut manifests: Vec<Descriptor> = images
        .iter()
        .filter(|image| image.carried())
        .map(|image| Descriptor {
            media_type: &image.media_type,
            digest: &image.digest,
            size: image.size,
            annotations: named(image.reference.to_string()),
        })
        .collect();
    let mut seen = HashSet::new();
    for image in images {
        for referrer in &image.referrers {
            let ManifestPlan { digest, media_type, bytes } = &referrer.manifest;
            let (host, repository) = (image.reference.host(), image.reference.repository());
            let name = referrer.tag.as_ref().map(|tag| format!("{host}/{repository}:{tag}"));
            if seen.insert((digest, name.clone())) {
                let annotations = name.and_then(named);
                manifests.push(Descriptor { media_type, digest, size: bytes.len() as u64, annotations });
            }
        }
    }
    let index = Index { schema_version: 2, media_type: "application/vnd.oci.image.index.v1+json", manifests };
    serde_json::to_vec(&index).map_err(|error| PayloadError::io("writing index.json", error))
}
