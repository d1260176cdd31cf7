//! Where an object of a store is: `s3://bucket/key`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An object of a store: `s3://bucket/key`, `az://container/key`, `gs://bucket/key`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectLocation {
    /// Whose protocol the store speaks.
    pub provider: Provider,
    /// The bucket; at Azure the container.
    pub bucket: String,
    /// The object's key.
    pub key: String,
    /// The storage account, where the URL names it; Azure's only.
    pub account: Option<String>,
}

/// Whose protocol a store speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Provider {
    /// Amazon S3, and all that is compatible with it.
    #[default]
    S3,
    /// Azure Blob Storage.
    Azure,
    /// Google Cloud Storage.
    #[serde(rename = "GCS")]
    Gcs,
}

/// The text names no object.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} names no object: {why}; expected such as s3://bucket/key, az://container/key or gs://bucket/key"
)]
pub struct LocationError {
    text: String,
    why: String,
}

impl Provider {
    fn of_scheme(scheme: &str) -> Option<Self> {
        match scheme {
            "s3" | "s3a" => Some(Self::S3),
            "az" | "azure" | "abfs" | "abfss" => Some(Self::Azure),
            "gs" => Some(Self::Gcs),
            _ => None,
        }
    }

    /// What the URL of an object begins with, before `://`.
    pub(crate) fn scheme(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Azure => "az",
            Self::Gcs => "gs",
        }
    }
}

impl ObjectLocation {
    /// Whether a text is meant to name an object, well or not.
    #[must_use]
    pub fn is_meant_by(text: &str) -> bool {
        text.split_once("://").is_some_and(|(scheme, _)| Provider::of_scheme(scheme).is_some())
    }

    /// The object `key` of a bucket.
    pub fn new(provider: Provider, bucket: &str, key: &str) -> Result<Self, LocationError> {
        let refused = |why: &str| LocationError { text: format!("{bucket}/{key}"), why: why.to_owned() };
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '$');
        if bucket.is_empty() || !bucket.chars().all(is_plain) {
            return Err(refused("it has no bucket that could be one"));
        }
        let part_is_wrong =
            |part: &str| matches!(part, "" | "." | "..") || part.chars().any(char::is_control);
        if key.split('/').any(part_is_wrong) {
            return Err(refused("its key is empty, or has an empty part, '.' or '..'"));
        }
        Ok(Self { provider, bucket: bucket.to_owned(), key: key.to_owned(), account: None })
    }

    /// The object whose key has `suffix` at its end.
    pub(crate) fn beside(&self, suffix: &str) -> Self {
        Self { key: format!("{}{suffix}", self.key), ..self.clone() }
    }
}

impl FromStr for ObjectLocation {
    type Err = LocationError;

    fn from_str(text: &str) -> Result<Self, LocationError> {
        let refused = |why: &str| LocationError { text: text.to_owned(), why: why.to_owned() };
        let (scheme, rest) = text.split_once("://").ok_or_else(|| refused("it is no URL"))?;
        let provider = Provider::of_scheme(scheme).ok_or_else(|| refused("its scheme is not known"))?;
        let (host, key) = rest.split_once('/').ok_or_else(|| refused("it has no key"))?;
        // Azure's own form: abfs://container@account.dfs.core.windows.net/key
        let (bucket, account) = match host.split_once('@') {
            Some((container, host)) if provider == Provider::Azure => {
                let account = host.split('.').next().filter(|account| !account.is_empty());
                (container, account.map(str::to_owned))
            }
            _ => (host, None),
        };
        let location = Self::new(provider, bucket, key)
            .map_err(|error| LocationError { text: text.to_owned(), ..error })?;
        Ok(Self { account, ..location })
    }
}

impl fmt::Display for ObjectLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}/{}", self.provider.scheme(), self.bucket, self.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_stores_name_objects_and_nothing_else_does() {
        for (text, shown, provider) in [
            ("s3://transfer/a/b.zip", "s3://transfer/a/b.zip", Provider::S3),
            ("s3a://transfer/b%20c.zip", "s3://transfer/b%20c.zip", Provider::S3),
            ("az://transfer/b.zip", "az://transfer/b.zip", Provider::Azure),
            ("gs://transfer/ü b.zip", "gs://transfer/ü b.zip", Provider::Gcs),
        ] {
            let object: ObjectLocation = text.parse().unwrap();
            assert!(ObjectLocation::is_meant_by(text));
            assert_eq!((object.to_string().as_str(), object.provider), (shown, provider));
            assert_eq!(object.account, None);
        }
        for text in ["b.zip", "./s3://b/c", "/s3://b/c", "s3:/b/c", "http://b/c", "-"] {
            assert!(!ObjectLocation::is_meant_by(text), "{text}");
        }
    }

    #[test]
    fn azures_own_form_names_the_storage_account_too() {
        let object: ObjectLocation = "abfss://box@ferry.dfs.core.windows.net/a/b.zip".parse().unwrap();
        assert_eq!((object.bucket.as_str(), object.key.as_str()), ("box", "a/b.zip"));
        assert_eq!(object.account.as_deref(), Some("ferry"));
    }

    #[test]
    fn what_names_no_object_is_refused_with_the_way_to_say_it() {
        for text in
            ["s3://", "s3://b", "s3://b/", "s3:///k", "s3://b/a//c", "s3://b/../c", "s3://u@b/c", "gs://b/a/"]
        {
            let error = text.parse::<ObjectLocation>().unwrap_err().to_string();
            assert!(error.contains(text) && error.contains("s3://bucket/key"), "{error}");
        }
    }
}
