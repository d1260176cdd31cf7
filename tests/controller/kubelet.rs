//! What a kubelet, and the worker in its pod, would say.

use charon::digest::Digest;
use charon::reason::Reason;
use charon::worker::contract::{
    CONTRACT_VERSION, Failure, ImportResult, Outcome, PayloadSummary, RUN_ANNOTATION, RunConfig,
};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Binding, Event, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::world::World;

/// The payload of every run that goes well.
pub(crate) fn payload() -> PayloadSummary {
    PayloadSummary {
        digest: Some(Digest::sha256(b"a bill")),
        file_digest: None,
        size_bytes: 1_234_567,
        format_version: 1,
        images: 1,
        blobs: 4,
        blobs_reused: 2,
    }
}

/// The run configuration that a pod was given.
pub(crate) fn config(pod: &Pod) -> RunConfig {
    serde_json::from_str(&pod.annotations()[RUN_ANNOTATION]).unwrap()
}

/// What the worker of `pod` says when it ends for `reason`.
pub(crate) fn outcome(pod: &Pod, reason: Reason) -> Outcome {
    let is_good = reason.is_success();
    Outcome {
        version: CONTRACT_VERSION,
        run_id: config(pod).run_id,
        input_digest: Digest::sha256(pod.annotations()[RUN_ANNOTATION].as_bytes()).hex().to_owned(),
        reason,
        message: if is_good { "done".into() } else { format!("it is {reason}; do something") },
        payload: is_good.then(payload),
        result: None,
        failures: vec![],
        failures_total: 0,
        retry_after_seconds: None,
    }
}

/// An outcome with a failed item.
pub(crate) fn with_failure(mut outcome: Outcome, item: &str) -> Outcome {
    let failure = Failure::new(item, outcome.reason, format!("{item} cannot be had"));
    outcome.failures.push(failure);
    outcome.failures_total = 1;
    outcome
}

/// An outcome of an import which pushed `images` and left `failed`.
pub(crate) fn with_counts(mut outcome: Outcome, images: u32, failed: u32) -> Outcome {
    outcome.result = Some(ImportResult { images, images_failed: failed, ..ImportResult::default() });
    outcome
}

impl World {
    /// Waits until `job` has a pod that has not ended, and gives it.
    pub(crate) async fn pod_of(&self, job: &Job) -> Pod {
        let uid = job.uid().unwrap();
        self.until_pod(&format!("of Job {}", job.name_any()), |pod| {
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            pod.owner_references().iter().any(|owner| owner.uid == uid)
                && pod.metadata.deletion_timestamp.is_none()
                && !matches!(phase, Some("Failed" | "Succeeded"))
        })
        .await
    }

    /// The pod's status becomes `status`.
    pub(crate) async fn say(&self, pod: &Pod, status: Value) {
        let patch = Patch::Merge(json!({ "status": status }));
        self.api::<Pod>().patch_status(&pod.name_any(), &PatchParams::default(), &patch).await.unwrap();
    }

    /// The pod is on a node, from where it must be taken in peace.
    pub(crate) async fn bind(&self, pod: &Pod) {
        let binding = Binding {
            metadata: ObjectMeta { name: Some(pod.name_any()), ..ObjectMeta::default() },
            target: ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Node".into()),
                name: Some("node-of-the-tests".into()),
                ..ObjectReference::default()
            },
        };
        self.api::<Pod>()
            .create_subresource::<_, Value>("binding", &pod.name_any(), &PostParams::default(), &binding)
            .await
            .unwrap();
    }

    /// The worker is at work.
    pub(crate) async fn works(&self, pod: &Pod, ip: &str) {
        let now = Timestamp::now().to_string();
        self.say(
            pod,
            json!({
                "phase": "Running",
                "podIP": ip,
                "podIPs": [{ "ip": ip }],
                "containerStatuses": [container(json!({ "running": { "startedAt": now } }))],
            }),
        )
        .await;
    }

    /// The worker's container does not start.
    pub(crate) async fn waits(&self, pod: &Pod, reason: &str, message: &str) {
        let state = json!({ "waiting": { "reason": reason, "message": message } });
        self.say(pod, json!({ "phase": "Pending", "containerStatuses": [container(state)] })).await;
    }

    /// The worker ends with `exit_code` and `message`.
    pub(crate) async fn ends(&self, pod: &Pod, exit_code: i32, message: &str) {
        let now = Timestamp::now();
        let seconds = Timestamp::from_second(now.as_second()).unwrap().to_string();
        let state = json!({ "terminated": {
            "exitCode": exit_code,
            "reason": if exit_code == 0 { "Completed" } else { "Error" },
            "message": message,
            "finishedAt": seconds,
        }});
        let phase = if exit_code == 0 { "Succeeded" } else { "Failed" };
        self.say(pod, json!({ "phase": phase, "containerStatuses": [container(state)] })).await;
    }

    /// The worker ends for `reason`, and says so.
    pub(crate) async fn ends_for(&self, pod: &Pod, reason: Reason) {
        self.concludes(pod, &outcome(pod, reason)).await;
    }

    /// The worker ends with `outcome`.
    pub(crate) async fn concludes(&self, pod: &Pod, outcome: &Outcome) {
        self.ends(pod, i32::from(outcome.reason.exit_code()), &outcome.to_message()).await;
    }

    /// A pod that is being deleted is gone.
    pub(crate) async fn is_gone(&self, pod: &Pod) {
        let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        self.api::<Pod>().delete(&pod.name_any(), &now).await.unwrap();
    }

    /// Something is told about the pod.
    pub(crate) async fn event(&self, pod: &Pod, reason: &str, message: &str) {
        let event = Event {
            metadata: ObjectMeta {
                name: Some(format!("{}.{reason}", pod.name_any())),
                namespace: Some(self.namespace.clone()),
                ..ObjectMeta::default()
            },
            involved_object: ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Pod".into()),
                name: Some(pod.name_any()),
                namespace: Some(self.namespace.clone()),
                uid: pod.uid(),
                ..ObjectReference::default()
            },
            reason: Some(reason.into()),
            message: Some(message.into()),
            type_: Some("Warning".into()),
            last_timestamp: Some(Time(Timestamp::now())),
            ..Event::default()
        };
        self.api().create(&PostParams::default(), &event).await.unwrap();
    }
}

fn container(state: Value) -> Value {
    json!({
        "name": "worker",
        "image": crate::world::IMAGE,
        "imageID": "",
        "ready": false,
        "restartCount": 0,
        "state": state,
    })
}
