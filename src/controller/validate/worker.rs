//! What a spec says of the worker's pod, checked.

use k8s_openapi::api::core::v1::Affinity;
use serde_json::Value;

use super::Invalid;
use crate::api::Worker;

/// Keys of labels and annotations that begin so are the cluster's and ours.
const TAKEN_PREFIXES: [&str; 2] = ["charon.dev/", "batch.kubernetes.io/"];
/// Further labels that the cluster and we find pods by.
const TAKEN_LABELS: [&str; 5] = [
    "job-name",
    "controller-uid",
    "app.kubernetes.io/name",
    "app.kubernetes.io/component",
    "app.kubernetes.io/managed-by",
];

/// The affinity that `worker` wishes for, once nothing of it is against the rules.
pub(super) fn checked(worker: &Worker) -> Result<Option<Affinity>, Invalid> {
    let metadata = worker.pod_metadata.clone().unwrap_or_default();
    let labels = metadata.labels.unwrap_or_default();
    let annotations = metadata.annotations.unwrap_or_default();
    let is_taken = |key: &&String| TAKEN_PREFIXES.iter().any(|prefix| key.starts_with(prefix));
    let taken_label = labels.keys().find(|key| is_taken(key) || TAKEN_LABELS.contains(&key.as_str()));
    for (field, taken) in [("labels", taken_label), ("annotations", annotations.keys().find(is_taken))] {
        if let Some(key) = taken {
            return Err(Invalid(format!(
                "spec.worker.podMetadata.{field} has {key:?}, which the pod has already for Charon's or the cluster's own use; choose another key"
            )));
        }
    }
    worker.affinity.as_ref().map(affinity).transpose()
}

/// The schema leaves the parts of an affinity to Kubernetes, and a Job would be made without what is misspelt.
fn affinity(wanted: &impl serde::Serialize) -> Result<Affinity, Invalid> {
    let refused = |error: serde_json::Error| Invalid(format!("spec.worker.affinity cannot be read: {error}"));
    let wanted = serde_json::to_value(wanted).map_err(refused)?;
    let affinity: Affinity = serde_json::from_value(wanted.clone()).map_err(refused)?;
    let understood = serde_json::to_value(&affinity).map_err(refused)?;
    match first_lost(&wanted, &understood) {
        Some(path) => Err(Invalid(format!(
            "spec.worker.affinity{path} is no field of a pod's affinity; kubectl explain pod.spec.affinity tells them"
        ))),
        None => Ok(affinity),
    }
}

/// The path of the first field of `wanted` that is not in `understood`.
fn first_lost(wanted: &Value, understood: &Value) -> Option<String> {
    match (wanted, understood) {
        (Value::Object(wanted), Value::Object(understood)) => {
            let mut told = wanted.iter().filter(|(_, value)| !value.is_null());
            told.find_map(|(key, value)| match understood.get(key) {
                None => Some(format!(".{key}")),
                Some(other) => first_lost(value, other).map(|path| format!(".{key}{path}")),
            })
        }
        (Value::Array(wanted), Value::Array(understood)) => {
            let mut pairs = wanted.iter().zip(understood).enumerate();
            pairs.find_map(|(index, (a, b))| first_lost(a, b).map(|path| format!("[{index}]{path}")))
        }
        _ => None,
    }
}
