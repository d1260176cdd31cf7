//! How workers reach registries and object stores where a resource does not say.
//!
//! It is for all namespaces, and a pod can mount nothing of another namespace: what is here goes with each worker's
//! pod, for everybody to read who may read pods. So nothing of it is secret.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Deserialize;
use url::Url;

use super::validate::Registry;
use crate::proxy::{Proxy, ProxyError};
use crate::reference::{Endpoint, Host, ReferenceError};
use crate::worker::contract::{ProxyAccess, RegistryAccess, Work};

/// All annotations of a pod together may have 256 KiB; the run configuration may have 200 of them.
const CA_BUNDLE_LIMIT: usize = 32 * 1024;

/// How workers reach registries and object stores where a resource does not say.
#[derive(Clone, Debug, Default)]
pub struct Reach {
    /// Who is trusted beside the system's authorities, whatever a resource says.
    pub ca_bundle: Option<CaBundle>,
    /// The proxy.
    pub proxy: Option<OpenProxy>,
    /// Registries that are reached otherwise than by HTTPS at their own host.
    pub registries: Vec<RegistryReach>,
}

/// Certificates of authorities in PEM, in a file that may change.
#[derive(Clone, Debug)]
pub struct CaBundle(PathBuf);

/// A proxy that asks nobody for a password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenProxy {
    address: String,
    no_proxy: Option<String>,
}

/// How one registry is reached.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Given")]
pub struct RegistryReach {
    host: Host,
    /// `host[:port][/path]`.
    endpoint: Option<String>,
    insecure: bool,
}

/// The same as it is written, with the names of `spec.registries`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Given {
    host: String,
    endpoint: Option<String>,
    #[serde(default)]
    insecure: bool,
}

/// Why the bundle of authorities cannot be given to workers.
#[derive(Debug, thiserror::Error)]
pub enum CaBundleError {
    /// It is not there.
    #[error("cannot read the CA bundle {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why it cannot be read.
        source: std::io::Error,
    },
    /// It is something else.
    #[error("the CA bundle {} holds no certificate in PEM", .0.display())]
    NoCertificate(PathBuf),
    /// All would read it.
    #[error("the CA bundle {} holds a private key, which is nobody's to see; leave only certificates in it", .0.display())]
    PrivateKey(PathBuf),
    /// A pod's annotations have no room for it.
    #[error(
        "the CA bundle {} has {} KiB, and a pod can be given {}; leave public authorities out, which the image has",
        path.display(), size.div_ceil(1024), CA_BUNDLE_LIMIT / 1024
    )]
    TooBig {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: usize,
    },
}

/// Why an address is none of a proxy that asks for no password.
#[derive(Debug, thiserror::Error)]
pub enum OpenProxyError {
    /// It is an address of nothing.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// It would be told to everybody.
    #[error(
        "it has a user or a password, which all could read; name a Secret by spec.proxySecretRef instead"
    )]
    Credentials,
}

impl Reach {
    /// The proxy of a run whose resource names the Secret of one, or none.
    pub(super) fn proxy(&self, secret: Option<&str>) -> Option<ProxyAccess> {
        match (secret, &self.proxy) {
            (Some(name), _) => Some(ProxyAccess::Secret(name.to_owned())),
            (None, Some(OpenProxy { address, no_proxy })) => {
                Some(ProxyAccess::Open { address: address.clone(), no_proxy: no_proxy.clone() })
            }
            (None, None) => None,
        }
    }

    /// The registries of a run, first those that its resource names, in their order.
    ///
    /// Endpoint and plain HTTP belong together: a resource that says one of them says both. An endpoint is for reading.
    pub(super) fn registries(&self, named: &[Registry], work: &Work) -> Vec<RegistryAccess> {
        let is_read = matches!(work, Work::Build(_));
        let fitting = || self.registries.iter().filter(|known| is_read || known.endpoint.is_none());
        let is_of = |known: &RegistryReach, registry: &Registry| {
            registry.access.host.parse::<Host>().is_ok_and(|host| host == known.host)
        };
        let complete = |registry: &Registry| {
            let own = registry.access.clone();
            match fitting().find(|known| is_of(known, registry)) {
                Some(known) if registry.is_open => {
                    RegistryAccess { endpoint: known.endpoint.clone(), insecure: known.insecure, ..own }
                }
                _ => own,
            }
        };
        let is_named = |known: &RegistryReach| named.iter().any(|registry| is_of(known, registry));
        let others = fitting().filter(|known| is_read && !is_named(known)).map(|known| RegistryAccess {
            host: known.host.to_string(),
            endpoint: known.endpoint.clone(),
            insecure: known.insecure,
            certificates: None,
        });
        named.iter().map(complete).chain(others).collect()
    }
}

impl CaBundle {
    /// The bundle in this file.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// What is in it now.
    pub async fn read(&self) -> Result<String, CaBundleError> {
        let Self(path) = self;
        let bytes = tokio::fs::read(path).await;
        checked(path, bytes.map_err(|source| CaBundleError::Unreadable { path: path.clone(), source })?)
    }
}

fn checked(path: &Path, bytes: Vec<u8>) -> Result<String, CaBundleError> {
    let path = path.to_owned();
    if bytes.len() > CA_BUNDLE_LIMIT {
        return Err(CaBundleError::TooBig { path, size: bytes.len() });
    }
    let is_certificates = |found: Vec<reqwest::Certificate>| !found.is_empty();
    match String::from_utf8(bytes) {
        Ok(pem) if pem.contains("PRIVATE KEY") => Err(CaBundleError::PrivateKey(path)),
        Ok(pem) if reqwest::Certificate::from_pem_bundle(pem.as_bytes()).is_ok_and(is_certificates) => {
            Ok(pem)
        }
        _ => Err(CaBundleError::NoCertificate(path)),
    }
}

impl OpenProxy {
    /// The same, but for the hosts in this list, which is one as in the variable `NO_PROXY`.
    #[must_use]
    pub fn except(self, no_proxy: Option<String>) -> Self {
        Self { no_proxy, ..self }
    }
}

impl FromStr for OpenProxy {
    type Err = OpenProxyError;

    /// Reads an address, such as `http://proxy.example:3128`.
    fn from_str(address: &str) -> Result<Self, OpenProxyError> {
        Proxy::new(address, None, None, None)?;
        let url = Url::parse(address).map_err(|_| ProxyError::NoUrl)?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(OpenProxyError::Credentials);
        }
        Ok(Self { address: address.to_owned(), no_proxy: None })
    }
}

impl TryFrom<Given> for RegistryReach {
    type Error = ReferenceError;

    fn try_from(given: Given) -> Result<Self, ReferenceError> {
        given.endpoint.as_deref().map(str::parse::<Endpoint>).transpose()?;
        Ok(Self { host: given.host.parse()?, endpoint: given.endpoint, insecure: given.insecure })
    }
}

impl RegistryReach {
    /// Reads a JSON list, in which each host may stand once.
    pub fn list(json: &str) -> Result<Vec<Self>, String> {
        let list: Vec<Self> = serde_json::from_str(json).map_err(|error| error.to_string())?;
        for (index, one) in list.iter().enumerate() {
            if list[..index].iter().any(|other| other.host == one.host) {
                return Err(format!("it has {} twice", one.host));
            }
        }
        Ok(list)
    }
}

#[cfg(test)]
#[allow(clippy::needless_pass_by_value)] // json! makes values
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::controller::validate;

    fn reach(registries: Value) -> Reach {
        Reach { registries: RegistryReach::list(&registries.to_string()).unwrap(), ..Reach::default() }
    }

    /// What the worker of a build is told that names `registries`.
    fn of_build(reach: &Reach, registries: Value) -> Value {
        let spec = json!({
            "images": [{ "image": "python:3" }],
            "output": { "persistentVolumeClaim": { "claimName": "transfer", "path": "app.zip" } },
            "registries": registries,
        });
        let valid = validate::build(&serde_json::from_value(spec).unwrap()).unwrap();
        json!(reach.registries(&valid.registries, &valid.work))
    }

    #[test]
    fn a_build_has_the_registries_of_all_beside_its_own_and_its_own_word_wins_for_its_host() {
        let reach = reach(json!([
            { "host": "docker.io", "endpoint": "mirror.corp/hub" },
            { "host": "lab.corp:5000", "insecure": true },
        ]));
        let mirror = json!({ "host": "docker.io", "endpoint": "mirror.corp/hub", "insecure": false });
        let lab = json!({ "host": "lab.corp:5000", "insecure": true });
        assert_eq!(of_build(&reach, json!([])), json!([mirror, lab]));

        // What a resource mounts for a registry is found by its place in the list.
        let quay = json!({ "host": "quay.io", "insecure": false });
        let own =
            json!([{ "host": "quay.io" }, { "host": "LAB.corp:5000", "certSecretRef": { "name": "ca" } }]);
        let lab_of_all = json!({ "host": "LAB.corp:5000", "insecure": true, "certificates": "ca" });
        assert_eq!(of_build(&reach, own), json!([quay, lab_of_all, mirror]));

        for said in [json!({ "insecure": false }), json!({ "endpoint": "other.corp" })] {
            let mut own = json!({ "host": "lab.corp:5000" });
            own.as_object_mut().unwrap().extend(said.as_object().unwrap().clone());
            let told = of_build(&reach, json!([own]));
            assert_eq!((&told[0]["insecure"], &told[0]["endpoint"]), (&json!(false), &own["endpoint"]));
        }
    }

    #[test]
    fn an_import_asks_its_target_as_all_do_but_pushes_to_no_mirror() {
        let reach = reach(json!([
            { "host": "far.corp", "insecure": true },
            { "host": "docker.io", "endpoint": "mirror.corp/hub", "insecure": true },
        ]));
        let of_import = |registry: Value| {
            let spec = json!({
                "source": { "persistentVolumeClaim": { "claimName": "inbox", "path": "app.zip" } },
                "registry": registry,
            });
            let valid = validate::import(&serde_json::from_value(spec).unwrap()).unwrap();
            json!(reach.registries(&valid.registries, &valid.work))
        };
        for (registry, insecure) in [
            (json!({ "host": "far.corp" }), true),
            (json!({ "host": "far.corp", "insecure": false }), false),
            (json!({ "host": "docker.io" }), false),
            (json!({ "host": "other.corp" }), false),
        ] {
            let told = json!([{ "host": registry["host"], "insecure": insecure }]);
            assert_eq!(of_import(registry), told);
        }
    }

    #[test]
    fn a_proxy_of_a_secret_wins_and_one_for_all_has_no_password() {
        let proxy: OpenProxy = "http://proxy.corp:3128".parse().unwrap();
        let reach = Reach { proxy: Some(proxy.except(Some(".svc".into()))), ..Reach::default() };
        assert_eq!(reach.proxy(Some("way-out")), Some(ProxyAccess::Secret("way-out".into())));
        let address = "http://proxy.corp:3128".to_owned();
        assert_eq!(reach.proxy(None), Some(ProxyAccess::Open { address, no_proxy: Some(".svc".into()) }));
        assert_eq!(Reach::default().proxy(None), None);
        for wrong in ["http://charon:obolus@proxy.corp", "http://charon@proxy.corp", "proxy.corp:3128"] {
            let error = wrong.parse::<OpenProxy>().unwrap_err().to_string();
            assert!(!error.contains("obolus"), "{error}");
        }
    }

    #[test]
    fn what_is_no_registry_is_refused_with_the_reason() {
        for (list, words) in [
            (json!([{ "host": "https://a" }]), "without a scheme"),
            (json!([{ "host": "a", "endpoint": "https://b" }]), "no endpoint of a mirror"),
            (json!([{ "host": "a", "secretRef": { "name": "pull" } }]), "unknown field `secretRef`"),
            (json!([{ "host": "docker.io" }, { "host": "index.docker.io" }]), "it has docker.io twice"),
        ] {
            let error = RegistryReach::list(&list.to_string()).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }

    #[tokio::test]
    async fn a_bundle_is_read_as_it_is_now_and_what_workers_may_not_be_given_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.crt");
        let bundle = CaBundle::at(&file);
        let told = async || bundle.read().await.unwrap_err().to_string();
        assert!(told().await.starts_with("cannot read the CA bundle"));
        let pem = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
        for (text, words) in [
            ("corp\n".to_owned(), "holds no certificate in PEM"),
            (
                format!("{pem}-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n"),
                "holds a private key",
            ),
            (pem.repeat(1000), "has 58 KiB, and a pod can be given 32"),
        ] {
            std::fs::write(&file, text).unwrap();
            assert!(told().await.contains(words), "{}", told().await);
        }
        std::fs::write(&file, pem).unwrap();
        assert_eq!(bundle.read().await.unwrap(), pem);
    }
}
