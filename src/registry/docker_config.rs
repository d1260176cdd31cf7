//! Docker's configuration file, for the credentials in it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use secrecy::SecretString;
use serde::Deserialize;

use super::client::Credentials;
use crate::reference::Host;

/// The credentials of a `config.json`, by registry.
#[derive(Clone, Default)]
pub struct DockerConfig {
    by_host: BTreeMap<String, Credentials>,
}

/// A Docker configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DockerConfigError {
    /// The text is no such configuration. What it holds is not quoted: it is secret.
    #[error(
        "the Docker configuration cannot be read: at line {line}, column {column}, it is no JSON of the right shape"
    )]
    Syntax {
        /// The line, from 1.
        line: usize,
        /// The column, from 1.
        column: usize,
    },
    /// An entry's `auth` is no base64 of `user:password`.
    #[error("the Docker configuration cannot be read: \"auth\" of {0:?} is no base64 of user:password")]
    Auth(String),
    /// The file cannot be read.
    #[error("the Docker configuration {} cannot be read: {source}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// What is wrong is told by the inner error, in this file.
    #[error("{}: {source}", .path.display())]
    In {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        source: Box<DockerConfigError>,
    },
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
}

impl DockerConfig {
    /// Reads the text of a `config.json` or of a Secret's `.dockerconfigjson`.
    pub fn parse(json: &[u8]) -> Result<Self, DockerConfigError> {
        let file: File = serde_json::from_slice(json)
            .map_err(|error| DockerConfigError::Syntax { line: error.line(), column: error.column() })?;
        let mut by_host = BTreeMap::new();
        for (key, entry) in file.auths {
            // Two spellings of one host: the exact one was written by hand, and is taken.
            let host = host_of(&key);
            let is_exact = host == key;
            if let Some(credentials) = entry.credentials(&key)?
                && (is_exact || !by_host.contains_key(&host))
            {
                by_host.insert(host, credentials);
            }
        }
        Ok(Self { by_host })
    }

    /// The configuration of the user: `$DOCKER_CONFIG/config.json`, `~/.docker/config.json` or `$REGISTRY_AUTH_FILE`,
    /// the first that is there.
    pub fn load_default() -> Result<Option<Self>, DockerConfigError> {
        let of = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let places = [
            of("DOCKER_CONFIG").map(|folder| folder.join("config.json")),
            of("HOME").map(|home| home.join(".docker/config.json")),
            of("REGISTRY_AUTH_FILE"),
        ];
        Self::load_first(places.into_iter().flatten())
    }

    /// What to sign in to `host` with.
    #[must_use]
    pub fn credentials(&self, host: &Host) -> Option<Credentials> {
        self.by_host.get(host.as_str()).cloned()
    }

    fn load_first(places: impl IntoIterator<Item = PathBuf>) -> Result<Option<Self>, DockerConfigError> {
        for path in places {
            match fs::read(&path) {
                Ok(json) => return Self::parse(&json).map(Some).map_err(|source| inside(&path, source)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(DockerConfigError::File { path, source }),
            }
        }
        Ok(None)
    }
}

fn inside(path: &Path, source: DockerConfigError) -> DockerConfigError {
    DockerConfigError::In { path: path.to_owned(), source: Box::new(source) }
}

impl Entry {
    fn credentials(self, key: &str) -> Result<Option<Credentials>, DockerConfigError> {
        if let Some(auth) = self.auth.filter(|auth| !auth.is_empty()) {
            let refused = || DockerConfigError::Auth(key.to_owned());
            let bytes = ANY_PADDING.decode(auth.trim()).map_err(|_| refused())?;
            let pair = String::from_utf8(bytes).map_err(|_| refused())?;
            let (username, password) = pair.split_once(':').ok_or_else(refused)?;
            // Docker's own files have a NUL behind the password, sometimes.
            let password = SecretString::from(password.trim_end_matches('\0'));
            return Ok(Some(Credentials { username: username.to_owned(), password }));
        }
        Ok(match (self.username, self.password) {
            (Some(username), Some(password)) if !username.is_empty() => {
                Some(Credentials { username, password: password.into() })
            }
            _ => None,
        })
    }
}

/// People write `auth` by hand, with and without the padding.
const ANY_PADDING: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The host that an entry is for: Docker writes some with a scheme and an API version.
fn host_of(key: &str) -> String {
    let rest = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let host = rest.split('/').next().unwrap_or(rest);
    host.parse::<Host>().map_or_else(|_| host.to_owned(), |host| host.as_str().to_owned())
}
