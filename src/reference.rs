//! Image references: what people write, where it is read, and its name at the far side.

mod clash;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, DigestError};
pub use clash::Clash;

/// A registry's host, with a port where one was written.
///
/// Docker Hub goes under one name, `docker.io`, whichever of its names was written.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Host(String);

/// The canonical name of Docker Hub.
const DOCKER_HUB: &str = "docker.io";
/// The host that answers for Docker Hub.
const DOCKER_HUB_API: &str = "registry-1.docker.io";
/// Longer names are accepted nowhere (the distribution specification allows 255 for host and name).
const NAME_LIMIT: usize = 255;

/// Why a text is no image reference.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ReferenceError {
    /// The registry's host cannot be one.
    #[error("{0:?} is no registry host; expected host or host:port, without a scheme or a path")]
    Host(String),
    /// A mirror's endpoint cannot be one.
    #[error(
        "{0:?} is no endpoint of a mirror; expected host, host:port or either with a path, without a scheme"
    )]
    Endpoint(String),
    /// A user or a password stands before the host: it is not repeated.
    #[error("a registry is given as host or host:port, and its user and password apart from it")]
    HostWithUser,
    /// The repository's name is against the rules.
    #[error(
        "{0:?} is no image name: a repository has lowercase letters, digits and single separators (. _ __ -), in parts between slashes"
    )]
    Repository(String),
    /// The tag is against the rules.
    #[error(
        "{0:?} is no image name: a tag has at most 128 letters, digits, '_', '.' and '-', and begins with none of '.' and '-'"
    )]
    Tag(String),
    /// The digest is none.
    #[error("{0:?} is no image name: {1}")]
    Digest(String, DigestError),
    /// A name at the far side is against the rules.
    #[error(
        "{0:?} is no name for the far side: it has a repository and perhaps a tag, as base/python:3.9 does, without a host and without a digest"
    )]
    FarName(String),
}

impl Host {
    /// Docker Hub.
    #[must_use]
    pub fn docker_hub() -> Self {
        Self(DOCKER_HUB.to_owned())
    }

    /// Whether this is Docker Hub.
    #[must_use]
    pub fn is_docker_hub(&self) -> bool {
        self.0 == DOCKER_HUB
    }

    /// The canonical name, `host[:port]`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The `host[:port]` that is contacted.
    #[must_use]
    pub fn api_host(&self) -> &str {
        if self.is_docker_hub() { DOCKER_HUB_API } else { &self.0 }
    }

    /// Whether the first segment of a name names a registry, as Docker has it.
    fn is_written_as(segment: &str) -> bool {
        segment.contains(['.', ':']) || segment == "localhost"
    }
}

impl FromStr for Host {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let refused = || ReferenceError::Host(text.to_owned());
        if text.contains('@') {
            return Err(ReferenceError::HostWithUser);
        }
        let text = &text.to_ascii_lowercase();
        // One authority with neither path nor user: what the URL parser gives back must be what went in.
        let url = url::Url::parse(&format!("http://{text}/")).map_err(|_| refused())?;
        let host = url.host_str().ok_or_else(refused)?;
        let bare = url.username().is_empty() && url.password().is_none() && url.path() == "/";
        let port = text.strip_prefix(host).ok_or_else(refused)?;
        let port_is_well_formed =
            port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
        // What the parser lets pass and no resolver knows: "..", a name that is not Docker's for a host.
        let is_name = host.starts_with('[') || host.split('.').all(is_label);
        if !bare || !is_name || !port_is_well_formed || url.query().is_some() || url.fragment().is_some() {
            return Err(refused());
        }
        Ok(match text.as_str() {
            "index.docker.io" | DOCKER_HUB_API => Self::docker_hub(),
            _ => Self(text.to_owned()),
        })
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a registry is reached instead of at its own host: `host[:port][/path]`.
///
/// The path goes in front of every repository, as caches of several registries have it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    host: Host,
    path: Option<String>,
}

impl Endpoint {
    /// The host that is contacted.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// What goes in front of every repository.
    #[must_use]
    pub fn path(&self) -> Option<&str> {
        self.path.as_deref()
    }
}

impl FromStr for Endpoint {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let bare = text.strip_suffix('/').unwrap_or(text);
        let (host, path) = match bare.split_once('/') {
            Some((host, path)) => (host, Some(path)),
            None => (bare, None),
        };
        let host = host.parse().map_err(|error| match error {
            ReferenceError::HostWithUser => ReferenceError::HostWithUser,
            _ => ReferenceError::Endpoint(text.to_owned()),
        })?;
        if !path.is_none_or(is_repository) {
            return Err(ReferenceError::Endpoint(text.to_owned()));
        }
        Ok(Self { host, path: path.map(str::to_owned) })
    }
}

/// How an image is called at the far side, unless it has a name of its own there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Naming {
    /// As whoever built the payload wrote it, without its host and without an implied `library/`.
    #[default]
    AsWritten,
    /// The same with `library/` spelled out.
    Canonical,
    /// The full name, host included: `docker.io/library/python`.
    WithHost,
}

/// What becomes of a tag that is at the far side already and points to something else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TagPolicy {
    /// It points to the payload's image afterwards.
    #[default]
    Overwrite,
    /// It stays as it is, and the image is not pushed.
    KeepExisting,
    /// It stays as it is, and the image fails.
    Fail,
}

/// A name of an image's own at the far side: `repository[:tag]`. Without a tag it keeps the image's.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FarName {
    repository: String,
    tag: Option<String>,
}

impl FarName {
    /// The repository, without any prefix.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, if one was written.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }
}

impl FromStr for FarName {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let (repository, tag) = match text.rsplit_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (text, None),
        };
        if !is_repository(repository) || repository.len() > NAME_LIMIT || !tag.is_none_or(is_tag) {
            return Err(ReferenceError::FarName(text.to_owned()));
        }
        Ok(Self { repository: repository.to_owned(), tag: tag.map(str::to_owned) })
    }
}

impl fmt::Display for FarName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repository)?;
        self.tag.iter().try_for_each(|tag| write!(f, ":{tag}"))
    }
}

/// An image in a registry: host, repository, and a tag or a digest or both.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    written: String,
    host: Host,
    repository: String,
    path_as_written: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Reads `text`, trimmed, as Docker does; a name without a host belongs to `default_host`.
    ///
    /// Without tag and digest the tag is `latest`.
    pub fn parse(text: &str, default_host: &Host) -> Result<Self, ReferenceError> {
        let written = text.trim();
        let (rest, digest) = match written.split_once('@') {
            Some((rest, digest)) => {
                let digest =
                    digest.parse().map_err(|error| ReferenceError::Digest(written.to_owned(), error))?;
                (rest, Some(digest))
            }
            None => (written, None),
        };
        let (host, path) = match rest.split_once('/') {
            Some((first, path)) if Host::is_written_as(first) => (first.parse()?, path),
            _ => (default_host.clone(), rest),
        };
        let (path, tag) = match path.rsplit_once(':') {
            Some((path, tag)) if is_tag(tag) => (path, Some(tag.to_owned())),
            Some(_) => return Err(ReferenceError::Tag(written.to_owned())),
            None if digest.is_some() => (path, None),
            None => (path, Some("latest".to_owned())),
        };
        let repository = if host.is_docker_hub() && !path.contains('/') {
            format!("library/{path}")
        } else {
            path.to_owned()
        };
        if !is_repository(&repository) || host.as_str().len() + 1 + repository.len() > NAME_LIMIT {
            return Err(ReferenceError::Repository(written.to_owned()));
        }
        Ok(Self {
            written: written.to_owned(),
            host,
            repository,
            path_as_written: path.to_owned(),
            tag,
            digest,
        })
    }

    /// What was written, trimmed.
    #[must_use]
    pub fn written(&self) -> &str {
        &self.written
    }

    /// The registry.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The repository in the registry, Docker Hub's implied `library/` included.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, if there is one; a reference by digest may have none.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest that was written, if there is one.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// What a registry is asked for: the digest where one was written, else the tag.
    #[must_use]
    pub fn tag_or_digest(&self) -> &str {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.as_str(),
            (None, Some(tag)) => tag,
            (None, None) => "latest",
        }
    }

    /// The repository's name at the far side: as written, without host, without an implied `library/`.
    #[must_use]
    pub fn far_repository(&self) -> &str {
        &self.path_as_written
    }
}

impl fmt::Display for Reference {
    /// The full reference, `host/repository[:tag][@digest]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// Whether `text` is a repository's name: the distribution specification's
/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*` in parts between slashes.
#[must_use]
pub fn is_repository(text: &str) -> bool {
    !text.is_empty() && text.len() <= NAME_LIMIT && text.split('/').all(is_repository_part)
}

fn is_repository_part(part: &str) -> bool {
    let mut separator = String::new();
    let mut after_letter = false;
    for c in part.chars() {
        match c {
            'a'..='z' | '0'..='9' => {
                let separates = matches!(separator.as_str(), "" | "." | "_" | "__")
                    || separator.chars().all(|c| c == '-');
                if !separates || (!separator.is_empty() && !after_letter) {
                    return false;
                }
                separator.clear();
                after_letter = true;
            }
            '.' | '_' | '-' => separator.push(c),
            _ => return false,
        }
    }
    after_letter && separator.is_empty()
}

/// Whether `text` may stand between the dots of a host's name.
fn is_label(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.ends_with(|c: char| c.is_ascii_alphanumeric())
}

/// Whether `text` is a tag: the distribution specification's `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
fn is_tag(text: &str) -> bool {
    text.len() <= 128
        && text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Reference, ReferenceError> {
        Reference::parse(text, &Host::docker_hub())
    }

    #[test]
    fn names_are_read_as_docker_reads_them() {
        let hex = "a".repeat(64);
        for (written, full, far) in [
            ("python", "docker.io/library/python:latest", "python"),
            (" python:3.9-alpine ", "docker.io/library/python:3.9-alpine", "python"),
            ("library/python:3", "docker.io/library/python:3", "library/python"),
            ("docker.io/python:3", "docker.io/library/python:3", "python"),
            ("index.docker.io/bitnami/redis", "docker.io/bitnami/redis:latest", "bitnami/redis"),
            ("localhost/a:b", "localhost/a:b", "a"),
            ("localhost:5000/a/b", "localhost:5000/a/b:latest", "a/b"),
            ("quay.io/a/b:v1.0", "quay.io/a/b:v1.0", "a/b"),
            ("127.0.0.1:5000/x", "127.0.0.1:5000/x:latest", "x"),
            ("[::1]:5000/x", "[::1]:5000/x:latest", "x"),
            (&format!("a@sha256:{hex}"), &format!("docker.io/library/a@sha256:{hex}"), "a"),
            (&format!("q.io/a:t@sha256:{hex}"), &format!("q.io/a:t@sha256:{hex}"), "a"),
        ] {
            let reference = parse(written).unwrap();
            assert_eq!(reference.to_string(), full);
            assert_eq!(reference.far_repository(), far);
            assert_eq!(reference.written(), written.trim());
        }
    }

    #[test]
    fn a_name_without_a_host_belongs_to_the_registry_that_was_given() {
        let reference = Reference::parse("python:3", &"registry.example:5000".parse().unwrap()).unwrap();
        assert_eq!(reference.to_string(), "registry.example:5000/python:3");
    }

    #[test]
    fn a_name_at_the_far_side_has_neither_host_nor_digest() {
        for (text, repository, tag) in
            [("base/python:3.9", "base/python", Some("3.9")), ("a.b/c", "a.b/c", None), ("a", "a", None)]
        {
            let name: FarName = text.parse().unwrap();
            assert_eq!((name.repository(), name.tag(), name.to_string().as_str()), (repository, tag, text));
        }
        let digest = format!("a@sha256:{}", "a".repeat(64));
        for text in ["", ":a", "a:", "A", "a b", "a.b:5000/c", "/a", "a/", "https://a/b", &digest] {
            assert!(text.parse::<FarName>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in [
            "",
            " ",
            ":",
            "@",
            "/",
            "a:",
            ":a",
            "a/",
            "A",
            "a..b",
            "a/../b",
            "../a",
            "./a",
            ".a/b",
            "a.-b/c",
            "a//b",
            "-a",
            "a-",
            "a___b",
            "a:b:c",
            "a:-b",
            "a@sha256:12",
            "http://a.b/c",
            "a b",
            "a.b:99999/c",
            "user@a.b/c",
            "a?b",
            "ü",
        ] {
            assert!(parse(text).is_err(), "{text:?}");
        }
        assert!(parse(&"a".repeat(300)).is_err());
    }

    #[test]
    fn an_endpoint_is_a_host_and_perhaps_a_path() {
        for (text, host, path) in [
            ("mirror.corp", "mirror.corp", None),
            ("mirror.corp:5000/", "mirror.corp:5000", None),
            ("mirror.corp/dockerhub", "mirror.corp", Some("dockerhub")),
            ("[::1]:5000/a/b-c/", "[::1]:5000", Some("a/b-c")),
        ] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!((endpoint.host().as_str(), endpoint.path()), (host, path), "{text}");
        }
        assert_eq!("u:secret@mirror.corp/A".parse::<Endpoint>(), Err(ReferenceError::HostWithUser));
        for text in
            ["", "/a", "https://mirror.corp", "a b", "mirror.corp/A", "mirror.corp/a//b", "mirror.corp/../a"]
        {
            assert!(text.parse::<Endpoint>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn docker_hub_is_contacted_where_it_answers() {
        assert_eq!(parse("a").unwrap().host().api_host(), "registry-1.docker.io");
        assert_eq!("a.b:5000".parse::<Host>().unwrap().api_host(), "a.b:5000");
        for text in
            ["", "a/b", "http://a", "a:b", "a:", "u:p@a", "a?b", "a b", "..", ".", "a..b", "-a", "a.b."]
        {
            assert!(text.parse::<Host>().is_err(), "{text:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_reference_that_was_read_reads_its_own_full_form_as_itself(text in "[a-z.:/@_-]{0,40}") {
            if let Ok(reference) = parse(&text) {
                let again = parse(&reference.to_string()).unwrap();
                proptest::prop_assert_eq!(again.to_string(), reference.to_string());
            }
        }
    }
}
