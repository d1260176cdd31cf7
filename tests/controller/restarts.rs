//! A controller that ends at any moment loses nothing, and its successor does nothing twice.

use charon::api::{PayloadBuild, PayloadImport, Status};
use charon::controller::{RegistryReach, WorkerDefaults};
use charon::reason::Reason;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use serde_json::json;

use crate::kubelet::config;
use crate::world::{IMAGE, World, brief, build_spec, build_to, condition, import_spec, run};

#[tokio::test]
async fn a_build_goes_on_with_its_job_whenever_the_controller_is_killed() {
    let mut world = World::new("killed").await;
    world.create::<PayloadBuild>("app", build_spec("python:3")).await;
    let job = world.job_of_attempt::<PayloadBuild>("app", 1).await;
    let pod = world.pod_of(&job).await;
    // With a pod that has not started.
    world.kill().await;
    world.start().await;
    let says = |text: &'static str| {
        move |status: &Status| condition(status, "Ready").is_some_and(|ready| ready.message.contains(text))
    };
    world.until::<PayloadBuild>("app", "starting", says("is starting")).await;
    // With a pod that is at work.
    world.works(&pod, "127.0.7.8").await;
    world.until::<PayloadBuild>("app", "at work", says("is at work")).await;
    world.kill().await;
    world.start().await;
    // With a pod that ends while nobody looks.
    world.stop().await;
    world.ends_for(&pod, Reason::Succeeded).await;
    let completes = kube::runtime::conditions::is_job_completed();
    let name = job.name_any();
    let wait = kube::runtime::wait::await_condition(world.api(), &name, completes);
    tokio::time::timeout(crate::world::DEADLINE, wait).await.expect("the Job does not complete").unwrap();
    world.start().await;
    let status = world.until_ready::<PayloadBuild>("app", "True", "Succeeded").await;
    assert_eq!(run(&status).attempt, 1);
    // With a run that is done.
    world.kill().await;
    world.start().await;
    world.patch::<PayloadBuild>("app", json!({ "spec": { "backoffLimit": 3 } })).await;
    let status = world.until_ready::<PayloadBuild>("app", "True", "Succeeded").await;
    assert_eq!(run(&status).attempt, 1);
    let jobs = world.jobs().await;
    assert_eq!(jobs.iter().map(kube::ResourceExt::uid).collect::<Vec<_>>(), [job.uid()]);
}

#[tokio::test]
async fn an_attempt_whose_job_was_not_made_yet_gets_it_from_the_successor() {
    let mut world = World::without_controller("between").await;
    world.forbid("count/jobs.batch").await;
    world.create::<PayloadBuild>("app", build_spec("python:3")).await;
    // Killed again and again in its first moments, wherever that finds it.
    for _ in 0..10 {
        world.start().await;
        tokio::task::yield_now().await;
        let has_begun = |status: &Status| status.run.is_some();
        let seen = tokio::time::timeout(
            std::time::Duration::from_millis(fastrand::u64(1..150)),
            world.until::<PayloadBuild>("app", "begun", has_begun),
        );
        let _ = seen.await;
        world.kill().await;
    }
    // The attempt is written down, and its Job was refused.
    world.start().await;
    world.until_ready::<PayloadBuild>("app", "False", "WorkerCreateFailed").await;
    world.kill().await;
    world.allow().await;
    world.start().await;
    let job = world.job_of_attempt::<PayloadBuild>("app", 1).await;
    let pod = world.pod_of(&job).await;
    world.ends_for(&pod, Reason::Succeeded).await;
    let status = world.until_ready::<PayloadBuild>("app", "True", "Succeeded").await;
    assert_eq!(run(&status).attempt, 1);
    assert_eq!(world.jobs().await.len(), 1);
}

#[tokio::test]
async fn failures_and_waits_survive_the_controller() {
    let mut world = World::without_controller("wait").await;
    world.settings.pace.wait = std::time::Duration::from_secs(3);
    world.settings.pace.again = world.settings.pace.wait;
    let mut rivals = Vec::new();
    for name in ["one", "two"] {
        rivals.push(world.create::<PayloadBuild>(name, build_spec("python:3")).await);
    }
    rivals.sort_by_key(|build| (build.creation_timestamp().map(|time| time.0), build.uid()));
    let [stalls, rival] = [rivals[0].name_any(), rivals[1].name_any()];
    world.start().await;
    world.create::<PayloadImport>("waits", import_spec()).await;
    let job = world.job_of_attempt::<PayloadImport>("waits", 1).await;
    let denied = world.job_of_attempt::<PayloadBuild>(&stalls, 1).await;
    let in_conflict = world.until_ready::<PayloadBuild>(&rival, "False", "OutputConflict").await;
    world.create::<PayloadBuild>("refused", build_to("python:3", "refused")).await;
    let refused = world.job_of_attempt::<PayloadBuild>("refused", 1).await;
    let mut upon = build_to("python:3", "upon");
    upon["alreadyTransferred"] = json!({ "payloads": [{ "name": "nothing" }] });
    world.create::<PayloadBuild>("upon", upon).await;
    let awaits = world.until_ready::<PayloadBuild>("upon", "False", "WaitingForBase").await;
    world.ends_for(&world.pod_of(&job).await, Reason::SourceNotFound).await;
    world.ends_for(&world.pod_of(&denied).await, Reason::AccessDenied).await;
    world.ends_for(&world.pod_of(&refused).await, Reason::AuthenticationFailed).await;
    world.until_ready::<PayloadImport>("waits", "False", "SourceNotFound").await;
    world.until_ready::<PayloadBuild>("refused", "False", "AuthenticationFailed").await;
    let stalled = world.until_ready::<PayloadBuild>(&stalls, "False", "AccessDenied").await;
    world.kill().await;
    world.start().await;
    let job = world.job_of_attempt::<PayloadImport>("waits", 2).await;
    world.ends_for(&world.pod_of(&job).await, Reason::Succeeded).await;
    world.until_ready::<PayloadImport>("waits", "True", "Succeeded").await;
    // Accounts are locked after so many tries: the second one is the last, whoever counts.
    let job = world.job_of_attempt::<PayloadBuild>("refused", 2).await;
    world.ends_for(&world.pod_of(&job).await, Reason::AuthenticationFailed).await;
    let is_over = |status: &Status| brief(status, "Stalled") == "True/AuthenticationFailed";
    let refused = run(&world.until::<PayloadBuild>("refused", "stalled", is_over).await);
    assert_eq!((refused.attempt, refused.authentication_failures), (2, Some(2)));
    for (name, before) in [(&*stalls, stalled), (&*rival, in_conflict), ("upon", awaits)] {
        assert_eq!(world.status::<PayloadBuild>(name).await, before, "nothing happened to it");
    }
    assert_eq!(world.jobs().await.len(), 3);
}

#[tokio::test]
async fn a_status_that_was_lost_is_found_again_in_the_job() {
    let mut world = World::new("wiped").await;
    world.create::<PayloadBuild>("app", build_spec("python:3")).await;
    let job = world.job_of_attempt::<PayloadBuild>("app", 1).await;
    let pod = world.pod_of(&job).await;
    world.ends_for(&pod, Reason::Succeeded).await;
    world.until_ready::<PayloadBuild>("app", "True", "Succeeded").await;
    world.stop().await;
    let wipe = kube::api::Patch::Merge(json!({ "status": null }));
    world.api::<PayloadBuild>().patch_status("app", &kube::api::PatchParams::default(), &wipe).await.unwrap();
    world.start().await;
    let status = world.until_ready::<PayloadBuild>("app", "True", "Succeeded").await;
    assert_eq!(brief(&status, "PayloadAvailable"), "True/Succeeded");
    assert_eq!(world.jobs().await[0].uid(), job.uid());
}

/// Starts a controller again, and waits until it has seen the resource: the generation that this makes is
/// in the status.
async fn succeeds(world: &mut World, backoff_limit: u32) -> Status {
    world.start().await;
    is_seen(world, "app", backoff_limit).await
}

async fn is_seen(world: &World, name: &str, backoff_limit: u32) -> Status {
    let tuned = json!({ "spec": { "backoffLimit": backoff_limit } });
    let generation = world.patch::<PayloadBuild>(name, tuned).await.metadata.generation;
    let has_seen = |status: &Status| status.observed_generation == generation;
    world.until::<PayloadBuild>(name, "seen by the successor", has_seen).await
}

pub(crate) fn uids(jobs: &[Job]) -> Vec<Option<String>> {
    jobs.iter().map(kube::ResourceExt::uid).collect()
}

#[tokio::test]
async fn a_controller_that_is_killed_while_an_old_worker_ends_has_a_successor_that_waits_for_it_too() {
    let mut world = World::new("superseding").await;
    world.create::<PayloadBuild>("app", build_spec("python:3")).await;
    let old_job = world.job_of_attempt::<PayloadBuild>("app", 1).await;
    let old_pod = world.pod_of(&old_job).await;
    world.bind(&old_pod).await;
    world.works(&old_pod, "127.0.7.23").await;

    // The wish changes while nobody looks.
    world.kill().await;
    world.patch::<PayloadBuild>("app", json!({ "spec": { "images": [{ "image": "python:4" }] } })).await;
    world.start().await;
    let is_ending = |pod: &Pod| pod.uid() == old_pod.uid() && pod.metadata.deletion_timestamp.is_some();
    world.until_pod("ending", is_ending).await;
    let waits = |status: &Status| {
        brief(status, "Reconciling") == "True/Superseded"
            && condition(status, "Ready").is_some_and(|ready| ready.message.contains(&old_pod.name_any()))
    };
    let status = world.until::<PayloadBuild>("app", "waiting for the old pod", waits).await;
    assert_eq!(run(&status).attempt, 2);

    // Successor after successor finds the old pod, and makes no Job beside it.
    for backoff_limit in [3, 4] {
        world.kill().await;
        let status = succeeds(&mut world, backoff_limit).await;
        assert!(waits(&status), "{status:?}");
        assert_eq!(run(&status).attempt, 2);
        assert_eq!(uids(&world.jobs().await), [old_job.uid()]);
    }

    // The old pod goes while nobody looks.
    world.kill().await;
    world.ends(&old_pod, 143, "").await;
    world.is_gone(&old_pod).await;
    world.start().await;
    let new_job = world.until_job(&run(&status).job_name.unwrap()).await;
    let new_pod = world.pod_of(&new_job).await;
    assert_ne!(config(&new_pod).run_id, config(&old_pod).run_id);
    assert_eq!(uids(&world.jobs().await), [new_job.uid()]);
    world.ends_for(&new_pod, Reason::Succeeded).await;
    let status = world.until_ready::<PayloadBuild>("app", "True", "Succeeded").await;
    assert_eq!(run(&status).attempt, 2);
}

#[tokio::test]
async fn a_controller_that_is_killed_while_it_suspends_has_a_successor_that_starts_nothing_either() {
    let mut world = World::new("suspending").await;
    world.create::<PayloadBuild>("app", build_spec("python:3")).await;
    let job = world.job_of_attempt::<PayloadBuild>("app", 1).await;
    let pod = world.pod_of(&job).await;
    world.bind(&pod).await;
    world.works(&pod, "127.0.7.24").await;
    world.patch::<PayloadBuild>("app", json!({ "spec": { "suspend": true } })).await;
    let is_ending = |found: &Pod| found.uid() == pod.uid() && found.metadata.deletion_timestamp.is_some();
    world.until_pod("ending", is_ending).await;

    world.kill().await;
    let status = succeeds(&mut world, 3).await;
    assert_eq!(brief(&status, "Ready"), "False/Suspended");
    assert_eq!(uids(&world.jobs().await), [job.uid()]);
    world.kill().await;
    world.ends(&pod, 143, "").await;
    let status = succeeds(&mut world, 4).await;
    assert_eq!(brief(&status, "Ready"), "False/Suspended");
    assert_eq!(run(&status).last_failure, None, "to be stopped is no failure");
    world.kill().await;
    world.is_gone(&pod).await;
    let status = succeeds(&mut world, 5).await;
    assert_eq!(brief(&status, "Ready"), "False/Suspended");

    world.patch::<PayloadBuild>("app", json!({ "spec": { "suspend": false } })).await;
    let again = |found: &Job| found.uid() != job.uid() && found.metadata.deletion_timestamp.is_none();
    let next_pod = world.pod_of(&world.until_any::<Job>("made anew", again).await).await;
    assert_eq!(config(&next_pod).run_id, config(&pod).run_id);
    world.ends_for(&next_pod, Reason::Succeeded).await;
    world.until_ready::<PayloadBuild>("app", "True", "Succeeded").await;
}

#[tokio::test]
async fn retries_of_a_job_and_a_lost_result_survive_the_controller() {
    let mut world = World::new("retries").await;
    world.create::<PayloadBuild>("app", build_spec("python:3")).await;
    let job = world.job_of_attempt::<PayloadBuild>("app", 1).await;
    world.ends_for(&world.pod_of(&job).await, Reason::ImageNotFound).await;
    world.until_ready::<PayloadBuild>("app", "False", "ImageNotFound").await;
    let second = world.pod_of(&job).await;

    // A pod of the attempt has failed, the next one is at work.
    world.kill().await;
    world.start().await;
    world.works(&second, "127.0.7.25").await;
    let works = |status: &Status| {
        condition(status, "Reconciling").is_some_and(|found| found.message.contains(&second.name_any()))
    };
    let status = world.until::<PayloadBuild>("app", "at work again", works).await;
    assert_eq!(brief(&status, "Ready"), "False/ImageNotFound", "it must not flap");
    assert_eq!(brief(&status, "Reconciling"), "True/ProgressingWithRetry");

    // It ends, but what it said is lost, while nobody looks.
    world.kill().await;
    world.ends(&second, 0, "").await;
    world.start().await;
    let job = world.job_of_attempt::<PayloadBuild>("app", 2).await;
    let status = world.status::<PayloadBuild>("app").await;
    assert_eq!(brief(&status, "Ready"), "False/ResultLost");
    world.kill().await;
    world.start().await;
    world.ends_for(&world.pod_of(&job).await, Reason::AlreadyPresent).await;
    let status = world.until_ready::<PayloadBuild>("app", "True", "AlreadyPresent").await;
    assert_eq!(run(&status).attempt, 2);
    assert_eq!(world.jobs().await.len(), 1);
}

#[tokio::test]
async fn a_controller_of_another_version_and_with_other_defaults_runs_nothing_again_and_leaves_workers_alone()
{
    let mut world = World::new("upgrade").await;
    for name in ["done", "working"] {
        world.create::<PayloadBuild>(name, build_to("python:3", name)).await;
    }
    let done = world.job_of_attempt::<PayloadBuild>("done", 1).await;
    world.ends_for(&world.pod_of(&done).await, Reason::Succeeded).await;
    world.until_ready::<PayloadBuild>("done", "True", "Succeeded").await;
    let working = world.job_of_attempt::<PayloadBuild>("working", 1).await;
    let pod = world.pod_of(&working).await;
    world.works(&pod, "127.0.7.26").await;

    world.stop().await;
    let next = "registry.example/charon:next";
    world.settings.worker = WorkerDefaults::with_image(next);
    let mirror = RegistryReach::list(r#"[{"host":"docker.io","endpoint":"mirror.example"}]"#);
    world.settings.worker.reach.registries = mirror.unwrap();
    world.start().await;
    for name in ["done", "working"] {
        let run = run(&is_seen(&world, name, 3).await);
        assert_eq!((run.attempt, run.image.as_deref()), (1, Some(IMAGE)), "{name}");
    }
    world.ends_for(&pod, Reason::Succeeded).await;
    world.until_ready::<PayloadBuild>("working", "True", "Succeeded").await;
    let (mut left, mut before) = (uids(&world.jobs().await), vec![done.uid(), working.uid()]);
    left.sort();
    before.sort();
    assert_eq!(left, before);

    // Whoever asks again gets the new one.
    world.patch::<PayloadBuild>("done", json!({ "spec": { "trigger": "again" } })).await;
    world.job_of_attempt::<PayloadBuild>("done", 2).await;
    assert_eq!(run(&world.status::<PayloadBuild>("done").await).image.as_deref(), Some(next));
}
