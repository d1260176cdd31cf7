//! Workers whose payload is an object of a store.

use std::fs;

use charon::reason::Reason;
use serde_json::{Value, json};

use crate::objects::certificate;
use crate::pod::{Pod, asked_for, opened, source};
use crate::proxy::Proxy;
use crate::registry::{Registry, Software};
use crate::s3::S3;

#[test]
fn a_run_with_an_object_leaves_its_report_beside_it_and_finds_it_again() {
    let (source, store) = (source(Software::Distribution3, &["ferry:1"]), S3::start());
    let (pod, target) = (Pod::new(), Registry::start(Software::Distribution3));
    let images = json!([{ "name": source.name("ferry:1") }]);
    let object = opened(&pod, &store, "out/app.zip");
    let work = json!({ "build": { "images": images, "objectStore": object } });
    let built = pod.works("run", &work, &source);
    assert_eq!(built.reason, Reason::Succeeded, "{built:?}");
    assert!(built.message.starts_with("s3://transfer/out/app.zip with 1 images, "), "{}", built.message);
    assert!(store.file("out/app.zip.report.json").exists());
    assert!(pod.files().is_empty());
    let asked = asked_for(&source, "ferry");
    let again = pod.works("run", &work, &source);
    assert_eq!((again.reason, again.payload), (Reason::AlreadyPresent, built.payload.clone()));
    assert_eq!(asked_for(&source, "ferry"), asked, "it asked a registry");

    let import = |object: &Value| {
        let work = json!({ "import": { "objectStore": object, "registry": target.host() } });
        pod.works("import", &work, &target)
    };
    let imported = import(&object);
    assert_eq!(
        (imported.reason, imported.payload),
        (Reason::Succeeded, built.payload),
        "{}",
        imported.message
    );
    assert_eq!(target.tags("ferry"), ["1"]);
    // It waits for what is not there, or not there yet as a whole.
    assert_eq!(import(&opened(&pod, &store, "none.zip")).reason, Reason::SourceNotFound);
    let size = fs::metadata(store.file("out/app.zip")).unwrap().len();
    fs::File::options().write(true).open(store.file("out/app.zip")).unwrap().set_len(size - 1).unwrap();
    assert_eq!(import(&object).reason, Reason::SourceIncomplete);
}

#[test]
fn a_build_replaces_no_object_that_is_no_payload_and_says_what_a_store_refuses() {
    let (source, store) = (source(Software::Distribution3, &["ferry:1"]), S3::start());
    let pod = Pod::new();
    let images = json!([{ "name": source.name("ferry:1") }]);
    let builds = |object: &Value| {
        pod.works("run", &json!({ "build": { "images": images, "objectStore": object } }), &source)
    };
    let object = opened(&pod, &store, "app.zip");
    for content in ["precious", ""] {
        fs::write(store.file("app.zip"), content).unwrap();
        let refused = builds(&object);
        assert_eq!(refused.reason, Reason::OutputConflict);
        assert!(
            refused.message.starts_with("s3://transfer/app.zip is no payload of charon's"),
            "{}",
            refused.message
        );
        assert_eq!(fs::read_to_string(store.file("app.zip")).unwrap(), content);
    }
    assert_eq!(store.keys(), ["app.zip"]);
    assert_eq!(asked_for(&source, "ferry/manifests/1 "), 1, "only the image was pushed");

    let mut nowhere = object.clone();
    nowhere["bucket"] = json!("nowhere");
    assert_eq!(builds(&nowhere).reason, Reason::StorageNotFound);
    let mut certified = object.clone();
    certified["certificates"] = json!(true);
    assert_eq!(builds(&certified).reason, Reason::SecretNotFound);
    fs::write(pod.at("object-store/secretkey"), "wrong").unwrap();
    let denied = builds(&object);
    assert_eq!(denied.reason, Reason::StorageAccessDenied);
    assert!(
        denied.message.contains("check the credentials") && !denied.message.contains("wrong"),
        "{}",
        denied.message
    );
    fs::remove_file(pod.at("object-store/secretkey")).unwrap();
    assert_eq!(builds(&object).reason, Reason::SecretNotFound);
}

#[test]
fn a_store_behind_a_private_authority_is_reached_with_the_mounted_certificate() {
    let source = source(Software::Distribution3, &["ferry:1"]);
    let (pod, folder) = (Pod::new(), tempfile::tempdir().unwrap());
    let [certificate, key] = certificate(folder.path());
    let store = S3::with_certificate(&certificate, &key);
    let mut object = opened(&pod, &store, "app.zip");
    object["endpoint"] = json!(format!("https://{}", store.host()));
    let images = json!([{ "name": source.name("ferry:1") }]);
    let builds = |object: &Value| {
        pod.works("run", &json!({ "build": { "images": images, "objectStore": object } }), &source)
    };
    let refused = builds(&object);
    assert_eq!(refused.reason, Reason::InvalidSpec);
    assert!(refused.message.contains("certSecretRef"), "{}", refused.message);
    fs::copy(certificate, pod.at("object-store/ca.crt")).unwrap();
    object["certificates"] = json!(true);
    let built = builds(&object);
    assert_eq!(built.reason, Reason::Succeeded, "{}", built.message);
    object["endpoint"] = json!("store");
    let refused = builds(&object);
    assert_eq!(refused.reason, Reason::InvalidSpec);
    assert!(
        refused.message.contains("the endpoint \"store\" of s3://transfer/app.zip is no URL"),
        "{}",
        refused.message
    );
}

#[test]
fn a_session_token_goes_to_the_store_with_every_request() {
    let (source, store) = (source(Software::Distribution3, &["ferry:1"]), S3::start());
    let (pod, proxy) = (Pod::new(), Proxy::to(store.host()));
    let mut object = opened(&pod, &store, "app.zip");
    object["endpoint"] = json!(format!("http://{}", proxy.host()));
    fs::write(pod.at("object-store/sessiontoken"), "passing\n").unwrap();
    let images = json!([{ "name": source.name("ferry:1") }]);
    pod.works("run", &json!({ "build": { "images": images, "objectStore": object } }), &source);
    let seen = proxy.seen();
    assert!(!seen.is_empty());
    assert!(seen.iter().all(|request| request.header("x-amz-security-token") == Some("passing")));
}
