//! The API server takes the definitions, and refuses what they forbid in their words.

use charon::api::{PayloadBuild, PayloadImport, Status};
use charon::reason::Reason;
use kube::Api;
use kube::api::{ApiResource, DynamicObject, PostParams};
use serde_json::{Value, json};

use crate::world::{DEADLINE, Kind, World, brief, build_spec, condition, import_spec, kubectl};

/// What the API server says of a resource with `spec`; nothing if it would take it.
async fn refusal<K: Kind>(world: &World, spec: &Value) -> Option<String> {
    let object = json!({
        "apiVersion": K::api_version(&()), "kind": K::kind(&()), "metadata": { "name": "x" }, "spec": spec,
    });
    let object: DynamicObject = serde_json::from_value(object).unwrap();
    let api: Api<DynamicObject> =
        Api::namespaced_with(world.client.clone(), &world.namespace, &ApiResource::erase::<K>(&()));
    let try_it = PostParams { dry_run: true, ..PostParams::default() };
    api.create(&try_it, &object).await.err().map(|error| error.to_string())
}

fn with(mut spec: Value, pointer: &str, value: Value) -> Value {
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    spec.pointer_mut(parent).unwrap()[field] = value;
    spec
}

#[tokio::test]
async fn the_api_server_refuses_what_the_rules_forbid_in_their_words() {
    let world = World::without_controller("rules").await;
    let build = || build_spec("python:3");
    assert_eq!(refusal::<PayloadBuild>(&world, &build()).await, None);
    for (pointer, value, words) in [
        ("/images", json!([]), "should have at least 1 items"),
        ("/images", Value::Null, "spec must have images, imagesFrom, or both"),
        (
            "/imagesFrom",
            json!({ "configMapKeyRef": { "name": "a", "key": "b/c" } }),
            "must be a key of a ConfigMap",
        ),
        ("/proxySecretRef", json!({ "name": "A" }), "must be the name of a Secret"),
        (
            "/worker",
            json!({ "podMetadata": { "labels": { "charon.dev/uid": "a" } } }),
            "are not yours to set",
        ),
        ("/worker", json!({ "nodeSelector": { "a": "b c" } }), "should match"),
        ("/worker", json!({ "tolerations": [{ "operator": "Never" }] }), "Unsupported value"),
        ("/images", json!([{ "image": "a" }, { "image": "a" }]), "Duplicate value"),
        ("/images", json!([{ "image": "https://a.b/c" }]), "without a scheme"),
        ("/output", json!({}), "exactly one kind of place"),
        ("/output/persistentVolumeClaim/path", json!("/abs"), "must be relative"),
        ("/output/persistentVolumeClaim/path", json!("a/../b"), "must not have '.' or '..'"),
        ("/output/persistentVolumeClaim/path", json!("a/"), "it ends without '/'"),
        ("/output/persistentVolumeClaim/path", json!("a\u{1}"), "control characters"),
        ("/registries", json!([{ "host": "a.b" }, { "host": "a.b" }]), "Duplicate value"),
        ("/registries", json!([{ "host": "http://a.b" }]), "without a scheme and without a path"),
        ("/timeout", json!("3 days"), "hours, minutes and seconds"),
        ("/timeout", json!("0s"), "longer than nothing"),
        ("/ttlSecondsAfterFinished", json!(59), "greater than or equal to 60"),
        ("/images", json!([{ "image": "a", "as": "b@c" }]), "as must be a repository"),
        ("/worker", json!({ "securityContext": { "runAsUser": 0 } }), "never runs as root"),
        ("/worker", json!({ "resources": { "limits": { "gpu": 1 } } }), "nothing else"),
    ] {
        let refusal = refusal::<PayloadBuild>(&world, &with(build(), pointer, value.clone())).await;
        let refusal = refusal.unwrap_or_else(|| panic!("{pointer} may be {value}"));
        assert!(refusal.contains(words), "{pointer} {value}: {refusal}");
    }
    assert_eq!(refusal::<PayloadImport>(&world, &import_spec()).await, None);
    for (pointer, value, words) in [
        ("/expectedDigest", json!("sha256:12"), "64 lowercase hexadecimal digits"),
        ("/registry/host", json!("a.b/c"), "without a scheme and without a path"),
        ("/registry/repositoryPrefix", json!("/A"), "beginning of a repository's name"),
        ("/source", json!({}), "exactly one kind of place"),
        ("/registry/naming", json!("Short"), "Unsupported value"),
        ("/tagPolicy", json!("Move"), "Unsupported value"),
        ("/registry/baseRepositories", json!(["a:1"]), "must be names of repositories"),
        ("/ttlSecondsAfterFinished", json!(1), "greater than or equal to 60"),
    ] {
        let refusal = refusal::<PayloadImport>(&world, &with(import_spec(), pointer, value.clone())).await;
        let refusal = refusal.unwrap_or_else(|| panic!("{pointer} may be {value}"));
        assert!(refusal.contains(words), "{pointer} {value}: {refusal}");
    }
}

#[tokio::test]
async fn all_that_the_rules_allow_is_taken_and_runs() {
    let world = World::new("allowed").await;
    let mut spec = build_spec("python:3");
    spec["alreadyTransferred"] = json!({ "images": ["python:2", "quay.io/a/b@sha256:0000000000000000000000000000000000000000000000000000000000000000"] });
    spec["registries"] = json!([
        { "host": "docker.io", "secretRef": { "name": "pull" }, "certSecretRef": { "name": "ca" } },
        { "host": "[::1]:5000", "insecure": true },
    ]);
    spec["worker"] = json!({
        "resources": { "requests": { "cpu": 1, "memory": "1Gi" }, "limits": { "ephemeral-storage": "1Gi" } },
        "securityContext": { "runAsUser": 1000, "supplementalGroups": [5, 6] },
    });
    spec["backoffLimit"] = json!(0);
    spec["timeout"] = json!("1h30m");
    spec["trigger"] = json!("");
    spec["ttlSecondsAfterFinished"] = json!(60);
    spec["suspend"] = json!(false);
    spec["images"][0]["as"] = json!("base/python:3");
    spec["imagesFrom"] = json!({ "configMapKeyRef": { "name": "images", "key": "list.txt" } });
    spec["proxySecretRef"] = json!({ "name": "way-out" });
    spec["output"]["fileDigest"] = json!(true);
    world.create::<PayloadBuild>("app", spec).await;
    let job = world.job_of_attempt::<PayloadBuild>("app", 1).await;
    // The pod stands before the namespace's restricted standard.
    world.pod_of(&job).await;

    let mut spec = import_spec();
    spec["tagPolicy"] = json!("KeepExisting");
    for (field, value) in
        [("naming", json!("WithHost")), ("baseRepositories", json!(["a/b"])), ("tagDigests", json!(false))]
    {
        spec["registry"][field] = value;
    }
    world.create::<PayloadImport>("app", spec).await;
    let job = world.job_of_attempt::<PayloadImport>("app", 1).await;
    world.pod_of(&job).await;
}

#[tokio::test]
async fn each_example_is_taken_by_the_api_server_and_by_the_controller() {
    let folders = ["examples", "docs/gitops/argocd/deploy", "docs/gitops/flux/images"];
    let files = folders.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap());
    let files = files.map(|file| file.unwrap().path());
    let mut examples: Vec<_> = files.filter(|file| file.extension().is_some_and(|it| it == "yaml")).collect();
    examples.sort();
    assert!(examples.len() > folders.len());
    let examples = examples.iter().map(|file| std::fs::read_to_string(file).unwrap());
    let examples: Vec<String> = examples.chain(objects_in_documents()).collect();
    for example in examples {
        // The same wish in two examples is no wish for two.
        let world = World::new("example").await;
        // In its strict way: a field that the definitions do not know is refused.
        let apply =
            ["apply", "--validate=strict", "--output=json", "--namespace", &world.namespace, "--filename=-"];
        // What is for the whole cluster is not for the other tests.
        let is_for_all = example.contains("AdmissionPolicy");
        let how: &[&str] = if is_for_all { &["--dry-run=server"] } else { &[] };
        let applied = kubectl(&[&apply[..], how].concat(), &example);
        let applied: Value = serde_json::from_str(&applied).unwrap();
        let objects = applied["items"].as_array().cloned().unwrap_or_else(|| vec![applied]);
        for object in objects {
            let name = object["metadata"]["name"].as_str().unwrap();
            match object["kind"].as_str().unwrap() {
                "PayloadBuild" => is_taken::<PayloadBuild>(&world, name).await,
                "PayloadImport" => is_taken::<PayloadImport>(&world, name).await,
                _ => {}
            }
        }
    }
}

/// The examples of the documents that are whole objects.
fn objects_in_documents() -> Vec<String> {
    let files = std::fs::read_dir("docs").unwrap().map(|file| file.unwrap().path());
    let mut files: Vec<_> = files.filter(|file| file.extension().is_some_and(|it| it == "md")).collect();
    files.sort();
    let texts = files.iter().map(|file| std::fs::read_to_string(file).unwrap());
    let blocks = texts.flat_map(|text| {
        let blocks =
            text.split("\n```yaml\n").skip(1).map(|rest| rest.split("\n```").next().unwrap().to_owned());
        blocks.collect::<Vec<_>>()
    });
    let objects: Vec<_> = blocks.filter(|block| block.starts_with("apiVersion:")).collect();
    assert!(objects.len() > 5, "{objects:?}");
    objects
}

#[tokio::test]
async fn the_sample_policy_lets_tenants_use_the_hosts_that_are_listed_and_no_others() {
    let world = World::without_controller("policy").await;
    let document = include_str!("../../docs/security.md");
    let (_, rest) = document.split_once("\n```yaml\n").unwrap();
    let (sample, _) = rest.split_once("\n```").unwrap();
    // For this namespace alone: it is not for the other tests.
    let ours = format!(
        "\n  matchResources: {{namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: {}}}}}}}\n",
        world.namespace
    );
    let policy = sample.replace("charon-hosts", &world.namespace) + &ours;
    kubectl(&["apply", "--validate=strict", "--filename=-"], &policy);

    let registry = |host: &str| json!([{ "host": host }]);
    let build = || with(build_spec("python:3"), "/registries", registry("docker.io"));
    let store = |endpoint: Value| {
        let store = json!({ "objectStore": { "bucket": "b", "key": "k", "endpoint": endpoint } });
        with(build(), "/output", store)
    };
    let of_registries = "registries may be those that the cluster's administrator lists, by TLS alone";
    let of_stores = "object stores may be those that the cluster's administrator lists";
    let proxied = || with(build(), "/proxySecretRef", json!({ "name": "proxy" }));
    // A policy is not in force at once.
    let in_force = async { while refusal::<PayloadBuild>(&world, &proxied()).await.is_none() {} };
    tokio::time::timeout(DEADLINE, in_force).await.expect("the policy is not in force");

    let mirror = |endpoint: &str, insecure: bool| {
        with(
            build(),
            "/registries",
            json!([{ "host": "docker.io", "endpoint": endpoint, "insecure": insecure }]),
        )
    };
    for (spec, refused) in [
        (build(), None),
        (mirror("mirror.example/dockerhub", false), None),
        (store(json!("https://s3.example:9000")), None),
        (with(build(), "/registries", registry("evil.example")), Some(of_registries)),
        (mirror("evil.example/dockerhub", false), Some(of_registries)),
        (mirror("mirror.example/dockerhub", true), Some(of_registries)),
        (store(json!("https://evil.example")), Some(of_stores)),
        (store(Value::Null), Some(of_stores)),
        (proxied(), Some("there is no proxy here")),
    ] {
        is_refused::<PayloadBuild>(&world, &spec, refused).await;
    }
    let to = |registry: Value| with(import_spec(), "/registry", registry);
    for (spec, refused) in [
        (to(json!({ "host": "registry.example:5000" })), None),
        (to(json!({ "host": "registry.example" })), Some(of_registries)),
        (to(json!({ "host": "registry.example:5000", "insecure": true })), Some(of_registries)),
    ] {
        is_refused::<PayloadImport>(&world, &spec, refused).await;
    }
    kubectl(&["delete", "--filename=-"], &policy);
}

async fn is_refused<K: Kind>(world: &World, spec: &Value, words: Option<&str>) {
    let refusal = refusal::<K>(world, spec).await;
    match words {
        None => assert_eq!(refusal, None, "{spec}"),
        Some(words) => {
            assert!(refusal.as_ref().is_some_and(|told| told.contains(words)), "{spec}: {refusal:?}");
        }
    }
}

/// The controller has seen the resource, and finds nothing wrong with it.
async fn is_taken<K: Kind>(world: &World, name: &str) {
    let is_seen = |status: &Status| status.observed_generation == Some(1);
    let status = world.until::<K>(name, "seen", is_seen).await;
    assert_eq!(brief(&status, "Stalled"), "", "{:?}", condition(&status, "Stalled"));
}

#[tokio::test]
async fn a_fresh_resource_is_in_progress_before_anyone_has_seen_it() {
    let world = World::without_controller("fresh").await;
    world.create::<PayloadBuild>("app", build_spec("python:3")).await;
    assert_eq!(world.status::<PayloadBuild>("app").await.observed_generation, Some(-1));
}

#[tokio::test]
async fn what_only_the_controller_can_see_is_told_by_it_and_mended_by_a_person() {
    let world = World::new("invalid").await;
    let mut spec = build_spec("quay.io/app:1");
    spec["images"].as_array_mut().unwrap().push(json!({ "image": "ghcr.io/app:1" }));
    world.create::<PayloadBuild>("app", spec).await;
    let status = world.until_ready::<PayloadBuild>("app", "False", "InvalidSpec").await;
    assert_eq!(brief(&status, "Stalled"), "True/InvalidSpec");
    let message = &condition(&status, "Ready").unwrap().message;
    assert!(message.contains("quay.io/app:1") && message.contains("ghcr.io/app:1"), "{message}");
    assert!(world.jobs().await.is_empty());

    world.patch::<PayloadBuild>("app", json!({ "spec": { "images": [{ "image": "quay.io/app:1" }] } })).await;
    let job = world.job_of_attempt::<PayloadBuild>("app", 1).await;
    world.ends_for(&world.pod_of(&job).await, Reason::Succeeded).await;
    world.until_ready::<PayloadBuild>("app", "True", "Succeeded").await;
}

#[tokio::test]
async fn a_job_of_somebody_else_is_left_alone() {
    let mut world = World::new("taken").await;
    world.create::<PayloadBuild>("app", build_spec("python:3")).await;
    let job = world.job_of_attempt::<PayloadBuild>("app", 1).await;
    world.kill().await;
    // The same name, but nobody's.
    let jobs: Api<k8s_openapi::api::batch::v1::Job> = world.api();
    let name = job.metadata.name.clone().unwrap();
    let now = kube::api::DeleteParams::background();
    jobs.delete(&name, &now).await.unwrap();
    world.until_gone(&job).await;
    let mut theirs = job.clone();
    theirs.metadata = kube::api::ObjectMeta { name: Some(name.clone()), ..Default::default() };
    let spec = theirs.spec.as_mut().unwrap();
    spec.selector = None;
    spec.suspend = Some(true);
    spec.template.metadata = None;
    jobs.create(&PostParams::default(), &theirs).await.unwrap();
    world.start().await;
    let status = world.until_ready::<PayloadBuild>("app", "False", "WorkerCreateFailed").await;
    assert!(condition(&status, "Ready").unwrap().message.contains(&name));
    jobs.delete(&name, &now).await.unwrap();
    let job = world.job_of_attempt::<PayloadBuild>("app", 1).await;
    world.pod_of(&job).await;
}
