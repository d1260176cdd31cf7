//! One wish follows another, and never do two workers write at once.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use charon::api::{PayloadBuild, REQUESTED_AT, Status};
use charon::reason::Reason;
use futures::StreamExt as _;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher;
use kube::{Api, ResourceExt as _};
use serde_json::json;

use crate::kubelet::{config, payload};
use crate::restarts::uids;
use crate::world::{World, brief, build_spec, condition, run};

#[tokio::test]
async fn a_changed_spec_waits_for_the_old_pod_to_end() {
    let world = World::new("change").await;
    world.create::<PayloadBuild>("app", build_spec("python:3")).await;
    let old_job = world.job_of_attempt::<PayloadBuild>("app", 1).await;
    let old_pod = world.pod_of(&old_job).await;
    world.bind(&old_pod).await;
    world.works(&old_pod, "127.0.7.7").await;

    world.patch::<PayloadBuild>("app", json!({ "spec": { "images": [{ "image": "python:4" }] } })).await;
    let names_the_pod = |status: &Status| {
        brief(status, "Reconciling") == "True/Superseded"
            && condition(status, "Ready").is_some_and(|ready| ready.message.contains(&old_pod.name_any()))
    };
    let status = world.until::<PayloadBuild>("app", "waiting for the old pod", names_the_pod).await;
    assert_eq!(brief(&status, "Ready"), "False/Superseded");
    // The old pod takes its time to stop. Until then there is one Job: its own.
    let is_ending = |pod: &Pod| pod.uid() == old_pod.uid() && pod.metadata.deletion_timestamp.is_some();
    world.until_pod("ending", is_ending).await;
    let jobs = world.jobs().await;
    assert_eq!(jobs.iter().map(kube::ResourceExt::uid).collect::<Vec<_>>(), [old_job.uid()]);

    world.ends(&old_pod, 143, "").await;
    world.is_gone(&old_pod).await;
    let new_job = world.until_job(&run(&status).job_name.unwrap()).await;
    let new_pod = world.pod_of(&new_job).await;
    assert_ne!(config(&new_pod).run_id, config(&old_pod).run_id);
    let jobs: Vec<Job> = world.jobs().await;
    assert_eq!(jobs.iter().map(kube::ResourceExt::uid).collect::<Vec<_>>(), [new_job.uid()]);
    world.ends_for(&new_pod, Reason::Succeeded).await;
    world.until_ready::<PayloadBuild>("app", "True", "Succeeded").await;
}

#[tokio::test]
async fn however_often_the_wish_changes_there_is_one_worker_at_a_time() {
    let world = World::new("counted").await;
    let most = Arc::new(AtomicUsize::new(0));
    let count = tokio::spawn(most_at_once(world.api(), Arc::clone(&most)));
    world.create::<PayloadBuild>("app", build_spec("python:1")).await;
    let mut pod = world.pod_of(&world.job_of_attempt::<PayloadBuild>("app", 1).await).await;
    for attempt in 2..=6 {
        world.bind(&pod).await;
        world.works(&pod, "127.0.7.21").await;
        let image = format!("python:{attempt}");
        world.patch::<PayloadBuild>("app", json!({ "spec": { "images": [{ "image": image }] } })).await;
        let is_ending = |found: &Pod| found.uid() == pod.uid() && found.metadata.deletion_timestamp.is_some();
        world.until_pod("ending", is_ending).await;
        world.ends(&pod, 143, "").await;
        world.is_gone(&pod).await;
        pod = world.pod_of(&world.job_of_attempt::<PayloadBuild>("app", attempt).await).await;
    }
    world.ends_for(&pod, Reason::Succeeded).await;
    world.until_ready::<PayloadBuild>("app", "True", "Succeeded").await;
    count.abort();
    assert_eq!(most.load(Ordering::Relaxed), 1, "workers at once");
}

#[tokio::test]
async fn fifty_cancelled_runs_leave_no_job_but_the_last_ones_which_goes_in_its_time() {
    let world = World::new("cancelled").await;
    let mut spec = build_spec("python:3");
    spec["ttlSecondsAfterFinished"] = json!(60);
    world.create::<PayloadBuild>("app", spec).await;
    let mut job = world.job_of_attempt::<PayloadBuild>("app", 1).await;
    for run in 2..=51 {
        // No node has its pod: it goes at once.
        let _ = world.pod_of(&job).await;
        world.patch::<PayloadBuild>("app", json!({ "spec": { "trigger": run.to_string() } })).await;
        job = world.job_of_attempt::<PayloadBuild>("app", run).await;
        assert_eq!(uids(&world.jobs().await), [job.uid()], "run {run}");
    }
    world.ends_for(&world.pod_of(&job).await, Reason::Succeeded).await;
    world.until_ready::<PayloadBuild>("app", "True", "Succeeded").await;
    // From here on it is Kubernetes that counts.
    let has_ttl = |found: &Job| found.spec.as_ref().unwrap().ttl_seconds_after_finished == Some(60);
    assert_eq!(world.until_any("with a time to live", has_ttl).await.uid(), job.uid());
    assert_eq!(uids(&world.jobs().await), [job.uid()]);
}

/// Keeps in `most` how many pods there were at once that had not ended.
async fn most_at_once(pods: Api<Pod>, most: Arc<AtomicUsize>) {
    let mut active = HashSet::new();
    let mut changes = std::pin::pin!(watcher(pods, watcher::Config::default()));
    while let Some(change) = changes.next().await {
        match change.expect("the watch goes on") {
            watcher::Event::Apply(pod) | watcher::Event::InitApply(pod) => {
                let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
                if matches!(phase, Some("Succeeded" | "Failed")) {
                    active.remove(&pod.uid());
                } else {
                    active.insert(pod.uid());
                }
            }
            watcher::Event::Delete(pod) => {
                active.remove(&pod.uid());
            }
            watcher::Event::Init | watcher::Event::InitDone => {}
        }
        most.fetch_max(active.len(), Ordering::Relaxed);
    }
}

#[tokio::test]
async fn a_wish_that_returns_is_made_true_again() {
    let world = World::new("revert").await;
    world.create::<PayloadBuild>("app", build_spec("python:a")).await;
    let mut ids = Vec::new();
    for (attempt, image) in [(1, "python:a"), (2, "python:b"), (3, "python:a")] {
        world.patch::<PayloadBuild>("app", json!({ "spec": { "images": [{ "image": image }] } })).await;
        let job = world.job_of_attempt::<PayloadBuild>("app", attempt).await;
        world.ends_for(&world.pod_of(&job).await, Reason::Succeeded).await;
        let status = world.until_ready::<PayloadBuild>("app", "True", "Succeeded").await;
        ids.push(run(&status).id);
    }
    assert_eq!(ids[0], ids[2]);
    assert_ne!(ids[0], ids[1]);
    assert_eq!(world.jobs().await.len(), 1);
}

#[tokio::test]
async fn a_trigger_or_an_annotation_asks_again_and_clearing_it_does_not() {
    let world = World::new("trigger").await;
    world.create::<PayloadBuild>("app", build_spec("python:3")).await;
    let changes = [
        json!({}),
        json!({ "spec": { "trigger": "again" } }),
        json!({ "metadata": { "annotations": { REQUESTED_AT: "2026-11-01T00:00:00Z" } } }),
    ];
    for (attempt, change) in (1..).zip(changes) {
        world.patch::<PayloadBuild>("app", change).await;
        let job = world.job_of_attempt::<PayloadBuild>("app", attempt).await;
        world.ends_for(&world.pod_of(&job).await, Reason::Succeeded).await;
        let is_done =
            |status: &Status| run(status).attempt == attempt && run(status).completion_time.is_some();
        world.until::<PayloadBuild>("app", "done", is_done).await;
    }
    let status = world.status::<PayloadBuild>("app").await;
    assert_eq!(status.last_handled_reconcile_at.as_deref(), Some("2026-11-01T00:00:00Z"));

    let clear =
        json!({ "metadata": { "annotations": { REQUESTED_AT: null } }, "spec": { "backoffLimit": 2 } });
    world.patch::<PayloadBuild>("app", clear).await;
    let status = world.until_ready::<PayloadBuild>("app", "True", "Succeeded").await;
    assert_eq!(run(&status).attempt, 3);
}

#[tokio::test]
async fn an_older_payload_stays_available_while_a_newer_one_fails() {
    let world = World::new("older").await;
    world.create::<PayloadBuild>("app", build_spec("python:3")).await;
    let job = world.job_of_attempt::<PayloadBuild>("app", 1).await;
    world.ends_for(&world.pod_of(&job).await, Reason::Succeeded).await;
    let before = world.until_ready::<PayloadBuild>("app", "True", "Succeeded").await;
    world.patch::<PayloadBuild>("app", json!({ "spec": { "images": [{ "image": "python:4" }] } })).await;
    let job = world.job_of_attempt::<PayloadBuild>("app", 2).await;
    world.ends_for(&world.pod_of(&job).await, Reason::AccessDenied).await;
    let status = world.until_ready::<PayloadBuild>("app", "False", "AccessDenied").await;
    assert_eq!(brief(&status, "PayloadAvailable"), "True/Succeeded");
    let payload_before = status.payload.clone().unwrap();
    assert_eq!(payload_before.run_id, run(&before).id);
    assert_eq!(payload_before.digest, payload().digest.map(|digest| digest.to_string()));
    let since = |status: &Status| condition(status, "PayloadAvailable").unwrap().last_transition_time.clone();
    assert_eq!(since(&status), since(&before), "the condition did not change");
}
