//! Who is reached by what, and at which port.

use charon::worker::contract::PROGRESS_PORT;
use serde_json::{Value, json};

use crate::rendering::{conforms, objects, one, render, selects};

const DOCS: &str = include_str!("../../docs/network-policies.md");

/// The labels of a worker's pod, beside those that tell its run.
fn worker() -> Value {
    json!({
        "app.kubernetes.io/name": "charon",
        "app.kubernetes.io/component": "worker",
        "app.kubernetes.io/managed-by": "charon",
    })
}

#[test]
fn what_is_for_the_controller_selects_it_and_no_worker() {
    let objects = render(
        "{replicas: 2, networkPolicy: {enabled: true}, metrics: {serviceMonitor: {enabled: true}}, podLabels: {app.kubernetes.io/name: other}}",
    );
    let pod = &one(&objects, "Deployment").unwrap()["spec"]["template"];
    let service = one(&objects, "Service").unwrap();
    for (kind, pointer) in [
        ("Deployment", "/spec/selector/matchLabels"),
        ("Service", "/spec/selector"),
        ("PodDisruptionBudget", "/spec/selector/matchLabels"),
        ("NetworkPolicy", "/spec/podSelector/matchLabels"),
    ] {
        let selector = one(&objects, kind).unwrap().pointer(pointer).unwrap();
        assert!(selects(selector, &pod["metadata"]["labels"]), "{kind}");
        assert!(!selects(selector, &worker()), "{kind}");
    }
    let monitor = one(&objects, "ServiceMonitor").unwrap();
    assert!(selects(&monitor["spec"]["selector"]["matchLabels"], &service["metadata"]["labels"]));
}

#[test]
fn each_port_leads_to_the_one_that_the_controller_answers_at() {
    let objects = render("{networkPolicy: {enabled: true}, metrics: {serviceMonitor: {enabled: true}}}");
    let container = &one(&objects, "Deployment").unwrap()["spec"]["template"]["spec"]["containers"][0];
    // The program's own default, which the chart leaves.
    assert_eq!(container["ports"], json!([{ "name": "health", "containerPort": 8081 }]));
    assert_eq!(container["args"], json!(["controller"]));
    let service = one(&objects, "Service").unwrap();
    assert_eq!(
        service["spec"]["ports"],
        json!([{ "name": "metrics", "port": 8081, "targetPort": "health" }])
    );
    assert_eq!(one(&objects, "ServiceMonitor").unwrap()["spec"]["endpoints"], json!([{ "port": "metrics" }]));
    let policy = &one(&objects, "NetworkPolicy").unwrap()["spec"];
    assert_eq!(policy["ingress"], json!([{ "ports": [{ "port": 8081, "protocol": "TCP" }] }]));
}

#[test]
fn the_controllers_policy_lets_it_reach_the_api_server_and_the_workers_progress() {
    for (values, everywhere) in [
        ("networkPolicy: {enabled: true, apiServer: {cidrs: [10.0.0.1/32], ports: [6443]}}", true),
        (
            "{namespaced: true, networkPolicy: {enabled: true, apiServer: {cidrs: [10.0.0.1/32], ports: [6443]}}}",
            false,
        ),
    ] {
        let objects = render(values);
        let policy = &one(&objects, "NetworkPolicy").unwrap()["spec"];
        assert_eq!(policy["policyTypes"], json!(["Ingress", "Egress"]));
        let [api_server, workers] = policy["egress"].as_array().unwrap().as_slice() else { panic!() };
        assert_eq!(api_server["to"], json!([{ "ipBlock": { "cidr": "10.0.0.1/32" } }]));
        assert_eq!(api_server["ports"], json!([{ "port": 6443, "protocol": "TCP" }]));
        let to = &workers["to"][0];
        assert!(selects(&to["podSelector"]["matchLabels"], &worker()));
        assert_eq!(to.get("namespaceSelector"), everywhere.then_some(&json!({})), "{values}");
        assert_eq!(workers["ports"], json!([{ "port": PROGRESS_PORT, "protocol": "TCP" }]));
    }
    assert_eq!(one(&render("{}"), "NetworkPolicy"), None);
}

#[test]
fn the_sample_for_tenants_is_taken_by_kubernetes_and_is_about_workers() {
    let sample = DOCS.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
    let judged = conforms(sample);
    assert_eq!(judged.status, Some(0), "{judged:?}");
    let objects = objects(sample);
    let policy = &one(&objects, "NetworkPolicy").unwrap()["spec"];
    assert!(selects(&policy["podSelector"]["matchLabels"], &worker()));
    let ingress = &policy["ingress"][0];
    assert_eq!(ingress["ports"], json!([{ "port": PROGRESS_PORT, "protocol": "TCP" }]));
    let controller =
        one(&render("{}"), "Deployment").unwrap()["spec"]["template"]["metadata"]["labels"].clone();
    assert!(selects(&ingress["from"][0]["podSelector"]["matchLabels"], &controller));
}
