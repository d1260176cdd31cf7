//! What GitOps tools make of a resource, from its creation to its end: the code of kstatus itself, and the
//! health script for Argo CD, run by Argo CD's interpreter.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use charon::api::{PayloadBuild, PayloadImport};
use charon::reason::Reason;
use futures::StreamExt as _;
use kube::api::{ApiResource, DeleteParams, DynamicObject};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Resource};
use serde_json::{Value, json};

use crate::kubelet::{outcome, with_counts};
use crate::world::{Kind, World, build_spec, import_spec};

/// Ready, Reconciling and Stalled as `status/reason`, what kstatus says and what Argo CD says.
type Row = [&'static str; 5];

/// Collects every version of the resource "app" of one kind.
struct Witness {
    versions: Arc<Mutex<Vec<Value>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Witness {
    fn of<K: Kind>(world: &World) -> Self {
        let kind = ApiResource::erase::<K>(&());
        let api = Api::<DynamicObject>::namespaced_with(world.client.clone(), &world.namespace, &kind);
        let versions = Arc::new(Mutex::new(Vec::new()));
        let seen = versions.clone();
        let task = tokio::spawn(async move {
            let mut events = std::pin::pin!(watcher(api, watcher::Config::default()));
            while let Some(event) = events.next().await {
                if let Ok(Event::Apply(object) | Event::InitApply(object) | Event::Delete(object)) = event {
                    seen.lock().unwrap().push(serde_json::to_value(object).unwrap());
                }
            }
        });
        Self { versions, task }
    }

    /// Both tools agree with the table at each version that there was.
    fn agrees(self) {
        self.task.abort();
        let versions = self.versions.lock().unwrap();
        assert!(versions.len() > 3, "{} versions", versions.len());
        for (object, found) in versions.iter().zip(verdicts(&versions)) {
            assert_eq!(found, expected(object), "{object:#}");
        }
    }
}

/// What the table in docs/gitops.md says: kstatus' word and Argo CD's.
fn expected(object: &Value) -> [&'static str; 2] {
    if object["metadata"]["deletionTimestamp"].is_string() {
        return ["Terminating", "Progressing"];
    }
    let is = |name: &str| condition(object, name).is_some_and(|found| found["status"] == "True");
    let is_seen = object["status"]["observedGeneration"] == object["metadata"]["generation"];
    let is_suspended = condition(object, "Ready").is_some_and(|ready| ready["reason"] == "Suspended");
    match (is_seen, is("Ready"), is("Stalled")) {
        (false, ..) => ["InProgress", "Progressing"],
        (_, true, _) => ["Current", "Healthy"],
        (_, _, true) => ["Failed", "Degraded"],
        _ if is_suspended => ["InProgress", "Suspended"],
        _ => ["InProgress", "Progressing"],
    }
}

fn condition<'a>(object: &'a Value, name: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == name)
}

/// What kstatus and Argo CD say of each object.
fn verdicts(objects: &[Value]) -> Vec<[String; 2]> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/gitops/argocd/health.lua");
    let mut tool = Command::new("verdict");
    let tool = tool.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut tool = tool.expect("verdict is installed by tests/tools/install");
    let lines: Vec<_> = objects.iter().map(|object| format!("{object}\n")).collect();
    // Its answers wait in the pipe meanwhile, which holds more than there are.
    tool.stdin.take().unwrap().write_all(lines.concat().as_bytes()).unwrap();
    let said = tool.wait_with_output().unwrap();
    assert!(said.status.success());
    let said = String::from_utf8(said.stdout).unwrap();
    let words = said.lines().map(|line| {
        let mut words = line.split('\t').map(str::to_owned);
        [words.next().unwrap(), words.next().unwrap()]
    });
    let words: Vec<_> = words.collect();
    assert_eq!(words.len(), objects.len());
    words
}

/// Waits until the resource "app" is in this row of the table.
async fn until_row<K: Kind>(world: &World, row: Row) {
    let [ready, reconciling, stalled, kstatus, argo] = row;
    let found = |object: &K| {
        let object = serde_json::to_value(object).unwrap();
        let is_seen = object["status"]["observedGeneration"] == object["metadata"]["generation"];
        let brief = ["Ready", "Reconciling", "Stalled"].map(|name| {
            condition(&object, name).map_or(String::new(), |found| {
                format!("{}/{}", found["status"].as_str().unwrap(), found["reason"].as_str().unwrap())
            })
        });
        is_seen && brief == [ready, reconciling, stalled]
    };
    let object: K = world.until_any(&row.join(" "), found).await;
    let object = serde_json::to_value(object).unwrap();
    assert_eq!(
        verdicts(std::slice::from_ref(&object)),
        [[kstatus.to_owned(), argo.to_owned()]],
        "{object:#}"
    );
}

#[tokio::test]
async fn of_a_build_kstatus_and_argo_cd_say_what_the_table_says_at_every_moment() {
    let mut world = World::without_controller("gitops").await;
    let witness = Witness::of::<PayloadBuild>(&world);
    let mut spec = build_spec("python:3");
    spec["backoffLimit"] = json!(0);
    let object = world.create::<PayloadBuild>("app", spec).await;
    let object = serde_json::to_value(object).unwrap();
    assert_eq!(verdicts(&[object]), [["InProgress", "Progressing"]], "created, not seen");

    world.start().await;
    until_row::<PayloadBuild>(
        &world,
        ["Unknown/Progressing", "True/Progressing", "", "InProgress", "Progressing"],
    )
    .await;
    let job = world.job_of_attempt::<PayloadBuild>("app", 1).await;
    let pod = world.pod_of(&job).await;
    world.bind(&pod).await;
    world.waits(&pod, "ImagePullBackOff", "no such image").await;
    until_row::<PayloadBuild>(
        &world,
        ["False/WorkerImagePullFailed", "True/Progressing", "", "InProgress", "Progressing"],
    )
    .await;
    world.ends_for(&pod, Reason::RegistryUnavailable).await;
    until_row::<PayloadBuild>(
        &world,
        ["False/RegistryUnavailable", "True/RegistryUnavailable", "", "InProgress", "Progressing"],
    )
    .await;
    let job = world.job_of_attempt::<PayloadBuild>("app", 2).await;
    world.ends_for(&world.pod_of(&job).await, Reason::ImageNotFound).await;
    until_row::<PayloadBuild>(
        &world,
        ["False/ImageNotFound", "", "True/BackoffLimitExceeded", "Failed", "Degraded"],
    )
    .await;

    world.patch::<PayloadBuild>("app", json!({ "spec": { "backoffLimit": 3 } })).await;
    let job = world.job_of_attempt::<PayloadBuild>("app", 3).await;
    world.ends_for(&world.pod_of(&job).await, Reason::WorkerFailed).await;
    until_row::<PayloadBuild>(
        &world,
        ["False/WorkerFailed", "True/ProgressingWithRetry", "", "InProgress", "Progressing"],
    )
    .await;
    world.patch::<PayloadBuild>("app", json!({ "spec": { "suspend": true } })).await;
    until_row::<PayloadBuild>(&world, ["False/Suspended", "", "", "InProgress", "Suspended"]).await;
    world.patch::<PayloadBuild>("app", json!({ "spec": { "suspend": false } })).await;
    let again = |found: &k8s_openapi::api::batch::v1::Job| {
        found.metadata.uid != job.metadata.uid && found.metadata.deletion_timestamp.is_none()
    };
    let job = world.until_any("made anew", again).await;
    let pod = world.pod_of(&job).await;
    world.ends_for(&pod, Reason::Succeeded).await;
    until_row::<PayloadBuild>(&world, ["True/Succeeded", "", "", "Current", "Healthy"]).await;

    // Another wish, which no controller has seen yet, is no finished one.
    world.stop().await;
    let images = json!({ "spec": { "images": [{ "image": "python:4" }] } });
    let object = serde_json::to_value(world.patch::<PayloadBuild>("app", images).await).unwrap();
    assert_eq!(verdicts(&[object]), [["InProgress", "Progressing"]]);
    let object: PayloadBuild = world.api().get("app").await.unwrap();
    world.api::<PayloadBuild>().delete("app", &DeleteParams::foreground()).await.unwrap();
    world.until_gone(&object).await;
    witness.agrees();
}

#[tokio::test]
async fn of_an_import_kstatus_and_argo_cd_say_what_the_table_says_at_every_moment() {
    let world = World::new("gitops").await;
    let witness = Witness::of::<PayloadImport>(&world);
    world.create::<PayloadImport>("app", import_spec()).await;
    let job = world.job_of_attempt::<PayloadImport>("app", 1).await;
    world.ends_for(&world.pod_of(&job).await, Reason::SourceNotFound).await;
    until_row::<PayloadImport>(
        &world,
        ["False/SourceNotFound", "True/SourceNotFound", "", "InProgress", "Progressing"],
    )
    .await;
    let job = world.job_of_attempt::<PayloadImport>("app", 2).await;
    let pod = world.pod_of(&job).await;
    world.concludes(&pod, &with_counts(outcome(&pod, Reason::MissingBase), 3, 2)).await;
    until_row::<PayloadImport>(&world, ["False/MissingBase", "", "True/MissingBase", "Failed", "Degraded"])
        .await;

    world.patch::<PayloadImport>("app", json!({ "spec": { "trigger": "the base is there" } })).await;
    let job = world.job_of_attempt::<PayloadImport>("app", 3).await;
    world.ends_for(&world.pod_of(&job).await, Reason::AccessDenied).await;
    until_row::<PayloadImport>(&world, ["False/AccessDenied", "", "True/AccessDenied", "Failed", "Degraded"])
        .await;
    // It ends before anybody can be sure to have seen its Job.
    world.patch::<PayloadImport>("app", json!({ "spec": { "timeout": "1s" } })).await;
    until_row::<PayloadImport>(
        &world,
        ["False/AccessDenied", "", "True/DeadlineExceeded", "Failed", "Degraded"],
    )
    .await;
    let object: PayloadImport = world.api().get("app").await.unwrap();
    assert!(object.meta().finalizers.is_none());
    witness.agrees();
}

#[test]
fn what_argo_cd_is_patched_with_is_the_script_that_is_tested() {
    let script = include_str!("../../docs/gitops/argocd/health.lua");
    let lines = script.lines().map(|line| format!("    {line}\n"));
    let indented: String = lines.collect();
    let patch = include_str!("../../docs/gitops/argocd/argocd-cm.yaml");
    for kind in ["PayloadBuild", "PayloadImport"] {
        let setting = format!("  resource.customizations.health.charon.dev_{kind}: |\n{indented}");
        assert!(patch.contains(&setting), "{kind}");
    }
}
