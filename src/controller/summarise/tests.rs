//! The table of the conditions, and what always holds of them.

use std::fmt::Write as _;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::api::{AttemptEnd, LastFailure};
use crate::controller::outcome::Failure;
use crate::digest::Digest;
use crate::worker::contract::{CONTRACT_VERSION, ImportResult, PayloadSummary};

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

fn later(seconds: u64) -> Timestamp {
    NOW + Duration::from_secs(seconds)
}

fn summary(old: &Status, run: &Run, verdict: &Verdict, is_import: bool, now: Timestamp) -> Status {
    summarise(
        old,
        &News {
            generation: 1,
            is_import,
            location: "claim/app.zip",
            registry: is_import.then_some("registry.infra"),
            requested_at: None,
            run: Some(run),
            verdict,
            outcome: None,
            progress: None,
            now,
        },
    )
}

fn run() -> Run {
    Run { id: "r".into(), attempt: 1, ..Run::default() }
}

fn failed(reason: Reason) -> Run {
    let failure = LastFailure {
        reason: reason.as_str().into(),
        message: "it failed".into(),
        time: Time(NOW),
        retry_after_seconds: None,
    };
    Run { last_failure: Some(failure), ..run() }
}

fn ended(cause: Reason, end: Reason) -> Run {
    let ended = AttemptEnd { reason: end.as_str().into(), generation: 1, time: Time(NOW) };
    Run { ended: Some(ended), ..failed(cause) }
}

fn brief(status: &Status) -> [String; 3] {
    ["Ready", "Reconciling", "Stalled"].map(|type_| {
        let found = status.conditions.iter().find(|condition| condition.type_ == type_);
        found.map(|found| format!("{}/{}", found.status, found.reason)).unwrap_or_default()
    })
}

/// What may be the case, and what Ready, Reconciling and Stalled say then.
fn situations() -> Vec<(&'static str, Run, Verdict, [&'static str; 3])> {
    let working = Verdict::Working("pod p is at work".into());
    let secret = Verdict::NotStarting(Failure::new(Reason::SecretNotFound, "no secret"));
    let superseding = Verdict::Superseding("pod p must end".into());
    let due = Verdict::Retrying(later(300));
    vec![
        (
            "working, nothing failed yet",
            run(),
            working.clone(),
            ["Unknown/Progressing", "True/Progressing", ""],
        ),
        ("cannot start", run(), secret.clone(), ["False/SecretNotFound", "True/Progressing", ""]),
        (
            "trying again after a passing failure",
            failed(Reason::ImageNotFound),
            working.clone(),
            ["False/ImageNotFound", "True/ProgressingWithRetry", ""],
        ),
        (
            "cannot start again",
            failed(Reason::ImageNotFound),
            secret.clone(),
            ["False/SecretNotFound", "True/ProgressingWithRetry", ""],
        ),
        (
            "waiting for the source",
            ended(Reason::SourceNotFound, Reason::SourceNotFound),
            due.clone(),
            ["False/SourceNotFound", "True/SourceNotFound", ""],
        ),
        (
            "waiting for the second and last try",
            ended(Reason::AuthenticationFailed, Reason::AuthenticationFailed),
            due.clone(),
            ["False/AuthenticationFailed", "True/ProgressingWithRetry", ""],
        ),
        ("waiting for the old pod", run(), superseding.clone(), ["False/Superseded", "True/Superseded", ""]),
        (
            "waiting for the old pod after a failure",
            failed(Reason::RateLimited),
            superseding.clone(),
            ["False/RateLimited", "True/Superseded", ""],
        ),
        ("done", run(), Verdict::Succeeded, ["True/Succeeded", "", ""]),
        ("bad spec", run(), Verdict::Invalid("no".into()), ["False/InvalidSpec", "", "True/InvalidSpec"]),
        (
            "an older build of the same file",
            run(),
            Verdict::Conflict("no".into()),
            ["False/OutputConflict", "", "True/OutputConflict"],
        ),
        (
            "an earlier payload is not there yet",
            run(),
            Verdict::AwaitingBase("PayloadBuild b is not Ready".into()),
            ["False/WaitingForBase", "True/WaitingForBase", ""],
        ),
        ("suspended", run(), Verdict::Suspended("so".into()), ["False/Suspended", "", ""]),
        (
            "denied",
            ended(Reason::AccessDenied, Reason::AccessDenied),
            Verdict::Stalled,
            ["False/AccessDenied", "", "True/AccessDenied"],
        ),
        (
            "attempts spent",
            ended(Reason::WorkerOutOfMemory, Reason::BackoffLimitExceeded),
            Verdict::Stalled,
            ["False/WorkerOutOfMemory", "", "True/BackoffLimitExceeded"],
        ),
        (
            "put out too often",
            ended(Reason::WorkerEvicted, Reason::WorkerEvicted),
            Verdict::Stalled,
            ["False/WorkerEvicted", "", "True/WorkerEvicted"],
        ),
        (
            "time spent",
            ended(Reason::SourceNotFound, Reason::DeadlineExceeded),
            Verdict::Stalled,
            ["False/SourceNotFound", "", "True/DeadlineExceeded"],
        ),
        (
            "time spent, and nothing had failed",
            Run { last_failure: None, ..ended(Reason::SourceNotFound, Reason::DeadlineExceeded) },
            Verdict::Stalled,
            ["False/DeadlineExceeded", "", "True/DeadlineExceeded"],
        ),
    ]
}

#[test]
fn the_conditions_are_those_of_the_table() {
    for (situation, run, verdict, expected) in situations() {
        let status = summary(&Status::default(), &run, &verdict, false, NOW);
        assert_eq!(brief(&status), expected.map(String::from), "{situation}");
        assert_eq!(status.observed_generation, Some(1));
        assert!(status.conditions.iter().all(|condition| condition.observed_generation == Some(1)));
    }
}

#[test]
fn the_words_of_the_conditions_are_those_that_were_reviewed() {
    let mut told = String::new();
    let mut tell = |what: &str, status: &Status| {
        writeln!(told, "{what}").unwrap();
        for Condition { type_, status, reason, message, .. } in &status.conditions {
            writeln!(told, "  {type_}={status}/{reason}: {message}").unwrap();
        }
    };
    for (situation, run, verdict, _) in situations() {
        tell(situation, &summary(&Status::default(), &run, &verdict, false, NOW));
    }
    let corrupt = ended(Reason::PayloadCorrupt, Reason::PayloadCorrupt);
    tell("corrupt", &summary(&Status::default(), &corrupt, &Verdict::Stalled, true, NOW));
    let payload = PayloadSummary {
        digest: Some(Digest::sha256(b"")),
        file_digest: None,
        size_bytes: 12_345_678,
        format_version: 1,
        images: 3,
        blobs: 1,
        blobs_reused: 0,
    };
    let good = Outcome { reason: Reason::Succeeded, payload: Some(payload), ..outcome(0) };
    let done = Run { completion_time: Some(Time(NOW)), ..run() };
    let news = News { outcome: Some(&good), ..news(&done, &Verdict::Succeeded) };
    tell("imported", &summarise(&Status::default(), &news));
    let built = summarise(&Status::default(), &News { is_import: false, registry: None, ..news });
    tell("built", &built);
    let next = summary(&built, &run(), &Verdict::Working("pod p is at work".into()), false, NOW);
    tell("built, and working on another", &next);
    let (in_part, part) = (ended(Reason::MissingBase, Reason::MissingBase), Verdict::Stalled);
    let result = ImportResult { images: 2, images_failed: 1, ..ImportResult::default() };
    let failed = Outcome { reason: Reason::MissingBase, result: Some(result), ..outcome(1) };
    let news = self::news(&in_part, &part);
    tell("imported in part", &summarise(&Status::default(), &News { outcome: Some(&failed), ..news }));
    insta::assert_snapshot!(told);
}

#[test]
fn a_condition_tells_since_when_it_has_its_status_and_not_its_reason() {
    let since = |status: &Status| status.conditions[0].last_transition_time.0;
    let start = summary(&Status::default(), &run(), &Verdict::Working("a".into()), false, later(1));
    assert_eq!(since(&start), later(1));
    let secret = Verdict::NotStarting(Failure::new(Reason::SecretNotFound, "no secret"));
    let held_up = summary(&start, &run(), &secret, false, later(2));
    assert_eq!(since(&held_up), later(2));
    let image = Verdict::NotStarting(Failure::new(Reason::WorkerImagePullFailed, "no image"));
    let still = summary(&held_up, &run(), &image, false, later(3));
    assert_eq!((since(&still), still.conditions[0].reason.as_str()), (later(2), "WorkerImagePullFailed"));
}

#[test]
fn the_same_news_twice_are_no_news() {
    let verdict = Verdict::Working("pod p is at work".into());
    let first = summary(&Status::default(), &run(), &verdict, false, later(1));
    assert_eq!(summary(&first, &run(), &verdict, false, later(60)), first);
    let done = summary(&first, &run(), &Verdict::Succeeded, true, later(61));
    assert_eq!(summary(&done, &run(), &Verdict::Succeeded, true, later(99)), done);
}

fn outcome(failures: usize) -> Outcome {
    let failure = contract::Failure::new("i".repeat(2000), Reason::ImageNotFound, "ü".repeat(2000));
    Outcome {
        version: CONTRACT_VERSION,
        run_id: "r".into(),
        input_digest: String::new(),
        reason: Reason::ImageNotFound,
        message: "m".repeat(5000),
        payload: None,
        result: None,
        failures: vec![failure; failures],
        failures_total: u32::try_from(failures).unwrap(),
        retry_after_seconds: None,
    }
}

#[test]
fn a_thousand_failures_make_no_big_status() {
    let outcome = outcome(1000);
    let mut run = ended(Reason::ImageNotFound, Reason::BackoffLimitExceeded);
    run.last_failure.as_mut().unwrap().message = sentence(&outcome.message);
    let verdict = Verdict::Stalled;
    let news = News { outcome: Some(&outcome), ..news(&run, &verdict) };
    let status = summarise(&Status::default(), &news);
    assert_eq!((status.failures.len(), status.failures_total), (5, Some(1000)));
    assert!(status.failures.iter().all(|failure| failure.message.len() <= 300 && failure.item.len() <= 300));
    assert!(status.conditions.iter().all(|condition| condition.message.len() <= 1024));
    assert!(serde_json::to_string(&status).unwrap().len() < 16 * 1024);
}

fn news<'a>(run: &'a Run, verdict: &'a Verdict) -> News<'a> {
    News {
        generation: 1,
        is_import: true,
        location: "claim/app.zip",
        registry: Some("registry.infra"),
        requested_at: None,
        run: Some(run),
        verdict,
        outcome: None,
        progress: None,
        now: NOW,
    }
}

#[test]
fn a_new_run_forgets_the_failures_of_the_old_one_and_keeps_its_payload() {
    let summary = PayloadSummary {
        digest: Some(Digest::sha256(b"")),
        file_digest: Some(Digest::sha256(b"file")),
        size_bytes: 1,
        format_version: 1,
        images: 1,
        blobs: 1,
        blobs_reused: 0,
    };
    let good = Outcome {
        reason: Reason::Succeeded,
        payload: Some(summary),
        result: Some(ImportResult { images: 1, images_failed: 1, ..ImportResult::default() }),
        ..outcome(1)
    };
    let old =
        summarise(&Status::default(), &News { outcome: Some(&good), ..news(&run(), &Verdict::Succeeded) });
    assert!(old.payload.is_some() && old.result.is_some() && !old.failures.is_empty());
    let next = Run { id: "other".into(), attempt: 2, ..Run::default() };
    let status = summarise(&old, &news(&next, &Verdict::Working("a".into())));
    assert_eq!((status.payload, status.result, status.failures), (old.payload, None, vec![]));
    assert_eq!(status.progress, None);
}

#[test]
fn ready_tells_what_was_left_out_and_what_has_another_digest() {
    let message = |outcome: &Outcome, is_import: bool| {
        let (run, registry) = (run(), is_import.then_some("registry.infra"));
        let news = News { outcome: Some(outcome), is_import, registry, ..news(&run, &Verdict::Succeeded) };
        let status = summarise(&Status::default(), &news);
        let ready = status.conditions.iter().find(|condition| condition.type_ == condition::READY).unwrap();
        assert_eq!(ready.status, "True");
        (ready.message.clone(), status)
    };
    let summary = PayloadSummary {
        digest: None,
        file_digest: Some(Digest::sha256(b"file")),
        size_bytes: 1,
        format_version: 1,
        images: 1,
        blobs: 1,
        blobs_reused: 0,
    };
    let built = Outcome { reason: Reason::Succeeded, payload: Some(summary), ..outcome(2) };
    let (told, status) = message(&built, false);
    assert_eq!(
        told,
        "1 image is in claim/app.zip, 1 B; without 2 that could not be had: see status.failures"
    );
    assert_eq!((status.failures.len(), status.failures_total), (2, Some(2)));

    let rewritten = contract::Rewritten { image: "a:1".into(), digest: Digest::sha256(b"") };
    let result = ImportResult {
        images: 1,
        images_rewritten: 1,
        rewritten: vec![rewritten],
        ..ImportResult::default()
    };
    let imported = Outcome { result: Some(result), failures: vec![], failures_total: 0, ..built };
    let (told, status) = message(&imported, true);
    assert_eq!(
        told,
        "1 image is in registry.infra, from claim/app.zip; 1 with another digest, since it takes no index without all its \
         images: see status.result.rewritten"
    );
    let kept = ImportResult { images: 3, images_kept: 1, ..ImportResult::default() };
    let (told, kept) = message(&Outcome { result: Some(kept), ..imported }, true);
    assert_eq!(
        told,
        "3 images are in registry.infra, from claim/app.zip; 1 not pushed, since something else has the tag there and \
         keeps it"
    );
    assert_eq!(
        (kept.result.unwrap().images_kept, kept.payload.unwrap().file_digest.is_some()),
        (Some(1), true)
    );
    let result = status.result.unwrap();
    assert_eq!((result.images_rewritten, result.rewritten[0].image.as_str()), (Some(1), "a:1"));
}

#[test]
fn progress_is_a_share_of_the_bytes_and_unknown_without_their_sum() {
    let said = |done, total| contract::Progress {
        run_id: "r".into(),
        nonce: "n".into(),
        stage: Stage::Transferring,
        bytes_done: done,
        bytes_total: total,
        blobs_done: 0,
        blobs_total: 0,
        last_error: None,
        plan: None,
    };
    let verdict = Verdict::Working("pod p is at work".into());
    for (done, total, percent) in
        [(0, 0, None), (0, 3, Some(0)), (2, 3, Some(66)), (4, 3, Some(100)), (1 << 50, 1 << 50, Some(100))]
    {
        let progress = said(done, total);
        let status =
            summarise(&Status::default(), &News { progress: Some(&progress), ..news(&run(), &verdict) });
        assert_eq!(status.progress.unwrap().percent, percent, "{done} of {total}");
    }
    // The same again is no news, whenever it is said.
    let progress = said(1, 2);
    let first = summarise(&Status::default(), &News { progress: Some(&progress), ..news(&run(), &verdict) });
    let again =
        summarise(&first, &News { progress: Some(&progress), now: later(60), ..news(&run(), &verdict) });
    assert_eq!(again, first);
    let more = said(2, 2);
    let moved = summarise(&first, &News { progress: Some(&more), now: later(60), ..news(&run(), &verdict) });
    assert!(moved != first && !is_transition(&first, &moved));
}

#[test]
fn the_plan_of_a_run_is_told_before_its_first_byte_moves_and_stays() {
    let plan = contract::Plan {
        digest: Some(Digest::sha256(b"bill")),
        size_bytes: 1000,
        images: 3,
        images_failed: 1,
        blobs: 7,
        blobs_reused: 2,
        bytes_present: 400,
        room_bytes: Some(5000),
    };
    let said = contract::Progress {
        run_id: "r".into(),
        nonce: "n".into(),
        stage: Stage::Transferring,
        bytes_done: 0,
        bytes_total: 900,
        blobs_done: 0,
        blobs_total: 7,
        last_error: None,
        plan: Some(plan.clone()),
    };
    // As the worker sends it.
    let said: contract::Progress = serde_json::from_str(&serde_json::to_string(&said).unwrap()).unwrap();
    let verdict = Verdict::Working("pod p is at work".into());
    let status = summarise(&Status::default(), &News { progress: Some(&said), ..news(&run(), &verdict) });
    let told = serde_json::to_value(&status.progress.as_ref().unwrap().plan).unwrap();
    let expected = serde_json::json!({
        "digest": plan.digest, "sizeBytes": 1000, "images": 3, "imagesFailed": 1, "blobs": 7, "blobsReused": 2,
        "bytesPresent": 400, "roomBytes": 5000,
    });
    assert_eq!(told, expected);
    let done = summarise(&status, &news(&run(), &Verdict::Succeeded));
    assert_eq!(done.progress.unwrap().plan, status.progress.unwrap().plan);
}

fn reasons() -> impl Strategy<Value = Reason> {
    proptest::sample::select(vec![
        Reason::SourceNotFound,
        Reason::AuthenticationFailed,
        Reason::AccessDenied,
        Reason::ImageNotFound,
        Reason::ResultLost,
        Reason::WorkerLost,
        Reason::DeadlineExceeded,
        Reason::BackoffLimitExceeded,
    ])
}

fn runs() -> impl Strategy<Value = Run> {
    let failed = (reasons()).prop_map(failed);
    let ended = (reasons(), reasons()).prop_map(|(cause, end)| ended(cause, end));
    prop_oneof![Just(run()), failed, ended]
}

fn verdicts() -> impl Strategy<Value = Verdict> {
    prop_oneof![
        ".{0,2000}".prop_map(Verdict::Invalid),
        ".{0,2000}".prop_map(Verdict::Working),
        (reasons(), ".{0,2000}").prop_map(|(reason, text)| Verdict::NotStarting(Failure::new(reason, text))),
        ".{0,2000}".prop_map(Verdict::Superseding),
        Just(Verdict::Retrying(later(5))),
        Just(Verdict::Stalled),
        Just(Verdict::Succeeded),
    ]
}

/// A text of a registry, a kubelet or a worker: long, with what JSON has to escape.
fn texts() -> impl Strategy<Value = String> {
    prop_oneof![".{2000,2048}", "[a-zü\u{1}\u{1b}\n ]{2048}"]
}

proptest! {
    // Each has some hundred kilobytes.
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_thousand_images_that_all_fail_with_two_kibibytes_make_a_status_of_less_than_sixteen(
        message in texts(),
        item in texts(),
        failures in proptest::collection::vec(texts(), 5),
        verdict in verdicts(),
        is_import in any::<bool>(),
    ) {
        let failure = |text: &String| contract::Failure::new(item.clone(), Reason::ImageNotFound, text.clone());
        let failures: Vec<_> = failures.iter().map(failure).cycle().take(1000).collect();
        let rewritten = contract::Rewritten { image: item.clone(), digest: Digest::sha256(b"") };
        let result = ImportResult {
            images_failed: 1000, images_rewritten: 1000, rewritten: vec![rewritten; 1000], ..ImportResult::default()
        };
        let outcome = Outcome { result: Some(result), message: message.clone(), failures, ..outcome(1000) };
        let progress = contract::Progress {
            run_id: "r".into(), nonce: "n".into(), stage: Stage::Transferring, bytes_done: 1, bytes_total: 2,
            blobs_done: 1, blobs_total: 2, last_error: Some(message.clone()), plan: None,
        };
        let mut run = ended(Reason::DigestMismatch, Reason::BackoffLimitExceeded);
        run.last_failure.as_mut().unwrap().message = Failure::new(Reason::DigestMismatch, message).message;
        let news = News {
            is_import, outcome: Some(&outcome), progress: Some(&progress), ..news(&run, &verdict)
        };
        let status = summarise(&Status::default(), &news);
        prop_assert_eq!((status.failures.len(), status.failures_total), (5, Some(1000)));
        let size = serde_json::to_string(&status).unwrap().len();
        prop_assert!(size < 16 * 1024, "{size} bytes");
    }
}

proptest! {
    #[test]
    fn whatever_happens_the_conditions_hold_together(
        steps in proptest::collection::vec((runs(), verdicts(), any::<bool>()), 1..12),
    ) {
        let mut status = Status::default();
        for (step, (run, verdict, is_import)) in (1..).zip(steps) {
            let next = summary(&status, &run, &verdict, is_import, later(step));
            let find = |type_: &str| next.conditions.iter().find(|condition| condition.type_ == type_);
            let (reconciling, stalled) = (find("Reconciling"), find("Stalled"));
            prop_assert!(reconciling.is_none() || stalled.is_none(), "both");
            let ready = find("Ready").unwrap();
            prop_assert_eq!(ready.status == "True", reconciling.is_none() && stalled.is_none());
            for condition in &next.conditions {
                prop_assert!(condition.message.len() <= 1024 && !condition.reason.is_empty());
                let before = status.conditions.iter().find(|before| before.type_ == condition.type_);
                let is_same = before.is_some_and(|before| before.status == condition.status);
                let since = before.map(|before| before.last_transition_time.clone());
                prop_assert_eq!(is_same, since == Some(condition.last_transition_time.clone()));
            }
            status = next;
        }
    }
}
