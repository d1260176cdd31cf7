//! A proxy: where it is, what opens it, and which hosts are reached without it.

use std::fmt;

use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use reqwest::NoProxy;
use secrecy::{ExposeSecret, SecretString};
use url::Url;

/// A proxy that stands in the place of the one that the environment names.
#[derive(Clone)]
pub struct Proxy {
    /// With its credentials, whose percent-encoding each kind of proxy undoes.
    url: SecretString,
    no_proxy: String,
}

/// Why an address is none of a proxy. The address itself is not told: it may hold a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    /// It cannot be read.
    #[error("it is no URL, such as http://proxy.example:3128")]
    NoUrl,
    /// Nobody speaks so with a proxy.
    #[error("it does not begin with http://, https://, socks5:// or socks5h://")]
    Scheme,
    /// A password is for somebody.
    #[error("it has a password without a username")]
    PasswordAlone,
}

/// Where a machine asks its cloud who it is, which nobody else can answer and no proxy shall hear: the metadata services of
/// AWS, Azure and Google, and those that give identities to containers and pods.
const METADATA: &str = "169.254.0.0/16,fd00:ec2::/32,metadata.google.internal";

impl Proxy {
    /// The proxy at `address`, such as `http://proxy.example:3128`, which knows us by `username` and `password`.
    /// `no_proxy` lists the hosts that are reached without it, as the variable `NO_PROXY` does; a cloud's metadata service
    /// always is.
    pub fn new(
        address: &str,
        username: Option<&str>,
        password: Option<&SecretString>,
        no_proxy: Option<&str>,
    ) -> Result<Self, ProxyError> {
        let mut url = Url::parse(address).map_err(|_| ProxyError::NoUrl)?;
        if !matches!(url.scheme(), "http" | "https" | "socks5" | "socks5h") {
            return Err(ProxyError::Scheme);
        }
        if !url.has_host() {
            return Err(ProxyError::NoUrl);
        }
        if let Some(username) = username {
            url.set_username(username).map_err(|()| ProxyError::NoUrl)?;
        }
        if let Some(password) = password {
            url.set_password(Some(password.expose_secret())).map_err(|()| ProxyError::NoUrl)?;
        }
        if url.username().is_empty() && url.password().is_some() {
            return Err(ProxyError::PasswordAlone);
        }
        let no_proxy = [no_proxy.unwrap_or_default(), METADATA].join(",");
        Ok(Self { url: SecretString::from(String::from(url)), no_proxy })
    }

    /// The same for an HTTP client.
    pub(crate) fn for_client(&self) -> reqwest::Result<reqwest::Proxy> {
        let proxy = reqwest::Proxy::all(self.url.expose_secret())?;
        Ok(proxy.no_proxy(NoProxy::from_string(&self.no_proxy)))
    }

    /// Where it is, without credentials, if `url` is reached by it.
    pub(crate) fn leads_to(&self, url: &Url) -> Option<String> {
        let matcher = Matcher::builder().all(self.url.expose_secret().to_owned()).no(self.no_proxy.clone());
        shown(&matcher.build().intercept(&url.as_str().parse().ok()?)?)
    }
}

/// Where a proxy is, without credentials.
pub(crate) fn shown(intercept: &Intercept) -> Option<String> {
    let (proxy, scheme) = (intercept.uri(), intercept.uri().scheme_str());
    let port = proxy.port().map(|port| format!(":{port}")).unwrap_or_default();
    Some(format!("{}://{}{port}", scheme.unwrap_or("http"), proxy.host()?))
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Proxy")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn a_proxy_is_shown_without_what_opens_it_and_only_for_hosts_that_it_leads_to() {
        let password = SecretString::from("s3cr:t@/%");
        let proxy = Proxy::new(
            "http://proxy.example:3128",
            Some("u"),
            Some(&password),
            Some("in.example,10.0.0.0/8"),
        )
        .unwrap();
        let there = url("https://registry.example/v2/");
        assert_eq!(proxy.leads_to(&there).unwrap(), "http://proxy.example:3128");
        for without in ["https://in.example/", "https://a.in.example/", "http://10.1.2.3:5000/"] {
            assert_eq!(proxy.leads_to(&url(without)), None, "{without}");
        }
        assert!(!format!("{proxy:?} {:?}", proxy.url).contains("s3cr"));
        let inside = Proxy::new("socks5h://u:p@proxy.example", None, None, None).unwrap();
        assert_eq!(inside.leads_to(&there).unwrap(), "socks5h://proxy.example");
    }

    #[test]
    fn the_metadata_service_of_a_cloud_is_asked_without_a_proxy() {
        for no_proxy in [None, Some(""), Some("in.example")] {
            let proxy = Proxy::new("http://proxy.example", None, None, no_proxy).unwrap();
            for host in ["169.254.169.254", "169.254.170.23", "[fd00:ec2::254]", "metadata.google.internal"] {
                assert_eq!(proxy.leads_to(&url(&format!("http://{host}/latest"))), None, "{host}");
            }
            assert!(proxy.leads_to(&url("https://storage.example/")).is_some());
        }
        let none = Proxy::new("http://proxy.example", None, None, Some("*")).unwrap();
        assert_eq!(none.leads_to(&url("https://storage.example/")), None);
    }

    #[test]
    fn what_is_no_address_of_a_proxy_is_refused_without_being_told() {
        let password = SecretString::from("p");
        for (address, password, expected) in [
            ("proxy", None, ProxyError::NoUrl),
            ("http://", None, ProxyError::NoUrl),
            ("proxy:3128", None, ProxyError::Scheme),
            ("ftp://proxy", None, ProxyError::Scheme),
            ("http://:secret@proxy", None, ProxyError::PasswordAlone),
            ("http://proxy", Some(&password), ProxyError::PasswordAlone),
        ] {
            let error = Proxy::new(address, None, password, None).unwrap_err();
            assert_eq!(error, expected, "{address}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }
}
