//! How a pod ended, from what is left of it. Pure.

use super::observe::{JobView, PodView, Terminated};
use super::redact::sentence;
use crate::reason::Reason;
use crate::worker::contract::{CONTRACT_VERSION, Outcome, cut};

/// How much of a log that is no outcome is quoted.
const QUOTE_LIMIT: usize = 300;

/// How a pod, and with it maybe the attempt, ended.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum End {
    /// The work is done, by the worker's own word.
    Success(Box<Outcome>),
    /// It is not.
    Failure(Failure),
    /// It ended well, but what it said is lost.
    Lost,
}

/// Why a pod failed.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Failure {
    pub reason: Reason,
    /// One sentence.
    pub message: String,
    /// The worker's own word, if it had one.
    pub outcome: Option<Box<Outcome>>,
}

impl Failure {
    pub(super) fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: sentence(&message.into()), outcome: None }
    }
}

/// How `pod` of `job` ended, if it has.
pub(super) fn end_of(pod: &PodView, job: &JobView) -> Option<End> {
    if pod.phase.is_active() {
        return None;
    }
    let Some(end) = &pod.terminated else {
        return Some(without_container_status(pod));
    };
    // With very little, not even the container's start has room.
    let is_stillborn = end.reason == "StartError" && end.message.contains("OOM-killed");
    if end.reason == "OOMKilled" || is_stillborn {
        return Some(End::Failure(Failure::new(
            Reason::WorkerOutOfMemory,
            format!(
                "pod {} was killed for using more memory than its limit; raise spec.worker.resources.limits.memory",
                pod.name
            ),
        )));
    }
    Some(match serde_json::from_str::<Outcome>(&end.message) {
        Ok(outcome) => spoken(pod, job, end, outcome),
        Err(_) if end.exit_code == 0 && end.message.trim().is_empty() => End::Lost,
        Err(_) => unspoken(pod, end),
    })
}

/// The worker left an outcome: it counts if it is about this run and this configuration.
fn spoken(pod: &PodView, job: &JobView, end: &Terminated, outcome: Outcome) -> End {
    let mismatch = |what: String| End::Failure(Failure::new(Reason::WorkerFailed, what));
    if outcome.version != CONTRACT_VERSION {
        return mismatch(format!(
            "pod {} speaks version {} of the contract with the controller, which knows {CONTRACT_VERSION}; let both be of one image",
            pod.name, outcome.version
        ));
    }
    if outcome.run_id != job.run_id || outcome.input_digest != job.input_digest {
        return mismatch(format!(
            "pod {} tells the outcome of another run than the one that it was given; look whether something alters the pods of Charon",
            pod.name
        ));
    }
    if outcome.reason.is_success() != (end.exit_code == 0) {
        return mismatch(format!(
            "pod {} ended with exit code {} and says {}; look at its log",
            pod.name, end.exit_code, outcome.reason
        ));
    }
    if outcome.reason.is_success() {
        return End::Success(Box::new(outcome));
    }
    End::Failure(Failure {
        reason: outcome.reason,
        message: sentence(&outcome.message),
        outcome: Some(Box::new(outcome)),
    })
}

/// The worker left no outcome: the cluster and the exit code must tell.
fn unspoken(pod: &PodView, end: &Terminated) -> End {
    if let Some(evicted) = eviction(pod) {
        return evicted;
    }
    let reason = match end.exit_code {
        0 => Reason::WorkerFailed,
        code => Reason::from_exit_code(code),
    };
    let text = end.message.trim();
    let quote = match text.lines().last() {
        Some(last) => format!(": {}", cut(last.trim(), QUOTE_LIMIT)),
        None => "; look at its log".to_owned(),
    };
    End::Failure(Failure::new(
        reason,
        format!("pod {} ended with exit code {}{quote}", pod.name, end.exit_code),
    ))
}

fn without_container_status(pod: &PodView) -> End {
    eviction(pod).unwrap_or_else(|| {
        let (reason, message) = pod.reason.clone().unwrap_or_default();
        let why = [reason, message].join(" ");
        let node = pod.node.as_deref().unwrap_or("no node");
        End::Failure(Failure::new(
            Reason::WorkerLost,
            format!("pod {} on {node} was lost before its end was known {}", pod.name, why.trim()),
        ))
    })
}

/// The cluster ended the pod for reasons of its own.
fn eviction(pod: &PodView) -> Option<End> {
    let evicted = pod.reason.as_ref().filter(|(reason, _)| reason == "Evicted");
    if evicted.is_none() && !pod.disrupted {
        return None;
    }
    let node = pod.node.as_deref().unwrap_or("its node");
    let hint = pod.node.as_ref().map(|node| format!("; kubectl describe node {node} tells more"));
    let hint = hint.unwrap_or_default();
    let why = evicted.map(|(_, message)| format!(": {}", message.trim())).unwrap_or_default();
    Some(End::Failure(Failure::new(
        Reason::WorkerEvicted,
        format!("pod {} was evicted from {node}{hint}{why}", pod.name),
    )))
}

/// The exit code that a Job's failed condition quotes, when its pods are gone.
pub(super) fn exit_code_in(message: &str) -> Option<i32> {
    let (_, rest) = message.split_once("exit code ")?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::observe::Phase;

    fn job() -> JobView {
        JobView { run_id: "r".into(), input_digest: "d".into(), ..JobView::default() }
    }

    fn outcome(reason: Reason) -> Outcome {
        Outcome {
            version: CONTRACT_VERSION,
            run_id: "r".into(),
            input_digest: "d".into(),
            reason,
            message: "it was so".into(),
            payload: None,
            result: None,
            failures: vec![],
            failures_total: 0,
            retry_after_seconds: None,
        }
    }

    fn pod(exit_code: i32, message: &str) -> PodView {
        let phase = if exit_code == 0 { Phase::Succeeded } else { Phase::Failed };
        let end = Terminated { exit_code, message: message.into(), ..Terminated::default() };
        PodView { name: "p".into(), phase, terminated: Some(end), ..PodView::default() }
    }

    fn failure(pod: &PodView) -> (Reason, String) {
        match end_of(pod, &job()) {
            Some(End::Failure(failure)) => (failure.reason, failure.message),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_pod_that_may_still_do_something_has_no_end() {
        for phase in [Phase::Pending, Phase::Running] {
            assert_eq!(end_of(&PodView { phase, ..pod(1, "") }, &job()), None);
        }
    }

    #[test]
    fn success_is_the_workers_own_word_about_this_very_run() {
        let word = outcome(Reason::Succeeded);
        let said = |outcome: &Outcome| end_of(&pod(0, &outcome.to_message()), &job());
        assert_eq!(said(&word), Some(End::Success(Box::new(word.clone()))));
        let present = outcome(Reason::AlreadyPresent);
        assert_eq!(said(&present), Some(End::Success(Box::new(present))));
        for other in [
            Outcome { run_id: "other".into(), ..word.clone() },
            Outcome { input_digest: "other".into(), ..word.clone() },
            Outcome { version: CONTRACT_VERSION + 1, ..word.clone() },
            outcome(Reason::ImageNotFound),
        ] {
            assert_eq!(failure(&pod(0, &other.to_message())).0, Reason::WorkerFailed);
        }
        assert_eq!(failure(&pod(1, &word.to_message())).0, Reason::WorkerFailed);
    }

    #[test]
    fn an_end_without_a_word_is_lost_and_not_guessed() {
        assert_eq!(end_of(&pod(0, " "), &job()), Some(End::Lost));
    }

    #[test]
    fn what_a_failed_worker_says_is_the_cause() {
        let said = outcome(Reason::ImageNotFound);
        assert_eq!(failure(&pod(75, &said.to_message())), (Reason::ImageNotFound, "it was so".into()));
    }

    #[test]
    fn without_a_word_the_exit_code_tells_and_the_last_line_is_quoted_without_secrets() {
        let (reason, message) =
            failure(&pod(77, "started\nGET https://u:p@s.example/x?token=geheim failed\n"));
        assert_eq!(reason, Reason::AccessDenied);
        assert_eq!(message, "pod p ended with exit code 77: GET https://s.example/x failed");
        assert_eq!(
            failure(&pod(137, "")),
            (Reason::WorkerFailed, "pod p ended with exit code 137; look at its log".into())
        );
    }

    #[test]
    fn what_the_cluster_did_is_told_as_that() {
        let mut killed = pod(137, "last words");
        killed.terminated.as_mut().unwrap().reason = "OOMKilled".into();
        assert_eq!(failure(&killed).0, Reason::WorkerOutOfMemory);
        let mut stillborn = pod(128, "container init was OOM-killed (memory limit too low?)");
        stillborn.terminated.as_mut().unwrap().reason = "StartError".into();
        assert_eq!(failure(&stillborn).0, Reason::WorkerOutOfMemory);
        let evicted = PodView {
            reason: Some(("Evicted".into(), "The node was low on resource: memory.".into())),
            node: Some("n1".into()),
            ..pod(143, "")
        };
        assert_eq!(
            failure(&evicted),
            (
                Reason::WorkerEvicted,
                "pod p was evicted from n1; kubectl describe node n1 tells more: The node was low on resource: memory."
                    .into()
            )
        );
        assert_eq!(failure(&PodView { disrupted: true, ..pod(143, "") }).0, Reason::WorkerEvicted);
        assert_eq!(failure(&PodView { terminated: None, ..pod(1, "") }).0, Reason::WorkerLost);
    }

    #[test]
    fn a_job_remembers_the_exit_code_of_a_pod_that_is_gone() {
        let message =
            "Container worker for pod ns/p failed with exit code 65 matching FailJob rule at index 0";
        assert_eq!(exit_code_in(message), Some(65));
        assert_eq!(exit_code_in("Job has reached the specified backoff limit"), None);
    }
}
