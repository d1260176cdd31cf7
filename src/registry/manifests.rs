//! Manifests: small, held whole, checked against their digest.

use bytes::Bytes;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use url::Url;

use super::auth::Scopes;
use super::client::{Call, CappedError, Registry};
use super::error::{Asked, RegistryError, plain};
use crate::digest::Digest;

/// The distribution specification has registries take manifests up to here, at least.
pub(super) const MANIFEST_CAP: usize = 4 * 1024 * 1024;

/// The kinds of manifest that are asked for. Schema 1 is not: its digest changes when it is converted.
const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.oci.artifact.manifest.v1+json";

/// A manifest or an index as the registry sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Its bytes, unchanged.
    pub bytes: Bytes,
    /// The digest of the bytes: by the algorithm that was asked for; where it was asked for by tag, by the one that the
    /// registry tells, else sha256.
    pub digest: Digest,
    /// Its media type, without parameters.
    pub media_type: String,
}

/// What a tag or a digest means in a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meaning {
    /// The digest of a manifest.
    pub digest: Digest,
    /// The manifest itself, where it had to be read to know.
    pub read: Option<Manifest>,
}

impl Registry {
    /// The manifest that a tag or a digest names.
    ///
    /// At most 4 MiB; one that was asked for by digest is checked against it. Schema 1 manifests are refused.
    pub async fn manifest(&self, repository: &str, tag_or_digest: &str) -> Result<Manifest, RegistryError> {
        let call = self.manifest_call(Method::GET, repository, tag_or_digest)?;
        let mut retry = self.retry();
        loop {
            let reply = self.send(&call, &mut retry).await?;
            if reply.status() != StatusCode::OK {
                return Err(self.refused(&call, reply).await);
            }
            let content_type = content_type(reply.response.headers());
            let told = told_digest(reply.response.headers());
            let url = reply.url;
            match self.capped(reply.response, MANIFEST_CAP).await {
                Ok(bytes) => {
                    let wanted = tag_or_digest.parse().ok();
                    // A tag means a digest of the algorithm by which its manifest was pushed.
                    let wanted = wanted.or(told.filter(|told| told.matches(&bytes)));
                    return read(&call.asked, bytes, content_type, wanted);
                }
                Err(CappedError::TooLong) => {
                    let problem = format!("the manifest is longer than {MANIFEST_CAP} bytes");
                    return Err(call.asked.unsupported(problem));
                }
                Err(error) => retry.after(error.of(&call, &url)).await?,
            }
        }
    }

    /// The digest that a tag has by the registry's own word, without reading the manifest. None: the registry does not
    /// say, and what there is to say is found by reading.
    pub async fn tag_digest(&self, repository: &str, tag: &str) -> Result<Option<Digest>, RegistryError> {
        let call = self.manifest_call(Method::HEAD, repository, tag)?;
        match self.send(&call, &mut self.retry()).await {
            Ok(reply) if reply.status() == StatusCode::OK => Ok(told_digest(reply.response.headers())),
            Ok(_) => Ok(None),
            // The answer to a HEAD has no words, that to a GET has. But a wrong password is not sent twice.
            Err(RegistryError::Authentication { .. }) if !self.has_credentials(repository) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The digest that a tag or a digest has in the registry, or none if it has no such manifest.
    pub async fn manifest_digest(
        &self,
        repository: &str,
        tag_or_digest: &str,
    ) -> Result<Option<Digest>, RegistryError> {
        Ok(self.meaning(repository, tag_or_digest).await?.map(|meaning| meaning.digest))
    }

    /// The same with the manifest, where the registry does not say the digest, and it was found by reading.
    pub async fn meaning(
        &self,
        repository: &str,
        tag_or_digest: &str,
    ) -> Result<Option<Meaning>, RegistryError> {
        let call = self.manifest_call(Method::HEAD, repository, tag_or_digest)?;
        let reply = self.send(&call, &mut self.retry()).await?;
        match reply.status() {
            StatusCode::NOT_FOUND => return Ok(None),
            StatusCode::OK => {
                if let Some(digest) = told_digest(reply.response.headers()) {
                    return Ok(Some(Meaning { digest, read: None }));
                }
            }
            StatusCode::METHOD_NOT_ALLOWED => {}
            _ => return Err(self.refused(&call, reply).await),
        }
        drop(reply);
        match self.manifest(repository, tag_or_digest).await {
            Ok(manifest) => Ok(Some(Meaning { digest: manifest.digest.clone(), read: Some(manifest) })),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Stores a manifest under a tag or under its digest.
    ///
    /// A refusal for what the registry lacks is told by [`RegistryError::is_blob_unknown`], one for what the manifest
    /// says by [`RegistryError::is_manifest_invalid`].
    pub async fn put_manifest(
        &self,
        repository: &str,
        tag_or_digest: &str,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<(), RegistryError> {
        self.store_manifest(repository, tag_or_digest, media_type, bytes).await.map(drop)
    }

    /// The same; gives the headers of the answer.
    pub(super) async fn store_manifest(
        &self,
        repository: &str,
        tag_or_digest: &str,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<HeaderMap, RegistryError> {
        let url = self.url(repository, &["manifests", tag_or_digest])?;
        let asked = Asked::pushing(self.host(), repository, tag_or_digest);
        self.store(repository, url, asked, media_type, bytes).await
    }

    /// Lets a tag mean the manifest that has this digest.
    pub async fn tag_manifest(
        &self,
        repository: &str,
        tag: &str,
        digest: &Digest,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<(), RegistryError> {
        if digest.algorithm() == "sha256" {
            return self.put_manifest(repository, tag, media_type, bytes).await;
        }
        // By which algorithm the tag's digest is to be is told as uploads of blobs tell it: not yet in the
        // distribution specification, and registries that do not know it are no worse for it.
        let mut url = self.url(repository, &["manifests", tag])?;
        url.query_pairs_mut().append_pair("digest", digest.as_str());
        let asked = Asked::pushing(self.host(), repository, tag);
        self.store(repository, url, asked, media_type, bytes).await.map(drop)
    }

    async fn store(
        &self,
        repository: &str,
        url: Url,
        asked: Asked,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<HeaderMap, RegistryError> {
        let content_type = HeaderValue::try_from(media_type)
            .map_err(|_| asked.unsupported(format!("{:?} is no media type", plain(media_type))))?;
        let scopes = Scopes::push(&self.remote(repository));
        let mut call = Call::new(Method::PUT, url, scopes, asked).header(CONTENT_TYPE, content_type);
        call.bytes = Some(bytes);
        let reply = self.send(&call, &mut self.retry()).await?;
        if reply.status().is_success() {
            Ok(reply.response.headers().clone())
        } else {
            Err(self.refused(&call, reply).await)
        }
    }

    fn manifest_call(
        &self,
        method: Method,
        repository: &str,
        tag_or_digest: &str,
    ) -> Result<Call, RegistryError> {
        let url = self.url(repository, &["manifests", tag_or_digest])?;
        let asked = Asked::reading(self.host(), repository, tag_or_digest);
        let call = Call::new(method, url, Scopes::pull(&self.remote(repository)), asked);
        Ok(call.header(ACCEPT, HeaderValue::from_static(ACCEPTED)))
    }
}

/// What tells the kind of a manifest when its sender does not.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fields {
    schema_version: Option<u64>,
    media_type: Option<String>,
    manifests: Option<serde::de::IgnoredAny>,
    config: Option<Config>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    media_type: Option<String>,
}

fn read(
    asked: &Asked,
    bytes: Bytes,
    content_type: Option<String>,
    wanted: Option<Digest>,
) -> Result<Manifest, RegistryError> {
    let digest = match wanted {
        Some(wanted) => {
            if let Err(found) = wanted.check(&bytes) {
                let problem = format!("the registry sent {} bytes whose digest is {found}", bytes.len());
                return Err(asked.mismatch(problem));
            }
            wanted
        }
        None => Digest::sha256(&bytes),
    };
    let unsupported = |problem: &str| asked.unsupported(problem);
    let fields: Fields =
        serde_json::from_slice(&bytes).map_err(|_| unsupported("what was sent is no manifest"))?;
    let is_generic = |kind: &str| {
        matches!(
            kind,
            "" | "application/json" | "application/octet-stream" | "binary/octet-stream" | "text/plain"
        )
    };
    let media_type = content_type
        .filter(|kind| !is_generic(kind))
        .or_else(|| fields.media_type.clone())
        .unwrap_or_else(|| told_by_fields(&fields).to_owned());
    if !media_type.bytes().all(|byte| byte.is_ascii_graphic()) || media_type.len() > 255 {
        return Err(unsupported("it says that it is of a media type that is none"));
    }
    if fields.schema_version == Some(1)
        || media_type.starts_with("application/vnd.docker.distribution.manifest.v1+")
    {
        return Err(unsupported("it is a manifest of schema 1, which Docker gave up in 2017"));
    }
    Ok(Manifest { bytes, digest, media_type })
}

fn told_by_fields(fields: &Fields) -> &'static str {
    let is_docker = fields
        .config
        .as_ref()
        .and_then(|config| config.media_type.as_deref())
        .is_some_and(|kind| kind.starts_with("application/vnd.docker."));
    match (&fields.manifests, is_docker) {
        (Some(_), _) => "application/vnd.oci.image.index.v1+json",
        (None, true) => "application/vnd.docker.distribution.manifest.v2+json",
        (None, false) => "application/vnd.oci.image.manifest.v1+json",
    }
}

/// The digest that a registry says a manifest has.
fn told_digest(headers: &HeaderMap) -> Option<Digest> {
    headers.get("docker-content-digest")?.to_str().ok()?.trim().parse().ok()
}

pub(super) fn content_type(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    text.split(';').next().map(|kind| kind.trim().to_ascii_lowercase())
}
