//! How an object store is reached: where, with what, trusting whom.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::client::{HttpClient, HttpConnector};
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::multipart::MultipartStore;
use object_store::{BackoffConfig, ClientConfigKey, ClientOptions, ObjectStore, RetryConfig};
use reqwest::redirect::Policy;
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::{StorageError, refusal};
use crate::object_location::{ObjectLocation, Provider};
use crate::proxy::Proxy;

/// For a connection to be made.
const CONNECT: Duration = Duration::from_secs(10);
/// For the next bytes of an answer; a part is on its way up meanwhile, and a store may copy it before it answers.
const IDLE: Duration = Duration::from_mins(5);

/// How an object store is reached. What is not said here comes from the environment: the usual variables of each
/// provider, or the cloud identity of the machine or pod.
#[derive(Clone, Debug, Default)]
pub struct ObjectAccess {
    /// The store's URL, where it is not the provider's own. Only `http://` makes it plain HTTP.
    pub endpoint: Option<String>,
    /// The bucket's region.
    pub region: Option<String>,
    /// What to sign in with.
    pub keys: Option<ObjectKeys>,
    /// Certificate authorities, as PEM, that are trusted beside the system's.
    pub ca_pem: Option<Vec<u8>>,
    /// What it is reached by, instead of the proxy that the environment names.
    pub proxy: Option<Proxy>,
}

/// What to sign in with.
#[derive(Clone)]
pub enum ObjectKeys {
    /// An access key of S3 with its secret; at Azure the storage account and its key.
    Pair {
        /// The access key, or the storage account.
        access: String,
        /// Its secret.
        secret: SecretString,
        /// What a temporary access key comes with.
        session_token: Option<SecretString>,
    },
    /// The JSON of a service account of Google's.
    ServiceAccount(SecretString),
}

impl fmt::Debug for ObjectKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ObjectKeys")
    }
}

/// A store that takes objects in parts.
pub(super) trait Store: ObjectStore + MultipartStore {}

impl<S: ObjectStore + MultipartStore> Store for S {}

/// A client for the store that has `location`.
pub(super) fn connect(
    location: &ObjectLocation,
    access: &ObjectAccess,
) -> Result<Arc<dyn Store>, StorageError> {
    let refused = |error: object_store::Error| refusal::told("reach", location, &error);
    let invalid = |problem: String| refusal::unusable(location, problem);
    if let Some(endpoint) = &access.endpoint {
        let url = Url::parse(endpoint)
            .map_err(|error| invalid(format!("its endpoint {endpoint:?} is no URL: {error}")))?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err(invalid(format!(
                "its endpoint {endpoint:?} does not begin with https:// or http://"
            )));
        }
    }
    let connector = Connector::new(access).map_err(invalid)?;
    let options = |endpoint: Option<String>| {
        let is_plain = endpoint.is_some_and(|endpoint| endpoint.to_ascii_lowercase().starts_with("http://"));
        ClientOptions::new().with_allow_http(is_plain).with_connect_timeout(CONNECT)
    };
    Ok(match location.provider {
        Provider::S3 => {
            let mut builder = match &access.keys {
                None => AmazonS3Builder::from_env(),
                Some(ObjectKeys::Pair { access, secret, session_token }) => {
                    let builder = AmazonS3Builder::new()
                        .with_access_key_id(access)
                        .with_secret_access_key(secret.expose_secret());
                    match session_token {
                        Some(token) => builder.with_token(token.expose_secret()),
                        None => builder,
                    }
                }
                Some(ObjectKeys::ServiceAccount(_)) => return Err(invalid(WRONG_KEYS.to_owned())),
            };
            if let Some(endpoint) = &access.endpoint {
                builder = builder.with_config(AmazonS3ConfigKey::S3Endpoint, endpoint);
            }
            if let Some(region) = &access.region {
                builder = builder.with_region(region);
            }
            let endpoint = [AmazonS3ConfigKey::S3Endpoint, AmazonS3ConfigKey::Endpoint];
            let endpoint = endpoint.iter().find_map(|key| builder.get_config_value(key));
            let builder = builder
                .with_bucket_name(&location.bucket)
                .with_client_options(options(endpoint))
                .with_retry(once())
                .with_http_connector(connector);
            Arc::new(builder.build().map_err(refused)?)
        }
        Provider::Azure => {
            let mut builder = match &access.keys {
                None => MicrosoftAzureBuilder::from_env(),
                Some(ObjectKeys::Pair { access, secret, .. }) => {
                    MicrosoftAzureBuilder::new().with_account(access).with_access_key(secret.expose_secret())
                }
                Some(ObjectKeys::ServiceAccount(_)) => return Err(invalid(WRONG_KEYS.to_owned())),
            };
            if let Some(account) = location.account.clone().or_else(|| account_of(access.endpoint.as_deref()))
            {
                builder = builder.with_account(account);
            }
            if let Some(endpoint) = &access.endpoint {
                builder = builder.with_endpoint(endpoint.clone());
            }
            let endpoint = builder.get_config_value(&AzureConfigKey::Endpoint);
            let builder = builder
                .with_container_name(&location.bucket)
                .with_client_options(options(endpoint))
                .with_retry(once())
                .with_http_connector(connector);
            Arc::new(builder.build().map_err(refused)?)
        }
        Provider::Gcs => {
            let mut builder = match &access.keys {
                None => GoogleCloudStorageBuilder::from_env(),
                Some(ObjectKeys::ServiceAccount(json)) => {
                    GoogleCloudStorageBuilder::new().with_service_account_key(json.expose_secret())
                }
                Some(ObjectKeys::Pair { .. }) => return Err(invalid(WRONG_KEYS.to_owned())),
            };
            if let Some(endpoint) = &access.endpoint {
                builder = builder.with_base_url(endpoint);
            }
            let builder = builder
                .with_bucket_name(&location.bucket)
                .with_client_options(options(access.endpoint.clone()))
                .with_retry(once())
                .with_http_connector(connector);
            Arc::new(builder.build().map_err(refused)?)
        }
    })
}

const WRONG_KEYS: &str = "its credentials are those of another provider";

/// The storage account of `https://account.blob.core.windows.net`.
fn account_of(endpoint: Option<&str>) -> Option<String> {
    let host = Url::parse(endpoint?).ok()?.host_str()?.to_owned();
    let (account, domain) = host.split_once('.')?;
    domain.contains("core.").then(|| account.to_owned())
}

/// How often is tried, and for how long, is [`super::bucket`]'s affair: it signs each try anew.
fn once() -> RetryConfig {
    RetryConfig { max_retries: 0, retry_timeout: Duration::ZERO, backoff: BackoffConfig::default() }
}

/// Makes clients that follow no redirect: a credential stays where it was sent.
#[derive(Debug)]
struct Connector {
    authorities: Vec<reqwest::Certificate>,
    proxy: Option<reqwest::Proxy>,
}

impl Connector {
    fn new(access: &ObjectAccess) -> Result<Self, String> {
        let authorities = match &access.ca_pem {
            None => Vec::new(),
            Some(pem) => match reqwest::Certificate::from_pem_bundle(pem) {
                Ok(found) if !found.is_empty() => found,
                Ok(_) => return Err("the authority's certificate, ca.crt, holds none".to_owned()),
                Err(error) => {
                    return Err(format!("the authority's certificate, ca.crt, cannot be read: {error}"));
                }
            },
        };
        let proxy = access.proxy.as_ref().map(Proxy::for_client).transpose();
        let proxy = proxy.map_err(|error| format!("its proxy cannot be used: {error}"))?;
        Ok(Self { authorities, proxy })
    }
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let is_plain = options.get_config_value(&ClientConfigKey::AllowHttp).as_deref() == Some("true");
        let client = reqwest::Client::builder()
            .user_agent(concat!("charon/", env!("CARGO_PKG_VERSION")))
            .redirect(Policy::none())
            .https_only(!is_plain)
            .http1_only()
            .connect_timeout(CONNECT)
            .read_timeout(IDLE)
            .tls_certs_merge(self.authorities.clone());
        let client = match &self.proxy {
            Some(proxy) => client.proxy(proxy.clone()),
            None => client,
        };
        let client = client
            .build()
            .map_err(|error| object_store::Error::Generic { store: "HTTP", source: Box::new(error) })?;
        Ok(HttpClient::new(client))
    }
}
