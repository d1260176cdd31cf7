//! The values: every combination that people have makes objects that Kubernetes takes, every mistake is told.

use serde_json::Value;

use crate::rendering::{CHART, NAMESPACE, conforms, helm, objects, one, render, template};

/// What people set.
const MATRIX: [&str; 16] = [
    "{}",
    "namespaced: true",
    "{namespaced: true, crds: {enabled: false}}",
    "{namespaced: true, crds: {enabled: false}, replicas: 2, networkPolicy: {enabled: true}}",
    "{replicas: 3, logFormat: text}",
    "crds: {keep: false}",
    "image: {repository: r.example:5000/charon, digest: 'sha256:0000000000000000000000000000000000000000000000000000000000000000', pullPolicy: Always}",
    "{image: {tag: latest}, imagePullSecrets: [{name: pull}]}",
    "global: {imageRegistry: 'r.example:5000', ofAnotherChart: 1}",
    "worker: {securityContext: none, resources: {requests: {cpu: 1, ephemeral-storage: 1Gi}, limits: {memory: 1Gi}}}",
    "worker: {imagePullSecrets: [{name: pull}], nodeSelector: null, tolerations: [{key: a, operator: Equal, value: b, effect: NoExecute, tolerationSeconds: 5}]}",
    "worker: {traffic: {parallel: 1, requestsPerSecond: 1000000, retryFor: 1h30m}}",
    "worker: {caBundle: {configMap: corp-ca}, proxy: {address: 'http://proxy.example:3128', noProxy: .svc}, registries: [{host: docker.io, endpoint: mirror.example/hub}, {host: '[::1]:5000', insecure: true}]}",
    "metrics: {serviceMonitor: {enabled: true, labels: {release: prometheus}}, prometheusRule: {enabled: true, labels: {release: prometheus}}, dashboard: {enabled: true}}",
    "networkPolicy: {enabled: true, apiServer: {cidrs: [10.0.0.1/32], ports: [6443]}}",
    "{resources: null, podAnnotations: {a: b}, podLabels: {a: b}, nodeSelector: null, tolerations: [{operator: Exists}], affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: a, operator: Exists}]}]}}}}",
];

#[test]
fn whatever_the_values_are_kubernetes_takes_what_they_make() {
    for values in MATRIX {
        let text = template(values).succeeded().text();
        let judged = conforms(&text);
        assert_eq!(judged.status, Some(0), "{values}: {judged:?}");
        let judged = helm(&["lint", "--strict", CHART], values).run();
        assert_eq!(judged.status, Some(0), "{values}: {judged:?}");
        for object in objects(&text) {
            let metadata = &object["metadata"];
            let of_cluster = object["kind"].as_str().is_some_and(|kind| kind.starts_with("Cluster"))
                || object["kind"] == "CustomResourceDefinition";
            let place = if of_cluster { Value::Null } else { NAMESPACE.into() };
            assert_eq!(metadata["namespace"], place, "{object}");
            if object["kind"] != "CustomResourceDefinition" {
                assert_eq!(metadata["labels"]["app.kubernetes.io/instance"], "charon", "{object}");
            }
        }
    }
}

#[test]
fn a_field_that_kubernetes_does_not_know_would_be_found() {
    let text = template("{}").succeeded().text();
    let wrong = text.replace("enableServiceLinks", "enableServiceLink");
    assert_ne!(text, wrong);
    assert_eq!(conforms(&wrong).status, Some(1));
}

#[test]
fn without_definitions_a_namespaced_release_has_nothing_beyond_its_namespace() {
    let values = "{namespaced: true, crds: {enabled: false}, replicas: 2, networkPolicy: {enabled: true}, metrics: {serviceMonitor: {enabled: true}, prometheusRule: {enabled: true}, dashboard: {enabled: true}}}";
    for object in render(values) {
        assert_eq!(object["metadata"]["namespace"], NAMESPACE, "{object}");
    }
}

#[test]
fn several_controllers_take_turns_are_not_all_drained_at_once_and_one_alone_blocks_no_drain() {
    let several = render("replicas: 2");
    let deployment = one(&several, "Deployment").unwrap();
    assert_eq!(deployment["spec"]["strategy"], Value::Null);
    let env = deployment["spec"]["template"]["spec"]["containers"][0]["env"].as_array().unwrap();
    assert!(env.iter().any(|one| one["name"] == "CHARON_LEADER_ELECTION" && one["value"] == "true"));
    assert_eq!(one(&several, "PodDisruptionBudget").unwrap()["spec"]["maxUnavailable"], 1);
    let alone = render("{}");
    assert_eq!(one(&alone, "Deployment").unwrap()["spec"]["strategy"]["type"], "Recreate");
    assert_eq!(one(&alone, "PodDisruptionBudget"), None);
}

#[test]
fn what_workers_get_by_default_reaches_the_controller_as_json_that_it_reads() {
    let objects = render(
        "worker: {imagePullSecrets: [{name: pull}], nodeSelector: {pool: transfer}, tolerations: [{key: a, operator: Exists}]}",
    );
    let container = &one(&objects, "Deployment").unwrap()["spec"]["template"]["spec"]["containers"][0];
    let value = |name: &str| {
        let variable = container["env"].as_array().unwrap().iter().find(|one| one["name"] == name);
        serde_json::from_str::<Value>(variable.unwrap()["value"].as_str().unwrap()).unwrap()
    };
    assert_eq!(value("CHARON_WORKER_IMAGE_PULL_SECRETS"), serde_json::json!([{ "name": "pull" }]));
    assert_eq!(
        value("CHARON_WORKER_NODE_SELECTOR"),
        serde_json::json!({ "kubernetes.io/os": "linux", "pool": "transfer" })
    );
    assert_eq!(value("CHARON_WORKER_TOLERATIONS"), serde_json::json!([{ "key": "a", "operator": "Exists" }]));
}

#[test]
fn how_workers_treat_registries_reaches_the_controller_and_what_is_not_said_does_not() {
    let variables = |values: &str| -> Vec<(String, String)> {
        let objects = render(values);
        let container = &one(&objects, "Deployment").unwrap()["spec"]["template"]["spec"]["containers"][0];
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let variables = container["env"].as_array().unwrap().iter();
        let variables = variables.map(|one| (text(&one["name"]), text(&one["value"])));
        variables.filter(|(name, _)| name.contains("_PARALLEL") || name.contains("_RE")).collect()
    };
    let plain = variables("{}");
    let told = variables("worker: {traffic: {parallel: 2, requestsPerSecond: 1000000, retryFor: 1h30m}}");
    let expected = [
        ("CHARON_WORKER_PARALLEL", "2"),
        ("CHARON_WORKER_REQUESTS_PER_SECOND", "1000000"),
        ("CHARON_WORKER_RETRY_FOR", "1h30m"),
    ];
    let added = told.iter().filter(|one| !plain.contains(one));
    assert!(added.map(|(name, value)| (name.as_str(), value.as_str())).eq(expected), "{told:?}");
    assert_eq!(plain.len() + expected.len(), told.len());
}

#[test]
fn how_all_registries_are_reached_comes_to_the_controller_and_nothing_where_nothing_is_said() {
    let container = |values: &str| {
        let objects = render(values);
        let pod = one(&objects, "Deployment").unwrap()["spec"]["template"]["spec"].clone();
        (pod["containers"][0].clone(), pod["volumes"].clone())
    };
    let (said, volumes) = container(
        "worker: {caBundle: {configMap: corp-ca, key: bundle.pem}, proxy: {address: 'http://proxy:3128', noProxy: '.svc,10.0.0.0/8'}, registries: [{host: 'lab:5000', insecure: true}]}",
    );
    let value = |name: &str| {
        let variable = said["env"].as_array().unwrap().iter().find(|one| one["name"] == name);
        variable.unwrap()["value"].as_str().unwrap().to_owned()
    };
    assert_eq!(value("CHARON_WORKER_PROXY"), "http://proxy:3128");
    assert_eq!(value("CHARON_WORKER_NO_PROXY"), ".svc,10.0.0.0/8");
    let registries = serde_json::json!([{ "host": "lab:5000", "insecure": true }]);
    assert_eq!(serde_json::from_str::<Value>(&value("CHARON_WORKER_REGISTRIES")).unwrap(), registries);
    let mount = said["volumeMounts"][0]["mountPath"].as_str().unwrap();
    assert_eq!(volumes[0]["name"], said["volumeMounts"][0]["name"]);
    let map = &volumes[0]["configMap"];
    assert_eq!((&map["name"], &map["items"][0]["key"]), (&"corp-ca".into(), &"bundle.pem".into()));
    assert_eq!(
        value("CHARON_WORKER_CA_BUNDLE"),
        format!("{mount}/{}", map["items"][0]["path"].as_str().unwrap())
    );

    let (unsaid, volumes) = container("worker: {proxy: {noProxy: .svc}}");
    assert_eq!((&unsaid["volumeMounts"], &volumes), (&Value::Null, &Value::Null));
    let names = unsaid["env"].to_string();
    for name in ["CA_BUNDLE", "PROXY", "REGISTRIES"] {
        assert!(!names.contains(name), "{names}");
    }
}

#[test]
fn a_registry_for_all_charts_goes_in_the_place_of_the_images_own() {
    let image = |values: &str| {
        let objects = render(values);
        let container = &one(&objects, "Deployment").unwrap()["spec"]["template"]["spec"]["containers"][0];
        let worker = container["env"].as_array().unwrap().iter();
        let worker = worker.clone().find(|one| one["name"] == "CHARON_WORKER_IMAGE").unwrap();
        assert_eq!(container["image"], worker["value"], "one image to carry");
        container["image"].as_str().unwrap().to_owned()
    };
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(image("{}"), format!("charon.local/charon:{version}"));
    assert_eq!(
        image("global: {imageRegistry: 'r.example:5000'}"),
        format!("r.example:5000/charon:{version}")
    );
    for (repository, far) in
        [("team/charon", "team/charon"), ("localhost/a/charon", "a/charon"), ("h:1/charon", "charon")]
    {
        let values = format!(
            "{{global: {{imageRegistry: r.example}}, image: {{repository: '{repository}', tag: '1'}}}}"
        );
        assert_eq!(image(&values), format!("r.example/{far}:1"));
    }
}

#[test]
fn a_mistake_in_the_values_is_told_with_its_place() {
    for (values, place) in [
        ("replica: 2", "replica"),
        ("replicas: 0", "/replicas"),
        ("image: {tag: 1}", "/image/tag"),
        ("image: {digest: abc}", "/image/digest"),
        ("image: {pullPolicy: always}", "/image/pullPolicy"),
        ("global: {imageRegistry: r.example/team}", "/global/imageRegistry"),
        ("worker: {securityContext: restricted}", "/worker/securityContext"),
        ("worker: {resources: {limits: {gpu: 1}}}", "gpu"),
        ("worker: {imagePullSecrets: [pull]}", "/worker/imagePullSecrets"),
        ("worker: {nodeSelector: {gpu: 1}}", "/worker/nodeSelector/gpu"),
        ("worker: {tolerations: [{operator: Never}]}", "/worker/tolerations/0/operator"),
        ("worker: {traffic: {parallel: 0}}", "/worker/traffic/parallel"),
        ("worker: {traffic: {retryFor: 2 hours}}", "/worker/traffic/retryFor"),
        ("worker: {traffic: {retries: 3}}", "retries"),
        ("worker: {caBundle: corp-ca}", "/worker/caBundle"),
        ("worker: {caBundle: {configMap: Corp}}", "/worker/caBundle/configMap"),
        ("worker: {proxy: {address: 'http://charon:obolus@proxy'}}", "/worker/proxy/address"),
        ("worker: {proxy: {address: proxy}}", "/worker/proxy/address"),
        ("worker: {registries: [{endpoint: mirror}]}", "host"),
        (
            "worker: {registries: [{host: docker.io, endpoint: 'https://mirror'}]}",
            "/worker/registries/0/endpoint",
        ),
        ("worker: {registries: [{host: docker.io, secretRef: {name: pull}}]}", "secretRef"),
        ("metrics: {serviceMonitor: true}", "/metrics/serviceMonitor"),
        ("metrics: {serviceMonitor: {interval: 30s}}", "interval"),
        ("networkPolicy: {apiServer: {cidrs: []}}", "/networkPolicy/apiServer/cidrs"),
        ("networkPolicy: {apiServer: {ports: [https]}}", "/networkPolicy/apiServer/ports"),
        ("logFormat: yaml", "/logFormat"),
        ("crds: {install: true}", "install"),
    ] {
        let refused = template(values);
        assert_eq!(refused.status, Some(1), "{values} is taken");
        assert!(refused.stderr.contains(place), "{values}: {}", refused.stderr);
    }
}

#[test]
fn the_schema_and_the_values_have_the_same_fields_and_no_others_are_allowed() {
    let schema: Value =
        serde_json::from_str(&std::fs::read_to_string(format!("{CHART}/values.schema.json")).unwrap())
            .unwrap();
    let values = std::fs::read_to_string(format!("{CHART}/values.yaml")).unwrap();
    let values: Value = serde_saphyr::from_str(&values).unwrap();
    same(&schema, &schema, &values, "");
}

fn same(root: &Value, schema: &Value, value: &Value, path: &str) {
    let schema = match schema["$ref"].as_str() {
        Some(reference) => root.pointer(reference.trim_start_matches('#')).unwrap(),
        None => schema,
    };
    let Some(properties) = schema["properties"].as_object() else { return };
    // What other charts need, and amounts that are up to people.
    let is_open = path == "/global";
    assert!(is_open || schema["additionalProperties"] == false, "{path} takes anything");
    let optional = [
        "/enabled",
        "/worker/resources/requests/ephemeral-storage",
        "/worker/resources/limits/ephemeral-storage",
        "/worker/traffic/parallel",
        "/worker/traffic/requestsPerSecond",
        "/worker/traffic/retryFor",
    ];
    for (name, property) in properties {
        let path = format!("{path}/{name}");
        if !optional.contains(&path.as_str()) {
            let value = value.get(name).unwrap_or_else(|| panic!("values.yaml has no {path}"));
            same(root, property, value, &path);
        }
    }
}

#[test]
fn the_notes_give_the_next_command() {
    let notes = |values: &str| {
        let install =
            ["install", "charon", CHART, "--namespace", NAMESPACE, "--dry-run=client", "--hide-secret"];
        let text = helm(&install, values).run().succeeded().text();
        text.split_once("\nNOTES:\n").unwrap().1.to_owned()
    };
    let all = notes("{}");
    assert!(all.contains("looks after all namespaces"), "{all}");
    assert!(all.contains("kubectl -n charon-system rollout status deployment/charon\n"), "{all}");
    assert!(!all.contains("kubectl apply"), "{all}");
    let one = notes("{namespaced: true, crds: {enabled: false}}");
    assert!(one.contains("looks after namespace charon-system"), "{one}");
    assert!(one.contains("kubectl apply --server-side -f crds/\n"), "{one}");
}
