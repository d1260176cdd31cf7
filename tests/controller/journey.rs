//! What a person sees when all goes well.

use std::collections::BTreeMap;

use charon::api::{PayloadBuild, PayloadImport};
use charon::reason::Reason;
use charon::worker::contract::{BuildWork, PROGRESS_PORT, Work};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::events::v1::Event;
use kube::ResourceExt as _;
use kube::api::{DeleteParams, ListParams, PostParams};
use serde_json::json;

use crate::kubelet::{config, outcome, with_counts};
use crate::world::{IMAGE, World, brief, build_spec, condition, import_spec, resource, run};

#[tokio::test]
async fn a_build_becomes_ready_and_tells_what_it_made() {
    let world = World::new("build").await;
    world.create::<PayloadBuild>("app", build_spec("python:3")).await;
    let job = world.job_of_attempt::<PayloadBuild>("app", 1).await;
    let pod = world.pod_of(&job).await;

    let status = world.until_ready::<PayloadBuild>("app", "Unknown", "Progressing").await;
    assert_eq!(brief(&status, "Reconciling"), "True/Progressing");
    assert_eq!(brief(&status, "Stalled"), "");
    assert_eq!(brief(&status, "PayloadAvailable"), "False/Progressing");
    let work = BuildWork {
        images: vec!["python:3".into()],
        images_from: None,
        already_transferred: vec![],
        bases: vec![],
        foreign_layers: false,
        allow_missing: false,
        referrers: true,
        path: "out/app.zip".into(),
        object_store: None,
        file_digest: false,
    };
    assert_eq!(config(&pod).work, Work::Build(work));

    world.ends_for(&pod, Reason::Succeeded).await;
    let status = world.until_ready::<PayloadBuild>("app", "True", "Succeeded").await;
    assert_eq!(brief(&status, "Reconciling"), "");
    assert_eq!(brief(&status, "PayloadAvailable"), "True/Succeeded");
    assert_eq!(condition(&status, "Ready").unwrap().message, "1 image is in transfer/out/app.zip, 1.2 MB");
    let (run, payload) = (run(&status), status.payload.unwrap());
    assert_eq!((run.attempt, run.image.as_deref()), (1, Some(IMAGE)));
    assert!(run.completion_time.is_some());
    assert_eq!(payload.run_id, run.id);
    assert_eq!(payload.location, "transfer/out/app.zip");
    assert_eq!((payload.size_bytes, payload.blobs, payload.blobs_reused), (1_234_567, 4, 2));
    assert_eq!(status.progress.unwrap().percent, Some(100));

    // Only now may the Job go by itself.
    let has_ttl = |job: Option<&Job>| {
        job.is_some_and(|job| job.spec.as_ref().unwrap().ttl_seconds_after_finished.is_some())
    };
    let name = job.name_any();
    let expires = kube::runtime::wait::await_condition(world.api::<Job>(), &name, has_ttl);
    tokio::time::timeout(crate::world::DEADLINE, expires).await.expect("the Job stays for ever").unwrap();
}

#[tokio::test]
async fn a_build_into_a_bucket_has_the_keys_of_its_secrets_and_no_volume() {
    let world = World::new("bucket").await;
    let store = json!({
        "endpoint": "https://s3.infra:9000", "bucket": "transfer", "key": "app.zip", "region": "here",
        "secretRef": { "name": "store" }, "certSecretRef": { "name": "infra" },
    });
    let spec = json!({ "images": [{ "image": "python:3" }], "output": { "objectStore": store } });
    world.create::<PayloadBuild>("app", spec).await;
    let job = world.job_of_attempt::<PayloadBuild>("app", 1).await;
    let pod = world.pod_of(&job).await;
    let Work::Build(work) = config(&pod).work else { panic!("it is a build") };
    let told = json!({
        "provider": "S3", "bucket": "transfer", "key": "app.zip", "endpoint": "https://s3.infra:9000",
        "region": "here", "credentials": true, "certificates": true,
    });
    assert_eq!((work.path.as_str(), serde_json::to_value(&work.object_store).unwrap()), ("", told));
    let volumes = pod.spec.as_ref().unwrap().volumes.clone().unwrap_or_default();
    assert_eq!(volumes.iter().map(|volume| volume.name.as_str()).collect::<Vec<_>>(), ["settings"]);
    let sources = volumes[0].projected.as_ref().unwrap().sources.clone().unwrap_or_default();
    let secrets = sources.iter().filter_map(|source| source.secret.as_ref());
    let secrets: Vec<_> = secrets
        .map(|secret| {
            let keys =
                secret.items.iter().flatten().map(|item| item.key.as_str()).collect::<Vec<_>>().join(" ");
            (secret.name.as_str(), keys, secret.optional.unwrap_or(false))
        })
        .collect();
    let expected = [
        ("store", "accesskey secretkey".to_owned(), false),
        ("store", "sessiontoken".to_owned(), true),
        ("infra", "ca.crt".to_owned(), false),
    ];
    assert_eq!(secrets, expected);

    world.ends_for(&pod, Reason::Succeeded).await;
    let status = world.until_ready::<PayloadBuild>("app", "True", "Succeeded").await;
    assert_eq!(status.payload.unwrap().location, "s3://transfer/app.zip");
    // The younger one of two with the same object waits, whatever opens the store.
    let store = json!({
        "endpoint": "https://s3.infra:9000", "bucket": "transfer", "key": "app.zip", "region": "here",
    });
    let spec = json!({ "images": [{ "image": "python:3" }], "output": { "objectStore": store } });
    world.create::<PayloadBuild>("later", spec).await;
    world.until_ready::<PayloadBuild>("later", "False", "OutputConflict").await;
}

#[tokio::test]
async fn an_import_becomes_ready_and_tells_what_it_pushed() {
    let world = World::new("import").await;
    world.create::<PayloadImport>("app", import_spec()).await;
    let job = world.job_of_attempt::<PayloadImport>("app", 1).await;
    let pod = world.pod_of(&job).await;
    world.concludes(&pod, &with_counts(outcome(&pod, Reason::Succeeded), 1, 0)).await;
    let status = world.until_ready::<PayloadImport>("app", "True", "Succeeded").await;
    assert_eq!(brief(&status, "Imported"), "True/Succeeded");
    assert_eq!(brief(&status, "PayloadVerified"), "True/Succeeded");
    assert_eq!(status.result.unwrap().images, 1);
}

#[tokio::test]
async fn a_job_that_a_quota_refuses_is_told_with_its_attempt_and_made_once_it_may_be() {
    let world = World::new("refused").await;
    world.forbid("count/jobs.batch").await;
    world.create::<PayloadBuild>("app", build_spec("python:3")).await;

    let status = world.until_ready::<PayloadBuild>("app", "False", "WorkerCreateFailed").await;
    assert!(condition(&status, "Ready").unwrap().message.contains("quota"));
    assert_eq!(brief(&status, "Reconciling"), "True/Progressing");
    let run = run(&status);
    assert_eq!(run.attempt, 1);
    assert!(world.jobs().await.is_empty());

    world.allow().await;
    world.until_job(&run.job_name.unwrap()).await;
}

#[tokio::test]
async fn progress_is_told_and_no_answer_does_no_harm() {
    let world = World::new("progress").await;
    world.create::<PayloadBuild>("app", build_spec("python:3")).await;
    let job = world.job_of_attempt::<PayloadBuild>("app", 1).await;
    let pod = world.pod_of(&job).await;
    // Nobody answers there: the worker is at work all the same.
    world.works(&pod, "127.0.7.2").await;
    world
        .until::<PayloadBuild>("app", "at work", |status| {
            condition(status, "Ready").is_some_and(|ready| ready.message.ends_with("is at work"))
        })
        .await;

    let is_told = |event: &Event| event.reason.as_deref() == Some("ProgressUnknown");
    let event = world.until_any::<Event>("of unknown progress", is_told).await;
    let why = format!("pod {} does not answer (Connection refused", pod.name_any());
    assert!(event.note.as_ref().is_some_and(|note| note.contains(&why)), "{event:?}");

    let answer = config(&pod);
    let answer = json!({
        "runId": answer.run_id, "nonce": answer.nonce, "stage": "Transferring",
        "bytesDone": 25, "bytesTotal": 100, "blobsDone": 1, "blobsTotal": 4,
        "lastError": "GET https://r.example/v2/x?token=geheim: 503",
    });
    let worker = axum::Router::new().route("/progress", axum::routing::get(|| async { axum::Json(answer) }));
    let listener = tokio::net::TcpListener::bind(("127.0.7.2", PROGRESS_PORT)).await.unwrap();
    // It is asked on and on, and that it does not answer is told no more.
    for _ in 0..4 {
        drop(listener.accept().await.unwrap());
    }
    tokio::spawn(async move { axum::serve(listener, worker).await });
    let status = world.until::<PayloadBuild>("app", "in progress", |status| status.progress.is_some()).await;
    let progress = status.progress.unwrap();
    assert_eq!((progress.percent, progress.blobs_done, progress.blobs_total), (Some(25), Some(1), Some(4)));
    assert_eq!(progress.last_error.as_deref(), Some("GET https://r.example/v2/x 503"));
    world.ends_for(&pod, Reason::Succeeded).await;
    world.until_ready::<PayloadBuild>("app", "True", "Succeeded").await;
    let about = ListParams::default().fields("regarding.kind=PayloadBuild");
    let events = world.api::<Event>().list(&about).await.unwrap().items;
    let told: Vec<_> = events.iter().filter(|event| is_told(event)).collect();
    assert!(told.len() == 1 && told[0].series.is_none(), "told more than once: {told:?}");
}

#[tokio::test]
async fn nothing_of_the_users_object_is_altered_and_nothing_of_it_is_copied() {
    let world = World::new("drift").await;
    let mut object: PayloadBuild = resource("app", build_spec("python:3"));
    object.labels_mut().insert("argocd.argoproj.io/instance".into(), "theirs".into());
    object.annotations_mut().insert("theirs".into(), "theirs".into());
    let before = world.api::<PayloadBuild>().create(&PostParams::default(), &object).await.unwrap();
    let job = world.job_of_attempt::<PayloadBuild>("app", 1).await;
    let pod = world.pod_of(&job).await;
    world.ends_for(&pod, Reason::Succeeded).await;
    world.until_ready::<PayloadBuild>("app", "True", "Succeeded").await;

    let after = world.api::<PayloadBuild>().get("app").await.unwrap();
    assert_eq!(after.spec, before.spec);
    assert_eq!((after.labels(), after.annotations()), (before.labels(), before.annotations()));
    assert_eq!((after.finalizers(), after.metadata.generation), (before.finalizers(), Some(1)));
    let ours = |labels: &BTreeMap<String, String>| !labels.values().any(|value| value == "theirs");
    assert!(ours(job.labels()) && ours(pod.labels()) && ours(pod.annotations()));
}

#[tokio::test]
async fn events_are_told_once_for_each_transition() {
    let world = World::new("events").await;
    world.create::<PayloadBuild>("app", build_spec("python:3")).await;
    let job = world.job_of_attempt::<PayloadBuild>("app", 1).await;
    let pod = world.pod_of(&job).await;
    world.works(&pod, "127.0.7.3").await;
    world.ends_for(&pod, Reason::Succeeded).await;
    world.until_ready::<PayloadBuild>("app", "True", "Succeeded").await;
    // The event follows the status at once, but not in the same moment.
    let is_last = |event: &Event| event.reason.as_deref() == Some("Succeeded");
    world.until_any::<Event>("of the success", is_last).await;
    let about = ListParams::default().fields("regarding.kind=PayloadBuild");
    let events = world.api::<Event>().list(&about).await.unwrap().items;
    let mut reasons: Vec<_> = events.iter().filter_map(|event| event.reason.as_deref()).collect();
    reasons.retain(|reason| *reason != "ProgressUnknown");
    assert_eq!(reasons, ["Progressing", "Succeeded"]);
    assert!(events.iter().all(|event| event.series.is_none()), "told twice");
}

#[tokio::test]
async fn the_job_and_its_pod_go_with_the_resource() {
    let world = World::new("delete").await;
    Box::pin(goes_with_the_resource(&world, &DeleteParams::default())).await;
}

#[tokio::test]
async fn a_resource_that_is_deleted_in_the_foreground_stays_until_its_worker_is_gone() {
    let world = World::new("foreground").await;
    let resource = Box::pin(goes_with_the_resource(&world, &DeleteParams::foreground())).await;
    world.until_gone(&resource).await;
}

/// Deletes a resource whose worker is at work: all of it goes. Gives it.
async fn goes_with_the_resource(world: &World, how: &DeleteParams) -> PayloadBuild {
    let object = world.create::<PayloadBuild>("app", build_spec("python:3")).await;
    let job = world.job_of_attempt::<PayloadBuild>("app", 1).await;
    let pod = world.pod_of(&job).await;
    world.bind(&pod).await;
    world.works(&pod, "127.0.7.22").await;
    world.api::<PayloadBuild>().delete("app", how).await.unwrap();
    let is_ending = |found: &Pod| found.uid() == pod.uid() && found.metadata.deletion_timestamp.is_some();
    world.until_pod("ending", is_ending).await;
    if *how == DeleteParams::foreground() {
        let object = world.api::<PayloadBuild>().get_opt("app").await.unwrap();
        assert!(object.is_some(), "it is gone before its worker");
    }
    world.ends(&pod, 143, "").await;
    world.is_gone(&pod).await;
    world.until_gone(&job).await;
    world.until_gone(&pod).await;
    assert!(world.jobs().await.is_empty());
    object
}
