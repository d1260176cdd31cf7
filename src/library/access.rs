use std::collections::{BTreeSet, HashMap};

use super::Error;
use crate::reference::{Host, Reference};
use crate::registry::{Access, Credentials, DockerConfig, Logins, Netrc, Registry, Traffic};

/// Which registry is meant, and how registries are reached.
#[derive(Clone, Default)]
pub struct RegistryOptions {
    /// The registry, `host[:port]` with perhaps a slash behind it, of names that have none; Docker Hub if absent.
    pub registry: Option<String>,
    /// Plain HTTP instead of HTTPS.
    pub insecure: bool,
    /// What to sign in with: [`Credentials::password`] makes it of a user and a password.
    pub credentials: Option<Credentials>,
    /// Certificate authorities in PEM that vouch for the registry, beside those of the system.
    pub ca_pem: Option<Vec<u8>>,
    /// The client's certificate and its key in PEM, where the registry asks for one.
    pub identity_pem: Option<Vec<u8>>,
    /// Where every other registry finds its credentials, and this one, too, if it has none above:
    /// see [`DockerConfig::load_default`]. The credential helpers that it names are run.
    pub docker_config: Option<DockerConfig>,
    /// Where registries that have none in the configuration find them: see [`Netrc::load_default`].
    pub netrc: Option<Netrc>,
    /// How many blobs move at once, how often registries are asked, and how long those that fail are waited for.
    pub traffic: Traffic,
}

impl std::fmt::Debug for RegistryOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryOptions").field("registry", &self.registry).finish_non_exhaustive()
    }
}

impl RegistryOptions {
    /// The host that names without a host belong to.
    fn host(&self) -> Result<Host, Error> {
        let host = self.registry.as_deref().map(|host| host.strip_suffix('/').unwrap_or(host));
        Ok(host.map_or(Ok(Host::docker_hub()), str::parse)?)
    }

    /// Reads names, trimmed; what is empty then is none.
    pub(super) fn references(&self, names: &[String]) -> Result<Vec<Reference>, Error> {
        let host = self.host()?;
        let names = names.iter().map(|name| name.trim()).filter(|name| !name.is_empty());
        names.map(|name| Ok(Reference::parse(name, &host)?)).collect()
    }

    /// A client for the registry.
    pub(super) async fn client(&self) -> Result<Registry, Error> {
        let host = self.host()?;
        let access = self.access(&host, true).await?;
        Ok(Registry::with_traffic(host, access, &self.traffic.afresh())?)
    }

    /// A client for each registry of the images.
    ///
    /// The options are for the registry that was given, or, where none was given, for the one that
    /// all images share.
    pub(super) async fn clients(&self, references: &[Reference]) -> Result<HashMap<Host, Registry>, Error> {
        let hosts: BTreeSet<Host> = references.iter().map(|reference| reference.host().clone()).collect();
        let meant = match (&self.registry, hosts.len()) {
            (Some(_), _) => Some(self.host()?),
            (None, 1) => hosts.first().cloned(),
            (None, _) if self.is_for_one() => {
                let hosts = hosts.iter().map(Host::as_str).collect::<Vec<_>>().join(", ");
                return Err(Error::Usage(format!(
                    "the images are in several registries ({hosts}): say by --registry which one --insecure, --username, --password, --ca-file and --cert-file are for"
                )));
            }
            (None, _) => None,
        };
        let (mut clients, traffic) = (HashMap::new(), self.traffic.afresh());
        for host in hosts {
            let access = self.access(&host, meant.as_ref() == Some(&host)).await?;
            clients.insert(host.clone(), Registry::with_traffic(host, access, &traffic)?);
        }
        Ok(clients)
    }

    /// Whether there is something that is for one registry alone.
    fn is_for_one(&self) -> bool {
        let certificates = [&self.ca_pem, &self.identity_pem];
        self.insecure || self.credentials.is_some() || certificates.iter().any(|pem| pem.is_some())
    }

    async fn access(&self, host: &Host, is_meant: bool) -> Result<Access, Error> {
        let given = self.credentials.clone().filter(|_| is_meant);
        let mut credentials: Logins = match (given, &self.docker_config) {
            (None, Some(config)) => config.look_up(host).await?,
            (given, _) => given.into(),
        };
        if let Some(netrc) = self.netrc.as_ref().filter(|_| credentials.is_empty()) {
            credentials = netrc.credentials(host);
        }
        Ok(Access {
            insecure: self.insecure && is_meant,
            credentials,
            ca_pem: self.ca_pem.clone().filter(|_| is_meant),
            identity_pem: self.identity_pem.clone().filter(|_| is_meant),
            ..Access::default()
        })
    }
}
