//! `PayloadBuild`: images of registries, wanted as one payload.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::shared::{Claim, ObjectStore, RegistryAccess, SecretRef};
use super::status::Status;
use super::worker::Worker;

/// The payload that is wanted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "charon.dev",
    version = "v1alpha1",
    kind = "PayloadBuild",
    plural = "payloadbuilds",
    shortname = "pbuild",
    category = "charon",
    namespaced,
    status = "Status",
    derive = "PartialEq",
    doc = "PayloadBuild declares a payload: one zip that holds container images, to be carried over an air gap.",
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
    printcolumn(name = "Size", type_ = "integer", json_path = ".status.payload.sizeBytes", priority = 1),
    printcolumn(name = "Digest", type_ = "string", json_path = ".status.payload.digest", priority = 1),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].message"#,
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.images) || has(self.imagesFrom)")
        .message("spec must have images, imagesFrom, or both")
)]
pub struct PayloadBuildSpec {
    /// The images to carry. They, imagesFrom, or both must be there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 1000))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["image".into()]))]
    pub images: Vec<BuildImage>,
    /// More images to carry, for long lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images_from: Option<ImagesFrom>,
    /// The platforms that are carried of each image, such as linux/amd64. Absent: all that it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 64)))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = Rule::new("self.all(name, name.matches('^[a-z0-9._-]+/[a-z0-9._-]+(/[a-z0-9._-]+)?$'))")
            .message("platforms must be os/architecture or os/architecture/variant, such as linux/amd64 or linux/arm/v7")
    )]
    pub platforms: Option<Vec<String>>,
    /// What the far side has already: its blobs are left out of the payload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub already_transferred: Option<AlreadyTransferred>,
    /// Whether layers that may not be distributed are fetched from where their manifests say, if the registry
    /// does not have them: by HTTPS, from the public internet alone. Absent: false, and their images fail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub foreign_layers: Option<bool>,
    /// Whether images that cannot be had are left out, and told in status.failures, instead of failing the
    /// build. A registry that does not answer still fails it, and so does having none of the images. Absent: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_missing: Option<bool>,
    /// Whether the images' signatures, attestations and SBOMs are carried with them. Absent: true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub referrers: Option<bool>,
    /// Where the payload is written.
    pub output: Output,
    /// How registries are reached, by host. A registry that is not listed is reached by HTTPS, anonymously.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["host".into()]))]
    pub registries: Option<Vec<RegistryAccess>>,
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

/// Where a list of images is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImagesFrom {
    /// A key of a ConfigMap that holds one image a line, as docker pull takes it; empty lines and those that begin
    /// with # are skipped. It is read when a worker of the run begins; a change of it asks for no run.
    pub config_map_key_ref: ConfigMapKeyRef,
}

/// A key of a ConfigMap of the resource's namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigMapKeyRef {
    /// The ConfigMap's name.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(
        validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')")
            .message("name must be the name of a ConfigMap: lowercase letters, digits, '-' and '.'")
    )]
    pub name: String,
    /// The key.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(
        validation = Rule::new("self.matches('^[-._a-zA-Z0-9]+$')")
            .message("key must be a key of a ConfigMap: letters, digits, '-', '_' and '.'")
    )]
    pub key: String,
}

/// One image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct BuildImage {
    /// Its name with a tag or a digest, as docker pull takes it. A tag is resolved once per run.
    #[schemars(length(min = 1, max = 530))]
    #[x_kube(
        validation = Rule::new("!self.contains('://')").message("image must be a name without a scheme, such as docker.io/library/python:3.9"),
        validation = Rule::new("!self.matches('[[:space:]]')").message("image must not contain spaces")
    )]
    pub image: String,
    /// Another name at the far side, such as base/python:3.9. Without a tag it keeps the image's.
    #[serde(rename = "as", default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 384))]
    #[x_kube(
        validation = Rule::new("self.matches('^[a-z0-9]+(([.]|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+(([.]|_|__|-+)[a-z0-9]+)*)*(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?$')")
            .message("as must be a repository and perhaps a tag, such as base/python:3.9, without a host and without a digest")
    )]
    pub far_name: Option<String>,
    /// The platforms that are carried of this image, instead of spec.platforms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 64)))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = Rule::new("self.all(name, name.matches('^[a-z0-9._-]+/[a-z0-9._-]+(/[a-z0-9._-]+)?$'))")
            .message("an image's platforms must be os/architecture or os/architecture/variant, such as linux/amd64 or linux/arm/v7")
    )]
    pub platforms: Option<Vec<String>>,
}

/// What the far side has already.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AlreadyTransferred {
    /// Images of earlier payloads, read from their registries to learn their blobs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1000), inner(length(min = 1, max = 530)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub images: Option<Vec<String>>,
    /// Earlier payloads, by the PayloadBuilds of this namespace that made them, into the same claim or the same bucket. Their
    /// bills are read, not their blobs: the zip may have left, if `<path>.bill.json` is there. Until all are Ready the build waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub payloads: Option<Vec<BuildRef>>,
}

/// A PayloadBuild of the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct BuildRef {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(
        validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')")
            .message("name must be the name of a PayloadBuild: lowercase letters, digits, '-' and '.'")
    )]
    pub name: String,
}

/// Where a payload is written: exactly one kind of place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.persistentVolumeClaim) != has(self.objectStore)")
        .message("output must have exactly one kind of place: persistentVolumeClaim or objectStore"),
    validation = Rule::new("has(self.persistentVolumeClaim) == has(oldSelf.persistentVolumeClaim)")
        .message("the kind of output cannot be changed; make another PayloadBuild")
)]
pub struct Output {
    /// A file in a volume. The payload appears under this name when it is whole, not before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<Claim>,
    /// An object of a store. It is there when it is whole, not before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object_store: Option<ObjectStore>,
    /// Whether the sha256 of the whole file is told, in status.payload.fileDigest and, as sha256sum checks it, in
    /// `<path>.sha256`: the payload is read once more. Absent: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_digest: Option<bool>,
}
