//! What a status says. Pure, and the only place where conditions are made.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::decide::{DISRUPTIONS_LIMIT, Verdict};
use super::redact::sentence;
use crate::api::{
    Condition, ImportCounts, ItemFailure, Payload, Plan, Progress, RewrittenImage, Run, Status, condition,
};
use crate::progress::Stage;
use crate::reason::{Reason, parse};
use crate::worker::contract::{self, FAILURE_MESSAGE_LIMIT, FAILURES_LIMIT, Outcome, cut};

/// What is known beside the old status.
#[derive(Clone, Debug)]
pub(super) struct News<'a> {
    pub generation: i64,
    /// Whether the resource is a `PayloadImport`.
    pub is_import: bool,
    /// Where the payload lies.
    pub location: &'a str,
    /// Where an import goes.
    pub registry: Option<&'a str>,
    /// The annotation's value that the run is for.
    pub requested_at: Option<&'a str>,
    /// The run, if the spec has one.
    pub run: Option<&'a Run>,
    pub verdict: &'a Verdict,
    /// What the worker said in the end.
    pub outcome: Option<&'a Outcome>,
    /// What the worker says now.
    pub progress: Option<&'a contract::Progress>,
    pub now: Timestamp,
}

/// The status that follows on `old`.
pub(super) fn summarise(old: &Status, news: &News) -> Status {
    let mut status = Status { observed_generation: Some(news.generation), ..old.clone() };
    if let Some(requested_at) = news.requested_at {
        status.last_handled_reconcile_at = Some(requested_at.to_owned());
    }
    if let Some(run) = news.run {
        take_run(&mut status, run);
    }
    if let Some(outcome) = news.outcome {
        take_outcome(&mut status, outcome, news);
    }
    take_progress(&mut status, news);
    let mut conditions = conditions(&status, news);
    for condition in &mut conditions {
        condition.observed_generation = Some(news.generation);
        let before = old.conditions.iter().find(|before| before.type_ == condition.type_);
        condition.last_transition_time = match before {
            Some(before) if before.status == condition.status => before.last_transition_time.clone(),
            _ => Time(news.now),
        };
    }
    status.conditions = conditions;
    status
}

fn take_run(status: &mut Status, run: &Run) {
    let before = status.run.as_ref();
    if before.is_none_or(|before| before.id != run.id) {
        status.result = None;
        status.failures.clear();
        status.failures_total = None;
    }
    if before.is_none_or(|before| (&before.id, before.attempt) != (&run.id, run.attempt)) {
        status.progress = None;
    }
    status.run = Some(run.clone());
}

fn take_outcome(status: &mut Status, outcome: &Outcome, news: &News) {
    let Some(run) = news.run else { return };
    if let (Some(payload), true) = (&outcome.payload, outcome.reason.is_success()) {
        status.payload = Some(Payload {
            run_id: run.id.clone(),
            location: news.location.to_owned(),
            digest: payload.digest.as_ref().map(ToString::to_string),
            file_digest: payload.file_digest.as_ref().map(ToString::to_string),
            size_bytes: payload.size_bytes,
            format_version: payload.format_version,
            images: payload.images,
            blobs: payload.blobs,
            blobs_reused: payload.blobs_reused,
        });
    }
    let rewritten = |image: &contract::Rewritten| RewrittenImage {
        image: cut(&sentence(&image.image), FAILURE_MESSAGE_LIMIT).to_owned(),
        digest: image.digest.to_string(),
    };
    if news.is_import {
        status.result = outcome.result.as_ref().map(|result| ImportCounts {
            images: result.images,
            images_failed: result.images_failed,
            images_kept: (result.images_kept > 0).then_some(result.images_kept),
            blobs_pushed: result.blobs_pushed,
            blobs_mounted: result.blobs_mounted,
            blobs_present: result.blobs_present,
            bytes_pushed: result.bytes_pushed,
            images_rewritten: (result.images_rewritten > 0).then_some(result.images_rewritten),
            rewritten: result.rewritten.iter().take(FAILURES_LIMIT).map(rewritten).collect(),
        });
    }
    let failure = |failure: &contract::Failure| ItemFailure {
        item: cut(&sentence(&failure.item), FAILURE_MESSAGE_LIMIT).to_owned(),
        reason: failure.reason.as_str().into(),
        message: cut(&sentence(&failure.message), FAILURE_MESSAGE_LIMIT).to_owned(),
    };
    status.failures = outcome.failures.iter().take(FAILURES_LIMIT).map(failure).collect();
    status.failures_total = (outcome.failures_total > 0).then_some(outcome.failures_total);
}

fn take_progress(status: &mut Status, news: &News) {
    if *news.verdict == Verdict::Succeeded {
        let before = status.progress.take();
        let known = before.as_ref();
        status.progress = Some(Progress {
            stage: Stage::Finishing,
            percent: Some(100),
            bytes_done: known.and_then(|known| known.bytes_total),
            bytes_total: known.and_then(|known| known.bytes_total),
            blobs_done: known.and_then(|known| known.blobs_total),
            blobs_total: known.and_then(|known| known.blobs_total),
            plan: known.and_then(|known| known.plan.clone()),
            last_error: None,
            update_time: known
                .filter(|known| known.percent == Some(100))
                .map_or(Time(news.now), |known| known.update_time.clone()),
        });
        return;
    }
    let Some(said) = news.progress else { return };
    // Without a sum there is no share, and a sum of nothing is not known yet.
    let percent = (said.bytes_done.min(said.bytes_total) * 100).checked_div(said.bytes_total);
    let next = Progress {
        stage: said.stage,
        percent: percent.and_then(|percent| percent.try_into().ok()),
        bytes_done: Some(said.bytes_done),
        bytes_total: (said.bytes_total > 0).then_some(said.bytes_total),
        blobs_done: Some(said.blobs_done),
        blobs_total: (said.blobs_total > 0).then_some(said.blobs_total),
        plan: said.plan.as_ref().map(plan),
        last_error: said.last_error.as_deref().map(sentence),
        update_time: Time(news.now),
    };
    let is_news = status
        .progress
        .as_ref()
        .is_none_or(|before| Progress { update_time: before.update_time.clone(), ..next.clone() } != *before);
    if is_news {
        status.progress = Some(next);
    }
}

fn plan(said: &contract::Plan) -> Plan {
    Plan {
        digest: said.digest.as_ref().map(ToString::to_string),
        size_bytes: said.size_bytes,
        images: said.images,
        images_failed: said.images_failed,
        blobs: said.blobs,
        blobs_reused: said.blobs_reused,
        bytes_present: said.bytes_present,
        room_bytes: said.room_bytes,
    }
}

/// Whether `next` tells a change of state, beside how far the worker is.
pub(super) fn is_transition(old: &Status, next: &Status) -> bool {
    let without_progress = |status: &Status| Status { progress: None, ..status.clone() };
    without_progress(old) != without_progress(next)
        // That the worker has begun to speak is news too.
        || old.progress.is_some() != next.progress.is_some()
}

fn conditions(status: &Status, news: &News) -> Vec<Condition> {
    let run = status.run.clone().unwrap_or_default();
    let failure = run.last_failure.as_ref();
    let is_retry = failure.is_some();
    let failed = |reason: &str, message: &str| new(condition::READY, "False", reason, message);
    // From the first failure on, Ready tells it until success or another run.
    let failed_before = || failure.map(|failure| failed(&failure.reason, &failure.message));
    let reconciling =
        |reason: Reason, message: &str| new(condition::RECONCILING, "True", reason.as_str(), message);
    let on_its_way = if is_retry { Reason::ProgressingWithRetry } else { Reason::Progressing };
    let mut conditions = Vec::new();
    match news.verdict {
        Verdict::Invalid(message) => refused(Reason::InvalidSpec, message, &mut conditions),
        Verdict::Conflict(message) => refused(Reason::OutputConflict, message, &mut conditions),
        Verdict::AwaitingBase(message) => {
            conditions.push(failed(Reason::WaitingForBase.as_str(), message));
            conditions.push(reconciling(Reason::WaitingForBase, message));
        }
        Verdict::Suspended(message) => conditions.push(failed(Reason::Suspended.as_str(), message)),
        Verdict::Working(message) => {
            let unknown = || new(condition::READY, "Unknown", Reason::Progressing.as_str(), message);
            conditions.push(failed_before().unwrap_or_else(unknown));
            conditions.push(reconciling(on_its_way, message));
        }
        Verdict::NotStarting(trouble) => {
            conditions.push(failed(trouble.reason.as_str(), &trouble.message));
            conditions.push(reconciling(on_its_way, &trouble.message));
        }
        Verdict::Superseding(message) => {
            let superseded = || failed(Reason::Superseded.as_str(), message);
            conditions.push(failed_before().unwrap_or_else(superseded));
            conditions.push(reconciling(Reason::Superseded, message));
        }
        Verdict::Retrying(due) => {
            let cause = failure.and_then(|failure| parse(&failure.reason));
            let waits = cause.is_some_and(|cause| cause.class() == crate::reason::Class::Wait);
            let reason = cause.filter(|_| waits).unwrap_or(Reason::ProgressingWithRetry);
            let message = format!("attempt {} failed; the next one is due at {due}", run.attempt);
            conditions.push(failed_before().unwrap_or_else(|| failed(reason.as_str(), &message)));
            conditions.push(reconciling(reason, &message));
        }
        Verdict::Stalled => stalled(&run, &mut conditions),
        Verdict::Succeeded => {
            let message = success(status, news);
            conditions.push(new(condition::READY, "True", success_reason(status, news).as_str(), &message));
        }
    }
    conditions.push(existing(status, news, &conditions[0].clone()));
    if news.is_import {
        conditions.extend(verified(&run));
    }
    conditions
}

/// It cannot be as it is written.
fn refused(reason: Reason, message: &str, conditions: &mut Vec<Condition>) {
    conditions.push(new(condition::READY, "False", reason.as_str(), message));
    conditions.push(new(condition::STALLED, "True", reason.as_str(), message));
}

/// What the worker said when it was done; afterwards, what the status says of the same run since.
fn success_reason(status: &Status, news: &News) -> Reason {
    if let Some(outcome) = news.outcome {
        return outcome.reason;
    }
    let ready = status.conditions.iter().find(|condition| condition.type_ == condition::READY);
    let before = ready.filter(|ready| ready.status == "True").and_then(|ready| parse(&ready.reason));
    before.unwrap_or(Reason::Succeeded)
}

fn stalled(run: &Run, conditions: &mut Vec<Condition>) {
    let end = run.ended.as_ref().map_or(Reason::WorkerFailed.as_str(), |ended| ended.reason.as_str());
    let (cause, message) = match &run.last_failure {
        Some(failure) => (failure.reason.as_str(), failure.message.clone()),
        None => (end, String::new()),
    };
    let gave_up = match parse(end) {
        Some(Reason::DeadlineExceeded) => {
            format!("the run took longer than spec.timeout allows; {}", or_nothing_failed(&message))
        }
        Some(Reason::BackoffLimitExceeded) => format!(
            "{} pods failed, and spec.backoffLimit allows no more; the last cause: {message}",
            run.pod_failures.unwrap_or(0)
        ),
        Some(Reason::WorkerEvicted) => format!(
            "the cluster ended more than {DISRUPTIONS_LIMIT} pods of this run; kubectl get events tells why, and any change of the spec tries again; the last: {message}"
        ),
        _ => message.clone(),
    };
    let ready = if message.is_empty() { &gave_up } else { &message };
    conditions.push(new(condition::READY, "False", cause, ready));
    conditions.push(new(condition::STALLED, "True", end, &gave_up));
}

fn or_nothing_failed(message: &str) -> String {
    if message.is_empty() { "nothing had failed".into() } else { format!("the last cause: {message}") }
}

/// `PayloadAvailable` or `Imported`: whether there is some good result, of whatever generation.
fn existing(status: &Status, news: &News, ready: &Condition) -> Condition {
    let type_ = if news.is_import { condition::IMPORTED } else { condition::PAYLOAD_AVAILABLE };
    let is_done = status.run.as_ref().is_some_and(|run| run.completion_time.is_some());
    let in_part =
        status.result.as_ref().filter(|result| !is_done && result.images > 0 && result.images_failed > 0);
    if let Some(result) = in_part {
        let message = format!("{} images were imported, {} were not", result.images, result.images_failed);
        return new(type_, "False", Reason::PartiallyImported.as_str(), &message);
    }
    match &status.payload {
        Some(payload) => {
            let what = if news.is_import { "was imported from" } else { "lies at" };
            // docker-charon's payloads have no digest.
            let digest = payload.digest.as_deref().map(|digest| format!(" {digest}")).unwrap_or_default();
            let message = format!("payload{digest} {what} {}", payload.location);
            new(type_, "True", Reason::Succeeded.as_str(), &message)
        }
        None => new(type_, "False", &ready.reason, "there is none yet"),
    }
}

fn verified(run: &Run) -> Option<Condition> {
    if run.completion_time.is_some() {
        let message = "the payload's structure holds, and every blob that was read had its digest";
        return Some(new(condition::PAYLOAD_VERIFIED, "True", Reason::Succeeded.as_str(), message));
    }
    let failure = run.last_failure.as_ref()?;
    let is_corrupt = [Reason::PayloadCorrupt, Reason::DigestMismatch]
        .map(Reason::as_str)
        .contains(&failure.reason.as_str());
    is_corrupt.then(|| new(condition::PAYLOAD_VERIFIED, "False", &failure.reason, &failure.message))
}

fn success(status: &Status, news: &News) -> String {
    let Some(payload) = &status.payload else { return "done".into() };
    let kept = status.result.as_ref().and_then(|result| Some((result.images, result.images_kept?)));
    let images = match kept.map_or(payload.images, |(whole, _)| whole) {
        1 => "1 image is".to_owned(),
        count => format!("{count} images are"),
    };
    let rewritten = status.result.as_ref().and_then(|result| result.images_rewritten);
    let kept = kept.map_or_else(String::new, |(_, kept)| {
        format!("; {kept} not pushed, since something else has the tag there and keeps it")
    });
    if let Some(registry) = news.registry {
        let rewritten = rewritten.map_or_else(String::new, |count| {
            format!("; {count} with another digest, since it takes no index without all its images: see status.result.rewritten")
        });
        return format!("{images} in {registry}, from {}{kept}{rewritten}", payload.location);
    }
    let missing = status.failures_total.map_or_else(String::new, |count| {
        format!("; without {count} that could not be had: see status.failures")
    });
    format!("{images} in {}, {}{missing}", payload.location, size(payload.size_bytes))
}

/// A size for people.
#[allow(clippy::cast_precision_loss)] // three digits of it are shown
fn size(bytes: u64) -> String {
    let mut size = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if size < 1000.0 {
            return if unit == "B" { format!("{size} B") } else { format!("{size:.1} {unit}") };
        }
        size /= 1000.0;
    }
    format!("{size:.1} TB")
}

fn new(type_: &str, status: &str, reason: &str, message: &str) -> Condition {
    Condition {
        type_: type_.into(),
        status: status.into(),
        reason: reason.into(),
        message: sentence(message),
        observed_generation: None,
        last_transition_time: Time(Timestamp::UNIX_EPOCH),
    }
}

#[cfg(test)]
mod tests;
