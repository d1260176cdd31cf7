//! The client against a server that follows a script.

mod certificates;
mod foreign;
mod pushing;
mod reading;
mod referrers;
mod scripted;
mod signing_in;
mod telling;
mod traffic;
mod uploading;

use std::time::Duration;

use secrecy::SecretString;

use super::retry::Patience;
use super::{Access, Credentials, Logins, Registry, RegistryError, Traffic};
use crate::digest::Digest;
use crate::reference::Host;
use scripted::Server;

/// Tries follow each other at once.
const EAGER: Patience = Patience {
    before_anything_moved: Duration::from_secs(30),
    once_moving: Duration::from_secs(30),
    first_pause: Duration::ZERO,
    longest_pause: Duration::ZERO,
    connect: Duration::from_secs(10),
    idle: Duration::from_secs(10),
    trickle: 1,
    commit: Duration::from_secs(10),
};

/// There is no second try.
const NO_PATIENCE: Patience =
    Patience { before_anything_moved: Duration::ZERO, once_moving: Duration::ZERO, ..EAGER };

fn client(server: &Server, patience: Patience, credentials: Option<Credentials>) -> Registry {
    let access = Access { insecure: true, credentials: credentials.into(), ..Access::default() };
    with_patience(server.host(), access, patience)
}

fn with_patience(host: Host, access: Access, patience: Patience) -> Registry {
    Registry::with_traffic(host, access, &Traffic::with_patience(patience, Duration::from_secs(30))).unwrap()
}

fn anonymous(server: &Server) -> Registry {
    client(server, EAGER, None)
}

fn user(name: &str, password: &str) -> Credentials {
    Credentials::Password { username: name.to_owned(), password: SecretString::from(password) }
}

/// The error's text, without the server's port.
fn told(server: &Server, error: &RegistryError) -> String {
    error.to_string().replace(server.host().as_str(), "HOST")
}

fn digest_of(content: &[u8]) -> Digest {
    Digest::sha256(content)
}
