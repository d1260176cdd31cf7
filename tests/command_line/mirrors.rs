//! Registries that are read through a mirror.

use std::fs;

use charon::reason::Reason;
use serde_json::{Value, json};

use crate::access::{Locked, PASSWORD};
use crate::image::{Image, Layer, Types};
use crate::pod::Pod;
use crate::program::charon;
use crate::proxy::Proxy;
use crate::registry::{Registry, Software};

with_each_registry!(
    an_image_that_comes_through_a_mirror_makes_the_same_payload_as_from_its_registry,
    a_mirror_is_signed_in_to_by_its_own_credentials_and_never_by_those_of_the_registry,
);

fn an_image_that_comes_through_a_mirror_makes_the_same_payload_as_from_its_registry(software: Software) {
    let (source, mirror) = (Registry::start(software), Registry::start(software));
    let image = Image::index(Types::Oci, &[Image::new(Types::Oci, &[Layer::new("oar", 3000)])]);
    image.push(&source, "team/ferry:1");
    image.push(&mirror, "cache/of-it/team/ferry:1");
    let pod = Pod::new();
    let pushes = source.requests().len();
    let work = |path: &str| json!({ "build": { "images": [{ "name": source.name("team/ferry:1") }], "path": path } });
    let through = json!([{ "host": source.host(), "endpoint": format!("{}/cache/of-it/", mirror.host()), "insecure": true }]);
    let direct = json!([{ "host": source.host(), "insecure": true }]);
    for (path, registries) in [("through.zip", through), ("direct.zip", direct)] {
        let built = pod.works_with(path, &work(path), &registries);
        assert_eq!(built.reason, Reason::Succeeded, "{built:?}");
        if path == "through.zip" {
            let mark = 1;
            assert_eq!(source.requests().len(), pushes + mark, "the registry itself was asked");
        }
    }
    let read = |path: &str| fs::read(pod.payload(path)).unwrap();
    assert!(read("through.zip") == read("direct.zip"));
    let at = |bytes: &[u8], text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(at(&read("through.zip"), source.host()) && !at(&read("through.zip"), mirror.host()));
    let report = read("through.zip.report.json");
    assert!(!at(&report, mirror.host()));
    // What fails there is told with the host that was asked.
    let gone = json!({ "build": { "images": [{ "name": source.name("gone:1") }], "path": "gone.zip" } });
    let through = json!([{ "host": source.host(), "endpoint": mirror.host(), "insecure": true }]);
    let failed = pod.works_with("gone", &gone, &through);
    assert_eq!(failed.reason, Reason::ImageNotFound);
    assert!(failed.message.contains(&format!("{} answered 404", mirror.host())), "{}", failed.message);

    charon(["verify".as_ref(), pod.payload("through.zip").as_os_str()]).run().succeeded();
}

fn a_mirror_is_signed_in_to_by_its_own_credentials_and_never_by_those_of_the_registry(software: Software) {
    let locked = Locked::new(software);
    let seen = Proxy::before(&locked.entrance);
    let mirror = seen.host();
    let registries = json!([{ "host": "registry.example", "endpoint": mirror, "insecure": true }]);
    let auth = |password: &str| json!({ "username": "charon", "password": password });
    let builds = |name: &str, auths: Value| {
        let pod = Pod::new();
        pod.mount_pull_secret(&json!({ "auths": auths }));
        let images = json!([{ "name": "registry.example/ferry:1" }]);
        pod.works_with(name, &json!({ "build": { "images": images, "path": "out.zip" } }), &registries).reason
    };
    let (right, wrong) = (auth(PASSWORD), auth("wrong"));
    let refused = Reason::AuthenticationFailed;
    assert_eq!(builds("registry's", json!({ "registry.example": right })), refused);
    assert!(seen.seen().iter().all(|request| request.header("authorization").is_none()));
    assert_eq!(builds("own", json!({ mirror: right, "registry.example": wrong })), Reason::Succeeded);
    assert!(seen.seen().iter().any(|request| request.header("authorization").is_some()));
    assert_eq!(builds("own first", json!({ mirror: wrong, "registry.example": right })), refused);
    assert_eq!(builds("neither", json!({ "other.example": right })), Reason::InvalidSpec);
}
