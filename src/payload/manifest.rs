use serde::Deserialize;

use super::PayloadError;
use crate::digest::Digest;
use crate::platform::Platform;

/// A manifest may have this many bytes (registries accept no more).
pub const MANIFEST_LIMIT: u64 = 4 << 20;
/// All manifests of a payload together may have this many bytes: they are held in memory.
pub const MANIFESTS_LIMIT: u64 = 64 << 20;
/// JSON's largest safe integer: no blob is larger.
const SIZE_LIMIT: u64 = 1 << 53;

/// What a manifest or an index says of content that it names.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// The content's media type.
    #[serde(default)]
    pub media_type: String,
    /// The content's digest.
    pub digest: Digest,
    /// The content's size in bytes.
    pub size: u64,
    /// What an index says of the platform that the content is for.
    #[serde(default)]
    platform: Option<RawPlatform>,
    #[serde(default)]
    annotations: Option<Annotations>,
    /// Where the content may be had outside of registries.
    #[serde(default)]
    urls: Option<Vec<String>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct RawPlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Annotations {
    /// Of an attestation that `BuildKit` made: the image that it is about.
    #[serde(rename = "vnd.docker.reference.digest", default)]
    attested: Option<String>,
}

impl Descriptor {
    /// The platform that the content is for, where its index says so.
    #[must_use]
    pub fn platform(&self) -> Option<Platform> {
        let told = self.platform.as_ref().filter(|told| !told.os.is_empty() && !told.architecture.is_empty());
        told.map(|told| Platform::new(&told.os, &told.architecture, told.variant.as_deref()))
    }

    /// The image of the same index that the content attests something of, as `BuildKit` marks it.
    #[must_use]
    pub fn attested(&self) -> Option<Digest> {
        self.annotations.as_ref()?.attested.as_ref()?.parse().ok()
    }

    /// Where the content may be had outside of registries: that of layers which may not be distributed.
    #[must_use]
    pub fn urls(&self) -> &[String] {
        self.urls.as_deref().unwrap_or_default()
    }

    /// Whether the content is an index by its media type.
    #[must_use]
    pub fn is_index(&self) -> bool {
        is_index(&self.media_type)
    }
}

/// Whether a media type is that of an index or a manifest list.
fn is_index(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.oci.image.index.v1+json"
            | "application/vnd.docker.distribution.manifest.list.v2+json"
    )
}

/// What a manifest or an index names, of Docker's and of OCI's types alike.
///
/// Only what Charon must know is read; the bytes are carried as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ManifestContent {
    /// The manifests that an index names.
    pub children: Vec<Descriptor>,
    /// The config, where there is one.
    pub config: Option<Descriptor>,
    /// The layers, in their order.
    pub layers: Vec<Descriptor>,
    /// The manifest that it says it refers to.
    pub subject: Option<Digest>,
}

#[derive(Deserialize)]
struct Subject {
    digest: Digest,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default)]
    artifact_type: Option<String>,
    #[serde(default)]
    subject: Option<Subject>,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
    #[serde(default)]
    blobs: Option<Vec<Descriptor>>,
}

impl ManifestContent {
    /// Reads the manifest `bytes`, whose digest is `digest`.
    pub fn parse(digest: &Digest, bytes: &[u8]) -> Result<Self, PayloadError> {
        let refused = |why: String| PayloadError::Manifest { digest: digest.clone(), why };
        let raw: Raw = serde_json::from_slice(bytes).map_err(|error| refused(error.to_string()))?;
        let names_none =
            raw.manifests.is_none() && raw.config.is_none() && raw.layers.is_none() && raw.blobs.is_none();
        // Of an OCI artifact manifest the blobs are optional.
        if names_none && raw.artifact_type.is_none() && raw.subject.is_none() {
            return Err(refused("it has neither manifests nor a config nor layers".to_owned()));
        }
        let mut layers = raw.layers.unwrap_or_default();
        layers.extend(raw.blobs.unwrap_or_default());
        let content = Self {
            children: raw.manifests.unwrap_or_default(),
            config: raw.config,
            layers,
            subject: raw.subject.map(|subject| subject.digest),
        };
        // Who reads the one would not see the other (CVE-2021-41190): the specification asks for a refusal.
        if !content.children.is_empty() && !content.is_index() {
            return Err(refused("it has both manifests and a config or layers".to_owned()));
        }
        let descriptors = content.children.iter().chain(content.blobs());
        if let Some(large) = descriptors.into_iter().find(|descriptor| descriptor.size >= SIZE_LIMIT) {
            return Err(refused(format!("it says that {} has {} bytes", large.digest, large.size)));
        }
        Ok(content)
    }

    /// Whether this is an index.
    #[must_use]
    pub fn is_index(&self) -> bool {
        self.config.is_none() && self.layers.is_empty()
    }

    /// The config and the layers.
    pub fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        self.config.iter().chain(&self.layers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<ManifestContent, PayloadError> {
        ManifestContent::parse(&Digest::sha256(json.as_bytes()), json.as_bytes())
    }

    #[test]
    fn a_manifest_names_its_config_and_layers_and_an_index_its_children() {
        let digest = Digest::sha256(b"x");
        let descriptor = format!(r#"{{"mediaType":"m","digest":"{digest}","size":7}}"#);
        let image = parse(&format!(r#"{{"config":{descriptor},"layers":[{descriptor}]}}"#)).unwrap();
        assert_eq!(image.blobs().count(), 2);
        let index = parse(&format!(r#"{{"manifests":[{descriptor}]}}"#)).unwrap();
        assert_eq!(index.children[0].size, 7);
    }

    #[test]
    fn an_artifact_manifest_may_name_nothing_but_what_it_refers_to() {
        let digest = Digest::sha256(b"x");
        let subject = format!(r#""subject":{{"mediaType":"m","digest":"{digest}","size":7}}"#);
        for json in [format!("{{{subject}}}"), r#"{"artifactType":"a"}"#.to_owned()] {
            let content = parse(&json).unwrap();
            assert_eq!((content.blobs().count(), content.children.len()), (0, 0), "{json}");
        }
        assert_eq!(parse(&format!("{{{subject}}}")).unwrap().subject, Some(digest));
    }

    #[test]
    fn what_is_no_manifest_is_refused() {
        let digest = Digest::sha256(b"x");
        let one = format!(r#"{{"digest":"{digest}","size":1}}"#);
        for json in [
            "",
            "[]",
            "{}",
            r#"{"manifests":[{}]}"#,
            r#"{"layers":[{"digest":"sha256:..","size":1}]}"#,
            &format!(r#"{{"layers":[{{"digest":"{digest}","size":-1}}]}}"#),
            &format!(r#"{{"manifests":[{one}],"config":{one}}}"#),
            &format!(r#"{{"manifests":[{one}],"layers":[{one}]}}"#),
            &format!(r#"{{"layers":[{{"digest":"{digest}","size":9007199254740992}}]}}"#),
        ] {
            assert!(parse(json).is_err(), "{json}");
        }
    }
}
