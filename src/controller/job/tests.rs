//! What a Job is like.

#![allow(clippy::needless_pass_by_value)] // json! makes values

use serde_json::{Value, json};

use super::*;
use crate::controller::reach::RegistryReach;
use crate::controller::validate;

fn subject() -> Subject {
    Subject {
        kind: "PayloadBuild",
        letter: 'b',
        name: "app".into(),
        namespace: "ns".into(),
        uid: "0f1e".into(),
        generation: 3,
        created: jiff::Timestamp::UNIX_EPOCH,
        requested_at: None,
    }
}

fn job_of(valid: &Valid) -> Job {
    let defaults = WorkerDefaults::with_image("registry.example/charon:1");
    let plan = plan(&subject(), valid, "c0ffee", 2, &defaults).unwrap();
    job(&subject(), valid, &plan, &defaults, None)
}

fn build(fields: Value) -> Valid {
    let mut spec = json!({
        "images": [{ "image": "python:3" }],
        "output": { "persistentVolumeClaim": { "claimName": "transfer", "path": "out/app.zip" } },
    });
    spec.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    validate::build(&serde_json::from_value(spec).unwrap()).unwrap()
}

#[test]
fn the_job_of_a_build() {
    let valid = build(json!({
        "registries": [
            { "host": "quay.io" },
            { "host": "docker.io", "secretRef": { "name": "pull" }, "certSecretRef": { "name": "corp-ca" } },
        ],
    }));
    insta::assert_snapshot!(serde_saphyr::to_string(&job_of(&valid)).unwrap());
}

#[test]
fn an_import_reads_its_claim_only_by_the_mount() {
    let spec = json!({
        "source": { "persistentVolumeClaim": { "claimName": "inbox", "path": "app.zip" } },
        "registry": { "host": "registry.infra:5000" },
    });
    let valid = validate::import(&serde_json::from_value(spec).unwrap()).unwrap();
    let pod = serde_json::to_value(job_of(&valid)).unwrap()["spec"]["template"]["spec"].take();
    let mount = |name: &str| {
        let mounts = pod["containers"][0]["volumeMounts"].as_array().unwrap();
        mounts.iter().find(|mount| mount["name"] == name).unwrap().clone()
    };
    assert_eq!(mount("payload")["readOnly"], json!(true));
    let volumes = pod["volumes"].as_array().unwrap();
    let volume = volumes.iter().find(|volume| volume["name"] == "payload").unwrap();
    assert_eq!(volume["persistentVolumeClaim"], json!({ "claimName": "inbox" }));
}

#[test]
fn a_store_has_no_volume_and_of_its_secrets_only_the_keys_that_are_known() {
    let store = json!({
        "endpoint": "https://s3.example", "bucket": "transfer", "key": "app.zip",
        "secretRef": { "name": "keys" }, "certSecretRef": { "name": "ca" },
    });
    let fields = json!({
        "output": { "objectStore": store }, "worker": { "serviceAccountName": "ferry" },
    });
    let pod = serde_json::to_value(job_of(&build(fields))).unwrap()["spec"]["template"]["spec"].take();
    assert_eq!(pod["serviceAccountName"], "ferry");
    assert_eq!(pod["automountServiceAccountToken"], false);
    let volumes = pod["volumes"].as_array().unwrap();
    assert_eq!(volumes.iter().map(|volume| volume["name"].clone()).collect::<Vec<_>>(), ["settings"]);
    let key = |key: &str| json!({ "key": key, "path": format!("object-store/{key}") });
    let secret = |name: &str, keys: &[&str], optional: bool| {
        let items: Vec<Value> = keys.iter().map(|name| key(name)).collect();
        json!({ "secret": { "name": name, "items": items, "optional": optional } })
    };
    let expected = [
        secret("keys", &["accesskey", "secretkey"], false),
        secret("keys", &["sessiontoken"], true),
        secret("ca", &["ca.crt"], false),
    ];
    assert_eq!(volumes[0]["projected"]["sources"].as_array().unwrap()[1..], expected);
}

#[test]
fn a_pod_has_all_that_the_spec_says_of_it_and_ours_besides() {
    let worker = json!({
        "imagePullSecrets": [{ "name": "mirror" }],
        "nodeSelector": { "disk": "fast" },
        "tolerations": [{ "key": "transfer", "operator": "Exists", "effect": "NoSchedule" }],
        "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{ "matchExpressions": [{ "key": "zone", "operator": "In", "values": ["a"] }] }],
        } } },
        "priorityClassName": "night",
        "podMetadata": { "labels": { "team": "ferry" }, "annotations": { "mesh/inject": "false" } },
    });
    let job = job_of(&build(json!({ "worker": worker })));
    let labels = job.metadata.labels.unwrap();
    assert!(!labels.contains_key("team"), "the Job's are ours");
    let template = serde_json::to_value(job.spec.unwrap().template).unwrap();
    let (metadata, pod) = (&template["metadata"], &template["spec"]);
    for field in ["imagePullSecrets", "nodeSelector", "tolerations", "affinity", "priorityClassName"] {
        assert_eq!(pod[field], worker[field], "{field}");
    }
    assert_eq!(metadata["labels"]["team"], "ferry");
    assert_eq!(metadata["annotations"]["mesh/inject"], "false");
    for (key, value) in labels {
        assert_eq!(metadata["labels"][key], *value);
    }
}

#[test]
fn what_the_spec_does_not_say_of_the_pod_comes_from_the_defaults_each_as_a_whole() {
    let mut defaults = WorkerDefaults::with_image("i");
    defaults.image_pull_secrets = vec![SecretRef { name: "mirror".into() }];
    defaults.node_selector = BTreeMap::from([("pool".into(), "transfer".into())]);
    defaults.tolerations = vec![Toleration { operator: Some("Exists".into()), ..Toleration::default() }];
    let pod = |worker: Value| {
        let valid = build(json!({ "worker": worker }));
        let plan = plan(&subject(), &valid, "c0ffee", 2, &defaults).unwrap();
        let job = serde_json::to_value(job(&subject(), &valid, &plan, &defaults, None)).unwrap();
        job["spec"]["template"]["spec"].clone()
    };
    let plain = pod(json!({}));
    assert_eq!(plain["imagePullSecrets"], json!([{ "name": "mirror" }]));
    assert_eq!(plain["nodeSelector"], json!({ "pool": "transfer" }));
    assert_eq!(plain["tolerations"], json!([{ "operator": "Exists" }]));
    let own = pod(json!({ "nodeSelector": { "disk": "fast" }, "tolerations": [], "imagePullSecrets": [] }));
    assert_eq!(own["nodeSelector"], json!({ "disk": "fast" }));
    assert_eq!((&own["tolerations"], &own["imagePullSecrets"]), (&Value::Null, &Value::Null));
}

#[test]
fn a_list_of_images_is_the_pods_to_read() {
    let from = json!({ "configMapKeyRef": { "name": "images", "key": "list.txt" } });
    let job = job_of(&build(json!({ "imagesFrom": from })));
    let pod = serde_json::to_value(job.spec.unwrap().template.spec).unwrap();
    let item = json!({ "key": "list.txt", "path": "images/list" });
    assert_eq!(
        pod["volumes"][0]["projected"]["sources"].as_array().unwrap()[1..],
        [json!({ "configMap": { "name": "images", "items": [item], "optional": false } })]
    );
}

#[test]
fn a_proxy_is_known_to_the_pod_by_its_secret_alone() {
    let job = job_of(&build(json!({ "proxySecretRef": { "name": "way-out" } })));
    let pod = serde_json::to_value(job.spec.unwrap().template.spec).unwrap();
    let source = |keys: &[&str], optional: bool| {
        let item = |key: &&str| json!({ "key": key, "path": format!("proxy/{key}") });
        let items: Vec<Value> = keys.iter().map(item).collect();
        json!({ "secret": { "name": "way-out", "items": items, "optional": optional } })
    };
    let sources = pod["volumes"][0]["projected"]["sources"].as_array().unwrap();
    assert_eq!(
        sources[1..],
        [source(&["address"], false), source(&["username", "password", "noProxy"], true)]
    );
    assert_eq!(pod["containers"][0]["env"], Value::Null);
}

#[test]
fn what_is_said_for_all_registries_goes_with_each_pod() {
    let mut defaults = WorkerDefaults::with_image("i");
    defaults.reach.proxy = Some("http://proxy.corp:3128".parse().unwrap());
    defaults.reach.registries = RegistryReach::list(r#"[{"host":"docker.io","endpoint":"mirror"}]"#).unwrap();
    let valid = build(json!({}));
    let plan = plan(&subject(), &valid, "c0ffee", 2, &defaults).unwrap();
    let job = job(&subject(), &valid, &plan, &defaults, Some("the authorities"));
    let template = serde_json::to_value(job.spec.unwrap().template).unwrap();
    let annotations = &template["metadata"]["annotations"];
    assert_eq!(annotations[CA_BUNDLE_ANNOTATION], "the authorities");
    let config: Value = serde_json::from_str(annotations[RUN_ANNOTATION].as_str().unwrap()).unwrap();
    assert_eq!(config["proxy"], json!({ "open": { "address": "http://proxy.corp:3128" } }));
    let mirrored = json!({ "host": "docker.io", "endpoint": "mirror", "insecure": false });
    assert_eq!(config["registries"], json!([mirrored]));
    let file = |annotation: &str, path: &str| json!({ "path": path, "fieldRef": { "fieldPath": format!("metadata.annotations['{annotation}']") } });
    assert_eq!(
        template["spec"]["volumes"][0]["projected"]["sources"][0]["downwardAPI"]["items"],
        json!([file(RUN_ANNOTATION, "run.json"), file(CA_BUNDLE_ANNOTATION, "ca-bundle.crt")])
    );
}

#[test]
fn the_worker_has_no_token_and_stands_before_the_restricted_standard() {
    let pod = job_of(&build(json!({}))).spec.unwrap().template.spec.unwrap();
    assert_eq!(pod.automount_service_account_token, Some(false));
    let text = serde_json::to_string(&pod.volumes).unwrap();
    assert!(!text.contains("serviceAccountToken"), "{text}");
    let container = pod.containers[0].security_context.clone().unwrap();
    assert_eq!(container.allow_privilege_escalation, Some(false));
    assert_eq!(container.read_only_root_filesystem, Some(true));
    assert_eq!(pod.security_context.unwrap().run_as_non_root, Some(true));
}

#[test]
fn the_run_configuration_is_the_workers_and_its_digest_is_that_of_its_bytes() {
    let valid = build(json!({}));
    let plan = plan(&subject(), &valid, "c0ffee", 2, &WorkerDefaults::with_image("i")).unwrap();
    let config: RunConfig = serde_json::from_str(&plan.config).unwrap();
    assert_eq!((config.run_id.as_str(), config.version), ("c0ffee", CONTRACT_VERSION));
    assert_eq!(config.work, valid.work);
    assert_eq!(plan.input_digest, Digest::sha256(plan.config.as_bytes()).hex());
    let annotations = job_of(&valid).spec.unwrap().template.metadata.unwrap().annotations.unwrap();
    assert_eq!(annotations[RUN_ANNOTATION], plan.config);
}

#[test]
fn more_names_than_an_annotation_holds_are_refused() {
    let images: Vec<Value> =
        (0..1000).map(|index| json!({ "image": format!("r.example/{}{index}", "a".repeat(230)) })).collect();
    let valid = build(json!({ "images": images }));
    let refusal = plan(&subject(), &valid, "c0ffee", 2, &WorkerDefaults::with_image("i")).unwrap_err();
    assert!(refusal.0.contains("divide them into several payloads"), "{refusal}");
}

#[test]
fn every_final_and_every_waiting_reason_ends_the_job() {
    use crate::reason::{Class, Reason};
    for reason in
        [Reason::SourceNotFound, Reason::RateLimited, Reason::AuthenticationFailed, Reason::StorageFull]
    {
        assert_ne!(reason.class(), Class::Again);
        assert!(FINAL_EXIT_CODES.contains(&i32::from(reason.exit_code())), "{reason}");
    }
    assert!(!FINAL_EXIT_CODES.contains(&i32::from(Reason::ImageNotFound.exit_code())));
}
