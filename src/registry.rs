//! The OCI distribution protocol: asking a registry for manifests and blobs, and giving it some.
//!
//! A [`Registry`] is a client of one host. It signs in when it is asked to (anonymous, basic, bearer tokens), keeps
//! what it learned, tries again what may pass, and never holds a whole blob in memory. Credentials go to the host that
//! they were given for and to the token service that this host names, and nowhere else.
//!
//! The module knows nothing of what its callers move, or why.

mod access;
mod ahead;
mod auth;
mod blobs;
mod client;
mod credential_helper;
mod docker_config;
mod error;
mod feed;
mod foreign;
mod gate;
mod manifests;
mod netrc;
mod referrers;
mod retry;
#[cfg(test)]
mod tests;
mod upload;
mod uploads;

pub use access::{Access, Credentials, Logins};
pub use client::Registry;
pub use credential_helper::HelperError;
pub use docker_config::{DockerConfig, DockerConfigError};
pub use error::{Answer, Asked, RegistryError};
pub use foreign::{Foreign, ForeignBlob};
pub use manifests::{Manifest, Meaning};
pub use netrc::{Netrc, NetrcError};
pub use referrers::fallback_tag;
pub use retry::Traffic;
pub use secrecy::SecretString;
