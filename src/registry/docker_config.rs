//! Docker's configuration file, for the credentials in it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::{env, io};

use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use secrecy::SecretString;
use serde::Deserialize;

use super::access::{Credentials, Logins};
use super::credential_helper::{self, HelperError};
use crate::reference::Host;

/// No configuration is longer.
const CONFIG_LIMIT: u64 = 4 << 20;

/// The credentials of a `config.json`, by registry.
#[derive(Clone, Default)]
pub struct DockerConfig {
    by_host: BTreeMap<String, Logins>,
    /// The credential helpers of some hosts, by `credHelpers`.
    helpers: BTreeMap<String, String>,
    /// The credential helper of all others, by `credsStore`.
    store: Option<String>,
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
    /// The file is longer than any such configuration.
    #[error("the Docker configuration {} cannot be read: it has more than {CONFIG_LIMIT} bytes", .0.display())]
    TooLong(PathBuf),
    /// A credential helper does not tell what it should.
    #[error(transparent)]
    Helper(#[from] HelperError),
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
struct Config {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(default, rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
    #[serde(default, rename = "credsStore")]
    store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    #[serde(rename = "identitytoken")]
    identity_token: Option<String>,
}

impl DockerConfig {
    /// Reads the text of a `config.json` or of a Secret's `.dockerconfigjson`.
    pub fn parse(json: &[u8]) -> Result<Self, DockerConfigError> {
        let file: Config = serde_json::from_slice(json)
            .map_err(|error| DockerConfigError::Syntax { line: error.line(), column: error.column() })?;
        let mut by_host: BTreeMap<String, Logins> = BTreeMap::new();
        for (key, entry) in file.auths {
            let (host, path) = place_of(&key);
            let Some(credentials) = entry.credentials(&key)? else { continue };
            let is_at_docker_hub = host == "docker.io";
            let logins = by_host.entry(host).or_default();
            // Of two spellings of one place, the one that Docker itself would write is taken.
            if let Some(path) = path {
                let is_known = logins.below.iter().any(|(known, _)| *known == path);
                if !is_known || !key.contains("://") {
                    logins.below.retain(|(known, _)| *known != path);
                    logins.below.push((path, credentials));
                }
            } else {
                let is_exact = if is_at_docker_hub { key == DOCKER_HUB_KEY } else { !key.contains('/') };
                if is_exact || logins.everywhere.is_none() {
                    logins.everywhere = Some(credentials);
                }
            }
        }
        // Helpers are asked for hosts alone.
        let helpers = file.helpers.into_iter().filter_map(|(key, helper)| match place_of(&key) {
            (host, None) => Some((host, helper)),
            (_, Some(_)) => None,
        });
        let helpers = helpers.collect();
        Ok(Self { by_host, helpers, store: file.store.filter(|store| !store.is_empty()) })
    }

    /// The configuration of the user: `$DOCKER_CONFIG/config.json`, without that variable `~/.docker/config.json`, or
    /// else `$REGISTRY_AUTH_FILE`: the first that is there.
    pub fn load_default() -> Result<Option<Self>, DockerConfigError> {
        let of = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let docker = of("DOCKER_CONFIG").or_else(|| of("HOME").map(|home| home.join(".docker")));
        let places = [docker.map(|folder| folder.join("config.json")), of("REGISTRY_AUTH_FILE")];
        Self::load_first(places.into_iter().flatten())
    }

    /// What the configuration itself has to sign in to `host` with. No helper is asked.
    #[must_use]
    pub fn credentials(&self, host: &Host) -> Logins {
        self.by_host.get(host.as_str()).cloned().unwrap_or_default()
    }

    /// What to sign in to `host` with: what the host's credential helper says, if there is one that knows it, else what
    /// the configuration itself has; below a path, what it has for that.
    pub async fn look_up(&self, host: &Host) -> Result<Logins, DockerConfigError> {
        let Some(helper) = self.helpers.get(host.as_str()).or(self.store.as_ref()) else {
            return Ok(self.credentials(host));
        };
        let address = if *host == Host::docker_hub() { DOCKER_HUB_KEY } else { host.as_str() };
        let found = credential_helper::ask(helper, address).await?;
        let own = self.credentials(host);
        Ok(Logins { everywhere: found.or(own.everywhere), ..own })
    }

    fn load_first(places: impl IntoIterator<Item = PathBuf>) -> Result<Option<Self>, DockerConfigError> {
        for path in places {
            let read = File::open(&path).and_then(|file| {
                let mut json = Vec::new();
                file.take(CONFIG_LIMIT + 1).read_to_end(&mut json).map(|_| json)
            });
            match read {
                Ok(json) if json.len() as u64 > CONFIG_LIMIT => return Err(DockerConfigError::TooLong(path)),
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
        if let Some(token) = self.identity_token.filter(|token| !token.is_empty()) {
            return Ok(Some(Credentials::IdentityToken(token.into())));
        }
        if let Some(auth) = self.auth.filter(|auth| !auth.is_empty()) {
            let refused = || DockerConfigError::Auth(key.to_owned());
            let bytes = ANY_PADDING.decode(auth.trim()).map_err(|_| refused())?;
            let pair = String::from_utf8(bytes).map_err(|_| refused())?;
            let (username, password) = pair.split_once(':').ok_or_else(refused)?;
            // Docker's own files have a NUL behind the password, sometimes.
            let password = SecretString::from(password.trim_end_matches('\0'));
            return Ok(Some(Credentials::Password { username: username.to_owned(), password }));
        }
        Ok(match (self.username, self.password) {
            (Some(username), Some(password)) if !username.is_empty() => {
                Some(Credentials::Password { username, password: password.into() })
            }
            _ => None,
        })
    }
}

/// Docker keeps its Hub's credentials under the address of an API that is long gone.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// People write `auth` by hand, with and without the padding.
const ANY_PADDING: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The host that an entry is for, and the path of the repositories there, if it is not for all of them
/// (containers-auth.json(5)). Docker writes some hosts with a scheme and an API version.
fn place_of(key: &str) -> (String, Option<String>) {
    let rest = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let host = host.parse::<Host>().map_or_else(|_| host.to_owned(), |host| host.as_str().to_owned());
    let path = path.trim_matches('/');
    (host, Some(path).filter(|path| !matches!(*path, "" | "v1" | "v2")).map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use secrecy::ExposeSecret as _;

    use super::*;

    fn found(json: &str, host: &str) -> Option<String> {
        found_at(json, host, "ferry")
    }

    fn found_at(json: &str, host: &str, repository: &str) -> Option<String> {
        let config = DockerConfig::parse(json.as_bytes()).unwrap();
        Some(match config.credentials(&host.parse().unwrap()).of(repository)?.clone() {
            Credentials::Password { username, password } => {
                format!("{username} {}", password.expose_secret())
            }
            Credentials::IdentityToken(token) => token.expose_secret().to_owned(),
        })
    }

    #[test]
    fn a_host_is_found_however_docker_spelled_it() {
        // user:secret
        let auth = r#"{"auth":"dXNlcjpzZWNyZXQ="}"#;
        for (key, host) in [
            ("quay.io", "quay.io"),
            ("https://quay.io", "quay.io"),
            ("https://quay.io/v1/", "quay.io"),
            ("http://quay.io/v2/", "quay.io"),
            ("quay.io/v2", "quay.io"),
            ("localhost:5000", "localhost:5000"),
            ("https://index.docker.io/v1/", "docker.io"),
            ("docker.io", "docker.io"),
            ("registry-1.docker.io", "docker.io"),
        ] {
            let json = format!(r#"{{"auths":{{"{key}":{auth}}}}}"#);
            assert_eq!(found(&json, host).as_deref(), Some("user secret"), "{key}");
            assert_eq!(found(&json, "other.example"), None);
            assert_eq!(found(&json, "quay.io:5000"), None);
        }
    }

    #[test]
    fn of_two_spellings_dockers_own_is_taken() {
        let json = r#"{"auths":{
            "docker.io":{"username":"a","password":"1"},
            "https://index.docker.io/v1/":{"username":"b","password":"2"},
            "https://quay.io/v2/":{"username":"c","password":"3"},
            "quay.io":{"username":"d","password":"4"}}}"#;
        assert_eq!(found(json, "docker.io").as_deref(), Some("b 2"));
        assert_eq!(found(json, "quay.io").as_deref(), Some("d 4"));
    }

    #[test]
    fn the_longest_path_that_a_repository_lies_below_goes_first() {
        let json = r#"{"auths":{
            "quay.io/a":{"username":"a","password":"1"},
            "quay.io/b":{"username":"b","password":"2"},
            "quay.io/b/c/":{"username":"c","password":"3"},
            "https://quay.io/b":{"username":"d","password":"4"},
            "docker.io/library":{"username":"e","password":"5"},
            "ghcr.io/a":{"username":"f","password":"6"},
            "ghcr.io":{"username":"g","password":"7"}}}"#;
        for (host, repository, expected) in [
            ("quay.io", "a", Some("a 1")),
            ("quay.io", "a/x", Some("a 1")),
            ("quay.io", "ab/x", None),
            ("quay.io", "b/x", Some("b 2")),
            ("quay.io", "b/c/x", Some("c 3")),
            ("quay.io", "b/cx", Some("b 2")),
            ("quay.io", "x", None),
            ("docker.io", "library/nginx", Some("e 5")),
            ("docker.io", "ferry/nginx", None),
            ("ghcr.io", "a/x", Some("f 6")),
            ("ghcr.io", "b", Some("g 7")),
        ] {
            assert_eq!(found_at(json, host, repository).as_deref(), expected, "{host}/{repository}");
        }
    }

    #[test]
    fn a_password_may_hold_colons_and_padding_may_be_missing() {
        // user:a:b
        for auth in ["dXNlcjphOmI=", "dXNlcjphOmI"] {
            let json = format!(r#"{{"auths":{{"a.b":{{"auth":"{auth}"}}}},"credsStore":"x"}}"#);
            assert_eq!(found(&json, "a.b").as_deref(), Some("user a:b"));
        }
        assert_eq!(found(r#"{"auths":{"a.b":{}}}"#, "a.b"), None);
        assert_eq!(found("{}", "a.b"), None);
        // An identity token goes before what stands beside it.
        let json = r#"{"auths":{"a.b":{"auth":"dXNlcjphOmI=","identitytoken":"t"}}}"#;
        assert_eq!(found(json, "a.b").as_deref(), Some("t"));
    }

    #[test]
    fn what_cannot_be_read_is_told_without_its_secrets() {
        for (json, text) in [
            (
                "{\"auths\": \n [secret",
                "the Docker configuration cannot be read: at line 2, column 1, it is no JSON of the right shape",
            ),
            (
                r#"{"auths":{"a.b":{"auth":"c2VjcmV0"}}}"#,
                "the Docker configuration cannot be read: \"auth\" of \"a.b\" is no base64 of user:password",
            ),
        ] {
            let error = DockerConfig::parse(json.as_bytes()).err().unwrap();
            assert_eq!(error.to_string(), text);
            assert!(!format!("{error:?}").contains("secret"));
        }
    }

    #[test]
    fn the_first_file_that_is_there_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let (absent, there) = (folder.path().join("absent.json"), folder.path().join("there.json"));
        fs::write(&there, r#"{"auths":{"a.b":{"username":"u","password":"p"}}}"#).unwrap();
        let config = DockerConfig::load_first([absent.clone(), there]).unwrap().unwrap();
        assert!(!config.credentials(&"a.b".parse().unwrap()).is_empty());
        assert!(DockerConfig::load_first([absent]).unwrap().is_none());
        let long = folder.path().join("long.json");
        fs::write(&long, vec![b' '; (4 << 20) + 1]).unwrap();
        let error = DockerConfig::load_first([long]).err().unwrap();
        assert!(error.to_string().ends_with("it has more than 4194304 bytes"), "{error}");
        let broken = folder.path().join("broken.json");
        fs::write(&broken, "no").unwrap();
        let error = DockerConfig::load_first([broken.clone()]).err().unwrap();
        assert!(error.to_string().starts_with(&format!("{}: the Docker configuration", broken.display())));
    }
}
