//! From the version before to this one. That one is made from this one: its chart with other numbers and definitions.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::release::{CHART, DEFINITIONS, Release, Standing, VERSION};
use crate::world::{run, until};

/// The version before.
const PREVIOUS: &str = "0.0.9";

/// Makes the chart of the version before in `folder`, with definitions that `alter` has altered, and its image.
fn previous(folder: &Path, alter: impl Fn(&mut Value)) -> String {
    let chart = folder.join("charon");
    run("cp", &["-r", CHART, chart.to_str().unwrap()], None);
    let about = fs::read_to_string(chart.join("Chart.yaml")).unwrap();
    fs::write(
        chart.join("Chart.yaml"),
        about.replace(&format!("ersion: {VERSION}"), &format!("ersion: {PREVIOUS}")),
    )
    .unwrap();
    for file in fs::read_dir(chart.join("files/crds")).unwrap() {
        let path = file.unwrap().path();
        let mut definition: Value = serde_saphyr::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        alter(&mut definition["spec"]["versions"][0]);
        fs::write(path, serde_saphyr::to_string(&definition).unwrap()).unwrap();
    }
    let image = |version: &str| format!("charon.local/charon:{version}");
    run("ctr", &["images", "tag", "--force", &image(VERSION), &image(PREVIOUS)], None);
    chart.to_str().unwrap().to_owned()
}

fn definition(name: &str) -> Value {
    serde_json::from_str(&run("kubectl", &["get", "crd", name, "-o", "json"], None)).unwrap()
}

#[test]
fn a_run_outlives_an_upgrade_in_the_same_pod_and_the_next_one_has_the_new_image() {
    let folder = tempfile::tempdir().unwrap();
    let before = previous(folder.path(), |version| version["additionalPrinterColumns"] = json!([]));
    let release = Release::install(&before, &[]);
    release.until_ready();
    let build = Standing::in_namespace("upgrade", [5121, 5122]);
    let work = build.work();
    assert_eq!(work.len(), 2, "a Job and its pod");
    let image = || build.world.get("pbuild", "app")["status"]["run"]["image"].clone();

    release.upgrade(CHART);
    release.until_ready();
    let said = run(
        "kubectl",
        &["-n", "charon", "get", "pods", "-o", "jsonpath={.items[*].spec.containers[*].image}"],
        None,
    );
    assert!(said.contains(&format!("charon:{VERSION}")) && !said.contains(PREVIOUS), "{said}");
    for name in DEFINITIONS {
        assert_ne!(definition(name)["spec"]["versions"][0]["additionalPrinterColumns"], json!([]), "{name}");
    }
    build.way.open();
    build.world.until_condition("pbuild", "app", "Ready", "True", "Succeeded");
    assert_eq!(build.work(), work);
    assert_eq!(image(), format!("charon.local/charon:{PREVIOUS}"));

    let again = r#"{"spec":{"trigger":"again"}}"#;
    build.world.kubectl(&["patch", "pbuild", "app", "--type=merge", "--patch", again]);
    until("another run", || {
        let run = build.world.get("pbuild", "app")["status"]["run"].clone();
        if run["image"] == format!("charon.local/charon:{VERSION}") { Ok(()) } else { Err(run.to_string()) }
    });
    build.world.until_condition("pbuild", "app", "Ready", "True", "Succeeded");
    build.delete_namespace();
}

#[test]
fn an_upgrade_brings_the_definitions_without_which_the_controller_is_not_ready() {
    const FIELD: &str = "authenticationFailures";
    let folder = tempfile::tempdir().unwrap();
    let run_fields = "/schema/openAPIV3Schema/properties/status/properties/run/properties";
    let before = previous(folder.path(), |version| {
        version.pointer_mut(run_fields).unwrap().as_object_mut().unwrap().remove(FIELD).unwrap();
    });
    let release = Release::install(&before, &[]);
    until("the controller to miss a field", || {
        // There is no log before there is a container.
        let logs = ["-n", "charon", "logs", "deployment/charon", "--tail=20"];
        let log = Command::new("kubectl").args(logs).output().unwrap().stdout;
        let log = String::from_utf8(log).unwrap();
        if log.contains(&format!("has no status.run.{FIELD}")) { Ok(()) } else { Err(log) }
    });
    let deployment = run("kubectl", &["-n", "charon", "get", "deployment", "charon", "-o", "json"], None);
    let deployment: Value = serde_json::from_str(&deployment).unwrap();
    assert_eq!(deployment["status"]["readyReplicas"], Value::Null);

    release.upgrade(CHART);
    release.until_ready();
    for name in DEFINITIONS {
        let version = definition(name)["spec"]["versions"][0].clone();
        assert!(version.pointer(run_fields).unwrap().get(FIELD).is_some(), "{name}");
    }
}
