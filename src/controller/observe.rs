//! What there is: the Jobs of a resource, their pods, and what Kubernetes says about them.
//!
//! Everything is read from the API server, nothing from a cache: a decision on what was true a
//! second ago could start a second worker.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt as _};

use super::Subject;
use super::job::{CONTAINER, GENERATION_ANNOTATION, RUN_LABEL, UID_LABEL};
use super::settings::Pace;
use crate::digest::Digest;
use crate::worker::contract::RUN_ANNOTATION;

/// What there is of one resource.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Observed {
    /// The Job of the present attempt.
    pub current: Option<JobView>,
    /// Its pods, the oldest first.
    pub pods: Vec<PodView>,
    /// All other Jobs of the resource.
    pub others: Vec<JobView>,
    /// Pods of the other Jobs, or of none, that may still run.
    pub strays: Vec<PodView>,
    /// What was said about the Job or the pod that does not start.
    pub events: Vec<EventView>,
}

/// A Job.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct JobView {
    pub name: String,
    pub uid: String,
    pub run_id: String,
    /// The generation of the spec that it was made from.
    pub generation: Option<i64>,
    /// The sha256 of the run configuration in its pod template, in hexadecimal.
    pub input_digest: String,
    pub created: Timestamp,
    /// It is being deleted.
    pub terminating: bool,
    /// When it completed.
    pub complete: Option<Timestamp>,
    /// When and why it failed.
    pub failed: Option<JobFailure>,
    /// How many of its pods failed.
    pub failed_pods: u32,
    /// After how many seconds it goes by itself.
    pub ttl: Option<i32>,
}

/// The failed condition of a Job.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct JobFailure {
    pub time: Timestamp,
    pub message: String,
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct PodView {
    pub name: String,
    pub uid: String,
    pub node: Option<String>,
    pub ip: Option<String>,
    pub created: Timestamp,
    pub phase: Phase,
    /// When it must be gone, if it is being deleted.
    pub gone_by: Option<Timestamp>,
    /// Why the scheduler cannot place it.
    pub unschedulable: Option<String>,
    /// The cluster took its place: a drain, a preemption, a full node.
    pub disrupted: bool,
    /// The pod's own reason and message, such as `Evicted`.
    pub reason: Option<(String, String)>,
    /// Why the container does not start.
    pub waiting: Option<(String, String)>,
    /// How the container ended.
    pub terminated: Option<Terminated>,
    /// The Secrets that it mounts, and the keys that they must have.
    pub secret_keys: Vec<(String, String)>,
}

/// The phase of a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Phase {
    #[default]
    Pending,
    Running,
    Succeeded,
    Failed,
}

/// How the worker's container ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Terminated {
    pub exit_code: i32,
    /// Kubernetes' word, such as `OOMKilled`.
    pub reason: String,
    /// The termination message.
    pub message: String,
    pub finished: Option<Timestamp>,
}

/// An event about a Job or a pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct EventView {
    pub reason: String,
    pub message: String,
    pub last: Timestamp,
}

impl Phase {
    /// Whether the pod may still do something.
    pub(super) fn is_active(self) -> bool {
        matches!(self, Self::Pending | Self::Running)
    }
}

impl PodView {
    /// When it ended, or failing that, began.
    pub(super) fn ended_or_created(&self) -> Timestamp {
        self.terminated.as_ref().and_then(|end| end.finished).unwrap_or(self.created)
    }

    /// It is bound to a node, where its volumes or its container are not there yet.
    pub(super) fn waits_on_its_node(&self) -> bool {
        self.phase == Phase::Pending && self.node.is_some() && self.unschedulable.is_none()
    }
}

/// Reads what there is of `subject`; the present attempt's Job is called `current`.
pub(super) async fn observe(
    client: &Client,
    subject: &Subject,
    current: Option<&str>,
    pace: &Pace,
    now: Timestamp,
) -> Result<Observed, kube::Error> {
    let ours = ListParams::default().labels(&format!("{UID_LABEL}={}", subject.uid));
    let jobs: Api<Job> = Api::namespaced(client.clone(), &subject.namespace);
    let pods: Api<Pod> = Api::namespaced(client.clone(), &subject.namespace);
    let jobs = jobs.list(&ours).await?.items;
    let pods = pods.list(&ours).await?.items;
    let mut observed = sort(subject, current, &jobs, &pods);
    if let Some(uid) = observed.in_question(pace, now) {
        let events: Api<Event> = Api::namespaced(client.clone(), &subject.namespace);
        let about = ListParams::default().fields(&format!("involvedObject.uid={uid}"));
        observed.events = events.list(&about).await?.items.iter().map(event_view).collect();
    }
    Ok(observed)
}

impl Observed {
    /// The uid of what does not start, for long enough that its events are worth reading.
    fn in_question(&self, pace: &Pace, now: Timestamp) -> Option<&str> {
        let job = self.current.as_ref()?;
        let since = |time: Timestamp, patience: Duration| now.duration_since(time).unsigned_abs() >= patience;
        match self.pods.last() {
            None if since(job.created, pace.no_pod) => Some(&job.uid),
            Some(pod) if pod.waits_on_its_node() && since(pod.created, pace.no_mount) => Some(&pod.uid),
            _ => None,
        }
    }
}

/// Who belongs to whom. A pod counts only if the Job that controls it is ours.
fn sort(subject: &Subject, current: Option<&str>, jobs: &[Job], pods: &[Pod]) -> Observed {
    let is_ours = |job: &&Job| {
        job.owner_references().iter().any(|owner| owner.controller == Some(true) && owner.uid == subject.uid)
    };
    let mut observed = Observed::default();
    let mut names: HashMap<String, String> = HashMap::new();
    for job in jobs.iter().filter(is_ours) {
        let view = job_view(job);
        names.insert(view.uid.clone(), view.name.clone());
        if Some(view.name.as_str()) == current {
            observed.current = Some(view);
        } else {
            observed.others.push(view);
        }
    }
    for pod in pods {
        let controller = pod.owner_references().iter().find(|owner| owner.controller == Some(true));
        let job = controller.and_then(|owner| names.get(&owner.uid));
        let view = pod_view(pod);
        if job.is_some() && job.map(String::as_str) == current {
            observed.pods.push(view);
        } else if view.phase.is_active() {
            observed.strays.push(view);
        }
    }
    observed.pods.sort_by_key(|pod| pod.created);
    observed
}

fn job_view(job: &Job) -> JobView {
    let template = job.spec.as_ref().and_then(|spec| spec.template.metadata.as_ref());
    let config = template.and_then(|meta| meta.annotations.as_ref()?.get(RUN_ANNOTATION));
    let status = job.status.as_ref();
    let condition = |type_: &str| {
        let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        conditions.iter().find(|condition| condition.type_ == type_ && condition.status == "True")
    };
    let created = job.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    let when = |time: &Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>| {
        time.as_ref().map_or(created, |time| time.0)
    };
    JobView {
        name: job.name_any(),
        uid: job.uid().unwrap_or_default(),
        run_id: job.labels().get(RUN_LABEL).cloned().unwrap_or_default(),
        generation: job.annotations().get(GENERATION_ANNOTATION).and_then(|text| text.parse().ok()),
        input_digest: config
            .map(|config| Digest::sha256(config.as_bytes()).hex().to_owned())
            .unwrap_or_default(),
        created,
        terminating: job.metadata.deletion_timestamp.is_some(),
        complete: condition("Complete").map(|condition| when(&condition.last_transition_time)),
        failed: condition("Failed").map(|condition| JobFailure {
            time: when(&condition.last_transition_time),
            message: condition.message.clone().unwrap_or_default(),
        }),
        failed_pods: status
            .and_then(|status| status.failed)
            .and_then(|count| count.try_into().ok())
            .unwrap_or(0),
        ttl: job.spec.as_ref().and_then(|spec| spec.ttl_seconds_after_finished),
    }
}

pub(super) fn pod_view(pod: &Pod) -> PodView {
    let status = pod.status.clone().unwrap_or_default();
    let conditions = status.conditions.unwrap_or_default();
    let unschedulable = conditions.iter().find(|condition| {
        condition.type_ == "PodScheduled"
            && condition.status == "False"
            && condition.reason.as_deref() == Some("Unschedulable")
    });
    let disrupted = conditions
        .iter()
        .any(|condition| condition.type_ == "DisruptionTarget" && condition.status == "True");
    let containers = status.container_statuses.unwrap_or_default();
    let state = containers.into_iter().find(|container| container.name == CONTAINER).and_then(|it| it.state);
    let state = state.unwrap_or_default();
    PodView {
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        ip: status.pod_ip,
        created: pod.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0),
        phase: match status.phase.as_deref() {
            Some("Running") => Phase::Running,
            Some("Succeeded") => Phase::Succeeded,
            Some("Failed") => Phase::Failed,
            _ => Phase::Pending,
        },
        gone_by: pod.metadata.deletion_timestamp.as_ref().map(|time| time.0),
        unschedulable: unschedulable.map(|condition| condition.message.clone().unwrap_or_default()),
        disrupted,
        reason: status.reason.map(|reason| (reason, status.message.unwrap_or_default())),
        waiting: state
            .waiting
            .map(|waiting| (waiting.reason.unwrap_or_default(), waiting.message.unwrap_or_default())),
        terminated: state.terminated.map(|end| Terminated {
            exit_code: end.exit_code,
            reason: end.reason.unwrap_or_default(),
            message: end.message.unwrap_or_default(),
            finished: end.finished_at.map(|time| time.0),
        }),
        secret_keys: secret_keys(pod),
    }
}

fn secret_keys(pod: &Pod) -> Vec<(String, String)> {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    let sources = volumes.iter().filter_map(|volume| volume.projected.as_ref()?.sources.as_deref()).flatten();
    let secrets = sources.filter_map(|source| source.secret.as_ref());
    let required = secrets.filter(|secret| secret.optional != Some(true));
    let keys = required.flat_map(|secret| {
        let items = secret.items.as_deref().unwrap_or_default();
        items.iter().map(|item| (secret.name.clone(), item.key.clone()))
    });
    keys.collect()
}

pub(super) fn event_view(event: &Event) -> EventView {
    let times = [
        event.series.as_ref().and_then(|series| series.last_observed_time.as_ref()).map(|time| time.0),
        event.last_timestamp.as_ref().map(|time| time.0),
        event.event_time.as_ref().map(|time| time.0),
    ];
    EventView {
        reason: event.reason.clone().unwrap_or_default(),
        message: event.message.clone().unwrap_or_default(),
        last: times.into_iter().flatten().max().unwrap_or(Timestamp::UNIX_EPOCH),
    }
}
