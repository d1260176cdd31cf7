//! What both kinds of resources have in their specs.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::schema;
use crate::object_location::Provider;

/// A file in a persistent volume claim.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    /// The claim's name, in the namespace of the resource. It need not be bound yet.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(
        validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')")
            .message("claimName must be the name of a PersistentVolumeClaim: lowercase letters, digits, '-' and '.'")
    )]
    pub claim_name: String,
    /// The file's path in the volume, relative to its root; the payload's name ends in .zip by custom.
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(
        validation = Rule::new("!self.startsWith('/')")
            .message("path must be relative to the root of the volume: it begins without '/'"),
        validation = Rule::new("!self.endsWith('/')")
            .message("path must name a file, not a directory: it ends without '/'"),
        validation = Rule::new("!self.matches('(^|/)[.][.]?(/|$)')")
            .message("path must not have '.' or '..' as a part"),
        validation = Rule::new("!self.contains('//')").message("path must not have an empty part ('//')"),
        validation = Rule::new("!self.matches('[\\\\x00-\\\\x1f\\\\x7f]')")
            .message("path must not have control characters")
    )]
    pub path: String,
}

/// An object of a store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ObjectStore {
    /// Whose protocol the store speaks: `S3`, which many stores do, `Azure` or `GCS`. Absent: `S3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::provider")]
    pub provider: Option<Provider>,
    /// The store's URL, where it is not the provider's own; http:// makes it plain HTTP. At Azure it is the
    /// account's, such as <https://account.blob.core.windows.net>.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(
        validation = Rule::new("self.matches('^https?://[A-Za-z0-9._:-]+(/[A-Za-z0-9._~/-]*)?$') || self.matches('^https?://\\\\[[0-9a-fA-F:.]+\\\\](:[0-9]{1,5})?/?$')")
            .message("endpoint must be a URL that begins with https:// or http://, without a user and without a query")
    )]
    pub endpoint: Option<String>,
    /// The bucket, which must exist; at Azure the container.
    #[schemars(length(min = 1, max = 222))]
    #[x_kube(
        validation = Rule::new("self.matches('^[A-Za-z0-9$][A-Za-z0-9._-]*$')")
            .message("bucket must be the name of a bucket: letters, digits, '.', '_' and '-'")
    )]
    pub bucket: String,
    /// The object's key; the payload's name ends in .zip by custom.
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(
        validation = Rule::new("!self.startsWith('/') && !self.endsWith('/') && !self.contains('//')")
            .message("key must not begin or end with '/', and must not have an empty part ('//')"),
        validation = Rule::new("!self.matches('(^|/)[.][.]?(/|$)')")
            .message("key must not have '.' or '..' as a part"),
        validation = Rule::new("!self.matches('[\\\\x00-\\\\x1f\\\\x7f]')")
            .message("key must not have control characters")
    )]
    pub key: String,
    /// The bucket's region. Absent: us-east-1, which stores of one's own mostly call themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(
        validation = Rule::new("self.matches('^[A-Za-z0-9-]+$')")
            .message("region must be letters, digits and '-'")
    )]
    pub region: Option<String>,
    /// A Secret with accesskey and secretkey, and sessiontoken where the key is a temporary one. At Azure they are the
    /// storage account and its key; GCS has serviceaccount, the JSON of one. Absent: the pod's cloud identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,
    /// A Secret with ca.crt, which is trusted beside the system's roots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert_secret_ref: Option<SecretRef>,
}

/// A Secret of the resource's namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// The Secret's name.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(
        validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')")
            .message("name must be the name of a Secret: lowercase letters, digits, '-' and '.'")
    )]
    pub name: String,
}

/// How one registry is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RegistryAccess {
    /// The registry as image names spell it, host or host:port; Docker Hub is docker.io.
    #[schemars(length(min = 1, max = 255))]
    #[x_kube(
        validation = Rule::new("self.matches('^([A-Za-z0-9._-]+|\\\\[[0-9a-fA-F:.]+\\\\])(:[0-9]{1,5})?$')")
            .message("host must be host or host:port, without a scheme and without a path")
    )]
    pub host: String,
    /// Where the registry is reached instead: a mirror, host or host:port, perhaps with a path, which goes in
    /// front of every repository, such as mirror.corp/dockerhub. Credentials are those of the mirror's own host
    /// in the Secret. Absent: at its own host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(
        validation = Rule::new("self.matches('^([A-Za-z0-9._-]+|\\\\[[0-9a-fA-F:.]+\\\\])(:[0-9]{1,5})?(/[a-z0-9]+(([.]|_|__|-+)[a-z0-9]+)*)*/?$')")
            .message("endpoint must be host or host:port, perhaps with a path, without a scheme")
    )]
    pub endpoint: Option<String>,
    /// A Secret of type kubernetes.io/dockerconfigjson with the registry's credentials. Absent: anonymous.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,
    /// A Secret with ca.crt (trusted beside the system's roots), or tls.crt and tls.key (a client
    /// certificate), or all three.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert_secret_ref: Option<SecretRef>,
    /// Plain HTTP instead of HTTPS. Absent: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub insecure: Option<bool>,
}
