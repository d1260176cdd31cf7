//! A controller that ends at any moment loses nothing, and its successor does nothing twice.

use charon::api::{PayloadBuild, PayloadImport, Status};
use charon::reason::Reason;
use kube::ResourceExt as _;
use serde_json::json;

use crate::world::{World, brief, build_spec, condition, import_spec, run};

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
    let mut world = World::new("wait").await;
    world.settings.pace.wait = std::time::Duration::from_secs(3);
    world.kill().await;
    world.start().await;
    world.create::<PayloadImport>("waits", import_spec()).await;
    let job = world.job_of_attempt::<PayloadImport>("waits", 1).await;
    world.create::<PayloadBuild>("stalls", build_spec("python:3")).await;
    let denied = world.job_of_attempt::<PayloadBuild>("stalls", 1).await;
    world.ends_for(&world.pod_of(&job).await, Reason::SourceNotFound).await;
    world.ends_for(&world.pod_of(&denied).await, Reason::AccessDenied).await;
    world.until_ready::<PayloadImport>("waits", "False", "SourceNotFound").await;
    let stalled = world.until_ready::<PayloadBuild>("stalls", "False", "AccessDenied").await;
    world.kill().await;
    world.start().await;
    let job = world.job_of_attempt::<PayloadImport>("waits", 2).await;
    world.ends_for(&world.pod_of(&job).await, Reason::Succeeded).await;
    world.until_ready::<PayloadImport>("waits", "True", "Succeeded").await;
    assert_eq!(world.status::<PayloadBuild>("stalls").await, stalled, "nothing happened to it");
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
