//! `PayloadImport`: a payload, wanted in a registry.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::schema;
use super::shared::{Claim, ObjectStore, SecretRef};
use super::status::Status;
use super::worker::Worker;
use crate::platform::SparseIndex;
use crate::reference::{Naming, TagPolicy};

/// The import that is wanted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "charon.dev",
    version = "v1alpha1",
    kind = "PayloadImport",
    plural = "payloadimports",
    shortname = "pimport",
    category = "charon",
    namespaced,
    status = "Status",
    derive = "PartialEq",
    doc = "PayloadImport declares that the images of a payload are in a registry. It may be applied before the payload has arrived: the import waits for it.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#
    ),
    printcolumn(
        name = "Status",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].reason"#
    ),
    printcolumn(
        name = "Progress",
        type_ = "integer",
        json_path = ".status.progress.percent",
        description = "Percent of the bytes to move"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Registry", type_ = "string", json_path = ".spec.registry.host", priority = 1),
    printcolumn(name = "Digest", type_ = "string", json_path = ".status.payload.digest", priority = 1),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].message"#,
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
pub struct PayloadImportSpec {
    /// Where the payload lies.
    pub source: Source,
    /// The digest that the payload must have, as the PayloadBuild's status.payload.digest tells it.
    /// It is checked before anything is pushed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    #[x_kube(
        validation = Rule::new("self.matches('^sha256:[0-9a-f]{64}$')")
            .message("expectedDigest must be a payload digest: sha256: and 64 lowercase hexadecimal digits")
    )]
    pub expected_digest: Option<String>,
    /// The registry that the images go to.
    pub registry: TargetRegistry,
    /// Push nothing unless everything can be pushed. Absent: false, and images that are whole are pushed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strict: Option<bool>,
    /// What becomes of a tag that the registry has already, for something else, when the import begins: it points to
    /// the payload's image afterwards (`Overwrite`), it stays and the image is not pushed (`KeepExisting`), or it
    /// stays and the image fails (`Fail`). Absent: `Overwrite`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::tag_policy")]
    pub tag_policy: Option<TagPolicy>,
    /// A Secret of a proxy that registries and the object store are reached by: address, such as
    /// <http://proxy.corp:3128>, and perhaps username, password and noProxy, a list of hosts that are reached
    /// without it. Absent: no proxy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_secret_ref: Option<SecretRef>,
    /// The pod that does the work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<Worker>,
    /// How many times a pod may fail before the run stalls. Absent: 6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub backoff_limit: Option<i32>,
    /// How long a run may take in all, retries and waiting included, such as 72h or 90m. Absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(
        validation = Rule::new("self.matches('^([0-9]{1,6}(h|m|s))+$')")
            .message("timeout must be a duration of hours, minutes and seconds, such as 72h or 1h30m"),
        validation = Rule::new("!self.matches('^(0+(h|m|s))+$')").message("timeout must be longer than nothing")
    )]
    pub timeout: Option<String>,
    /// How many seconds a finished Job, and with it the log of its pod, stays. Absent: 86400, a day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 60, max = 2_147_483_647))]
    pub ttl_seconds_after_finished: Option<i32>,
    /// Stops a running worker and starts no new one; the run goes on when this is false again. What is
    /// done already stays done. Absent: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspend: Option<bool>,
    /// Any text; a change asks for a new run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub trigger: Option<String>,
}

/// Where a payload lies: exactly one kind of place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.persistentVolumeClaim) != has(self.objectStore)")
        .message("source must have exactly one kind of place: persistentVolumeClaim or objectStore"),
    validation = Rule::new("has(self.persistentVolumeClaim) == has(oldSelf.persistentVolumeClaim)")
        .message("the kind of source cannot be changed; make another PayloadImport")
)]
pub struct Source {
    /// A file in a volume, which is only read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<Claim>,
    /// An object of a store, which is only read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object_store: Option<ObjectStore>,
}

/// The registry that an import fills, and how it is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TargetRegistry {
    /// host or host:port.
    #[schemars(length(min = 1, max = 255))]
    #[x_kube(
        validation = Rule::new("self.matches('^([A-Za-z0-9._-]+|\\\\[[0-9a-fA-F:.]+\\\\])(:[0-9]{1,5})?$')")
            .message("host must be host or host:port, without a scheme and without a path")
    )]
    pub host: String,
    /// Goes in front of every repository, joined by one slash: mirror makes mirror/python of python.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 200))]
    #[x_kube(
        validation = Rule::new("self.matches('^[a-z0-9]+(([.]|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+(([.]|_|__|-+)[a-z0-9]+)*)*/?$')")
            .message("repositoryPrefix must be the beginning of a repository's name: lowercase letters, digits and single separators, in parts between slashes")
    )]
    pub repository_prefix: Option<String>,
    /// How images are called there, unless the payload has a name of their own for them: "as written" in
    /// the build, without the host (`AsWritten`), with Docker Hub's library/ spelled out (`Canonical`), or
    /// host included, such as docker.io/library/python (`WithHost`). Absent: `AsWritten`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::naming")]
    pub naming: Option<Naming>,
    /// Repositories of this registry, prefix included, that are looked through, too, for what the payload
    /// leaves out as already transferred.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 255)))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = Rule::new("self.all(name, name.matches('^[a-z0-9]+(([.]|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+(([.]|_|__|-+)[a-z0-9]+)*)*$'))")
            .message("baseRepositories must be names of repositories, without a host and without a tag")
    )]
    pub base_repositories: Option<Vec<String>>,
    /// Whether an image that was named by its digest alone gets a tag, charon-<32 digits of it>: registries
    /// collect what has none. Absent: true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag_digests: Option<bool>,
    /// What becomes of an index that the registry refuses because images of other platforms were left out of
    /// the payload: it keeps its digest and its image fails (`Keep`), or it is written anew without them, and
    /// its digest changes (`Rewrite`). Absent: `Keep`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::sparse_index")]
    pub sparse_index: Option<SparseIndex>,
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
