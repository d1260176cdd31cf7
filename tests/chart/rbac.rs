//! The rights, held against the files in `rbac/`: a change of the chart's is a change of theirs, for somebody to read.

use serde_json::{Value, json};

use crate::rendering::{CHART, objects, render};

const CLUSTER: &str = include_str!("rbac/cluster.yaml");
const NAMESPACED: &str = include_str!("rbac/namespaced.yaml");

/// What grants rights, without its labels, but for those that make it part of other roles.
fn rights(objects: Vec<Value>) -> Vec<Value> {
    let grants = |object: &Value| {
        let kind = object["kind"].as_str().unwrap();
        kind.ends_with("Role") || kind.ends_with("RoleBinding")
    };
    let of = |object: Value| {
        let (metadata, labels) = (&object["metadata"], &object["metadata"]["labels"]);
        let aggregates = |name: &str| format!("rbac.authorization.k8s.io/aggregate-to-{name}");
        let part_of: Vec<_> =
            ["view", "edit", "admin"].into_iter().filter(|name| labels[aggregates(name)] == "true").collect();
        json!({
            "kind": object["kind"], "name": metadata["name"], "namespace": metadata["namespace"], "partOf": part_of,
            "rules": object["rules"], "roleRef": object["roleRef"], "subjects": object["subjects"],
        })
    };
    let mut rights: Vec<Value> = objects.into_iter().filter(grants).map(of).collect();
    rights.sort_by_key(|object| format!("{} {}", object["kind"], object["name"]));
    rights
}

#[test]
fn the_chart_grants_what_was_reviewed_and_nothing_else() {
    for (values, reviewed) in
        [("replicas: 2", CLUSTER), ("{replicas: 2, namespaced: true, crds: {enabled: false}}", NAMESPACED)]
    {
        assert_eq!(rights(render(values)), rights(objects(reviewed)), "{values}");
    }
}

#[test]
fn one_controller_alone_gets_no_right_to_leases() {
    let text = serde_json::to_string(&rights(render("{}"))).unwrap();
    assert!(!text.contains("leases"), "{text}");
}

#[test]
fn no_right_is_a_wildcard_and_none_is_about_secrets_config_maps_or_execution() {
    for object in rights(render("replicas: 2")) {
        for rule in object["rules"].as_array().into_iter().flatten() {
            let words = rule.to_string();
            for word in
                ["*", "secrets", "configmaps", "exec", "pods/", "nodes", "persistentvolume", "impersonate"]
            {
                assert!(!words.contains(word), "{words}");
            }
        }
    }
}

#[test]
fn each_rule_of_the_controller_says_why_it_is_there() {
    let template = std::fs::read_to_string(format!("{CHART}/templates/rbac.yaml")).unwrap();
    let lines: Vec<_> = template.lines().map(str::trim).collect();
    let rules: Vec<_> = lines.windows(2).filter(|pair| pair[1].starts_with("- apiGroups")).collect();
    assert_eq!(rules.len(), 9);
    for pair in rules {
        assert!(pair[0].starts_with("# "), "{pair:?}");
    }
}
