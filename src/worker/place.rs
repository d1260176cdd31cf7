//! Where a run's payload lies, and what lies beside it.

use std::fmt;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use secrecy::SecretString;
use tokio::io::AsyncReadExt as _;
use url::Url;

use super::Refusal;
use super::contract::{ObjectStore, Provider};
use super::run::{Folders, Way, secret};
use crate::build::Output;
use crate::digest::Digest;
use crate::object_location::ObjectLocation;
use crate::read_at::ReadAt;
use crate::reason::Reason;
use crate::storage::{
    ObjectAccess, ObjectKeys, StorageError, StoredObject, StoredPayload, beside, write_beside,
};

/// Where a payload lies.
#[derive(Debug)]
pub(super) enum Place {
    /// In a file of the mounted volume, which has this path there.
    File { path: PathBuf, shown: String },
    /// In an object of a store.
    Object(StoredObject),
}

impl Place {
    /// The place that a run configuration names: `path` in the volume, or an object, which is reached by `way`.
    pub(super) fn new(
        path: &str,
        object: Option<&ObjectStore>,
        folders: &Folders<'_>,
        way: &Way,
    ) -> Result<Self, Refusal> {
        match object {
            None => {
                let found = payload_path(folders.payloads, path);
                let found = found.map_err(|why| Refusal::new(Reason::InvalidSpec, why))?;
                Ok(Self::File { path: found, shown: path.to_owned() })
            }
            Some(object) => Ok(Self::Object(stored_object(object, folders.object_store_secrets, way)?)),
        }
    }

    /// Makes sure that a payload can be put there.
    pub(super) async fn prepare(&self) -> Result<(), StorageError> {
        let Self::File { path, .. } = self else { return Ok(()) };
        let Some(folder) = path.parent() else { return Ok(()) };
        let made = tokio::fs::create_dir_all(folder).await;
        made.map_err(|error| StorageError::io("make the folder", folder, error))
    }

    /// The same as where a build goes.
    pub(super) fn output(&self) -> Output {
        match self {
            Self::File { path, .. } => Output::File(path.clone()),
            Self::Object(object) => Output::Object(object.clone()),
        }
    }

    /// Opens the payload.
    pub(super) async fn open(&self) -> Result<Arc<dyn ReadAt>, StorageError> {
        self.payload().open().await
    }

    /// The same as where a payload is.
    pub(super) fn payload(&self) -> StoredPayload {
        match self {
            Self::File { path, .. } => StoredPayload::File(path.clone()),
            Self::Object(object) => StoredPayload::Object(object.clone()),
        }
    }

    /// The payload's name without the folders before it.
    pub(super) fn file_name(&self) -> &str {
        let name = match self {
            Self::File { shown, .. } => shown,
            Self::Object(object) => &object.location().key,
        };
        name.rsplit('/').next().unwrap_or(name)
    }

    /// The sha256 of the whole file.
    pub(super) async fn file_digest(&self) -> Result<Digest, Refusal> {
        let source = self.open().await?;
        let mut hasher = Digest::sha256(b"").hasher();
        let mut bytes = source.stream(0..source.size());
        while let Some(chunk) = bytes.next().await {
            let chunk = chunk.map_err(|error| {
                let message = format!("cannot read {self} once more for its sha256: {error}");
                Refusal::new(Reason::from(&error), message)
            })?;
            hasher.update(&chunk);
            // A file's bytes come without a pause, and who is told to stop is to hear of it.
            tokio::task::consume_budget().await;
        }
        Ok(hasher.finish())
    }

    /// Reads what lies beside the payload under its name and `suffix`, if it has no more than `limit` bytes.
    pub(super) async fn read_beside(&self, suffix: &str, limit: usize) -> Option<Bytes> {
        match self {
            Self::File { path, .. } => {
                let mut bytes = Vec::new();
                let file = tokio::fs::File::open(beside(path, suffix)).await.ok()?;
                file.take(limit as u64).read_to_end(&mut bytes).await.ok()?;
                Some(bytes.into())
            }
            Self::Object(object) => Some(object.beside(suffix).ok()?.read(limit).await.ok()??.0),
        }
    }

    /// Writes what lies beside the payload: it is there as a whole or not at all.
    pub(super) async fn write_beside(&self, suffix: &str, bytes: Bytes) -> Result<(), StorageError> {
        match self {
            Self::File { path, .. } => {
                let (whole, path, suffix) = (beside(path, suffix), path.clone(), suffix.to_owned());
                let written = tokio::task::spawn_blocking(move || write_beside(&path, &suffix, &bytes)).await;
                let written = written.map_err(io::Error::from).and_then(std::convert::identity);
                written.map_err(|error| StorageError::io("write", &whole, error))
            }
            Self::Object(object) => object.beside(suffix)?.write(bytes).await,
        }
    }

    /// Removes what lies beside the payload.
    pub(super) async fn remove_beside(&self, suffix: &str) -> Result<(), StorageError> {
        match self {
            Self::File { path, .. } => match tokio::fs::remove_file(beside(path, suffix)).await {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(StorageError::io("remove", &beside(path, suffix), error))
                }
                _ => Ok(()),
            },
            Self::Object(object) => object.beside(suffix)?.remove().await,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { shown, .. } => f.write_str(shown),
            Self::Object(object) => object.location().fmt(f),
        }
    }
}

/// A payload's path below the mount, which it may not leave; else why it is none.
pub(crate) fn payload_path(payloads: &Path, path: &str) -> Result<PathBuf, String> {
    let stays = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    if path.is_empty() || !stays {
        return Err(format!(
            "{path:?} is no path inside the volume; use one without '..' and without a leading '/'"
        ));
    }
    Ok(payloads.join(path))
}

/// The object, with what the mounted Secrets hold.
fn stored_object(given: &ObjectStore, secrets: &Path, way: &Way) -> Result<StoredObject, Refusal> {
    let location = ObjectLocation::new(given.provider, &given.bucket, &given.key);
    let location = location.map_err(|error| Refusal::new(Reason::InvalidSpec, error.to_string()))?;
    let ca_pem = secret(secrets, "ca.crt")?;
    if given.certificates && ca_pem.is_none() {
        let message = format!("the certificate secret of {location} is not there, or has no ca.crt");
        return Err(Refusal::new(Reason::SecretNotFound, message));
    }
    let keys = if given.credentials { Some(keys(given.provider, &location, secrets)?) } else { None };
    let endpoint = given.endpoint.as_deref().map(Url::parse).transpose().map_err(|error| {
        let endpoint = given.endpoint.as_deref().unwrap_or_default();
        let message = format!("the endpoint {endpoint:?} of {location} is no URL: {error}");
        Refusal::new(Reason::InvalidSpec, message)
    })?;
    let (ca_pem, proxy) = (way.authorities(ca_pem), way.proxy.clone());
    let access = ObjectAccess { endpoint, region: given.region.clone(), keys, ca_pem, proxy };
    Ok(StoredObject::new(location, &access)?)
}

fn keys(provider: Provider, location: &ObjectLocation, secrets: &Path) -> Result<ObjectKeys, Refusal> {
    let optional = |key: &str| -> Result<Option<String>, Refusal> {
        let Some(bytes) = secret(secrets, key)? else { return Ok(None) };
        let text = String::from_utf8(bytes).map_err(|_| {
            Refusal::new(Reason::InvalidSpec, format!("the secret of {location} has a {key} that is no text"))
        })?;
        // Who writes a Secret with echo puts a line's end behind it.
        Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned()))
    };
    let required = |key: &str| {
        let missing =
            || Refusal::new(Reason::SecretNotFound, format!("the secret of {location} has no {key}"));
        optional(key)?.ok_or_else(missing)
    };
    Ok(match provider {
        Provider::S3 => ObjectKeys::S3 {
            access: required("accesskey")?,
            secret: SecretString::from(required("secretkey")?),
            session_token: optional("sessiontoken")?.map(SecretString::from),
        },
        Provider::Azure => ObjectKeys::Azure {
            account: required("accesskey")?,
            key: SecretString::from(required("secretkey")?),
        },
        Provider::Gcs => ObjectKeys::Gcs(SecretString::from(required("serviceaccount")?)),
    })
}
