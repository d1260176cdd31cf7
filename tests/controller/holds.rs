//! What keeps a wish from being worked on: a person, and another wish for the same file.

use charon::api::{PayloadBuild, PayloadImport, Status};
use charon::reason::Reason;
use charon::worker::contract::{BasePayload, Work};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::runtime::wait::await_condition;
use serde_json::json;

use crate::kubelet::{config, payload};
use crate::world::{DEADLINE, World, brief, build_spec, build_to, condition, import_spec, run};

fn suspend(is_wanted: bool) -> serde_json::Value {
    json!({ "spec": { "suspend": is_wanted } })
}

#[tokio::test]
async fn suspending_stops_the_worker_in_its_grace_period_and_the_same_run_goes_on_afterwards() {
    let world = World::new("suspend").await;
    world.create::<PayloadBuild>("app", build_spec("python:3")).await;
    let job = world.job_of_attempt::<PayloadBuild>("app", 1).await;
    let pod = world.pod_of(&job).await;
    world.bind(&pod).await;
    world.works(&pod, "127.0.7.20").await;

    world.patch::<PayloadBuild>("app", suspend(true)).await;
    let ending = |found: &Pod| found.uid() == pod.uid() && found.metadata.deletion_timestamp.is_some();
    let ending = world.until_pod("told to stop", ending).await;
    assert_eq!(ending.metadata.deletion_grace_period_seconds, Some(30));
    let names_the_pod = |status: &Status| {
        condition(status, "Ready").is_some_and(|ready| ready.message.contains(&pod.name_any()))
    };
    let status = world.until::<PayloadBuild>("app", "stopping", names_the_pod).await;
    let found = ["Ready", "Reconciling", "Stalled"].map(|type_| brief(&status, type_));
    assert_eq!(found, ["False/Suspended", "", ""]);
    assert_eq!(status.observed_generation, Some(2));
    world.ends(&pod, 143, "").await;
    world.is_gone(&pod).await;
    let is_held = |status: &Status| {
        condition(status, "Ready").is_some_and(|ready| ready.message.contains("spec.suspend is false"))
    };
    let status = world.until::<PayloadBuild>("app", "suspended", is_held).await;
    assert_eq!(run(&status).last_failure, None, "to be stopped is no failure");
    world.until_gone(&job).await;
    assert!(world.jobs().await.is_empty());

    world.patch::<PayloadBuild>("app", suspend(false)).await;
    let again = |found: &Job| found.uid() != job.uid() && found.metadata.deletion_timestamp.is_none();
    let next = world.until_any::<Job>("made anew", again).await;
    let next_pod = world.pod_of(&next).await;
    assert_eq!(
        config(&next_pod).run_id,
        config(&pod).run_id,
        "it is the same run, whose partial file goes on"
    );
    world.ends_for(&next_pod, Reason::Succeeded).await;
    let status = world.until_ready::<PayloadBuild>("app", "True", "Succeeded").await;
    assert_eq!((run(&status).attempt, run(&status).pod_failures), (1, None));

    // What is done stays done.
    world.patch::<PayloadBuild>("app", suspend(true)).await;
    world.until_ready::<PayloadBuild>("app", "True", "Succeeded").await;
}

#[tokio::test]
async fn a_suspended_resource_starts_nothing_until_it_is_let_go() {
    let mut world = World::new("asleep").await;
    let mut build = build_spec("python:3");
    build["suspend"] = json!(true);
    let mut import = import_spec();
    import["suspend"] = json!(true);
    world.create::<PayloadBuild>("app", build).await;
    world.create::<PayloadImport>("app", import).await;
    let status = world.until_ready::<PayloadBuild>("app", "False", "Suspended").await;
    assert_eq!(status.run, None);
    world.until_ready::<PayloadImport>("app", "False", "Suspended").await;
    // Another wish, and another controller, change nothing about that.
    world.kill().await;
    world.start().await;
    world.patch::<PayloadBuild>("app", json!({ "spec": { "images": [{ "image": "python:4" }] } })).await;
    world.until_ready::<PayloadBuild>("app", "False", "Suspended").await;
    assert!(world.jobs().await.is_empty());

    world.patch::<PayloadBuild>("app", suspend(false)).await;
    let job = world.job_of_attempt::<PayloadBuild>("app", 1).await;
    world.ends_for(&world.pod_of(&job).await, Reason::Succeeded).await;
    world.until_ready::<PayloadBuild>("app", "True", "Succeeded").await;
    world.patch::<PayloadImport>("app", suspend(false)).await;
    let job = world.job_of_attempt::<PayloadImport>("app", 1).await;
    world.ends_for(&world.pod_of(&job).await, Reason::Succeeded).await;
    world.until_ready::<PayloadImport>("app", "True", "Succeeded").await;
}

#[tokio::test]
async fn a_finished_job_stays_as_long_as_the_spec_says_once_its_result_is_in_the_status() {
    let world = World::new("ttl").await;
    let mut spec = build_spec("python:3");
    spec["ttlSecondsAfterFinished"] = json!(3600);
    world.create::<PayloadBuild>("app", spec).await;
    let job = world.job_of_attempt::<PayloadBuild>("app", 1).await;
    assert_eq!(job.spec.as_ref().unwrap().ttl_seconds_after_finished, None);
    world.ends_for(&world.pod_of(&job).await, Reason::Succeeded).await;
    for seconds in [3600, 7200] {
        world.patch::<PayloadBuild>("app", json!({ "spec": { "ttlSecondsAfterFinished": seconds } })).await;
        let stays = |job: Option<&Job>| {
            job.is_some_and(|job| job.spec.as_ref().unwrap().ttl_seconds_after_finished == Some(seconds))
        };
        let name = job.name_any();
        let wait = tokio::time::timeout(DEADLINE, await_condition(world.api::<Job>(), &name, stays));
        wait.await.expect("it stays otherwise").unwrap();
        let status = world.status::<PayloadBuild>("app").await;
        assert!(run(&status).completion_time.is_some(), "the Job may go before its result is known");
    }
}

#[tokio::test]
async fn of_two_builds_of_one_file_the_younger_stalls_and_goes_on_when_the_other_changes_or_goes() {
    let mut world = World::without_controller("rivals").await;
    let mut builds = Vec::new();
    for name in ["one", "two", "apart"] {
        let path = if name == "apart" { "apart.zip" } else { "same.zip" };
        builds.push(world.create::<PayloadBuild>(name, build_to("python:3", path)).await);
    }
    builds.pop();
    builds.sort_by_key(|build| (build.creation_timestamp().map(|time| time.0), build.uid()));
    let [older, younger] = [builds[0].name_any(), builds[1].name_any()];
    world.start().await;
    world.job_of_attempt::<PayloadBuild>("apart", 1).await;
    world.job_of_attempt::<PayloadBuild>(&older, 1).await;
    let status = world.until_ready::<PayloadBuild>(&younger, "False", "OutputConflict").await;
    assert_eq!(brief(&status, "Stalled"), "True/OutputConflict");
    assert_eq!(brief(&status, "Reconciling"), "");
    let message = &condition(&status, "Ready").unwrap().message;
    assert!(message.contains(&format!("{older:?}")) && message.contains("transfer/same.zip"), "{message}");
    assert_eq!(world.jobs().await.len(), 2);

    // Whoever looks after them.
    world.kill().await;
    world.start().await;
    let path = |path: &str| json!({ "spec": { "output": { "persistentVolumeClaim": { "path": path } } } });
    world.patch::<PayloadBuild>(&older, path("other.zip")).await;
    let job = world.job_of_attempt::<PayloadBuild>(&younger, 1).await;
    world.ends_for(&world.pod_of(&job).await, Reason::Succeeded).await;
    world.until_ready::<PayloadBuild>(&younger, "True", "Succeeded").await;

    // The older one may write there again, and then the younger one's payload is lost.
    world.patch::<PayloadBuild>(&older, path("same.zip")).await;
    world.patch::<PayloadBuild>(&younger, json!({ "spec": { "backoffLimit": 3 } })).await;
    world.until_ready::<PayloadBuild>(&younger, "False", "OutputConflict").await;
    world.api::<PayloadBuild>().delete(&older, &kube::api::DeleteParams::default()).await.unwrap();
    let again = |found: &Job| {
        found.metadata.deletion_timestamp.is_none()
            && found.uid() != job.uid()
            && found.owner_references().iter().any(|owner| owner.name == younger)
    };
    let again = world.until_any::<Job>("made anew", again).await;
    world.ends_for(&world.pod_of(&again).await, Reason::AlreadyPresent).await;
    world.until_ready::<PayloadBuild>(&younger, "True", "AlreadyPresent").await;
}

#[tokio::test]
async fn a_build_upon_an_earlier_one_waits_until_that_is_ready_and_its_worker_is_told_which_payload_it_is() {
    let world = World::new("upon").await;
    let mut upon = build_to("python:4", "out/app-2.zip");
    upon["alreadyTransferred"] = json!({ "payloads": [{ "name": "app-1" }] });
    world.create::<PayloadBuild>("app-2", upon).await;
    let status = world.until_ready::<PayloadBuild>("app-2", "False", "WaitingForBase").await;
    assert_eq!(brief(&status, "Reconciling"), "True/WaitingForBase");
    let message = &condition(&status, "Ready").unwrap().message;
    assert!(message.contains("\"app-1\"") && message.contains("does not exist"), "{message}");

    world.create::<PayloadBuild>("app-1", build_to("python:3", "out/app-1.zip")).await;
    let job = world.job_of_attempt::<PayloadBuild>("app-1", 1).await;
    let is_seen = |status: &Status| {
        condition(status, "Ready").is_some_and(|ready| ready.message.contains("is not Ready"))
    };
    world.until::<PayloadBuild>("app-2", "told that its base is not Ready", is_seen).await;
    assert_eq!(world.jobs().await.len(), 1, "it does not wait");
    world.ends_for(&world.pod_of(&job).await, Reason::Succeeded).await;
    world.until_ready::<PayloadBuild>("app-1", "True", "Succeeded").await;

    let has_job = |status: &Status| run(status).job_name.is_some();
    let status = world.until::<PayloadBuild>("app-2", "at work", has_job).await;
    let pod = world.pod_of(&world.until_job(&run(&status).job_name.unwrap()).await).await;
    let Work::Build(work) = config(&pod).work else { panic!("it is a build") };
    let digest = payload().digest.unwrap();
    assert_eq!(work.bases, [BasePayload { name: "app-1".into(), path: "out/app-1.zip".into(), digest }]);
    world.ends_for(&pod, Reason::Succeeded).await;
    world.until_ready::<PayloadBuild>("app-2", "True", "Succeeded").await;
}

#[tokio::test]
async fn a_run_whose_status_and_job_are_lost_is_asked_for_again_and_may_find_all_there() {
    let mut world = World::new("restored").await;
    world.create::<PayloadBuild>("app", build_spec("python:3")).await;
    let job = world.job_of_attempt::<PayloadBuild>("app", 1).await;
    world.ends_for(&world.pod_of(&job).await, Reason::Succeeded).await;
    let before = world.until_ready::<PayloadBuild>("app", "True", "Succeeded").await;
    world.stop().await;
    world.api::<Job>().delete(&job.name_any(), &kube::api::DeleteParams::background()).await.unwrap();
    let wipe = kube::api::Patch::Merge(json!({ "status": null }));
    world.api::<PayloadBuild>().patch_status("app", &kube::api::PatchParams::default(), &wipe).await.unwrap();
    world.until_gone(&job).await;
    world.start().await;
    let again = |found: &Job| found.uid() != job.uid();
    let again = world.until_any::<Job>("made anew", again).await;
    world.ends_for(&world.pod_of(&again).await, Reason::AlreadyPresent).await;
    let status = world.until_ready::<PayloadBuild>("app", "True", "AlreadyPresent").await;
    assert_eq!(brief(&status, "PayloadAvailable"), "True/Succeeded");
    assert_eq!(run(&status).id, run(&before).id);
    assert_eq!(status.payload, before.payload);
    // It stays what it was, whoever looks again.
    world.kill().await;
    world.start().await;
    world.patch::<PayloadBuild>("app", json!({ "spec": { "backoffLimit": 3 } })).await;
    world.until_ready::<PayloadBuild>("app", "True", "AlreadyPresent").await;
}
