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
    pub endpoint: Option<Url>,
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
    /// Those of S3, and of all that is compatible with it.
    S3 {
        /// The access key.
        access: String,
        /// Its secret.
        secret: SecretString,
        /// What a temporary access key comes with.
        session_token: Option<SecretString>,
    },
    /// Those of Azure.
    Azure {
        /// The storage account.
        account: String,
        /// Its key.
        key: SecretString,
    },
    /// Those of Google: the JSON of a service account.
    Gcs(SecretString),
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
    if let Some(endpoint) = &access.endpoint
        && !(matches!(endpoint.scheme(), "http" | "https") && endpoint.has_host())
    {
        let problem = format!("its endpoint \"{endpoint}\" does not begin with https:// or http://");
        return Err(refusal::unusable(location, problem));
    }
    let refused = |error: object_store::Error| refusal::told("reach", location, &error);
    Ok(match location.provider {
        Provider::S3 => Arc::new(s3(location, access)?.build().map_err(refused)?),
        Provider::Azure => Arc::new(azure(location, access)?.build().map_err(refused)?),
        Provider::Gcs => Arc::new(gcs(location, access)?.build().map_err(refused)?),
    })
}

fn s3(location: &ObjectLocation, access: &ObjectAccess) -> Result<AmazonS3Builder, StorageError> {
    let mut builder = match &access.keys {
        None => AmazonS3Builder::from_env(),
        Some(ObjectKeys::S3 { access, secret, session_token }) => {
            let builder = AmazonS3Builder::new()
                .with_access_key_id(access)
                .with_secret_access_key(secret.expose_secret());
            match session_token {
                Some(token) => builder.with_token(token.expose_secret()),
                None => builder,
            }
        }
        Some(_) => return Err(wrong_keys(location)),
    };
    if let Some(endpoint) = access.endpoint() {
        builder = builder.with_config(AmazonS3ConfigKey::S3Endpoint, endpoint);
    }
    if let Some(region) = &access.region {
        builder = builder.with_region(region);
    }
    let endpoint = [AmazonS3ConfigKey::S3Endpoint, AmazonS3ConfigKey::Endpoint];
    let endpoint = endpoint.iter().find_map(|key| builder.get_config_value(key));
    Ok(builder
        .with_bucket_name(&location.bucket)
        .with_client_options(options(endpoint.as_deref()))
        .with_retry(once())
        .with_http_connector(Connector::new(location, access)?))
}

fn azure(location: &ObjectLocation, access: &ObjectAccess) -> Result<MicrosoftAzureBuilder, StorageError> {
    let mut builder = match &access.keys {
        None => MicrosoftAzureBuilder::from_env(),
        Some(ObjectKeys::Azure { account, key }) => {
            MicrosoftAzureBuilder::new().with_account(account).with_access_key(key.expose_secret())
        }
        Some(_) => return Err(wrong_keys(location)),
    };
    let account = location.account.clone().or_else(|| account_of(access.endpoint.as_ref()));
    if let Some(account) = account {
        builder = builder.with_account(account);
    }
    if let Some(endpoint) = access.endpoint() {
        builder = builder.with_endpoint(endpoint);
    }
    let endpoint = builder.get_config_value(&AzureConfigKey::Endpoint);
    Ok(builder
        .with_container_name(&location.bucket)
        .with_client_options(options(endpoint.as_deref()))
        .with_retry(once())
        .with_http_connector(Connector::new(location, access)?))
}

fn gcs(location: &ObjectLocation, access: &ObjectAccess) -> Result<GoogleCloudStorageBuilder, StorageError> {
    let mut builder = match &access.keys {
        None => GoogleCloudStorageBuilder::from_env(),
        Some(ObjectKeys::Gcs(json)) => {
            GoogleCloudStorageBuilder::new().with_service_account_key(json.expose_secret())
        }
        Some(_) => return Err(wrong_keys(location)),
    };
    let endpoint = access.endpoint();
    if let Some(endpoint) = &endpoint {
        builder = builder.with_base_url(endpoint);
    }
    Ok(builder
        .with_bucket_name(&location.bucket)
        .with_client_options(options(endpoint.as_deref()))
        .with_retry(once())
        .with_http_connector(Connector::new(location, access)?))
}

impl ObjectAccess {
    /// The endpoint as paths are put behind it.
    fn endpoint(&self) -> Option<String> {
        Some(self.endpoint.as_ref()?.as_str().trim_end_matches('/').to_owned())
    }
}

fn options(endpoint: Option<&str>) -> ClientOptions {
    let is_plain = endpoint.is_some_and(|endpoint| endpoint.to_ascii_lowercase().starts_with("http://"));
    ClientOptions::new().with_allow_http(is_plain).with_connect_timeout(CONNECT)
}

fn wrong_keys(location: &ObjectLocation) -> StorageError {
    refusal::unusable(location, "its credentials are those of another provider".to_owned())
}

/// The storage account of `https://account.blob.core.windows.net`.
fn account_of(endpoint: Option<&Url>) -> Option<String> {
    let (account, domain) = endpoint?.host_str()?.split_once('.')?;
    domain.contains("core.").then(|| account.to_owned())
}

/// How often is tried, and for how long, is [`super::bucket`]'s affair: it signs each try anew.
fn once() -> RetryConfig {
    RetryConfig { max_retries: 0, retry_timeout: Duration::ZERO, backoff: BackoffConfig::default() }
}

/// Makes clients that follow no redirect: a credential stays where it was sent.
struct Connector {
    authorities: Vec<reqwest::Certificate>,
    proxy: Option<reqwest::Proxy>,
}

impl Connector {
    fn new(location: &ObjectLocation, access: &ObjectAccess) -> Result<Self, StorageError> {
        let refused = |why: &str| {
            let problem = format!("the authority's certificate, ca.crt, {why}");
            Err(refusal::unusable(location, problem))
        };
        let authorities = match &access.ca_pem {
            None => Vec::new(),
            Some(pem) => match reqwest::Certificate::from_pem_bundle(pem) {
                Ok(found) if !found.is_empty() => found,
                Ok(_) => return refused("holds none"),
                Err(error) => return refused(&format!("cannot be read: {error}")),
            },
        };
        let proxy = access.proxy.as_ref().map(Proxy::for_client).transpose();
        let unusable = |error| refusal::unusable(location, format!("its proxy cannot be used: {error}"));
        let proxy = proxy.map_err(unusable)?;
        Ok(Self { authorities, proxy })
    }
}

/// A proxy has its password with it.
impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connector")
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

#[cfg(test)]
mod tests;
