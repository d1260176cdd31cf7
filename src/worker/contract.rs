//! The contract between controller and worker: what goes in, what comes out.
//!
//! The run configuration goes in as an annotation of the pod, mounted as a file; the outcome comes
//! out as the container's termination message; progress is asked for over HTTP. All three are JSON.
//! Configuration and outcome carry a version, a progress report the nonce of its configuration. No
//! secret is ever in any of them.

use std::num::{NonZeroU32, NonZeroUsize};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::platform::Platform;
use crate::reason::Reason;

pub use crate::object_location::Provider;
pub use crate::platform::SparseIndex;
pub use crate::progress::{Plan, Stage};
pub use crate::reason::Failure;
pub use crate::reference::{Naming, TagPolicy};

/// The version of this contract. A worker refuses another one.
pub const CONTRACT_VERSION: u32 = 1;
/// The annotation of the pod template that holds the run configuration.
pub const RUN_ANNOTATION: &str = "charon.dev/run";
/// Where the downward API mounts the run configuration.
pub const RUN_CONFIG_PATH: &str = "/etc/charon/run.json";
/// Where the claim of the output or the source is mounted.
pub const PAYLOAD_MOUNT: &str = "/payload";
/// Each registry's credentials and certificates are mounted at `<this>/<index in registries>/`,
/// under the names `.dockerconfigjson`, `ca.crt`, `tls.crt` and `tls.key`.
pub const REGISTRY_SECRETS: &str = "/etc/charon/registries";
/// The credentials of the object store, and its authorities' `ca.crt`, are mounted here.
pub const OBJECT_STORE_SECRETS: &str = "/etc/charon/object-store";
/// The list of images is mounted here.
pub const IMAGES_LIST: &str = "/etc/charon/images/list";
/// The proxy's `address`, and perhaps `username`, `password` and `noProxy`, are mounted here.
pub const PROXY_SECRETS: &str = "/etc/charon/proxy";
/// The annotation of the pod that holds certificates of authorities for all registries and object stores, in PEM.
pub const CA_BUNDLE_ANNOTATION: &str = "charon.dev/ca-bundle";
/// Where [`CA_BUNDLE_ANNOTATION`] is mounted, if there is one.
pub const CA_BUNDLE: &str = "/etc/charon/ca-bundle.crt";
/// The port where the worker answers `GET /progress`.
pub const PROGRESS_PORT: u16 = 8080;
/// An outcome is never longer than this: Kubernetes cuts a termination message at 4096 bytes.
pub const OUTCOME_LIMIT: usize = 4000;
/// At most so many failures are in an outcome and a status; the worker's log has them all.
pub const FAILURES_LIMIT: usize = 5;
/// A failure's message is cut at this many bytes.
pub const FAILURE_MESSAGE_LIMIT: usize = 300;

/// What one attempt of a run is to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunConfig {
    /// [`CONTRACT_VERSION`] of the controller that wrote this.
    pub version: u32,
    /// The run's id.
    pub run_id: String,
    /// Comes back with every progress report: pod addresses are reused.
    pub nonce: String,
    /// What to do.
    #[serde(flatten)]
    pub work: Work,
    /// How registries are reached; an import's first one is its target.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub registries: Vec<RegistryAccess>,
    /// The proxy that registries and the object store are reached by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<ProxyAccess>,
    /// How the registries are treated.
    #[serde(default, skip_serializing_if = "TrafficLimits::are_none")]
    pub traffic: TrafficLimits,
}

/// How registries are treated, where that is to be otherwise than by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficLimits {
    /// So many blobs move at once, and no more requests are under way at one registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parallel: Option<NonZeroUsize>,
    /// No registry is asked more often.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_second: Option<NonZeroU32>,
    /// For so long registries that fail are waited for, in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_for_seconds: Option<u64>,
}

impl TrafficLimits {
    fn are_none(&self) -> bool {
        *self == Self::default()
    }
}

/// A proxy, by what the worker is told of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum ProxyAccess {
    /// The Secret that was named: its `address` must be mounted.
    Secret(String),
    /// One for all, which asks for no password.
    Open {
        /// Its URL.
        address: String,
        /// The hosts that are reached without it, as in the variable `NO_PROXY`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        no_proxy: Option<String>,
    },
}

/// The two kinds of work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Work {
    /// Registries to payload.
    Build(BuildWork),
    /// Payload to registry.
    Import(ImportWork),
}

/// A payload to write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(clippy::struct_excessive_bools)] // each is a choice of its own
pub struct BuildWork {
    /// The images, as written in the spec.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<Image>,
    /// A list of more images, mounted at [`IMAGES_LIST`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images_from: Option<ImageList>,
    /// Images that the far side has, as written in the spec.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub already_transferred: Vec<String>,
    /// Earlier payloads: what they carry or required, the far side has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bases: Vec<BasePayload>,
    /// Layers that may not be distributed are fetched from where their manifests say, if need be.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub foreign_layers: bool,
    /// Images that cannot be had are left out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_missing: bool,
    /// Whether signatures, attestations and SBOMs are carried with the images.
    #[serde(default = "yes")]
    pub referrers: bool,
    /// The payload's path below [`PAYLOAD_MOUNT`], unless it goes into an object.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// The object that the payload goes into, if it is not a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object_store: Option<ObjectStore>,
    /// Whether the sha256 of the whole file is told.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub file_digest: bool,
}

/// An object of a store, and how that is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ObjectStore {
    /// Whose protocol the store speaks.
    #[serde(default)]
    pub provider: Provider,
    /// The bucket; at Azure the container.
    pub bucket: String,
    /// The object's key.
    pub key: String,
    /// The store's URL, where it is not the provider's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The bucket's region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// A Secret with credentials was named, and its keys must be mounted; else the pod's cloud identity counts.
    #[serde(default)]
    pub credentials: bool,
    /// A Secret with certificates was named: `ca.crt` must be mounted.
    #[serde(default)]
    pub certificates: bool,
}

/// An earlier payload, as the status of its `PayloadBuild` told of it when the attempt began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BasePayload {
    /// The name of the `PayloadBuild`.
    pub name: String,
    /// The payload's path below [`PAYLOAD_MOUNT`], or its key, where this build goes into an object: in the same bucket.
    pub path: String,
    /// The payload digest that it, or the bill that stayed behind of it, must have.
    pub digest: Digest,
}

/// A list of images, one a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImageList {
    /// The `ConfigMap` that it is in.
    pub config_map: String,
    /// The key there.
    pub key: String,
    /// The platforms that are carried of each of its images; none: all that it has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub platforms: Vec<Platform>,
}

/// An image to carry, as written in the spec.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// Its name.
    pub name: String,
    /// Its own name at the far side.
    #[serde(rename = "as", default, skip_serializing_if = "Option::is_none")]
    pub far_name: Option<String>,
    /// The platforms that are carried of it; none: all that it has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub platforms: Vec<Platform>,
}

impl From<&str> for Image {
    fn from(name: &str) -> Self {
        Self { name: name.to_owned(), far_name: None, platforms: Vec::new() }
    }
}

/// A payload to push.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImportWork {
    /// The payload's path below [`PAYLOAD_MOUNT`], unless it is read from an object.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// The object that the payload is read from, if it is not a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object_store: Option<ObjectStore>,
    /// The payload digest that the file must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_digest: Option<Digest>,
    /// The target, `host[:port]`.
    pub registry: String,
    /// Goes in front of every repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository_prefix: Option<String>,
    /// How images are called there.
    #[serde(default)]
    pub naming: Naming,
    /// Repositories that are looked through, too, for what the payload leaves out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub base_repositories: Vec<String>,
    /// Whether an image that was named by its digest alone gets a tag.
    #[serde(default = "yes")]
    pub tag_digests: bool,
    /// What becomes of an index that the registry refuses because images of it were left out.
    #[serde(default)]
    pub sparse_index: SparseIndex,
    /// Push nothing unless everything can be pushed.
    #[serde(default)]
    pub strict: bool,
    /// What becomes of tags that are there already and point to something else.
    #[serde(default)]
    pub tag_policy: TagPolicy,
}

fn yes() -> bool {
    true
}

/// How one registry is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RegistryAccess {
    /// `host[:port]`.
    pub host: String,
    /// Where it is reached instead: `host[:port][/path]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Plain HTTP.
    #[serde(default)]
    pub insecure: bool,
    /// The Secret with certificates, if one was named: `ca.crt`, or `tls.crt` and `tls.key`, must be
    /// mounted. Kubernetes cannot demand one of several keys, so that a Secret without any of them, or
    /// none at all, is `SecretNotFound` by the worker's word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificates: Option<String>,
}

/// How an attempt ended: the termination message of the worker's container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// [`CONTRACT_VERSION`] of the worker.
    pub version: u32,
    /// The run's id, as the run configuration gave it.
    pub run_id: String,
    /// The sha256 of the run configuration's bytes as the worker read them, in hexadecimal.
    pub input_digest: String,
    /// `Succeeded`, `AlreadyPresent`, or why not.
    pub reason: Reason,
    /// One sentence: the object, what happened, the next step.
    pub message: String,
    /// The payload that was written or read, once it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<PayloadSummary>,
    /// What an import did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<ImportResult>,
    /// At most [`FAILURES_LIMIT`] of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<Failure>,
    /// How many there were.
    #[serde(default)]
    pub failures_total: u32,
    /// For so many seconds a registry asked to be left alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<u32>,
}

/// A payload in a few numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PayloadSummary {
    /// The payload digest: the sha256 of the bill's bytes. docker-charon's payloads have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// The sha256 of the whole file, where it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_digest: Option<Digest>,
    /// The file's size.
    pub size_bytes: u64,
    /// The payload format's version.
    pub format_version: u32,
    /// How many images it names.
    pub images: u32,
    /// How many blobs it carries.
    pub blobs: u32,
    /// How many blobs it leaves out because the far side has them.
    pub blobs_reused: u32,
}

/// What an import moved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImportResult {
    /// Images that are whole at the far side.
    pub images: u32,
    /// Images that are not.
    pub images_failed: u32,
    /// Images whose tags were kept as they were.
    #[serde(default)]
    pub images_kept: u32,
    /// Blobs that were uploaded.
    pub blobs_pushed: u32,
    /// Blobs that were mounted from another repository.
    pub blobs_mounted: u32,
    /// Blobs that were there already.
    pub blobs_present: u32,
    /// Bytes of the blobs that were uploaded.
    pub bytes_pushed: u64,
    /// How many images have another digest there than in the payload.
    #[serde(default)]
    pub images_rewritten: u32,
    /// At most [`FAILURES_LIMIT`] of those.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rewritten: Vec<Rewritten>,
}

/// An image whose index was written anew, since the registry refused it without the images left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rewritten {
    /// The image, as whoever built the payload wrote it.
    pub image: String,
    /// The digest that it has at the far side.
    pub digest: Digest,
}

/// What a worker does at the moment: the answer to `GET /progress`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// The run's id.
    pub run_id: String,
    /// The run configuration's nonce.
    pub nonce: String,
    /// The stage of the work.
    pub stage: Stage,
    /// Bytes that have arrived.
    pub bytes_done: u64,
    /// Bytes to move in all; 0 while unknown.
    pub bytes_total: u64,
    /// Blobs that have arrived.
    pub blobs_done: u32,
    /// Blobs to move in all; 0 while unknown.
    pub blobs_total: u32,
    /// The last failure that was retried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// What is to be moved; absent while that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Plan>,
}

/// `text` cut to at most `limit` bytes, on a character.
#[must_use]
pub fn cut(text: &str, limit: usize) -> &str {
    let mut end = limit.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

impl Outcome {
    /// How an attempt ended, and nothing beside. What it was given is not known yet.
    #[must_use]
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            version: CONTRACT_VERSION,
            run_id: String::new(),
            input_digest: String::new(),
            reason,
            message: message.into(),
            payload: None,
            result: None,
            failures: Vec::new(),
            failures_total: 0,
            retry_after_seconds: None,
        }
    }

    /// The same with what went wrong, item by item.
    #[must_use]
    pub fn with_failures(self, failures: Vec<Failure>) -> Self {
        Self { failures_total: u32::try_from(failures.len()).unwrap_or(u32::MAX), failures, ..self }
    }

    /// The termination message: JSON of at most [`OUTCOME_LIMIT`] bytes, for whose sake failures
    /// are dropped from the end of the list and messages are shortened.
    #[must_use]
    pub fn to_message(&self) -> String {
        let mut outcome = self.clone();
        outcome.failures.truncate(FAILURES_LIMIT);
        for failure in &mut outcome.failures {
            failure.item = cut(&failure.item, FAILURE_MESSAGE_LIMIT).to_owned();
            failure.message = cut(&failure.message, FAILURE_MESSAGE_LIMIT).to_owned();
        }
        outcome.message = cut(&outcome.message, 1024).to_owned();
        loop {
            let text = serde_json::to_string(&outcome).unwrap_or_default();
            if text.len() <= OUTCOME_LIMIT {
                return text;
            }
            // Only long names and escaping can make it longer than its parts: give up detail before truth.
            let rewritten = outcome.result.as_mut().and_then(|result| result.rewritten.pop());
            if rewritten.is_none() && outcome.failures.pop().is_none() {
                outcome.message = cut(&outcome.message, outcome.message.len() / 2).to_owned();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(message: &str, failures: usize) -> Outcome {
        let failure = Failure::new("\u{1}".repeat(1000), Reason::ImageNotFound, "ü\u{2}".repeat(1000));
        let outcome = Outcome::new(Reason::ImageNotFound, message).with_failures(vec![failure; failures]);
        Outcome { run_id: "r".into(), input_digest: "0".repeat(64), ..outcome }
    }

    #[test]
    fn an_outcome_fits_a_termination_message_whatever_is_in_it() {
        for failures in [0, 1, 5, 1000] {
            let text = outcome(&"\u{1}".repeat(5000), failures).to_message();
            assert!(text.len() <= OUTCOME_LIMIT, "{}", text.len());
            let read: Outcome = serde_json::from_str(&text).unwrap();
            assert_eq!(read.failures_total as usize, failures);
        }
    }

    #[test]
    fn a_run_configuration_comes_back_as_it_was_written() {
        let config = RunConfig {
            version: CONTRACT_VERSION,
            run_id: "abc".into(),
            nonce: "n".into(),
            work: Work::Build(BuildWork {
                images: vec!["python:3".into()],
                images_from: Some(ImageList {
                    config_map: "images".into(),
                    key: "list".into(),
                    platforms: vec![],
                }),
                already_transferred: vec![],
                bases: vec![],
                foreign_layers: false,
                allow_missing: false,
                referrers: true,
                path: "out/app.zip".into(),
                object_store: None,
                file_digest: true,
            }),
            registries: vec![RegistryAccess {
                host: "docker.io".into(),
                endpoint: None,
                insecure: false,
                certificates: None,
            }],
            proxy: Some(ProxyAccess::Secret("proxy".into())),
            traffic: TrafficLimits {
                parallel: NonZeroUsize::new(2),
                requests_per_second: NonZeroU32::new(10),
                retry_for_seconds: Some(7200),
            },
        };
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<RunConfig>(&text).unwrap(), config);
    }
}
