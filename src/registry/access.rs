//! How a host is reached: by plain HTTP or TLS, as whom, trusting whom.

use std::path::{Path, PathBuf};
use std::{env, fmt};

use reqwest::header::{ACCEPT_ENCODING, HeaderMap, HeaderValue};
use reqwest::{Certificate, Client, ClientBuilder, Identity};
use rustls_native_certs::load_certs_from_paths;
use secrecy::SecretString;

use super::error::{RegistryError, root_cause};
use super::retry::Patience;
use crate::proxy::Proxy;
use crate::reference::{Endpoint, Host};

/// What a registry knows somebody by.
#[derive(Clone)]
pub enum Credentials {
    /// A user and a password.
    Password {
        /// The user.
        username: String,
        /// The password, or a token that the registry takes for one.
        password: SecretString,
    },
    /// What the registry's token service gives tokens for: Docker's `identitytoken`.
    IdentityToken(SecretString),
}

impl Credentials {
    /// A user and a password, or a token that the registry takes for one.
    #[must_use]
    pub fn password(username: impl Into<String>, password: impl Into<String>) -> Self {
        Self::Password { username: username.into(), password: SecretString::from(password.into()) }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Password { username, .. } => {
                f.debug_struct("Password").field("username", username).finish_non_exhaustive()
            }
            Self::IdentityToken(_) => f.write_str("IdentityToken"),
        }
    }
}

/// What a host knows somebody by: for all of its repositories, for those below some paths, at its token service.
#[derive(Clone, Debug, Default)]
pub struct Logins {
    /// Where nothing below fits.
    pub(super) everywhere: Option<Credentials>,
    /// Paths of repositories, and what opens them and all that is below.
    pub(super) below: Vec<(String, Credentials)>,
    /// Hosts of token services, without ports, and what opens them instead of the above.
    pub(super) at_token_services: Vec<(String, Credentials)>,
}

impl Logins {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.everywhere.is_none() && self.below.is_empty() && self.at_token_services.is_empty()
    }

    /// What opens a repository: the longest path that it lies at or below goes first.
    pub(super) fn of(&self, repository: &str) -> Option<&Credentials> {
        let is_at_or_below = |path: &str| {
            let rest = repository.strip_prefix(path);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let fitting = self.below.iter().filter(|(path, _)| is_at_or_below(path));
        let longest = fitting.max_by_key(|(path, _)| path.len());
        longest.map(|(_, credentials)| credentials).or(self.everywhere.as_ref())
    }

    /// What opens a token service that has a login of its own.
    pub(super) fn at_token_service(&self, host: &str) -> Option<&Credentials> {
        let found = self.at_token_services.iter().find(|(service, _)| service == host);
        found.map(|(_, credentials)| credentials)
    }
}

impl From<Option<Credentials>> for Logins {
    fn from(everywhere: Option<Credentials>) -> Self {
        Self { everywhere, ..Self::default() }
    }
}

/// How a registry is reached.
#[derive(Clone, Default)]
pub struct Access {
    /// Plain HTTP.
    pub insecure: bool,
    /// Where it is reached, if not at its own host: a mirror.
    pub endpoint: Option<Endpoint>,
    /// What to sign in with; without, the registry is asked anonymously. Paths are those of repositories at the host that
    /// is contacted.
    pub credentials: Logins,
    /// Certificate authorities in PEM, beside those of the system.
    pub ca_pem: Option<Vec<u8>>,
    /// The client's certificate and its key in PEM.
    pub identity_pem: Option<Vec<u8>>,
    /// What it is reached by, instead of the proxy that the environment names.
    pub proxy: Option<Proxy>,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access")
            .field("insecure", &self.insecure)
            .field("credentials", &self.credentials)
            .finish_non_exhaustive()
    }
}

pub(super) fn setup(
    host: &Host,
    problem: &str,
    error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> RegistryError {
    let source = error.into();
    let problem = format!("{problem}: {}", root_cause(source.as_ref()));
    RegistryError::Setup { host: host.clone(), problem, source: Some(source) }
}

/// A client for the registry, and one for the hosts that it redirects to.
pub(super) fn clients(
    host: &Host,
    access: &Access,
    patience: &Patience,
) -> Result<(Client, Client), RegistryError> {
    let authorities = match &access.ca_pem {
        Some(pem) => authorities(host, pem)?,
        None => Vec::new(),
    };
    let Some(pem) = &access.identity_pem else {
        let client = client(host, access, patience, &authorities, None)?;
        return Ok((client.clone(), client));
    };
    let identity = Identity::from_pem(pem)
        .map_err(|error| setup(host, "the client certificate and its key cannot be read", error))?;
    Ok((
        client(host, access, patience, &authorities, Some(&identity))?,
        client(host, access, patience, &authorities, None)?,
    ))
}

/// Where Python's requests, which docker-charon asks with, finds the authorities that it trusts: a file or a folder. The
/// variables of `OpenSSL`, which reqwest reads, go first.
fn authorities_of_requests() -> Option<PathBuf> {
    let variable = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let is_told = ["SSL_CERT_FILE", "SSL_CERT_DIR"].into_iter().any(|name| variable(name).is_some());
    let named = variable("REQUESTS_CA_BUNDLE").or_else(|| variable("CURL_CA_BUNDLE"));
    named.filter(|_| !is_told)
}

fn authorities_at(host: &Host, path: &Path) -> Result<Vec<Certificate>, RegistryError> {
    let (file, folder) = if path.is_dir() { (None, Some(path)) } else { (Some(path), None) };
    let found = load_certs_from_paths(file, folder);
    let certificates: Vec<_> =
        found.certs.iter().filter_map(|certificate| Certificate::from_der(certificate).ok()).collect();
    if !certificates.is_empty() {
        return Ok(certificates);
    }
    let problem = format!("the certificate authorities in {} cannot be read", path.display());
    Err(match found.errors.into_iter().next() {
        Some(error) => setup(host, &problem, error),
        None => setup(host, &problem, "there is no PEM certificate in it"),
    })
}

fn authorities(host: &Host, pem: &[u8]) -> Result<Vec<Certificate>, RegistryError> {
    let problem = "the certificate authority cannot be read";
    let found = Certificate::from_pem_bundle(pem).map_err(|error| setup(host, problem, error))?;
    if found.is_empty() { Err(setup(host, problem, "there is no PEM certificate in it")) } else { Ok(found) }
}

fn client(
    host: &Host,
    access: &Access,
    patience: &Patience,
    authorities: &[Certificate],
    identity: Option<&Identity>,
) -> Result<Client, RegistryError> {
    let proxy = access.proxy.as_ref().map(Proxy::for_client).transpose();
    let proxy = proxy.map_err(|error| setup(host, "its proxy cannot be used", error))?;
    let start = || {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let builder = ClientBuilder::new()
            .user_agent(concat!("charon/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers)
            .redirect(reqwest::redirect::Policy::none())
            // Retries are counted here, by `Retry`.
            .retry(reqwest::retry::never())
            // Several blobs move at once: each on a connection of its own, none behind another's window.
            .http1_only()
            .connect_timeout(patience.connect);
        let builder = match identity {
            Some(identity) => builder.identity(identity.clone()),
            None => builder,
        };
        match &proxy {
            Some(proxy) => builder.proxy(proxy.clone()),
            None => builder,
        }
    };
    let with_system = match authorities_of_requests().filter(|_| !access.insecure) {
        Some(path) => {
            let trusted = authorities_at(host, &path)?;
            start().tls_certs_only(trusted.into_iter().chain(authorities.iter().cloned())).build()
        }
        None => start().tls_certs_merge(authorities.iter().cloned()).build(),
    };
    // An image FROM scratch has no root certificates, and then this fails. Plain HTTP and a private authority need none.
    let result = match with_system {
        Err(_) if access.insecure || !authorities.is_empty() => {
            start().tls_certs_only(authorities.iter().cloned()).build()
        }
        result => result,
    };
    result.map_err(|error| {
        let named = ["SSL_CERT_FILE", "SSL_CERT_DIR"].into_iter().find_map(env::var_os);
        let problem = match named {
            Some(path) => format!("the authorities in {} make no TLS client", path.display()),
            None => "the certificates make no TLS client".to_owned(),
        };
        setup(host, &problem, error)
    })
}
