//! Images of all kinds, small, with content that is as random as it is repeatable.

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::registry::Registry;

/// Whose media types an image has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Types {
    Docker,
    Oci,
}

/// A layer, or anything else that a manifest names beside its config.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    pub(crate) bytes: Vec<u8>,
    diff_id: String,
    media_type: Option<&'static str>,
    urls: Vec<String>,
}

/// A manifest or an index, with all that it names.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) media_type: &'static str,
    pub(crate) manifest: Vec<u8>,
    pub(crate) digest: String,
    /// Config and layers.
    pub(crate) blobs: Vec<Vec<u8>>,
    pub(crate) children: Vec<Image>,
    platform: Value,
    annotations: Option<Value>,
}

impl Types {
    pub(crate) const ALL: [Self; 2] = [Self::Docker, Self::Oci];

    pub(crate) fn manifest(self) -> &'static str {
        match self {
            Self::Docker => "application/vnd.docker.distribution.manifest.v2+json",
            Self::Oci => "application/vnd.oci.image.manifest.v1+json",
        }
    }

    pub(crate) fn index(self) -> &'static str {
        match self {
            Self::Docker => "application/vnd.docker.distribution.manifest.list.v2+json",
            Self::Oci => "application/vnd.oci.image.index.v1+json",
        }
    }

    fn config(self) -> &'static str {
        match self {
            Self::Docker => "application/vnd.docker.container.image.v1+json",
            Self::Oci => "application/vnd.oci.image.config.v1+json",
        }
    }

    fn layer(self) -> &'static str {
        match self {
            Self::Docker => "application/vnd.docker.image.rootfs.diff.tar.gzip",
            Self::Oci => "application/vnd.oci.image.layer.v1.tar+gzip",
        }
    }
}

/// The digest of bytes, as registries write it.
pub(crate) fn digest(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    Sha256::digest(bytes).iter().fold("sha256:".to_owned(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

impl Layer {
    /// A layer with one file of `size` bytes, which are told by its name.
    pub(crate) fn new(name: &str, size: usize) -> Self {
        let mut random = fastrand::Rng::with_seed(u64::from(crc32fast::hash(name.as_bytes())));
        let content: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(size).collect();
        Self::of_tar(&tar(name, &content))
    }

    /// So many bytes that are no tar, and cost little to make.
    #[allow(dead_code)] // not every binary carries much
    pub(crate) fn raw(name: &str, size: usize) -> Self {
        let mut bytes = vec![0; size];
        fastrand::Rng::with_seed(u64::from(crc32fast::hash(name.as_bytes()))).fill(&mut bytes);
        Self { diff_id: digest(&bytes), bytes, media_type: None, urls: Vec::new() }
    }

    /// A layer without a file, as builders make it of steps that change nothing.
    pub(crate) fn without_files() -> Self {
        Self::of_tar(&[0; 1024])
    }

    /// Not even a tar.
    pub(crate) fn of_no_bytes() -> Self {
        Self { bytes: Vec::new(), diff_id: digest(b""), media_type: None, urls: Vec::new() }
    }

    /// A layer that may not be distributed, and may be had there.
    pub(crate) fn foreign(name: &str, urls: &[&str]) -> Self {
        let media_type = Some("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip");
        let urls = urls.iter().map(|url| (*url).to_owned()).collect();
        Self { media_type, urls, ..Self::new(name, 2000) }
    }

    fn of_tar(tar: &[u8]) -> Self {
        Self { bytes: gzip(tar), diff_id: digest(tar), media_type: None, urls: Vec::new() }
    }

    pub(crate) fn digest(&self) -> String {
        digest(&self.bytes)
    }
}

impl Image {
    /// An image for linux/amd64.
    pub(crate) fn new(types: Types, layers: &[Layer]) -> Self {
        Self::for_platform(types, "amd64", layers)
    }

    pub(crate) fn for_platform(types: Types, architecture: &str, layers: &[Layer]) -> Self {
        let diff_ids: Vec<&str> = layers.iter().map(|layer| layer.diff_id.as_str()).collect();
        let config = json!({
            "architecture": architecture, "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let platform = json!({"architecture": architecture, "os": "linux"});
        Self::assemble(types, config.to_string().into_bytes(), layers, platform)
    }

    /// An image for a platform with a variant.
    pub(crate) fn for_variant(architecture: &str, variant: &str, layers: &[Layer]) -> Self {
        let mut image = Self::for_platform(Types::Oci, architecture, layers);
        image.platform["variant"] = variant.into();
        image
    }

    /// The same image as a child of an index that does not say what it is for.
    pub(crate) fn of_no_platform(mut self) -> Self {
        self.platform = Value::Null;
        self
    }

    /// What a builder attests of an image, in the form of Docker's `BuildKit`.
    pub(crate) fn attestation(of: &Self) -> Self {
        let statement =
            json!({"_type": "https://in-toto.io/Statement/v0.1", "subject": [{"digest": of.digest}]});
        let bytes = statement.to_string().into_bytes();
        let layer = Layer {
            diff_id: digest(&bytes),
            media_type: Some("application/vnd.in-toto+json"),
            urls: Vec::new(),
            bytes,
        };
        let config = json!({
            "architecture": "unknown", "os": "unknown", "config": {},
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id]},
        });
        let platform = json!({"architecture": "unknown", "os": "unknown"});
        let mut image = Self::assemble(Types::Oci, config.to_string().into_bytes(), &[layer], platform);
        image.annotations = Some(json!({
            "vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": of.digest,
        }));
        image
    }

    fn assemble(types: Types, config: Vec<u8>, layers: &[Layer], platform: Value) -> Self {
        let described: Vec<Value> = layers
            .iter()
            .map(|layer| {
                let mut described = descriptor(layer.media_type.unwrap_or(types.layer()), &layer.bytes);
                if !layer.urls.is_empty() {
                    described["urls"] = layer.urls.clone().into();
                }
                described
            })
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": types.manifest(),
            "config": descriptor(types.config(), &config), "layers": described,
        });
        let blobs = std::iter::once(config).chain(layers.iter().map(|layer| layer.bytes.clone())).collect();
        Self::of_manifest(types.manifest(), &manifest, blobs, Vec::new(), platform)
    }

    /// An index of images or indexes.
    pub(crate) fn index(types: Types, children: &[Self]) -> Self {
        let described: Vec<Value> = children
            .iter()
            .map(|child| {
                let mut described = descriptor(child.media_type, &child.manifest);
                if !child.platform.is_null() {
                    described["platform"] = child.platform.clone();
                }
                if let Some(annotations) = &child.annotations {
                    described["annotations"] = annotations.clone();
                }
                described
            })
            .collect();
        let manifest = json!({"schemaVersion": 2, "mediaType": types.index(), "manifests": described});
        Self::of_manifest(types.index(), &manifest, Vec::new(), children.to_vec(), Value::Null)
    }

    fn of_manifest(
        media_type: &'static str,
        manifest: &Value,
        blobs: Vec<Vec<u8>>,
        children: Vec<Self>,
        platform: Value,
    ) -> Self {
        // Spaced as people space it: bytes that a program which writes it anew would not keep.
        let manifest = format!("{manifest:#}\n").into_bytes();
        let digest = digest(&manifest);
        Self { media_type, manifest, digest, blobs, children, platform, annotations: None }
    }

    /// Stores the image with all that it names.
    pub(crate) fn push(&self, registry: &Registry, name: &str) {
        let (repository, tag) = name.split_once(':').expect("a name with a tag");
        self.push_as(registry, repository, tag);
    }

    fn push_as(&self, registry: &Registry, repository: &str, tag: &str) {
        for child in &self.children {
            child.push_as(registry, repository, &child.digest);
        }
        for blob in &self.blobs {
            registry.push_blob(repository, blob);
        }
        registry.push_manifest(repository, tag, self.media_type, &self.manifest);
    }

    /// The image is there: the same manifests, byte by byte, under the same types, and every blob.
    pub(crate) fn assert_is_whole_in(&self, registry: &Registry, name: &str) {
        let (repository, tag) = name.split_once(':').expect("a name with a tag");
        self.assert_is_whole_as(registry, repository, tag);
        self.assert_is_whole_as(registry, repository, &self.digest);
    }

    fn assert_is_whole_as(&self, registry: &Registry, repository: &str, tag: &str) {
        let found = registry.manifest(repository, tag);
        let expected = (self.media_type.to_owned(), self.manifest.clone());
        assert_eq!(found.as_ref(), Some(&expected), "{repository} {tag}");
        for blob in self.blobs.iter().map(|blob| digest(blob)) {
            assert!(registry.has_blob(repository, &blob), "{repository} lacks {blob}");
        }
        for child in &self.children {
            child.assert_is_whole_as(registry, repository, &child.digest);
        }
    }
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()})
}

/// A tar of one file (POSIX.1-1988, ustar).
fn tar(name: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0; 512];
    let size = format!("{:011o}", content.len());
    let fields: [(usize, &[u8]); 8] = [
        (0, name.as_bytes()),
        (100, b"0000644"),
        (108, b"0000000"),
        (116, b"0000000"),
        (124, size.as_bytes()),
        (136, b"00000000000"),
        (148, b"        0"),
        (257, b"ustar\x0000"),
    ];
    for (offset, field) in fields {
        header[offset..offset + field.len()].copy_from_slice(field);
    }
    let sum: u32 = header.iter().copied().map(u32::from).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let mut tar = header.to_vec();
    tar.extend_from_slice(content);
    tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
    tar
}

/// A gzip of stored blocks (RFC 1951, section 3.2.4; RFC 1952): random bytes do not get smaller anyway.
fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = b"\x1f\x8b\x08\0\0\0\0\0\0\xff".to_vec();
    let blocks = bytes.chunks(0xffff);
    let last = blocks.len() - 1;
    for (number, block) in blocks.enumerate() {
        let length = u16::try_from(block.len()).expect("a block is small");
        gzip.push(u8::from(number == last));
        gzip.extend(length.to_le_bytes());
        gzip.extend((!length).to_le_bytes());
        gzip.extend_from_slice(block);
    }
    gzip.extend(crc32fast::hash(bytes).to_le_bytes());
    gzip.extend(u32::try_from(bytes.len()).expect("a layer is small").to_le_bytes());
    gzip
}
