use super::*;

fn build_of(spec: Value) -> Result<Valid, String> {
    build(&serde_json::from_value(spec).unwrap()).map_err(|invalid| invalid.0)
}

fn import_of(spec: Value) -> Result<Valid, String> {
    import(&serde_json::from_value(spec).unwrap()).map_err(|invalid| invalid.0)
}

fn spec() -> Value {
    json!({
        "images": [{ "image": "python:3" }],
        "output": { "persistentVolumeClaim": { "claimName": "transfer", "path": "out/app.zip" } },
    })
}

fn import_spec() -> Value {
    json!({
        "source": { "persistentVolumeClaim": { "claimName": "inbox", "path": "app.zip" } },
        "registry": { "host": "registry.infra:5000" },
    })
}

fn with(mut spec: Value, field: &str, value: Value) -> Value {
    spec[field] = value;
    spec
}

#[test]
fn a_build_carries_referrers_unless_it_says_otherwise() {
    for (given, expected) in [(json!(null), true), (json!(true), true), (json!(false), false)] {
        let Work::Build(work) = build_of(with(spec(), "referrers", given)).unwrap().work else { panic!() };
        assert_eq!(work.referrers, expected);
    }
}

#[test]
fn a_build_becomes_work_with_the_defaults_filled_in() {
    let valid = build_of(spec()).unwrap();
    let work = BuildWork {
        images: vec!["python:3".into()],
        images_from: None,
        already_transferred: vec![],
        bases: vec![],
        foreign_layers: false,
        allow_missing: false,
        referrers: true,
        path: "out/app.zip".into(),
        object_store: None,
        file_digest: false,
    };
    assert_eq!(valid.work, Work::Build(work));
    assert_eq!((valid.backoff_limit, valid.timeout), (6, None));
    assert_eq!((valid.location().as_str(), valid.read_only()), ("transfer/out/app.zip", false));
}

#[test]
fn platforms_of_all_images_are_those_of_each_that_has_none_of_its_own() {
    let images = json!([{ "image": "a" }, { "image": "b", "platforms": ["linux/arm64/v8"] }]);
    let valid = build_of(with(with(spec(), "images", images), "platforms", json!(["linux/amd64"]))).unwrap();
    let Work::Build(work) = valid.work else { panic!("a build builds") };
    let platforms = work.images.iter().map(|image| crate::platform::list(&image.platforms));
    assert_eq!(platforms.collect::<Vec<_>>(), ["linux/amd64", "linux/arm64"]);
}

#[test]
fn an_import_has_its_target_as_the_first_registry() {
    let spec = with(
        import_spec(),
        "registry",
        json!({ "host": "r:5000", "insecure": true, "secretRef": { "name": "s" }, "certSecretRef": { "name": "c" } }),
    );
    let valid = import_of(spec).unwrap();
    let certificates = Some("c".into());
    let access =
        contract::RegistryAccess { host: "r:5000".into(), endpoint: None, insecure: true, certificates };
    let registry = Registry { access, is_open: false, credentials: Some("s".into()) };
    assert_eq!(valid.registries, [registry]);
    assert!(valid.read_only());
}

#[test]
fn what_the_schema_cannot_see_is_refused_with_its_field() {
    let images = |images: &[&str]| {
        let images: Vec<Value> = images.iter().map(|image| json!({ "image": image })).collect();
        with(spec(), "images", images.into())
    };
    let path = |path: &str| {
        with(spec(), "output", json!({ "persistentVolumeClaim": { "claimName": "c", "path": path } }))
    };
    let registries = |hosts: [&str; 2]| {
        with(spec(), "registries", hosts.map(|host| json!({ "host": host })).to_vec().into())
    };
    for (spec, words) in [
        (images(&[]), "spec has neither images nor imagesFrom"),
        (images(&["a", "A"]), "spec.images[1].image: \"A\" is no image name"),
        (
            images(&["q.io/a:1", "g.io/a:1"]),
            "spec.images has q.io/a:1 and g.io/a:1, which would both arrive as a:1",
        ),
        (images(&["a", "q.io/a:latest"]), "both arrive as a:latest"),
        (
            with(spec(), "alreadyTransferred", json!({ "images": ["b:c:d"] })),
            "spec.alreadyTransferred.images[0]",
        ),
        (
            with(spec(), "images", json!([{ "image": "a", "as": "a@b" }])),
            "spec.images[0].as: \"a@b\" is no name for the far side",
        ),
        (with(spec(), "platforms", json!(["linux"])), "spec.platforms: \"linux\" is no platform"),
        (
            with(spec(), "images", json!([{ "image": "a", "platforms": ["linux/amd64", "/"] }])),
            "spec.images[0].platforms: \"/\" is no platform",
        ),
        (
            with(spec(), "registries", json!([{ "host": "a.b", "endpoint": "http://c" }])),
            "spec.registries[0].endpoint: \"http://c\" is no endpoint",
        ),
        (path("../x"), "spec.output.persistentVolumeClaim.path \"../x\""),
        (path("x.zip.partial"), "ends in .partial, which is for files beside payloads"),
        (path("x.zip.report.json"), "ends in .report.json"),
        (path("/x"), "without '.', '..' and empty parts"),
        (
            with(spec(), "output", json!({})),
            "spec.output must have exactly one of persistentVolumeClaim and objectStore",
        ),
        (
            with(spec(), "output", json!({ "objectStore": { "bucket": "b", "key": "a.zip.partial" } })),
            "spec.output.objectStore.key \"a.zip.partial\" ends in .partial",
        ),
        (
            with(spec(), "output", json!({ "objectStore": { "bucket": "b", "key": "a/../b" } })),
            "spec.output.objectStore: \"b/a/../b\" names no object",
        ),
        (registries(["docker.io", "index.docker.io"]), "are the same registry"),
        (registries(["a.b", "a.b/c"]), "spec.registries[1].host"),
        (with(spec(), "timeout", json!("1d")), "spec.timeout \"1d\""),
        (with(spec(), "timeout", json!("0s")), "spec.timeout \"0s\""),
        (with(spec(), "timeout", json!("5")), "spec.timeout \"5\""),
        (with(spec(), "timeout", json!("99999999999999999999h")), "spec.timeout"),
    ] {
        let refusal = build_of(spec.clone()).unwrap_err();
        assert!(refusal.contains(words), "{spec}: {refusal}");
    }
    for (spec, words) in [
        (with(import_spec(), "source", json!({})), "spec.source must have exactly one of"),
        (with(import_spec(), "expectedDigest", json!("sha256:1")), "spec.expectedDigest"),
        (with(import_spec(), "registry", json!({ "host": "a.b/c" })), "spec.registry.host"),
    ] {
        let refusal = import_of(spec.clone()).unwrap_err();
        assert!(refusal.contains(words), "{spec}: {refusal}");
    }
}

#[test]
fn two_images_that_would_arrive_under_one_name_are_told_apart_by_as_or_refused_with_both_names() {
    let images = |images: Value| build_of(with(spec(), "images", images));
    for (first, second, clash) in [
        (json!({ "image": "q.io/a:1" }), json!({ "image": "g.io/a:1" }), Some("a:1")),
        (json!({ "image": "q.io/a:1", "as": "q/a" }), json!({ "image": "g.io/a:1" }), None),
        (
            json!({ "image": "q.io/a:1", "as": "b:1" }),
            json!({ "image": "g.io/a:1", "as": "b:1" }),
            Some("b:1"),
        ),
        (json!({ "image": "q.io/a:1", "as": "b" }), json!({ "image": "g.io/b:1" }), Some("b:1")),
        (json!({ "image": "a:1", "as": "b:2" }), json!({ "image": "docker.io/a:1" }), None),
    ] {
        let (one, other) = (first["image"].clone(), second["image"].clone());
        let refusal = images(json!([first, second])).err();
        match clash {
            None => assert_eq!(refusal, None),
            Some(name) => assert_eq!(
                refusal.unwrap(),
                format!(
                    "spec.images has {} and {}, which would both arrive as {name}; give one of them another name by its field as",
                    one.as_str().unwrap(),
                    other.as_str().unwrap()
                )
            ),
        }
    }
}

#[test]
fn names_and_tuning_reach_the_worker_and_the_job() {
    let images = json!([{ "image": "python:3", "as": "base/python:3" }]);
    let valid = build_of(with(with(spec(), "images", images), "suspend", json!(true))).unwrap();
    let Work::Build(work) = valid.work else { panic!("{:?}", valid.work) };
    assert_eq!(work.images[0].far_name.as_deref(), Some("base/python:3"));
    assert_eq!((valid.suspended, valid.job_ttl), (true, 86_400));
    let registry = json!({
        "host": "r:5000", "naming": "WithHost", "baseRepositories": ["base/a"], "tagDigests": false,
    });
    let spec = with(import_spec(), "registry", registry);
    let valid = import_of(with(spec, "ttlSecondsAfterFinished", json!(1))).unwrap();
    let Work::Import(work) = valid.work else { panic!("{:?}", valid.work) };
    assert_eq!((work.naming, work.tag_digests), (contract::Naming::WithHost, false));
    assert_eq!(work.base_repositories, ["base/a"]);
    assert_eq!((valid.suspended, valid.job_ttl), (false, 60));
}

#[test]
fn one_image_written_in_two_ways_is_no_conflict() {
    let images = json!([{ "image": "python:3" }, { "image": "docker.io/python:3" }]);
    assert!(build_of(with(spec(), "images", images)).is_ok());
}

#[test]
fn a_timeout_is_the_sum_of_its_parts() {
    for (text, seconds) in [("72h", 259_200), ("1h30m", 5400), ("1m1s", 61)] {
        assert_eq!(timeout(Some(text)).unwrap(), Some(Duration::from_secs(seconds)));
    }
}

#[test]
fn a_pods_own_labels_are_not_the_users_to_set_and_a_misspelt_affinity_is_not_left_out() {
    let term =
        |field: &str| json!({ "nodeSelectorTerms": [{ field: [{ "key": "a", "operator": "Exists" }] }] });
    let node = |field: &str, terms: Value| json!({ "affinity": { "nodeAffinity": { field: terms } } });
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    for (worker, words) in [
        (
            json!({ "podMetadata": { "labels": { "charon.dev/uid": "a" } } }),
            "podMetadata.labels has \"charon.dev/uid\"",
        ),
        (json!({ "podMetadata": { "labels": { "job-name": "a" } } }), "job-name"),
        (json!({ "podMetadata": { "labels": { "app.kubernetes.io/managed-by": "a" } } }), "managed-by"),
        (
            json!({ "podMetadata": { "annotations": { "batch.kubernetes.io/a": "a" } } }),
            "podMetadata.annotations",
        ),
        (
            node("required", term("matchExpressions")),
            "spec.worker.affinity.nodeAffinity.required is no field",
        ),
        (
            node(required, term("matchExpression")),
            "nodeSelectorTerms[0].matchExpression is no field of a pod's affinity",
        ),
        (node(required, json!([])), "spec.worker.affinity cannot be read"),
    ] {
        let refused = build_of(with(spec(), "worker", worker.clone())).unwrap_err();
        assert!(refused.contains(words), "{worker}: {refused}");
    }
    let right = node(required, term("matchExpressions"));
    assert!(import_of(with(import_spec(), "worker", right)).unwrap().affinity.is_some());
    let others =
        json!({ "podMetadata": { "labels": { "app": "job-name" }, "annotations": { "job-name": "a" } } });
    build_of(with(spec(), "worker", others)).unwrap();
}

#[test]
fn a_list_of_images_is_the_workers_to_read_for_the_platforms_of_all() {
    let mut list =
        with(spec(), "imagesFrom", json!({ "configMapKeyRef": { "name": "images", "key": "list" } }));
    list["platforms"] = json!(["linux/amd64"]);
    list.as_object_mut().unwrap().remove("images");
    let Work::Build(work) = build_of(list.clone()).unwrap().work else { panic!("a build builds") };
    let found = work.images_from.unwrap();
    assert_eq!((found.config_map.as_str(), found.key.as_str()), ("images", "list"));
    assert_eq!(crate::platform::list(&found.platforms), "linux/amd64");
    assert!(work.images.is_empty());
    // Together with others, which are judged as ever.
    list["images"] = json!([{ "image": "A" }]);
    assert!(build_of(list).unwrap_err().contains("spec.images[0].image"));
}
