//! What is seen of the program from outside: metrics, readiness, logs, events.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use charon::api::{PayloadBuild, PayloadImport};
use charon::reason::Reason;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::rbac::v1::Role;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::kubelet::{outcome, with_counts};
use crate::program::{Running, charon, tool};
use crate::world::{DEADLINE, IMAGE, USER, World, build_spec, condition, import_spec};

/// The program itself, with the rights of the namespace's Role.
pub(crate) struct Controller {
    running: Running,
    address: SocketAddr,
    _kubeconfig: tempfile::NamedTempFile,
}

impl Controller {
    pub(crate) fn start(world: &World) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let kubeconfig = std::fs::read_to_string(std::env::var_os("KUBECONFIG").unwrap()).unwrap();
        let mut kubeconfig: Value = serde_saphyr::from_str(&kubeconfig).unwrap();
        let user = &mut kubeconfig["users"][0]["user"];
        user["as"] = json!(USER);
        user["as-groups"] = json!(["system:authenticated"]);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), kubeconfig.to_string()).unwrap();
        let running = charon(["controller", "--worker-image", IMAGE, "--namespace", &world.namespace])
            .arguments(["--log-format", "json", "--health-address", &address.to_string()])
            .variable("KUBECONFIG", file.path())
            .start();
        Self { running, address, _kubeconfig: file }
    }

    /// The status and the text of an answer; nothing while nobody answers.
    async fn get(&self, path: &str) -> Option<(u16, String)> {
        let answer = reqwest::get(format!("http://{}{path}", self.address)).await.ok()?;
        Some((answer.status().as_u16(), answer.text().await.ok()?))
    }

    /// Asks for `path` until the answer has this code and is `wanted`, and gives it.
    async fn until(&self, path: &str, code: u16, wanted: impl Fn(&str) -> bool) -> String {
        let mut last = None;
        let found = async {
            loop {
                match self.get(path).await {
                    Some((found, text)) if found == code && wanted(&text) => return text,
                    other => last = other,
                }
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        };
        let found = tokio::time::timeout(DEADLINE, found).await;
        found.unwrap_or_else(|_| panic!("{path} never said so, but {last:?}"))
    }

    /// Asks for the metrics until they have all of these lines.
    pub(crate) async fn until_metrics(&self, lines: &[&str]) -> String {
        self.until("/metrics", 200, |text| lines.iter().all(|line| text.lines().any(|found| found == *line)))
            .await
    }

    /// Ends it, and gives its log, line by line.
    pub(crate) fn log(self) -> Vec<Value> {
        self.running.terminate();
        let ended = self.running.end().succeeded();
        ended.stderr.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// A build that is done and an import that is denied.
async fn one_is_done_and_one_is_denied(world: &World) {
    world.create::<PayloadBuild>("app", build_spec("python:3")).await;
    world.create::<PayloadImport>("denied", import_spec()).await;
    let job = world.job_of_attempt::<PayloadBuild>("app", 1).await;
    world.ends_for(&world.pod_of(&job).await, Reason::Succeeded).await;
    let job = world.job_of_attempt::<PayloadImport>("denied", 1).await;
    world.ends_for(&world.pod_of(&job).await, Reason::AccessDenied).await;
    world.until_ready::<PayloadBuild>("app", "True", "Succeeded").await;
    world.until_ready::<PayloadImport>("denied", "False", "AccessDenied").await;
}

#[tokio::test]
async fn metrics_tell_how_runs_ended_and_how_resources_are_and_nothing_of_what_is_gone() {
    let world = World::without_controller("metrics").await;
    let controller = Controller::start(&world);
    assert_eq!(controller.until("/readyz", 200, |_| true).await, "ok\n");
    Box::pin(one_is_done_and_one_is_denied(&world)).await;
    let text = controller
        .until_metrics(&[
            "charon_leader 1",
            r#"charon_resources{kind="PayloadBuild",state="ready"} 1"#,
            r#"charon_resources{kind="PayloadBuild",state="stalled"} 0"#,
            r#"charon_resources{kind="PayloadImport",state="stalled"} 1"#,
            r#"charon_runs_total{kind="PayloadBuild",reason="Succeeded",result="succeeded"} 1"#,
            r#"charon_runs_total{kind="PayloadImport",reason="AccessDenied",result="failed"} 1"#,
            r#"charon_run_duration_seconds_count{kind="PayloadBuild",result="succeeded"} 1"#,
            r#"charon_run_bytes_total{kind="PayloadBuild"} 1234567"#,
            r#"charon_reconcile_errors_total{kind="PayloadBuild"} 0"#,
        ])
        .await;
    let judged = tool("promtool", ["check", "metrics"]).fed(text.as_str()).run();
    assert_eq!((judged.status, judged.stderr.as_str()), (Some(0), ""), "{text}");
    // No label names a resource or its namespace.
    assert!(!text.contains("denied") && !text.contains(&world.namespace), "{text}");

    world.api::<PayloadImport>().delete("denied", &DeleteParams::default()).await.unwrap();
    let gone = [r#"charon_resources{kind="PayloadImport",state="stalled"} 0"#];
    controller.until_metrics(&gone).await;

    let spec = json!({ "spec": { "suspend": true } });
    world.create::<PayloadImport>("later", import_spec()).await;
    world.patch::<PayloadImport>("later", spec).await;
    controller.until_metrics(&[r#"charon_resources{kind="PayloadImport",state="suspended"} 1"#]).await;
    world.patch::<PayloadImport>("later", json!({ "spec": { "suspend": false } })).await;
    let job = world.job_of_attempt::<PayloadImport>("later", 1).await;
    let pod = world.pod_of(&job).await;
    world.concludes(&pod, &with_counts(outcome(&pod, Reason::Succeeded), 1, 0)).await;
    controller.until_metrics(&[r#"charon_resources{kind="PayloadImport",state="ready"} 1"#]).await;
}

#[tokio::test]
async fn a_definition_older_than_the_program_is_named_and_when_it_is_new_all_goes_on() {
    const NAME: &str = "payloadbuilds.charon.dev";
    const FIELD: &str = "authenticationFailures";
    let world = World::without_controller("older").await;
    let definitions: Api<CustomResourceDefinition> = Api::all(world.client.clone());
    let new = definitions.get(NAME).await.unwrap();
    let mut old = serde_json::to_value(&new).unwrap();
    let run = "/spec/versions/0/schema/openAPIV3Schema/properties/status/properties/run/properties";
    old.pointer_mut(run).unwrap().as_object_mut().unwrap().remove(FIELD).expect("the field is there");
    let old: CustomResourceDefinition = serde_json::from_value(old).unwrap();
    definitions.replace(NAME, &PostParams::default(), &old).await.unwrap();
    // The API server describes it a moment later.
    let describes = async || {
        let request = axum::http::Request::get("/openapi/v3/apis/charon.dev/v1alpha1").body(vec![]).unwrap();
        let described: Value = world.client.request(request).await.unwrap();
        let build = &described["components"]["schemas"]["dev.charon.v1alpha1.PayloadBuild"];
        build["properties"]["status"]["properties"]["run"]["properties"][FIELD] != Value::Null
    };
    let is_old = async {
        while describes().await {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(DEADLINE, is_old).await.expect("the description stays new");
    let controller = Controller::start(&world);
    let said = controller.until("/readyz", 503, |text| text.starts_with("too old")).await;
    assert_eq!(
        said,
        format!(
            "too old: CustomResourceDefinition {NAME} has no status.run.{FIELD}; apply the files in crds/\n"
        )
    );
    assert_eq!(controller.get("/healthz").await.unwrap().0, 200);
    controller.until_metrics(&["charon_leader 0"]).await;

    let mut again = definitions.get(NAME).await.unwrap();
    again.spec = new.spec;
    definitions.replace(NAME, &PostParams::default(), &again).await.unwrap();
    controller.until("/readyz", 200, |_| true).await;
    world.create::<PayloadBuild>("app", build_spec("python:3")).await;
    world.job_of_attempt::<PayloadBuild>("app", 1).await;
}

#[tokio::test]
async fn each_line_of_the_log_about_a_resource_names_it_and_errors_are_counted() {
    let world = World::without_controller("logs").await;
    let controller = Controller::start(&world);
    world.create::<PayloadBuild>("app", build_spec("python:3")).await;
    world.job_of_attempt::<PayloadBuild>("app", 1).await;
    // It may not look at Jobs any more, and nothing else is the matter.
    let api = world.api::<Role>();
    let mut role = api.get("charon").await.unwrap();
    let rules = role.rules.as_mut().unwrap();
    rules.retain(|rule| !rule.resources.iter().flatten().any(|resource| resource == "jobs"));
    api.patch("charon", &PatchParams::default(), &Patch::Merge(json!({ "rules": rules }))).await.unwrap();
    let touch = || json!({ "metadata": { "annotations": { "touched": fastrand::u64(..).to_string() } } });
    let erred = |text: &str| {
        let counter = r#"charon_reconcile_errors_total{kind="PayloadBuild"} "#;
        text.lines().filter_map(|line| line.strip_prefix(counter)).any(|count| count != "0")
    };
    // The right goes a moment after the rule.
    let erred = async {
        loop {
            world.patch::<PayloadBuild>("app", touch()).await;
            if controller.get("/metrics").await.is_some_and(|(_, text)| erred(&text)) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(DEADLINE, erred).await.expect("no error is counted");
    let log = controller.log();
    let about = |line: &Value| {
        let spans = line["spans"].as_array().cloned().unwrap_or_default();
        spans.into_iter().find(|span| span["name"] == "reconcile")
    };
    let app = json!({ "name": "reconcile", "kind": "PayloadBuild", "namespace": world.namespace, "resource": "app" });
    for words in ["created", "cannot read Jobs, pods and events"] {
        let said = |line: &&Value| line["message"].as_str().is_some_and(|message| message.starts_with(words));
        let line = log.iter().find(said).unwrap_or_else(|| panic!("nothing says {words:?}: {log:#?}"));
        assert_eq!(about(line), Some(app.clone()), "{line}");
    }
    for line in log.iter().filter(|line| line.to_string().contains("app")) {
        assert_eq!(about(line), Some(app.clone()), "{line}");
    }
}

#[tokio::test]
async fn what_a_person_must_mend_is_one_warning_with_the_conditions_words() {
    let world = World::new("warnings").await;
    Box::pin(one_is_done_and_one_is_denied(&world)).await;
    let is_it = |event: &Event| event.reason.as_deref() == Some("AccessDenied");
    let event = world.until_any::<Event>("of the refusal", is_it).await;
    let status = world.status::<PayloadImport>("denied").await;
    let stalled = condition(&status, "Stalled").unwrap();
    assert_eq!((event.type_.as_deref(), event.note.as_ref()), (Some("Warning"), Some(&stalled.message)));
    let regarding = event.regarding.unwrap();
    assert_eq!(regarding.name.as_deref(), Some("denied"));
    // Looks that find nothing new tell nothing.
    world.patch::<PayloadImport>("denied", json!({ "metadata": { "labels": { "a": "b" } } })).await;
    world.create::<PayloadImport>("later", import_spec()).await;
    world.job_of_attempt::<PayloadImport>("later", 1).await;
    let about = ListParams::default().fields("regarding.name=denied");
    let events = world.api::<Event>().list(&about).await.unwrap().items;
    let reasons: Vec<_> = events.iter().filter_map(|event| event.reason.as_deref()).collect();
    assert_eq!(reasons, ["Progressing", "AccessDenied"]);
    assert!(events.iter().all(|event| event.series.is_none()), "told twice");
}
