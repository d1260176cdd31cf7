use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::*;

const BUILD: &str = PayloadBuild::KIND;

/// A status with these conditions, `Type=Status/Reason`, and this run.
fn status(conditions: &[&str], run: &Value) -> Status {
    let condition = |text: &&str| {
        let (type_, rest) = text.split_once('=').unwrap();
        let (status, reason) = rest.split_once('/').unwrap();
        json!({
            "type": type_, "status": status, "reason": reason, "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        })
    };
    let conditions: Vec<Value> = conditions.iter().map(condition).collect();
    let status = json!({ "conditions": conditions, "run": run });
    serde_json::from_value(status).unwrap()
}

/// Every series whose name begins with `prefix`, with its value.
fn series(metrics: &Metrics, prefix: &str) -> BTreeMap<String, u64> {
    let text = metrics.text().unwrap();
    let lines = text.lines().filter(|line| line.starts_with(prefix));
    let split = lines.map(|line| line.rsplit_once(' ').unwrap());
    split.map(|(name, value)| (name.to_owned(), value.parse().unwrap())).collect()
}

fn resources(metrics: &Metrics) -> BTreeMap<String, u64> {
    let mut found = series(metrics, "charon_resources{");
    found.retain(|_, count| *count > 0);
    found
}

fn one(state: &str) -> BTreeMap<String, u64> {
    [(format!("charon_resources{{kind=\"PayloadBuild\",state=\"{state}\"}}"), 1)].into()
}

#[test]
fn what_is_gone_is_counted_no_more_and_what_nobody_saw_is_unseen() {
    let metrics = Metrics::new();
    assert_eq!(series(&metrics, "charon_resources{"), BTreeMap::new(), "who stands by counts none");
    let there = Arc::new(Mutex::new(HashSet::from(["a".to_owned()])));
    let known = there.clone();
    metrics.watch(BUILD, move || known.lock().unwrap().clone());
    assert_eq!(series(&metrics, "charon_resources{").len(), State::ALL.len());
    assert_eq!(resources(&metrics), one("unseen"));
    metrics.saw("a", &status(&["Ready=True/Succeeded"], &Value::Null));
    // Its deletion was seen before the look at it had ended.
    metrics.saw("b", &status(&["Ready=False/AccessDenied", "Stalled=True/AccessDenied"], &Value::Null));
    assert_eq!(resources(&metrics), one("ready"));
    assert_eq!(metrics.cache().seen.len(), 1);
    there.lock().unwrap().clear();
    assert_eq!(resources(&metrics), BTreeMap::new());
    assert_eq!(metrics.cache().seen.len(), 0);
}

#[test]
fn the_state_is_the_one_that_the_conditions_tell() {
    for (conditions, state) in [
        (&[][..], "unseen"),
        (&["Ready=Unknown/Progressing", "Reconciling=True/Progressing"], "progressing"),
        (&["Ready=False/SourceNotFound", "Reconciling=True/SourceNotFound"], "waiting"),
        (&["Ready=False/SourceIncomplete", "Reconciling=True/ProgressingWithRetry"], "waiting"),
        (&["Ready=False/Superseded", "Reconciling=True/Superseded"], "waiting"),
        (&["Ready=False/SecretNotFound", "Reconciling=True/Progressing"], "failing"),
        (&["Ready=False/RateLimited", "Reconciling=True/RateLimited"], "failing"),
        (&["Ready=False/Suspended"], "suspended"),
        (&["Ready=False/SourceNotFound", "Stalled=True/DeadlineExceeded"], "stalled"),
        (&["Ready=True/AlreadyPresent"], "ready"),
    ] {
        let metrics = Metrics::new();
        metrics.watch(BUILD, || HashSet::from(["a".to_owned()]));
        metrics.saw("a", &status(conditions, &Value::Null));
        assert_eq!(resources(&metrics), one(state), "{conditions:?}");
    }
}

#[test]
fn the_oldest_change_is_that_of_the_resource_that_has_not_moved_for_the_longest_time() {
    let metrics = Metrics::new();
    metrics.watch(BUILD, || ["a", "b", "c"].map(str::to_owned).into());
    let failing = |moved: &str| {
        let mut status = status(&["Ready=False/RegistryUnavailable"], &Value::Null);
        let progress = json!({ "stage": "Transferring", "updateTime": moved });
        status.progress = Some(serde_json::from_value(progress).unwrap());
        status
    };
    metrics.saw("a", &failing("2026-01-02T00:00:00Z"));
    metrics.saw("b", &failing("2026-01-01T01:00:00Z"));
    metrics.saw("c", &status(&["Ready=True/Succeeded"], &Value::Null));
    let oldest = series(&metrics, "charon_resources_oldest");
    let name = r#"charon_resources_oldest_change_timestamp_seconds{kind="PayloadBuild",state="failing"}"#;
    let hour_past_new_year = 1_767_229_200;
    assert_eq!(oldest, [(name.to_owned(), hour_past_new_year)].into());
}

#[test]
fn a_run_is_counted_when_it_ends_and_never_again() {
    let run = |rest: &Value| {
        let mut run = json!({ "id": "r", "attempt": 1, "startTime": "2026-01-01T00:00:00Z" });
        run.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        run
    };
    let working = || status(&["Ready=Unknown/Progressing"], &run(&json!({})));
    let completed = json!({ "completionTime": "2026-01-01T00:01:40Z" });
    let done = || status(&["Ready=True/Succeeded"], &run(&completed));
    let ended =
        json!({ "ended": { "reason": "X", "generation": 1, "time": "2026-01-01T00:00:20Z" }, "attempt": 1 });
    let denied = ["Ready=False/AccessDenied", "Stalled=True/AccessDenied"];
    let stalled = || status(&denied, &run(&ended));
    let retrying = || status(&["Ready=False/RateLimited"], &run(&ended));
    let other = || status(&["Ready=Unknown/Progressing"], &json!({ "id": "s", "attempt": 2 }));
    let again = || status(&["Ready=False/AccessDenied"], &run(&json!({ "attempt": 2 })));
    let counted = |old: Status, new: Status| {
        let metrics = Metrics::new();
        metrics.wrote(BUILD, &old, &new);
        let runs = series(&metrics, "charon_runs_total");
        assert!(runs.len() <= 1 && runs.values().all(|count| *count == 1), "{runs:?}");
        let took = series(&metrics, "charon_run_duration_seconds_sum").into_values().next();
        (runs.into_keys().next().unwrap_or_default(), took)
    };
    let name = |result: &str, reason: &str| {
        format!(r#"charon_runs_total{{kind="PayloadBuild",reason="{reason}",result="{result}"}}"#)
    };
    let nothing = (String::new(), None);
    assert_eq!(counted(working(), done()), (name("succeeded", "Succeeded"), Some(100)));
    assert_eq!(counted(retrying(), done()), (name("succeeded", "Succeeded"), Some(100)));
    assert_eq!(counted(done(), done()), nothing);
    assert_eq!(counted(working(), stalled()), (name("failed", "AccessDenied"), Some(20)));
    assert_eq!(counted(stalled(), stalled()), nothing);
    assert_eq!(counted(working(), retrying()), nothing);
    assert_eq!(counted(stalled(), again()), nothing);
    assert_eq!(counted(working(), other()), (name("superseded", "Superseded"), None));
    assert_eq!(counted(done(), other()), nothing);
    assert_eq!(counted(stalled(), other()), nothing);
    // It was lost, and found in the Job again.
    assert_eq!(counted(Status::default(), done()), nothing);
}

#[test]
fn bytes_are_those_that_a_run_moved() {
    let run = json!({ "id": "r", "attempt": 1 });
    let done = json!({ "id": "r", "attempt": 1, "completionTime": "2026-01-01T00:01:40Z" });
    let old = status(&[], &run);
    let payload = json!({
        "runId": "r", "location": "a/b", "sizeBytes": 100, "formatVersion": 1,
        "images": 1, "blobs": 1, "blobsReused": 0,
    });
    let new = |reason: &str, result: &Value| {
        let mut status = status(&[&format!("Ready=True/{reason}")], &done);
        status.payload = Some(serde_json::from_value(payload.clone()).unwrap());
        status.result = serde_json::from_value(result.clone()).unwrap();
        status
    };
    let metrics = Metrics::new();
    metrics.wrote(BUILD, &old, &new("Succeeded", &Value::Null));
    metrics.wrote(BUILD, &old, &new("AlreadyPresent", &Value::Null));
    let pushed = json!({
        "images": 1, "imagesFailed": 0, "blobsPushed": 1, "blobsMounted": 0, "blobsPresent": 1, "bytesPushed": 7,
    });
    metrics.wrote(PayloadImport::KIND, &old, &new("Succeeded", &pushed));
    let bytes = series(&metrics, "charon_run_bytes_total");
    assert_eq!(bytes.into_values().collect::<Vec<_>>(), [100, 7]);
}

#[test]
fn no_label_could_name_a_resource_or_its_namespace() {
    let metrics = Metrics::new();
    metrics.watch(BUILD, || HashSet::from(["a".to_owned()]));
    metrics.looked(BUILD, Duration::ZERO);
    metrics.wrote(
        BUILD,
        &status(&[], &json!({ "id": "a", "attempt": 1 })),
        &status(&[], &json!({ "id": "b", "attempt": 2 })),
    );
    metrics.text().unwrap();
    let mut labels = HashSet::new();
    for family in metrics.registry.gather() {
        for metric in family.get_metric() {
            labels.extend(metric.get_label().iter().map(|label| label.name().to_owned()));
        }
    }
    assert_eq!(labels, HashSet::from(["kind", "state", "result", "reason"].map(str::to_owned)));
}

#[test]
fn docs_tell_of_each_metric_and_of_no_other() {
    let metrics = Metrics::new();
    metrics.watch(BUILD, || HashSet::from(["a".to_owned()]));
    metrics.saw("a", &status(&["Ready=False/RateLimited"], &Value::Null));
    metrics.looked(BUILD, Duration::from_secs(1));
    metrics.failed(BUILD);
    let run = json!({ "id": "r", "attempt": 1, "startTime": "2026-01-01T00:00:00Z" });
    let mut done = status(&["Ready=True/Succeeded"], &run);
    let completed = "2026-01-01T00:01:40Z".parse().unwrap();
    done.run.as_mut().unwrap().completion_time =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(completed));
    metrics.wrote(BUILD, &status(&[], &run), &done);
    let kind = |type_: &str| type_.to_lowercase();
    let _ = metrics.text().unwrap();
    let told: Vec<_> = metrics
        .registry
        .gather()
        .into_iter()
        .map(|family| {
            let labels = family.get_metric()[0].get_label().iter().map(|label| format!("`{}`", label.name()));
            let labels = labels.collect::<Vec<_>>().join(", ");
            (
                family.name().to_owned(),
                kind(&format!("{:?}", family.get_field_type())),
                labels,
                family.help().to_owned(),
            )
        })
        .collect();
    let docs = include_str!("../../../docs/monitoring.md");
    let rows = docs.lines().filter(|line| line.starts_with("| `charon_"));
    let written: Vec<_> = rows
        .map(|row| {
            let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
            let [name, type_, labels, help] = cells[..] else { panic!("{row}") };
            (name.trim_matches('`').to_owned(), type_.to_owned(), labels.to_owned(), help.to_owned())
        })
        .collect();
    assert_eq!(written, told);
    for state in State::ALL {
        assert!(docs.contains(&format!("- `{}`: ", state.as_str())), "{}", state.as_str());
    }
}
