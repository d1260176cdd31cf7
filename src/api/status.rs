//! What Charon tells about a resource. Both kinds share it; only an import has a result.

pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema;
use crate::progress::Stage;

/// What Charon knows about a resource. It is the ledger: a run that it calls complete is not run again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The last value of the annotation charon.dev/requestedAt that a run was made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub last_handled_reconcile_at: Option<String>,
    /// Ready is the summary; Reconciling and Stalled are present only while they are true.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
    /// The run of the present spec.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<Run>,
    /// How far the worker is, as it last said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// The last good payload: written by a build, or imported whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<Payload>,
    /// What the last import moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<ImportCounts>,
    /// What went wrong, item by item, at most 5; the worker's log has all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 5))]
    pub failures: Vec<ItemFailure>,
    /// How many items went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failures_total: Option<u32>,
}

/// One version of the wish, being made true.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    /// A hash of everything in the spec that changes what is made.
    #[schemars(length(max = 64))]
    pub id: String,
    /// Counts the Jobs of this resource; it is written here before the Job is created.
    pub attempt: u32,
    /// How many pods of this attempt have failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_failures: Option<u32>,
    /// How many attempts of this run were refused for their credentials: two are the most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authentication_failures: Option<u32>,
    /// The Job of this attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_name: Option<String>,
    /// The worker's image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The sha256 of the run configuration that the worker was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_digest: Option<String>,
    /// When the run began; the timeout counts from here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::time")]
    pub start_time: Option<Time>,
    /// When the run succeeded. Absent: it has not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::time")]
    pub completion_time: Option<Time>,
    /// Why a pod or an attempt of this run failed last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<LastFailure>,
    /// How this attempt ended without success. Absent while it may still succeed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<AttemptEnd>,
}

/// A failure of a pod or an attempt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastFailure {
    /// The cause.
    pub reason: String,
    /// The cause in one sentence.
    #[schemars(length(max = 1024))]
    pub message: String,
    /// When it was.
    #[schemars(schema_with = "schema::time")]
    pub time: Time,
    /// For so many seconds a registry asked to be left alone: there is no new attempt before, for six hours at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<u32>,
}

/// The end of an attempt that did not succeed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AttemptEnd {
    /// What ended it: the cause, or that the attempts or the time were spent.
    pub reason: String,
    /// The generation of the spec that it ran with. A newer one gets another attempt at once.
    pub generation: i64,
    /// When it was.
    #[schemars(schema_with = "schema::time")]
    pub time: Time,
}

/// How far a worker is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// The stage of the work.
    pub stage: Stage,
    /// Percent of the bytes to move. Absent while their sum is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<u32>,
    /// Bytes that have been moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_done: Option<u64>,
    /// Bytes to move in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_total: Option<u64>,
    /// Blobs that have been moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blobs_done: Option<u32>,
    /// Blobs to move in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blobs_total: Option<u32>,
    /// What the run is about to move, known before its first byte moves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Plan>,
    /// The last failure that the worker tried again after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub last_error: Option<String>,
    /// When the worker said so.
    #[schemars(schema_with = "schema::time")]
    pub update_time: Time,
}

/// What a run is about to move, when all is checked: the names at the far side, the room, the right to push.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// The payload digest. docker-charon's payloads have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub digest: Option<String>,
    /// The payload's exact size.
    pub size_bytes: u64,
    /// How many images it names.
    pub images: u32,
    /// How many images cannot be had, or cannot be pushed: the run goes on without them.
    pub images_failed: u32,
    /// How many blobs it carries.
    pub blobs: u32,
    /// How many blobs it leaves out because the far side has them.
    pub blobs_reused: u32,
    /// Bytes of blobs that need not be moved: an earlier attempt left them, or the registry has them.
    pub bytes_present: u64,
    /// What the volume had room for, in bytes. Absent where the payload is no file that is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub room_bytes: Option<u64>,
}

/// A payload that was written, or imported whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Payload {
    /// The run that made or imported it.
    pub run_id: String,
    /// Where it lies: claim/path.
    pub location: String,
    /// Its digest, which an import can expect. docker-charon's payloads have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// The sha256 of the whole file, where a build was asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_digest: Option<String>,
    /// The file's size.
    pub size_bytes: u64,
    /// The version of its format.
    pub format_version: u32,
    /// How many images it names.
    pub images: u32,
    /// How many blobs it carries.
    pub blobs: u32,
    /// How many blobs it leaves out because the far side has them.
    pub blobs_reused: u32,
}

/// What an import moved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImportCounts {
    /// Images that are whole in the registry.
    pub images: u32,
    /// Images that are not.
    pub images_failed: u32,
    /// Images that were not pushed since something else has their tags there, and keeps them: see tagPolicy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images_kept: Option<u32>,
    /// Blobs that were uploaded.
    pub blobs_pushed: u32,
    /// Blobs that were mounted from another repository of the registry.
    pub blobs_mounted: u32,
    /// Blobs that were there.
    pub blobs_present: u32,
    /// Bytes of the blobs that were uploaded.
    pub bytes_pushed: u64,
    /// Images that have another digest there than in the payload: see registry.sparseIndex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images_rewritten: Option<u32>,
    /// Those images, at most 5; the worker's log has all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 5))]
    pub rewritten: Vec<RewrittenImage>,
}

/// An image whose index was written anew without the images that had been left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RewrittenImage {
    /// The image.
    #[schemars(length(max = 1024))]
    pub image: String,
    /// The digest that it has in the registry.
    #[schemars(length(max = 256))]
    pub digest: String,
}

/// One item that went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ItemFailure {
    /// The image or file.
    #[schemars(length(max = 1024))]
    pub item: String,
    /// Why.
    pub reason: String,
    /// The same in words.
    #[schemars(length(max = 1024))]
    pub message: String,
}
