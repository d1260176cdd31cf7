//! Alerts, dashboard and their docs, on the metrics that there are.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::program::tool;
use crate::rendering::{CHART, one, render};

const DOCS: &str = include_str!("../../docs/monitoring.md");
const ALERTS: &str = include_str!("../../charts/charon/files/alerts.yaml");
const DASHBOARD: &str = include_str!("../../charts/charon/files/dashboard.json");
const RULES_TEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/chart/alerts.test.yaml");

/// The rules of all groups.
fn rules() -> Vec<Value> {
    let file: Value = serde_saphyr::from_str(ALERTS).unwrap();
    let groups = file["groups"].as_array().unwrap();
    groups.iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
}

/// The names of the alerts.
fn alerts() -> BTreeSet<String> {
    rules().iter().map(|rule| rule["alert"].as_str().unwrap().to_owned()).collect()
}

/// Each query of the dashboard, with a value for each of its variables.
fn queries() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    let queries = targets.map(|target| target["expr"].as_str().unwrap());
    let filled = queries.map(|query| query.replace("$namespace", ".*").replace("$__rate_interval", "5m"));
    filled.collect()
}

/// The metrics that an expression reads.
fn names(expression: &str) -> impl Iterator<Item = &str> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("charon_"))
}

/// The metrics that the controller has; a test of its own holds the docs to them.
fn metrics() -> BTreeSet<String> {
    let rows = DOCS.lines().filter(|line| line.starts_with("| `charon_"));
    rows.flat_map(|row| {
        let mut cells = row.split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).skip(1);
        let (name, type_) = (cells.next().unwrap(), cells.next().unwrap());
        match type_.as_str() {
            "histogram" => ["_bucket", "_sum", "_count"].map(|end| format!("{name}{end}")).to_vec(),
            _ => vec![name],
        }
    })
    .collect()
}

#[test]
fn each_alert_comes_when_it_should_and_not_otherwise() {
    let judged = tool("promtool", ["test", "rules", RULES_TEST]).run();
    assert_eq!(judged.status, Some(0), "{} {}", judged.text(), judged.stderr);
    let cases: Value = serde_saphyr::from_str(&std::fs::read_to_string(RULES_TEST).unwrap()).unwrap();
    let cases = cases["tests"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|test| test["alert_rule_test"].as_array().unwrap());
    let (mut fired, mut quiet) = (BTreeSet::new(), BTreeSet::new());
    for case in cases {
        let expected = case["exp_alerts"].as_array().is_some_and(|alerts| !alerts.is_empty());
        let name = case["alertname"].as_str().unwrap().to_owned();
        if expected {
            fired.insert(name)
        } else {
            quiet.insert(name)
        };
    }
    assert_eq!((fired, quiet), (alerts(), alerts()), "an alert whose coming or staying away nobody tried");
}

#[test]
fn the_prometheus_operator_gets_the_rules_that_were_tested() {
    let objects = render("metrics: {prometheusRule: {enabled: true, labels: {release: p}}}");
    let rule = one(&objects, "PrometheusRule").unwrap();
    let file: Value = serde_saphyr::from_str(ALERTS).unwrap();
    assert_eq!(rule["spec"], file);
    assert_eq!(rule["metadata"]["labels"]["release"], "p");
}

#[test]
fn alerts_and_dashboard_read_metrics_that_there_are_and_leave_out_none() {
    let metrics = metrics();
    let mut read = BTreeSet::new();
    for rule in rules() {
        read.extend(names(rule["expr"].as_str().unwrap()).map(str::to_owned));
    }
    for query in queries() {
        let of_query: Vec<_> = names(&query).map(str::to_owned).collect();
        assert!(!of_query.is_empty(), "{query}");
        read.extend(of_query);
    }
    assert_eq!(read.difference(&metrics).collect::<Vec<_>>(), Vec::<&String>::new());
    let family = |name: &String| {
        let name = name.as_str();
        let ends = ["_bucket", "_sum", "_count"].into_iter().find_map(|end| name.strip_suffix(end));
        ends.unwrap_or(name).to_owned()
    };
    let families = |names: &BTreeSet<String>| names.iter().map(family).collect::<BTreeSet<_>>();
    assert_eq!(families(&read), families(&metrics));
}

#[test]
fn prometheus_understands_each_query_of_the_dashboard() {
    let record = |(index, query): (usize, String)| json!({ "record": format!("q{index}"), "expr": query });
    let rules: Vec<_> = queries().into_iter().enumerate().map(record).collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    let groups = json!({ "groups": [{ "name": "dashboard", "rules": rules }] });
    std::fs::write(file.path(), groups.to_string()).unwrap();
    let judged = tool("promtool", ["check", "rules"]).arguments([file.path()]).run();
    assert_eq!(judged.status, Some(0), "{} {}", judged.text(), judged.stderr);
}

#[test]
fn the_dashboard_is_where_grafana_looks_for_it() {
    let objects = render("metrics: {dashboard: {enabled: true}}");
    let map = one(&objects, "ConfigMap").unwrap();
    assert_eq!(map["metadata"]["labels"]["grafana_dashboard"], "1");
    let rendered: Value = serde_json::from_str(map["data"]["charon.json"].as_str().unwrap()).unwrap();
    assert_eq!(rendered, serde_json::from_str::<Value>(DASHBOARD).unwrap());
    assert_eq!(one(&render("{}"), "ConfigMap"), None);
}

#[test]
fn docs_tell_of_each_alert_what_to_do_and_of_no_other() {
    let rows = DOCS.lines().filter_map(|line| line.strip_prefix("| `Charon"));
    let told: Vec<_> = rows
        .map(|row| {
            let cells: Vec<_> = row.split('|').map(str::trim).collect();
            assert!(cells.len() == 5 && cells[1..4].iter().all(|cell| !cell.is_empty()), "{row}");
            (format!("Charon{}", cells[0].trim_matches('`')), cells[1].to_owned())
        })
        .collect();
    let of = |rule: &Value| {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        (text(&rule["alert"]), text(&rule["labels"]["severity"]))
    };
    assert_eq!(told, rules().iter().map(of).collect::<Vec<_>>());
    assert!(std::path::Path::new(CHART).join("files/alerts.yaml").exists());
}
