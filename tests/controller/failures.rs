//! What follows when a worker ends without success.

use charon::api::{PayloadBuild, PayloadImport};
use charon::reason::Reason;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::DeleteParams;
use serde_json::json;

use crate::kubelet::{outcome, with_counts, with_failure};
use crate::world::{World, brief, build_spec, build_to, condition, import_spec, run};

#[tokio::test]
async fn a_final_failure_stalls_at_once_and_makes_no_second_pod() {
    let world = World::new("final").await;
    for reason in [
        Reason::AccessDenied,
        Reason::UnsupportedImage,
        Reason::OutputConflict,
        Reason::StorageFull,
        Reason::StorageReadOnly,
        Reason::StorageAccessDenied,
    ] {
        let name = reason.as_str().to_lowercase();
        world.create::<PayloadBuild>(&name, build_to("python:3", &name)).await;
        let job = world.job_of_attempt::<PayloadBuild>(&name, 1).await;
        let pod = world.pod_of(&job).await;
        world.concludes(&pod, &with_failure(outcome(&pod, reason), "python:3")).await;
        let stalls = |status: &charon::api::Status| condition(status, "Stalled").is_some();
        let status = world.until::<PayloadBuild>(&name, "stalled", stalls).await;
        assert_eq!(brief(&status, "Ready"), format!("False/{reason}"));
        assert_eq!(brief(&status, "Stalled"), format!("True/{reason}"));
        assert_eq!(brief(&status, "Reconciling"), "");
        assert_eq!(condition(&status, "Ready").unwrap().message, format!("it is {reason}; do something"));
        assert_eq!((status.failures.len(), status.failures_total), (1, Some(1)));
        assert_eq!(run(&status).attempt, 1);
    }
    assert_eq!(world.jobs().await.len(), 6);
}

#[tokio::test]
async fn a_corrupt_payload_stalls_its_import_and_is_not_verified() {
    let world = World::new("corrupt").await;
    for reason in [Reason::PayloadCorrupt, Reason::DigestMismatch] {
        let name = reason.as_str().to_lowercase();
        world.create::<PayloadImport>(&name, import_spec()).await;
        let job = world.job_of_attempt::<PayloadImport>(&name, 1).await;
        world.ends_for(&world.pod_of(&job).await, reason).await;
        let status = world.until_ready::<PayloadImport>(&name, "False", reason.as_str()).await;
        assert_eq!(brief(&status, "Stalled"), format!("True/{reason}"));
        assert_eq!(brief(&status, "PayloadVerified"), format!("False/{reason}"));
        assert_eq!(brief(&status, "Imported"), format!("False/{reason}"));
    }
}

#[tokio::test]
async fn an_import_in_part_stalls_for_its_cause_and_counts_both_parts() {
    let world = World::new("part").await;
    world.create::<PayloadImport>("app", import_spec()).await;
    let job = world.job_of_attempt::<PayloadImport>("app", 1).await;
    let pod = world.pod_of(&job).await;
    world.concludes(&pod, &with_counts(outcome(&pod, Reason::MissingBase), 3, 2)).await;
    let status = world.until_ready::<PayloadImport>("app", "False", "MissingBase").await;
    assert_eq!(brief(&status, "Stalled"), "True/MissingBase");
    assert_eq!(brief(&status, "Imported"), "False/PartiallyImported");
    let result = status.result.unwrap();
    assert_eq!((result.images, result.images_failed), (3, 2));
    assert_eq!(status.payload, None);
}

#[tokio::test]
async fn a_source_that_is_not_there_is_waited_for_until_it_arrives() {
    let world = World::new("waiting").await;
    world.create::<PayloadImport>("app", import_spec()).await;
    for (attempt, reason) in
        [(1, Reason::SourceNotFound), (2, Reason::SourceIncomplete), (3, Reason::SourceNotFound)]
    {
        let job = world.job_of_attempt::<PayloadImport>("app", attempt).await;
        world.ends_for(&world.pod_of(&job).await, reason).await;
        let waits = |status: &charon::api::Status| {
            brief(status, "Reconciling") == format!("True/{reason}") && run(status).attempt == attempt
        };
        let status = world.until::<PayloadImport>("app", "waiting", waits).await;
        assert_eq!(brief(&status, "Ready"), format!("False/{reason}"));
        assert_eq!(brief(&status, "Stalled"), "");
    }
    let job = world.job_of_attempt::<PayloadImport>("app", 4).await;
    world.ends_for(&world.pod_of(&job).await, Reason::Succeeded).await;
    let status = world.until_ready::<PayloadImport>("app", "True", "Succeeded").await;
    assert_eq!(run(&status).attempt, 4);
    assert_eq!(world.jobs().await.len(), 1);
}

#[tokio::test]
async fn waiting_counts_against_no_backoff_limit_and_ends_with_the_timeout() {
    let world = World::new("patience").await;
    let mut spec = import_spec();
    spec["backoffLimit"] = json!(0);
    world.create::<PayloadImport>("app", spec).await;
    for attempt in 1..=3 {
        let job = world.job_of_attempt::<PayloadImport>("app", attempt).await;
        world.ends_for(&world.pod_of(&job).await, Reason::SourceNotFound).await;
    }
    world.job_of_attempt::<PayloadImport>("app", 4).await;
    world.patch::<PayloadImport>("app", json!({ "spec": { "timeout": "1s" } })).await;
    let stalls = |status: &charon::api::Status| condition(status, "Stalled").is_some();
    let status = world.until::<PayloadImport>("app", "stalled", stalls).await;
    assert_eq!(brief(&status, "Ready"), "False/SourceNotFound");
    assert_eq!(brief(&status, "Stalled"), "True/DeadlineExceeded");
    assert_eq!(brief(&status, "Reconciling"), "");
}

#[tokio::test]
async fn refused_credentials_are_tried_twice_and_not_a_third_time() {
    let world = World::new("twice").await;
    world.create::<PayloadBuild>("app", build_spec("python:3")).await;
    for attempt in [1, 2] {
        let job = world.job_of_attempt::<PayloadBuild>("app", attempt).await;
        world.ends_for(&world.pod_of(&job).await, Reason::AuthenticationFailed).await;
    }
    let stalls = |status: &charon::api::Status| condition(status, "Stalled").is_some();
    let status = world.until::<PayloadBuild>("app", "stalled", stalls).await;
    assert_eq!(brief(&status, "Ready"), "False/AuthenticationFailed");
    assert_eq!(brief(&status, "Stalled"), "True/AuthenticationFailed");
    let run = run(&status);
    assert_eq!((run.attempt, run.authentication_failures), (2, Some(2)));
}

#[tokio::test]
async fn a_failure_that_may_pass_is_told_with_the_first_pod_and_stalls_with_the_last() {
    let world = World::new("again").await;
    let mut spec = build_spec("python:3");
    spec["backoffLimit"] = json!(1);
    world.create::<PayloadBuild>("app", spec).await;
    let job = world.job_of_attempt::<PayloadBuild>("app", 1).await;
    let first = world.pod_of(&job).await;
    world.concludes(&first, &with_failure(outcome(&first, Reason::ImageNotFound), "python:3")).await;

    let status = world.until_ready::<PayloadBuild>("app", "False", "ImageNotFound").await;
    assert_eq!(brief(&status, "Reconciling"), "True/ProgressingWithRetry");
    assert_eq!(brief(&status, "Stalled"), "");
    assert_eq!(status.failures[0].item, "python:3");

    let second = world.pod_of(&job).await;
    world.works(&second, "127.0.7.4").await;
    let works = |status: &charon::api::Status| {
        condition(status, "Reconciling").is_some_and(|found| found.message.contains(&second.name_any()))
    };
    let status = world.until::<PayloadBuild>("app", "at work again", works).await;
    assert_eq!(brief(&status, "Ready"), "False/ImageNotFound", "it must not flap");

    world.ends_for(&second, Reason::ImageNotFound).await;
    let stalls = |status: &charon::api::Status| condition(status, "Stalled").is_some();
    let status = world.until::<PayloadBuild>("app", "stalled", stalls).await;
    assert_eq!(brief(&status, "Ready"), "False/ImageNotFound");
    assert_eq!(brief(&status, "Stalled"), "True/BackoffLimitExceeded");
    assert_eq!(run(&status).pod_failures, Some(2));
}

#[tokio::test]
async fn a_stalled_run_gets_another_try_when_the_spec_is_tuned() {
    let world = World::new("tuned").await;
    world.create::<PayloadBuild>("app", build_spec("python:3")).await;
    let job = world.job_of_attempt::<PayloadBuild>("app", 1).await;
    world.ends_for(&world.pod_of(&job).await, Reason::AccessDenied).await;
    let stalls = |status: &charon::api::Status| condition(status, "Stalled").is_some();
    let before = world.until::<PayloadBuild>("app", "stalled", stalls).await;

    let access = json!([{ "host": "docker.io", "secretRef": { "name": "pull" } }]);
    world.patch::<PayloadBuild>("app", json!({ "spec": { "registries": access } })).await;
    let job = world.job_of_attempt::<PayloadBuild>("app", 2).await;
    let status = world.status::<PayloadBuild>("app").await;
    assert_eq!(run(&status).id, run(&before).id, "tuning asks for no other payload");
    assert_eq!(brief(&status, "Ready"), "False/AccessDenied", "it must not flap");
    assert_eq!(brief(&status, "Reconciling"), "True/ProgressingWithRetry");
    world.ends_for(&world.pod_of(&job).await, Reason::Succeeded).await;
    world.until_ready::<PayloadBuild>("app", "True", "Succeeded").await;

    // A success is not run again for it.
    world.patch::<PayloadBuild>("app", json!({ "spec": { "backoffLimit": 3 } })).await;
    let status = world.until_ready::<PayloadBuild>("app", "True", "Succeeded").await;
    assert_eq!(run(&status).attempt, 2);
}

#[tokio::test]
async fn a_run_that_takes_too_long_is_ended() {
    let world = World::new("timeout").await;
    world.create::<PayloadBuild>("app", build_spec("python:3")).await;
    let job = world.job_of_attempt::<PayloadBuild>("app", 1).await;
    let pod = world.pod_of(&job).await;
    world.works(&pod, "127.0.7.5").await;
    world.patch::<PayloadBuild>("app", json!({ "spec": { "timeout": "1s" } })).await;
    let stalls = |status: &charon::api::Status| condition(status, "Stalled").is_some();
    let status = world.until::<PayloadBuild>("app", "stalled", stalls).await;
    assert_eq!(brief(&status, "Ready"), "False/DeadlineExceeded");
    assert_eq!(brief(&status, "Stalled"), "True/DeadlineExceeded");
    world.until_gone(&pod).await;
}

#[tokio::test]
async fn a_pod_that_somebody_deletes_is_replaced() {
    let world = World::new("deleted").await;
    world.create::<PayloadBuild>("app", build_spec("python:3")).await;
    let job = world.job_of_attempt::<PayloadBuild>("app", 1).await;
    let first = world.pod_of(&job).await;
    world.api::<Pod>().delete(&first.name_any(), &DeleteParams::default()).await.unwrap();
    let status = world.until_ready::<PayloadBuild>("app", "False", "WorkerLost").await;
    assert_eq!(brief(&status, "Reconciling"), "True/ProgressingWithRetry");
    let second = world.pod_of(&job).await;
    assert_ne!(first.uid(), second.uid());
    world.ends_for(&second, Reason::Succeeded).await;
    world.until_ready::<PayloadBuild>("app", "True", "Succeeded").await;
}

#[tokio::test]
async fn a_result_that_was_lost_is_not_guessed_but_asked_for_by_another_attempt() {
    let world = World::new("lost").await;
    world.create::<PayloadBuild>("app", build_spec("python:3")).await;
    let job = world.job_of_attempt::<PayloadBuild>("app", 1).await;
    world.ends(&world.pod_of(&job).await, 0, "").await;
    world.until_ready::<PayloadBuild>("app", "False", "ResultLost").await;
    let job = world.job_of_attempt::<PayloadBuild>("app", 2).await;
    world.ends_for(&world.pod_of(&job).await, Reason::Succeeded).await;
    world.until_ready::<PayloadBuild>("app", "True", "Succeeded").await;
}

#[tokio::test]
async fn the_word_of_another_run_is_not_taken() {
    let world = World::new("mismatch").await;
    world.create::<PayloadBuild>("app", build_spec("python:3")).await;
    let job = world.job_of_attempt::<PayloadBuild>("app", 1).await;
    let pod = world.pod_of(&job).await;
    let mut said = outcome(&pod, Reason::Succeeded);
    said.input_digest = "0".repeat(64);
    world.concludes(&pod, &said).await;
    let status = world.until_ready::<PayloadBuild>("app", "False", "WorkerFailed").await;
    assert_eq!(brief(&status, "Stalled"), "True/WorkerFailed");
    assert_eq!(status.payload, None);
}

#[tokio::test]
async fn a_worker_without_a_word_is_judged_by_its_exit_code() {
    let world = World::new("mute").await;
    for (name, exit_code, text, ready, stalled) in [
        ("denied", 77, "last line of the log", "AccessDenied", "AccessDenied"),
        ("panicked", 101, "thread 'main' panicked", "WorkerFailed", "BackoffLimitExceeded"),
    ] {
        let mut spec = build_to("python:3", name);
        spec["backoffLimit"] = json!(0);
        world.create::<PayloadBuild>(name, spec).await;
        let job = world.job_of_attempt::<PayloadBuild>(name, 1).await;
        world.ends(&world.pod_of(&job).await, exit_code, text).await;
        let stalls = |status: &charon::api::Status| condition(status, "Stalled").is_some();
        let status = world.until::<PayloadBuild>(name, "stalled", stalls).await;
        assert_eq!(brief(&status, "Ready"), format!("False/{ready}"));
        assert_eq!(brief(&status, "Stalled"), format!("True/{stalled}"));
        assert!(condition(&status, "Ready").unwrap().message.contains(text));
    }
}
