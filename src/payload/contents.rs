use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use serde::Serialize;

use super::bill::{
    Bill, BillEntry, BillFile, DESCRIPTOR_NAME, EntryKind, FORMAT_VERSION, MissingImage, Required,
};
use super::docker_charon;
use super::error::PayloadError;
use super::layout::{BEFORE_ENTRIES, Layout, LayoutEntry};
use super::manifest::ManifestContent;
use super::plan::{ImagePlan, ManifestPlan};
use crate::digest::Digest;

/// A payload before it is written: its bill, its layout, and all that is held in memory.
#[derive(Debug)]
pub struct Contents {
    bill: Bill,
    digest: Digest,
    layout: Layout,
    /// What goes into each entry of the layout; `None` is a blob, which is fetched.
    inline: Vec<Option<Bytes>>,
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
        if let Some(bytes) = docker_charon::descriptor(images, &entries, &required) {
            files.push((DESCRIPTOR_NAME, bytes));
        }
        let places = places(images, &entries, &required)?;
        let bill = Bill {
            format_version: FORMAT_VERSION,
            images: images.iter().zip(places).map(|(image, blobs)| image.bill(blobs)).collect(),
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

/// The blobs of each image, by their places in `entries` and, behind those, in `required`.
fn places(
    images: &[ImagePlan],
    entries: &[(Digest, u64, EntryKind)],
    required: &[Required],
) -> Result<Vec<Vec<u32>>, PayloadError> {
    let digests = entries.iter().map(|(digest, ..)| digest).chain(required.iter().map(|blob| &blob.digest));
    let place_of: HashMap<&Digest, u32> = digests.zip(0..).collect();
    let places = |image: &ImagePlan| {
        let mut places = Vec::new();
        for manifest in image.all_manifests() {
            let content = ManifestContent::parse(&manifest.digest, &manifest.bytes)?;
            places.extend(content.blobs().filter_map(|blob| place_of.get(&blob.digest)));
        }
        places.sort_unstable();
        places.dedup();
        Ok(places)
    };
    images.iter().map(places).collect()
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
