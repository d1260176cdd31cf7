//! Each rule of the schema, with what it accepts and what it refuses, evaluated without an API server.

use std::collections::BTreeSet;

use kube_cel::Validator;
use serde_json::{Value, json};

use super::crds;

fn schema(kind: &str) -> Value {
    let crd = crds().into_iter().find(|crd| crd.spec.names.kind == kind).unwrap();
    serde_json::to_value(crd.spec.versions[0].schema.as_ref().unwrap().open_api_v3_schema.as_ref()).unwrap()
}

/// What the rules say of a resource with `spec`, which had `old` before.
fn refusals(kind: &str, spec: &Value, old: Option<&Value>) -> Vec<String> {
    let (object, old) = (json!({ "spec": spec }), old.map(|old| json!({ "spec": old })));
    match Validator::new().validate(&schema(kind), &object, old.as_ref()) {
        Ok(()) => vec![],
        Err(errors) => errors.into_vec().into_iter().map(|error| error.message).collect(),
    }
}

fn build() -> Value {
    json!({
        "images": [{ "image": "python:3" }],
        "output": { "persistentVolumeClaim": { "claimName": "transfer", "path": "out/app.zip" } },
    })
}

fn import() -> Value {
    json!({
        "source": { "persistentVolumeClaim": { "claimName": "inbox", "path": "app.zip" } },
        "registry": { "host": "registry.infra:5000" },
    })
}

/// `spec` with `value` at `pointer`, whose parents are made if they are not there.
fn with(mut spec: Value, pointer: &str, value: &Value) -> Value {
    let mut place = &mut spec;
    for field in pointer.split('/').skip(1) {
        place = match field.parse::<usize>() {
            Ok(index) => {
                while place.as_array().is_none_or(|items| items.len() <= index) {
                    match place.as_array_mut() {
                        Some(items) => items.push(json!({})),
                        None => *place = json!([]),
                    }
                }
                &mut place[index]
            }
            Err(_) => &mut place[field],
        };
    }
    *place = value.clone();
    spec
}

/// Kind, place, what is accepted there, what is refused there and with which words.
type Case = (&'static str, &'static str, Vec<Value>, Vec<(Value, &'static str)>);

#[allow(clippy::too_many_lines)] // it is a table
fn cases() -> Vec<Case> {
    let names = |what: &'static str| {
        (
            vec![json!("a"), json!("a-1.b")],
            vec![(json!("A"), what), (json!("-a"), what), (json!("a/b"), what), (json!("a."), what)],
        )
    };
    let config_map_keys = || {
        let (name, key) = ("name of a ConfigMap", "key must be a key of a ConfigMap");
        (
            vec![json!({ "name": "a-1.b", "key": "images_1.txt" })],
            vec![(json!({ "name": "A", "key": "list" }), name), (json!({ "name": "a", "key": "a/b" }), key)],
        )
    };
    let hosts = || {
        let words = "without a scheme and without a path";
        (
            vec![json!("docker.io"), json!("localhost:5000"), json!("[::1]:5000"), json!("a_b.c")],
            vec![
                (json!("https://a.b"), words),
                (json!("a.b/c"), words),
                (json!("a:b"), words),
                (json!("u@a"), words),
            ],
        )
    };
    let paths = || {
        (
            vec![json!("app.zip"), json!("a/b/c.d..e/...f"), json!("ü/ä b.zip")],
            vec![
                (json!("/a"), "relative to the root"),
                (json!("a/"), "name a file, not a directory"),
                (json!("."), "must not have '.' or '..'"),
                (json!(".."), "must not have '.' or '..'"),
                (json!("a/../b"), "must not have '.' or '..'"),
                (json!("a/./b"), "must not have '.' or '..'"),
                (json!("a//b"), "empty part"),
                (json!("a\nb"), "control characters"),
                (json!("a\u{0}b"), "control characters"),
            ],
        )
    };
    let timeouts = || {
        let words = "hours, minutes and seconds";
        (
            vec![json!("72h"), json!("1h30m"), json!("90s")],
            vec![
                (json!("3d"), words),
                (json!("1.5h"), words),
                (json!("h"), words),
                (json!("-1h"), words),
                (json!("0h0m"), "longer than nothing"),
            ],
        )
    };
    let amounts = |words: &'static str| {
        (
            vec![json!({ "cpu": 1, "memory": "1Gi", "ephemeral-storage": "1G" })],
            vec![(json!({ "nvidia.com/gpu": 1 }), words)],
        )
    };
    let labels = || {
        let words = "a worker's labels charon.dev/*";
        let taken = ["charon.dev/uid", "batch.kubernetes.io/a", "job-name", "app.kubernetes.io/managed-by"];
        let refused = taken.map(|key| (json!({ "team": "a", key: "b" }), words));
        (vec![json!({ "team": "a", "charon.dev": "b", "app.kubernetes.io/part-of": "c" })], refused.into())
    };
    let annotations = || {
        let words = "a worker's annotations charon.dev/*";
        let refused = ["charon.dev/run", "batch.kubernetes.io/a"].map(|key| (json!({ key: "b" }), words));
        (vec![json!({ "a.example/job-name": "a b" })], refused.into())
    };
    let users = || {
        (
            vec![json!(1), json!(65532)],
            vec![(json!(0), "never runs as root"), (json!(-1), "never runs as root")],
        )
    };
    // Either kind of place, and not both.
    let places = |field: &'static str| {
        let words = if field == "output" { "output must have exactly" } else { "source must have exactly" };
        let object = json!({ "bucket": "transfer", "key": "app.zip" });
        let claim = json!({ "claimName": "transfer", "path": "app.zip" });
        vec![(json!({}), words), (json!({ "persistentVolumeClaim": claim, "objectStore": object }), words)]
    };
    let platforms = |words: &'static str| {
        (
            vec![json!(["linux/amd64"]), json!(["linux/arm/v7", "windows/amd64"])],
            vec![
                (json!(["linux"]), words),
                (json!(["linux/amd64", "Linux/amd64"]), words),
                (json!(["linux/"]), words),
                (json!(["a/b/c/d"]), words),
            ],
        )
    };
    let case = |kind, pointer, (accepted, refused)| (kind, pointer, accepted, refused);
    let mut cases = vec![
        case(
            "PayloadBuild",
            "/images/0/image",
            (
                vec![json!("python"), json!("a.b:5000/c/d:e@sha256:0123")],
                vec![
                    (json!("docker://a/b"), "without a scheme"),
                    (json!("a b"), "spaces"),
                    (json!("a\tb"), "spaces"),
                ],
            ),
        ),
        case(
            "PayloadBuild",
            "/images/0",
            (
                vec![
                    json!({ "image": "a", "as": "base/python:3.9" }),
                    json!({ "image": "a", "as": "docker.io/library/python" }),
                ],
                vec![
                    (json!({ "image": "a", "as": "A" }), "as must be a repository"),
                    (json!({ "image": "a", "as": "a.b:5000/c" }), "as must be a repository"),
                    (json!({ "image": "a", "as": "a@sha256:00" }), "as must be a repository"),
                    (json!({ "image": "a", "as": "a:" }), "as must be a repository"),
                ],
            ),
        ),
        case(
            "PayloadBuild",
            "",
            (
                vec![json!({
                    "imagesFrom": { "configMapKeyRef": { "name": "images", "key": "list" } },
                    "output": build()["output"],
                })],
                vec![(json!({ "output": build()["output"] }), "spec must have images, imagesFrom, or both")],
            ),
        ),
        case("PayloadBuild", "/imagesFrom/configMapKeyRef", config_map_keys()),
        case("PayloadBuild", "/platforms", platforms("platforms must be os/architecture")),
        case("PayloadBuild", "/images/0/platforms", platforms("an image's platforms must be")),
        case("PayloadBuild", "/output", (vec![], places("output"))),
        case(
            "PayloadBuild",
            "/output/persistentVolumeClaim/claimName",
            names("name of a PersistentVolumeClaim"),
        ),
        case("PayloadBuild", "/output/persistentVolumeClaim/path", paths()),
        case("PayloadBuild", "/registries/0/host", hosts()),
        case(
            "PayloadBuild",
            "/registries/0",
            (
                vec![
                    json!({ "host": "docker.io", "endpoint": "mirror.corp/dockerhub" }),
                    json!({ "host": "docker.io", "endpoint": "[::1]:5000/a/b-c/" }),
                    json!({ "host": "docker.io", "endpoint": "mirror:5000" }),
                ],
                vec![
                    (json!({ "host": "a", "endpoint": "https://mirror.corp" }), "endpoint must be host"),
                    (json!({ "host": "a", "endpoint": "mirror.corp/A" }), "endpoint must be host"),
                    (json!({ "host": "a", "endpoint": "mirror.corp//a" }), "endpoint must be host"),
                    (json!({ "host": "a", "endpoint": "/a" }), "endpoint must be host"),
                ],
            ),
        ),
        case("PayloadBuild", "/alreadyTransferred/payloads/0/name", names("name of a PayloadBuild")),
        case("PayloadBuild", "/registries/0/secretRef/name", names("name of a Secret")),
        case("PayloadBuild", "/registries/0/certSecretRef/name", names("name of a Secret")),
        case("PayloadImport", "/source", (vec![], places("source"))),
        case(
            "PayloadImport",
            "/source/persistentVolumeClaim/claimName",
            names("name of a PersistentVolumeClaim"),
        ),
        case("PayloadImport", "/source/persistentVolumeClaim/path", paths()),
        case("PayloadImport", "/registry/host", hosts()),
        case("PayloadImport", "/registry/secretRef/name", names("name of a Secret")),
        case("PayloadImport", "/registry/certSecretRef/name", names("name of a Secret")),
        case(
            "PayloadImport",
            "/registry/repositoryPrefix",
            (
                vec![json!("mirror"), json!("mirror/"), json!("a-b/c__d.e")],
                vec![
                    (json!("/a"), "repositoryPrefix must"),
                    (json!("A"), "repositoryPrefix must"),
                    (json!("a//b"), "repositoryPrefix must"),
                ],
            ),
        ),
        case(
            "PayloadImport",
            "/registry/baseRepositories",
            (
                vec![json!(["base/python", "a"])],
                vec![
                    (json!(["a", "b:1"]), "baseRepositories must be names"),
                    (json!(["r.example:5000/a"]), "baseRepositories must be names"),
                ],
            ),
        ),
        case(
            "PayloadImport",
            "/expectedDigest",
            (
                vec![json!(format!("sha256:{}", "0a".repeat(32)))],
                vec![
                    (json!("0a".repeat(32)), "expectedDigest must"),
                    (json!(format!("sha256:{}", "0A".repeat(32))), "expectedDigest must"),
                    (json!(format!("sha512:{}", "0a".repeat(64))), "expectedDigest must"),
                ],
            ),
        ),
    ];
    for kind in ["PayloadBuild", "PayloadImport"] {
        cases.push(case(kind, "/worker/serviceAccountName", names("name of a ServiceAccount")));
        cases.push(case(kind, "/worker/priorityClassName", names("name of a PriorityClass")));
        cases.push(case(kind, "/worker/imagePullSecrets/0/name", names("name of a Secret")));
        cases.push(case(kind, "/worker/podMetadata/labels", labels()));
        cases.push(case(kind, "/worker/podMetadata/annotations", annotations()));
        cases.push(case(kind, "/proxySecretRef/name", names("name of a Secret")));
        cases.push(case(kind, "/timeout", timeouts()));
        cases.push(case(kind, "/worker/securityContext/runAsUser", users()));
        cases.push(case(kind, "/worker/resources/requests", amounts("a worker requests cpu")));
        cases.push(case(kind, "/worker/resources/limits", amounts("a worker has limits of cpu")));
    }
    cases
}

fn base(kind: &str) -> Value {
    if kind == "PayloadBuild" { build() } else { import() }
}

#[test]
fn each_rule_accepts_what_is_right_and_refuses_what_is_wrong_in_its_own_words() {
    for (kind, pointer, accepted, refused) in cases() {
        for value in accepted {
            let spec = with(base(kind), pointer, &value);
            assert_eq!(refusals(kind, &spec, None), [""; 0], "{kind} {pointer} {value}");
            assert_eq!(refusals(kind, &spec, Some(&base(kind))), [""; 0], "{kind} {pointer} becomes {value}");
        }
        for (value, words) in refused {
            let spec = with(base(kind), pointer, &value);
            let messages = refusals(kind, &spec, None);
            assert!(
                messages.iter().any(|message| message.contains(words)),
                "{kind} {pointer} {value}: {messages:?}"
            );
        }
    }
}

#[test]
fn each_rule_of_an_object_store_accepts_what_is_right_and_refuses_what_is_wrong_in_its_own_words() {
    let mut rules = BTreeSet::new();
    for (field, accepted, refused) in store_cases() {
        for (kind, place) in [("PayloadBuild", "output"), ("PayloadImport", "source")] {
            let store = |value: &Value| {
                let store = json!({ "objectStore": { "bucket": "transfer", "key": "app.zip" } });
                with(
                    with(base(kind), &format!("/{place}"), &store),
                    &format!("/{place}/objectStore{field}"),
                    value,
                )
            };
            for value in &accepted {
                assert_eq!(refusals(kind, &store(value), None), [""; 0], "{field} {value}");
            }
            for (value, words) in &refused {
                let messages = refusals(kind, &store(value), None);
                assert!(
                    messages.iter().any(|message| message.contains(words)),
                    "{field} {value}: {messages:?}"
                );
                rules.extend(messages);
            }
        }
    }
    // Each of them was broken once.
    let store =
        schema("PayloadBuild")["properties"]["spec"]["properties"]["output"]["properties"]["objectStore"]
            .take();
    let mut told = BTreeSet::new();
    messages(&store, &mut told);
    assert_eq!(told.difference(&rules).collect::<Vec<_>>(), [""; 0]);
}

/// Place in the store, what is accepted there, what is refused there and with which words.
type StoreCase = (&'static str, Vec<Value>, Vec<(Value, &'static str)>);

fn store_cases() -> Vec<StoreCase> {
    let names = || {
        let refused = vec![(json!("A"), "name of a Secret"), (json!("a."), "name of a Secret")];
        (vec![json!("a-1.b")], refused)
    };
    let (url, key) = ("endpoint must be a URL", "key must not");
    let mut cases = vec![
        (
            "/endpoint",
            vec![
                json!("https://s3.example"),
                json!("http://10.0.0.1:9000/"),
                json!("https://[fd00::1]:9000"),
            ],
            vec![
                (json!("s3.example:9000"), url),
                (json!("ftp://s3.example"), url),
                (json!("https://user:password@s3.example"), url),
                (json!("https://s3.example/?a=b"), url),
            ],
        ),
        (
            "/bucket",
            vec![json!("transfer"), json!("a.b-c_d"), json!("$web")],
            vec![(json!("a/b"), "bucket must be"), (json!("s3://a"), "bucket must be")],
        ),
        (
            "/key",
            vec![json!("app.zip"), json!("out/ü b.zip")],
            vec![
                (json!("/a"), key),
                (json!("a/"), key),
                (json!("a//b"), key),
                (json!("a/../b"), key),
                (json!("a\nb"), key),
            ],
        ),
        ("/region", vec![json!("eu-central-1")], vec![(json!("eu central"), "region must be")]),
    ];
    for field in ["/secretRef/name", "/certSecretRef/name"] {
        let (accepted, refused) = names();
        cases.push((field, accepted, refused));
    }
    cases
}

#[test]
fn everything_but_the_kind_of_place_may_be_changed() {
    let moved = with(build(), "/output/persistentVolumeClaim/claimName", &json!("other"));
    assert_eq!(refusals("PayloadBuild", &moved, Some(&build())), [""; 0]);
    let moved = with(import(), "/source/persistentVolumeClaim/path", &json!("other.zip"));
    assert_eq!(refusals("PayloadImport", &moved, Some(&import())), [""; 0]);
    for (kind, field, old) in [("PayloadBuild", "output", build()), ("PayloadImport", "source", import())] {
        let gone = with(old.clone(), &format!("/{field}"), &json!({}));
        let messages = refusals(kind, &gone, Some(&old));
        let words = format!("the kind of {field} cannot be changed");
        assert!(messages.iter().any(|message| message.contains(&words)), "{messages:?}");
    }
}

/// The words of all rules of a schema.
fn messages(schema: &Value, found: &mut BTreeSet<String>) {
    match schema {
        Value::Object(map) => {
            let rules = map.get("x-kubernetes-validations").and_then(Value::as_array);
            for rule in rules.into_iter().flatten() {
                found.insert(rule["message"].as_str().unwrap().to_owned());
            }
            map.values().for_each(|inner| messages(inner, found));
        }
        Value::Array(items) => items.iter().for_each(|inner| messages(inner, found)),
        _ => {}
    }
}

#[test]
fn no_rule_is_without_a_case() {
    for kind in ["PayloadBuild", "PayloadImport"] {
        let mut rules = BTreeSet::new();
        messages(&schema(kind), &mut rules);
        for (_, pointer, _, refused) in cases().into_iter().filter(|case| case.0 == kind) {
            for (value, _) in refused {
                let spec = with(base(kind), pointer, &value);
                for message in refusals(kind, &spec, None) {
                    rules.remove(&message);
                }
            }
        }
        let mut of_stores = BTreeSet::new();
        let place = if kind == "PayloadBuild" { "output" } else { "source" };
        let store = format!("/properties/spec/properties/{place}/properties/objectStore");
        messages(schema(kind).pointer(&store).unwrap(), &mut of_stores);
        rules.retain(|message| !message.contains("cannot be changed") && !of_stores.contains(message));
        assert_eq!(rules, BTreeSet::new(), "{kind}");
    }
}
