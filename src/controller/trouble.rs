//! Why a worker does not start, or does not end. Pure.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, Pod};

use super::observe::{EventView, JobView, PodView, event_view, pod_view};
use super::outcome::Failure;
use super::settings::Pace;
use crate::reason::Reason;

/// What keeps `pod` from working, as far as `events` about it tell.
pub(super) fn of_pod(pod: &PodView, events: &[EventView], pace: &Pace, now: Timestamp) -> Option<Failure> {
    if let Some(lost) = lost(pod, pace, now) {
        return Some(lost);
    }
    if let Some(why) = &pod.unschedulable {
        return Some(of_scheduling(pod, why));
    }
    if !pod.phase.is_active() {
        return None;
    }
    if let Some((reason, why)) = &pod.waiting
        && let Some(failure) = of_container(pod, reason, why)
    {
        return Some(failure);
    }
    if !pod.waits_on_its_node() {
        return None;
    }
    let latest = events
        .iter()
        .filter(|event| matches!(event.reason.as_str(), "FailedMount" | "FailedAttachVolume"))
        .max_by_key(|event| event.last)?;
    Some(of_volume(pod, &latest.message))
}

/// What keeps `pod` from working, in a sentence: for whoever started one himself.
pub(crate) fn why_it_waits(pod: &Pod, events: &[Event]) -> Option<String> {
    let events: Vec<_> = events.iter().map(event_view).collect();
    of_pod(&pod_view(pod), &events, &Pace::default(), Timestamp::now()).map(|failure| failure.message)
}

/// Why `job` has no pod, as far as `events` about it tell.
pub(super) fn of_job(job: &JobView, events: &[EventView]) -> Option<Failure> {
    let latest =
        events.iter().filter(|event| event.reason == "FailedCreate").max_by_key(|event| event.last)?;
    let why = &latest.message;
    let advice = if why.contains("exceeded quota") {
        "raise the quota, or lower spec.worker.resources"
    } else if why.contains("violates PodSecurity") {
        "correct spec.worker.securityContext, or what the namespace enforces"
    } else {
        "let the cluster take it, or correct spec.worker"
    };
    Some(Failure::new(
        Reason::WorkerCreateFailed,
        format!("the pod of Job {} cannot be created; {advice}: {why}", job.name),
    ))
}

fn of_scheduling(pod: &PodView, why: &str) -> Failure {
    let name = &pod.name;
    if let Some(claim) = quoted_after(why, "persistentvolumeclaim") {
        let message = format!("pod {name} waits for PersistentVolumeClaim {claim:?}; create it: {why}");
        return Failure::new(Reason::StorageNotFound, message);
    }
    if why.contains("unbound immediate PersistentVolumeClaims") {
        let message = format!(
            "pod {name} waits for its PersistentVolumeClaim to be bound; make a volume for it, or correct its storage class: {why}"
        );
        return Failure::new(Reason::StorageNotFound, message);
    }
    let message = format!("pod {name} finds no node; free what it asks for, or change spec.worker: {why}");
    Failure::new(Reason::WorkerUnschedulable, message)
}

/// A pod that should be gone since long: its node does not answer.
pub(super) fn lost(pod: &PodView, pace: &Pace, now: Timestamp) -> Option<Failure> {
    let overdue = now.duration_since(pod.gone_by?);
    let lost = overdue.is_positive() && overdue.unsigned_abs() > pace.lost;
    lost.then(|| {
        let node = pod.node.as_deref().unwrap_or("unknown");
        Failure::new(
            Reason::WorkerLost,
            format!(
                "pod {} does not end, and node {node} does not say why; bring the node back, or if it is gone for good delete it (kubectl delete node {node})",
                pod.name
            ),
        )
    })
}

fn of_container(pod: &PodView, reason: &str, why: &str) -> Option<Failure> {
    let name = &pod.name;
    Some(match reason {
        "ErrImagePull"
        | "ImagePullBackOff"
        | "InvalidImageName"
        | "ErrImageNeverPull"
        | "ImageInspectError"
        | "RegistryUnavailable"
        | "SignatureValidationFailed" => {
            let message = format!(
                "pod {name} cannot get its own image; correct the chart's image, or spec.worker.imagePullSecrets: {why}"
            );
            Failure::new(Reason::WorkerImagePullFailed, message)
        }
        "CreateContainerConfigError"
            if quoted_after(why, "secret").is_some() || why.contains("couldn't find key") =>
        {
            Failure::new(
                Reason::SecretNotFound,
                format!("pod {name} cannot start; create the Secret, or its key: {why}"),
            )
        }
        "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => Failure::new(
            Reason::WorkerCreateFailed,
            format!("pod {name} cannot start ({reason}); correct spec.worker, or its node: {why}"),
        ),
        _ => return None,
    })
}

fn of_volume(pod: &PodView, why: &str) -> Failure {
    let name = &pod.name;
    if let Some(secret) = quoted_after(why, "secret") {
        return Failure::new(
            Reason::SecretNotFound,
            format!("pod {name} waits for Secret {secret:?}; create it: {why}"),
        );
    }
    if let Some(map) = quoted_after(why, "configmap") {
        return Failure::new(
            Reason::ConfigMapNotFound,
            format!("pod {name} waits for ConfigMap {map:?}; create it: {why}"),
        );
    }
    // The kubelet: `configmap references non-existent config key: list`.
    if why.contains("config key") {
        return Failure::new(
            Reason::ConfigMapNotFound,
            format!("pod {name} waits for a key of the ConfigMap of spec.imagesFrom; add it: {why}"),
        );
    }
    // The kubelet: `references non-existent secret key: .dockerconfigjson`.
    if let Some((_, rest)) = why.split_once("secret key: ") {
        let key = rest.split_whitespace().next().unwrap_or_default();
        let message = format!("pod {name} waits for key {key:?} of {}; add it: {why}", who_has(pod, key));
        return Failure::new(Reason::SecretNotFound, message);
    }
    if why.contains("Multi-Attach") {
        let message = format!("pod {name} waits for its volume; end what uses it on another node: {why}");
        return Failure::new(Reason::StorageBusy, message);
    }
    let message = format!("pod {name} waits for its volume; see to it that it can be mounted: {why}");
    Failure::new(Reason::StorageNotFound, message)
}

/// The Secrets that must have `key`, of which the kubelet does not say which has not.
fn who_has(pod: &PodView, key: &str) -> String {
    let names = pod.secret_keys.iter().filter(|(_, wanted)| wanted == key).map(|(secret, _)| secret);
    let mut names: Vec<String> = names.map(|name| format!("{name:?}")).collect();
    names.dedup();
    if names.is_empty() { "a Secret".into() } else { format!("Secret {}", names.join(" or ")) }
}

/// The quoted word after `what` in `text`: `pull` of `secret "pull" not found`.
fn quoted_after<'a>(text: &'a str, what: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("{what} \""))?;
    rest.split_once('"').map(|(name, _)| name)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::controller::observe::Phase;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn pending() -> PodView {
        PodView { name: "p".into(), node: Some("n1".into()), ..PodView::default() }
    }

    fn reason(pod: &PodView, events: &[EventView]) -> Option<Reason> {
        of_pod(pod, events, &Pace::default(), NOW).map(|failure| failure.reason)
    }

    #[test]
    fn a_pod_that_is_on_its_way_is_no_trouble() {
        assert_eq!(reason(&pending(), &[]), None);
        let creating = PodView { waiting: Some(("ContainerCreating".into(), String::new())), ..pending() };
        assert_eq!(reason(&creating, &[]), None);
    }

    #[test]
    fn each_way_not_to_start_has_its_reason() {
        let waiting =
            |reason: &str, why: &str| PodView { waiting: Some((reason.into(), why.into())), ..pending() };
        let unschedulable = |why: &str| PodView { node: None, unschedulable: Some(why.into()), ..pending() };
        for (pod, expected) in [
            (waiting("ImagePullBackOff", "Back-off pulling image"), Reason::WorkerImagePullFailed),
            (waiting("ErrImagePull", "not found"), Reason::WorkerImagePullFailed),
            (waiting("CreateContainerConfigError", "secret \"pull\" not found"), Reason::SecretNotFound),
            (
                waiting("CreateContainerConfigError", "couldn't find key a in Secret ns/pull"),
                Reason::SecretNotFound,
            ),
            (
                waiting(
                    "CreateContainerConfigError",
                    "container has runAsNonRoot and image will run as root",
                ),
                Reason::WorkerCreateFailed,
            ),
            (unschedulable("0/1 nodes are available: 1 Insufficient memory."), Reason::WorkerUnschedulable),
            (unschedulable("persistentvolumeclaim \"transfer\" not found"), Reason::StorageNotFound),
            (
                unschedulable("0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims."),
                Reason::StorageNotFound,
            ),
        ] {
            assert_eq!(reason(&pod, &[]), Some(expected), "{pod:?}");
        }
    }

    #[test]
    fn the_newest_event_about_a_volume_tells_what_is_missing() {
        let event = |seconds, reason: &str, message: &str| EventView {
            reason: reason.into(),
            message: message.into(),
            last: NOW + Duration::from_secs(seconds),
        };
        let secret = "MountVolume.SetUp failed for volume \"settings\" : secret \"pull\" not found";
        let key = "MountVolume.SetUp failed for volume \"settings\" : references non-existent secret key: .dockerconfigjson";
        let map = "MountVolume.SetUp failed for volume \"settings\" : configmap \"images\" not found";
        let map_key = "MountVolume.SetUp failed for volume \"settings\" : configmap references non-existent config key: list";
        let busy = "Multi-Attach error for volume \"pvc-1\" Volume is already used by pod(s) x";
        let gone = "MountVolume.SetUp failed for volume \"pv\" : stat /mnt/pv: no such file or directory";
        for (events, expected) in [
            (vec![event(1, "FailedMount", secret)], Reason::SecretNotFound),
            (vec![event(1, "FailedMount", key)], Reason::SecretNotFound),
            (vec![event(1, "FailedMount", map)], Reason::ConfigMapNotFound),
            (vec![event(1, "FailedMount", map_key)], Reason::ConfigMapNotFound),
            (
                vec![event(1, "FailedMount", secret), event(2, "FailedAttachVolume", busy)],
                Reason::StorageBusy,
            ),
            (vec![event(1, "FailedMount", gone), event(2, "Scheduled", "")], Reason::StorageNotFound),
        ] {
            assert_eq!(reason(&pending(), &events), Some(expected), "{events:?}");
        }
        let keys = ["pull", "push", "store"].map(|name| (name.to_owned(), ".dockerconfigjson".to_owned()));
        let mut pod = PodView { secret_keys: keys.into(), ..pending() };
        pod.secret_keys[2].1 = "accesskey".into();
        let failure = of_pod(&pod, &[event(1, "FailedMount", key)], &Pace::default(), NOW).unwrap();
        let words =
            "pod p waits for key \".dockerconfigjson\" of Secret \"pull\" or \"push\"; add it: MountVolume";
        assert!(failure.message.starts_with(words), "{}", failure.message);
        let running = PodView { phase: Phase::Running, ..pending() };
        assert_eq!(reason(&running, &[event(1, "FailedMount", secret)]), None);
    }

    #[test]
    fn a_pod_that_does_not_end_is_lost_two_minutes_after_its_grace_period() {
        let ending = |seconds: i64| PodView {
            gone_by: Some(NOW - jiff::SignedDuration::from_secs(seconds)),
            phase: Phase::Running,
            ..pending()
        };
        assert_eq!(reason(&ending(-30), &[]), None);
        assert_eq!(reason(&ending(119), &[]), None);
        assert_eq!(reason(&ending(121), &[]), Some(Reason::WorkerLost));
    }

    #[test]
    fn a_job_without_a_pod_quotes_why() {
        let job = JobView { name: "j".into(), ..JobView::default() };
        for (why, advice) in [
            ("pods \"x\" is forbidden: exceeded quota: q", "raise the quota"),
            (
                "pods \"x\" is forbidden: violates PodSecurity \"restricted:latest\"",
                "what the namespace enforces",
            ),
            ("pods \"x\" is forbidden: no PriorityClass with name y was found", "correct spec.worker"),
        ] {
            let event = EventView { reason: "FailedCreate".into(), message: why.into(), last: NOW };
            let failure = of_job(&job, &[event]).unwrap();
            assert_eq!(failure.reason, Reason::WorkerCreateFailed);
            assert!(failure.message.contains(why) && failure.message.contains(advice), "{}", failure.message);
        }
        assert_eq!(of_job(&job, &[]), None);
    }
}
