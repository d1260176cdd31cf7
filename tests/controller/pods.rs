//! What a person may say of the worker's pod reaches the pod, and what the cluster refuses of it is told.

use std::num::NonZeroUsize;

use charon::api::{PayloadBuild, PayloadImport, SecretRef, Toleration};
use charon::worker::contract::TrafficLimits;
use kube::ResourceExt as _;
use serde_json::{Value, json};

use crate::kubelet::config;
use crate::world::{World, brief, build_to, condition, import_spec};

fn with_worker(mut spec: Value, worker: Value) -> Value {
    spec["worker"] = worker;
    spec
}

#[tokio::test]
async fn a_worker_is_placed_pulled_and_labelled_as_the_spec_says_or_else_as_the_settings_do() {
    let mut world = World::without_controller("pods").await;
    world.settings.worker.image_pull_secrets = vec![SecretRef { name: "mirror".into() }];
    world.settings.worker.node_selector = [("pool".to_owned(), "transfer".to_owned())].into();
    let any = Toleration { operator: Some("Exists".into()), ..Toleration::default() };
    world.settings.worker.tolerations = vec![any];
    world.start().await;

    let affinity = json!({ "podAntiAffinity": { "preferredDuringSchedulingIgnoredDuringExecution": [{
        "weight": 1,
        "podAffinityTerm": { "topologyKey": "kubernetes.io/hostname", "labelSelector": { "matchLabels": { "a": "b" } } },
    }] } });
    let worker = json!({
        "imagePullSecrets": [{ "name": "own" }],
        "nodeSelector": { "disk": "fast" },
        "tolerations": [{ "key": "transfer", "value": "yes", "effect": "NoExecute", "tolerationSeconds": 60 }],
        "affinity": affinity,
        "podMetadata": { "labels": { "team": "ferry" }, "annotations": { "mesh.example/inject": "false" } },
    });
    world.create::<PayloadImport>("own", with_worker(import_spec(), worker.clone())).await;
    let pod = world.pod_of(&world.job_of_attempt::<PayloadImport>("own", 1).await).await;
    assert_eq!(pod.labels()["team"], "ferry");
    assert_eq!(pod.annotations()["mesh.example/inject"], "false");
    let spec = serde_json::to_value(pod.spec.unwrap()).unwrap();
    assert_eq!(spec["imagePullSecrets"], worker["imagePullSecrets"]);
    assert_eq!(spec["nodeSelector"], worker["nodeSelector"]);
    assert_eq!(spec["affinity"], worker["affinity"]);
    let tolerated = |spec: &Value, key: &Value| {
        let tolerations = spec["tolerations"].as_array().unwrap();
        tolerations.iter().any(|toleration| &toleration["key"] == key)
    };
    assert!(tolerated(&spec, &json!("transfer")) && !tolerated(&spec, &Value::Null), "{spec}");

    world.create::<PayloadBuild>("plain", build_to("python:3", "plain.zip")).await;
    let pod = world.pod_of(&world.job_of_attempt::<PayloadBuild>("plain", 1).await).await;
    let spec = serde_json::to_value(pod.spec.unwrap()).unwrap();
    assert_eq!(spec["imagePullSecrets"], json!([{ "name": "mirror" }]));
    assert_eq!(spec["nodeSelector"], json!({ "pool": "transfer" }));
    assert!(tolerated(&spec, &Value::Null), "{spec}");
}

#[tokio::test]
async fn a_worker_is_told_how_the_settings_want_registries_to_be_treated() {
    let mut world = World::without_controller("traffic").await;
    let traffic = TrafficLimits {
        parallel: NonZeroUsize::new(2),
        retry_for_seconds: Some(7200),
        ..TrafficLimits::default()
    };
    world.settings.worker.traffic = traffic;
    world.start().await;
    world.create::<PayloadBuild>("app", build_to("python:3", "app.zip")).await;
    world.create::<PayloadImport>("app", import_spec()).await;
    let build = world.pod_of(&world.job_of_attempt::<PayloadBuild>("app", 1).await).await;
    let import = world.pod_of(&world.job_of_attempt::<PayloadImport>("app", 1).await).await;
    assert_eq!([build, import].map(|pod| config(&pod).traffic), [traffic; 2]);
}

#[tokio::test]
async fn what_the_cluster_refuses_of_a_pod_is_told_in_its_words() {
    let world = World::new("refused").await;
    for (name, worker, words) in [
        ("label", json!({ "podMetadata": { "labels": { "a b": "c" } } }), "a b"),
        ("node", json!({ "nodeSelector": { "/": "c" } }), "nodeSelector"),
        (
            "affinity",
            json!({ "affinity": { "podAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": [{}] } } }),
            "topologyKey",
        ),
        (
            "toleration",
            json!({ "tolerations": [{ "operator": "Exists", "value": "a" }] }),
            "value must be empty",
        ),
    ] {
        world.create::<PayloadBuild>(name, with_worker(build_to("python:3", name), worker)).await;
        let status = world.until_ready::<PayloadBuild>(name, "False", "InvalidSpec").await;
        assert_eq!(brief(&status, "Stalled"), "True/InvalidSpec");
        let message = &condition(&status, "Ready").unwrap().message;
        assert!(message.contains(words), "{message}");
    }
    // What may yet come is waited for.
    let worker = json!({ "priorityClassName": "none-of-that-name" });
    world.create::<PayloadBuild>("class", with_worker(build_to("python:3", "class"), worker)).await;
    let status = world.until_ready::<PayloadBuild>("class", "False", "WorkerCreateFailed").await;
    assert_eq!(brief(&status, "Stalled"), "");
    let message = &condition(&status, "Ready").unwrap().message;
    assert!(message.contains("none-of-that-name"), "{message}");
}
