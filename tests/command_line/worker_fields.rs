//! What a run configuration may say of tags that are there, and of the whole file.

use std::fs;

use charon::reason::Reason;
use serde_json::{Value, json};

use crate::image::{Image, Layer, Types};
use crate::pod::{Pod, source};
use crate::program::{crane_digest, tool};
use crate::registry::{Registry, Software};
use crate::s3::{ACCESS, S3, SECRET};

with_each_registry!(a_tag_that_is_there_for_something_else_is_moved_or_kept_or_fails_its_image,);

fn a_tag_that_is_there_for_something_else_is_moved_or_kept_or_fails_its_image(software: Software) {
    let source = source(software, &["ferry:1", "styx:1", "oar:1"]);
    let pod = Pod::new();
    let images = json!(["ferry:1", "styx:1", "oar:1"].map(|name| json!({ "name": source.name(name) })));
    assert_eq!(pod.builds("run", &images, "out.zip", &source).reason, Reason::Succeeded);
    // One is there already, one stands in the way, one is not there.
    let target = || {
        let target = Registry::start(software);
        Image::new(Types::Docker, &[Layer::new("ferry:1", 100)]).push(&target, "ferry:1");
        let other = Image::new(Types::Docker, &[Layer::new("other", 100)]);
        other.push(&target, "styx:1");
        (target, other.digest)
    };
    let counts = |fields: &Value, target: &Registry| {
        let outcome = pod.imports(fields, "out.zip", target);
        let result =
            outcome.result.clone().map(|result| (result.images, result.images_failed, result.images_kept));
        (outcome, result)
    };
    let styx = |registry: &Registry| crane_digest(&registry.name("styx:1"));

    let puts = |registry: &Registry| {
        registry.requests().iter().filter(|request| request.starts_with("PUT /v2/styx/")).count()
    };

    let (kept, before) = target();
    let put_before = puts(&kept);
    let (outcome, result) = counts(&json!({ "tagPolicy": "KeepExisting" }), &kept);
    assert_eq!((outcome.reason, result), (Reason::Succeeded, Some((2, 0, 1))), "{outcome:?}");
    assert_eq!(styx(&kept), before);
    assert_eq!(kept.tags("oar"), ["1"]);
    assert_eq!(puts(&kept), put_before, "something of the image was pushed");

    let (strict, before) = target();
    let (outcome, _) = counts(&json!({ "tagPolicy": "Fail", "strict": true }), &strict);
    assert_eq!((outcome.reason, outcome.reason.exit_code()), (Reason::TagConflict, 69), "{outcome:?}");
    assert!(outcome.message.contains("styx:1 is there already, and is sha256:"), "{}", outcome.message);
    assert_eq!((styx(&strict), strict.tags("oar")), (before, vec![]));

    let (partial, before) = target();
    let (outcome, result) = counts(&json!({ "tagPolicy": "Fail" }), &partial);
    assert_eq!((outcome.reason, result), (Reason::TagConflict, Some((2, 1, 0))), "{outcome:?}");
    assert_eq!((styx(&partial), partial.tags("oar")), (before, vec!["1".to_owned()]));

    let (moved, before) = target();
    let (outcome, result) = counts(&json!({}), &moved);
    assert_eq!((outcome.reason, result), (Reason::Succeeded, Some((3, 0, 0))), "{outcome:?}");
    assert_ne!(styx(&moved), before);
    assert_eq!(styx(&moved), styx(&source));
    // What is there is no conflict.
    let (again, result) = counts(&json!({ "tagPolicy": "Fail", "strict": true }), &moved);
    assert_eq!((again.reason, result), (Reason::Succeeded, Some((3, 0, 0))), "{again:?}");
}

#[test]
fn the_sha256_of_the_whole_file_is_told_and_lies_beside_it_as_sha256sum_checks_it() {
    let source = source(Software::Distribution3, &["ferry:1", "styx:1"]);
    let pod = Pod::new();
    let work = |name: &str, file_digest: bool| {
        let images = json!([{ "name": source.name(name) }]);
        json!({ "build": { "images": images, "path": "out/app.zip", "fileDigest": file_digest } })
    };
    let built = pod.works("run", &work("ferry:1", true), &source);
    assert_eq!(built.reason, Reason::Succeeded, "{built:?}");
    let folder = pod.payload("out");
    let summed = tool("sha256sum", ["app.zip"]).in_folder(&folder).run().succeeded().text();
    let payload = built.payload.clone().unwrap();
    assert_eq!(payload.file_digest.unwrap().hex(), summed.split(' ').next().unwrap());
    tool("sha256sum", ["--check", "--strict", "app.zip.sha256"]).in_folder(&folder).run().succeeded();
    let again = pod.works("run", &work("ferry:1", true), &source);
    assert_eq!((again.reason, again.payload), (Reason::AlreadyPresent, built.payload));

    // The sum of another file does not stay, and none is made that nobody asked for.
    let plain = pod.works("plain", &work("styx:1", false), &source);
    assert_eq!((plain.reason, plain.payload.unwrap().file_digest), (Reason::Succeeded, None));
    assert!(!folder.join("app.zip.sha256").exists());
}

#[test]
fn the_sha256_of_a_whole_object_lies_beside_it_too() {
    let (source, store, pod) = (source(Software::Distribution3, &["ferry:1"]), S3::start(), Pod::new());
    let secrets = pod.at("object-store");
    fs::create_dir_all(&secrets).unwrap();
    fs::write(secrets.join("accesskey"), ACCESS).unwrap();
    fs::write(secrets.join("secretkey"), SECRET).unwrap();
    let endpoint = format!("http://{}", store.host());
    let object =
        json!({ "bucket": "transfer", "key": "out/app.zip", "endpoint": endpoint, "credentials": true });
    let images = json!([{ "name": source.name("ferry:1") }]);
    let work = |file_digest: bool| json!({ "build": { "images": images, "objectStore": object, "fileDigest": file_digest } });
    let built = pod.works("run", &work(true), &source);
    assert_eq!(built.reason, Reason::Succeeded, "{built:?}");
    let folder = store.file("out");
    tool("sha256sum", ["--check", "--strict", "app.zip.sha256"]).in_folder(&folder).run().succeeded();
    assert_eq!(pod.works("plain", &work(false), &source).reason, Reason::Succeeded);
    assert!(!folder.join("app.zip.sha256").exists());
}

#[test]
fn a_list_of_images_is_carried_with_those_that_are_named_each_once() {
    let source = source(Software::Distribution3, &["ferry:1", "styx:1", "oar:1"]);
    let pod = Pod::new();
    let [ferry, styx, oar] = ["ferry:1", "styx:1", "oar:1"].map(|name| source.name(name));
    let from = json!({ "configMap": "images", "key": "list.txt" });
    let works = |list: &str, images: &Value, path: &str| {
        fs::write(pod.at("list"), list).unwrap();
        let work = json!({ "build": { "images": images, "imagesFrom": from, "path": path } });
        pod.works(path, &work, &source)
    };
    let list = format!("# the crossing\n\n  {styx}  \r\n{ferry}\n{styx}\n#{oar}");
    let renamed = json!([{ "name": ferry, "as": "boat:2" }]);
    let built = works(&list, &renamed, "app.zip");
    assert_eq!((built.reason, built.payload.map(|payload| payload.images)), (Reason::Succeeded, Some(2)));
    let target = Registry::start(Software::Distribution3);
    assert_eq!(pod.imports(&json!({}), "app.zip", &target).reason, Reason::Succeeded);
    assert_eq!(
        (target.tags("styx"), target.tags("boat"), target.tags("ferry")),
        (vec!["1".into()], vec!["2".into()], vec![])
    );
    assert_eq!(works(&styx, &json!([]), "alone.zip").payload.unwrap().images, 1);

    let clash = format!("{oar}\nelsewhere.example/oar:1");
    for (list, words) in [
        ("# nothing\n", "\"list.txt\" of ConfigMap \"images\" names no image"),
        ("a\nB", "line 2 of \"list.txt\" of ConfigMap \"images\": \"B\" is no image name"),
        (clash.as_str(), "would both arrive as oar:1; name one of them in spec.images"),
    ] {
        let refused = works(list, &json!([]), "refused.zip");
        assert_eq!(refused.reason, Reason::InvalidSpec, "{list}");
        assert!(refused.message.contains(words), "{}", refused.message);
    }
    fs::remove_file(pod.at("list")).unwrap();
    let work = json!({ "build": { "imagesFrom": from, "path": "refused.zip" } });
    let missing = pod.works("refused.zip", &work, &source);
    assert_eq!((missing.reason, missing.reason.exit_code()), (Reason::ConfigMapNotFound, 76));
}

#[test]
fn a_run_that_knows_what_it_carries_keeps_to_that_when_its_list_changes_between_two_attempts() {
    let source = source(Software::Distribution3, &["ferry:1", "styx:1"]);
    let gate = crate::proxy::Proxy::before(&source);
    let pod = Pod::new();
    let registries = json!([{ "host": gate.host(), "insecure": true }]);
    let from = json!({ "configMap": "images", "key": "list" });
    let works = |list: &str| {
        fs::write(pod.at("list"), list).unwrap();
        let work = json!({ "build": { "imagesFrom": from, "path": "app.zip" } });
        pod.works_with("run", &work, &registries)
    };
    let [ferry, styx] = ["ferry:1", "styx:1"].map(|name| format!("{}/{name}", gate.host()));
    gate.does(crate::proxy::Misdeed::pause("429 Too Many Requests", 4000), "GET", "/blobs/", 1);
    assert_eq!(works(&ferry).reason, Reason::RateLimited);
    let built = works(&format!("{ferry}\n{styx}"));
    assert_eq!((built.reason, built.payload.map(|payload| payload.images)), (Reason::Succeeded, Some(1)));
}
