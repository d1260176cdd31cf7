//! Registries that count what they are asked for.

use std::path::Path;

use crate::image::{Image, Layer, Types};
use crate::program::{Program, charon};
use crate::proxy::{Misdeed, Proxy};
use crate::registry::{Registry, Software};
use crate::s3::S3;

pub(crate) const MANIFESTS: &str = "/manifests/";

/// Three images for two platforms each, of which two are the same.
pub(crate) fn source(software: Software) -> Registry {
    let source = Registry::start(software);
    for (name, images) in [("one", ["a", "b"]), ("two", ["c", "d"]), ("three", ["c", "d"])] {
        let images = ["amd64", "arm64"].into_iter().zip(images);
        let images: Vec<Image> = images
            .map(|(platform, layer)| Image::for_platform(Types::Oci, platform, &[Layer::new(layer, 1000)]))
            .collect();
        Image::index(Types::Oci, &images).push(&source, &format!("{name}:1"));
    }
    source
}

fn make(proxy: &Proxy, file: &Path) -> Program {
    let made = charon(["make-payload", "one:1,two:1,three:1", "-q", "-i", "-r", proxy.host(), "-f"]);
    made.arguments([file])
}

with_each_registry!(
    each_manifest_is_read_once_and_a_tag_is_asked_for_without_reading,
    what_was_planned_survives_a_rate_limit;
    and olareg
);

fn each_manifest_is_read_once_and_a_tag_is_asked_for_without_reading(software: Software) {
    let (source, folder) = (source(software), tempfile::tempdir().unwrap());
    let proxy = Proxy::before(&source);
    make(&proxy, &folder.path().join("payload.zip")).run().succeeded();
    // Tags that are made of digests are asked for, too: there may be signatures.
    assert_eq!(proxy.count("HEAD", "/manifests/1"), 3);
    assert_eq!(proxy.count("GET", MANIFESTS), 6);
    assert_eq!(proxy.count("GET", "/manifests/sha256:"), 6);
}

fn what_was_planned_survives_a_rate_limit(software: Software) {
    let (source, folder) = (source(software), tempfile::tempdir().unwrap());
    let proxy = Proxy::before(&source);
    let file = folder.path().join("payload.zip");
    let limited = || Misdeed::pause("429 Too Many Requests", 3600);
    // The fifth manifest is one too many, once and again.
    proxy.does(Misdeed::Header("ratelimit-remaining", "4;w=21600".to_owned()), "GET", MANIFESTS, 4);
    proxy.does(limited(), "GET", MANIFESTS, 2);
    for _ in 0..2 {
        let said = make(&proxy, &file).run().ended_with(1).stderr;
        assert!(said.contains("answered 429 Too Many Requests and asks for a pause of 3600 s"), "{said}");
    }
    make(&proxy, &file).run().succeeded();
    assert_eq!(proxy.count("GET", MANIFESTS), 6 + 2);
    let undisturbed = folder.path().join("undisturbed.zip");
    make(&proxy, &undisturbed).run().succeeded();
    assert!(std::fs::read(&file).unwrap() == std::fs::read(&undisturbed).unwrap());
    let names = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(names.count(), 2 * 2, "more than two payloads and their bills");
}

#[test]
fn what_was_planned_for_a_bucket_survives_a_rate_limit() {
    let (source, store) = (source(Software::Distribution3), S3::start());
    let proxy = Proxy::before(&source);
    proxy.does(Misdeed::Header("ratelimit-remaining", "4;w=21600".to_owned()), "GET", MANIFESTS, 4);
    // Whoever begins at zero never comes further than to the sixth.
    proxy.does(Misdeed::pause("429 Too Many Requests", 3600), "GET", MANIFESTS, 2);
    let object = Path::new("s3://transfer/payload.zip");
    for _ in 0..2 {
        let said = store.lets(make(&proxy, object)).run().ended_with(1).stderr;
        assert!(said.contains("answered 429 Too Many Requests"), "{said}");
        assert_eq!(store.keys(), ["payload.zip.partial.manifests"]);
    }
    let planned = store.lets(make(&proxy, object)).arguments(["--dry-run"]).run().succeeded().text();
    assert!(planned.contains(&format!("manifests read    2 of {}", proxy.host())), "{planned}");
    assert_eq!(proxy.count("GET", MANIFESTS), 4 + 2 + 2);
    store.lets(make(&proxy, object)).run().succeeded();
    assert_eq!(proxy.count("GET", MANIFESTS), 4 + 2 + 2 + 2);
    assert_eq!(store.keys(), ["payload.zip", "payload.zip.bill.json"]);
    let made = charon(["make-payload", "one:1,two:1,three:1", "-q", "-i", "-r", proxy.host()]);
    let undisturbed = made.run().succeeded().stdout;
    assert!(std::fs::read(store.file("payload.zip")).unwrap() == undisturbed);
}

#[test]
fn a_registry_that_allows_few_more_reads_is_told_of_once() {
    let source = source(Software::Distribution3);
    let proxy = Proxy::before(&source);
    proxy.does(Misdeed::Header("ratelimit-remaining", "9;w=21600".to_owned()), "GET", MANIFESTS, usize::MAX);
    let made = charon(["make-payload", "one:1", "-q", "-i", "-r", proxy.host()]).run().succeeded();
    let host = proxy.host();
    assert_eq!(made.stderr, format!("warning: {host} allows 9 more reads of manifests for now\n"));
}

#[test]
fn requests_are_made_as_often_as_is_allowed() {
    let source = source(Software::Distribution3);
    let proxy = Proxy::before(&source);
    let begun = std::time::Instant::now();
    let made =
        charon(["make-payload", "one:1", "-q", "-i", "-r", proxy.host(), "--requests-per-second", "5"]);
    made.run().succeeded();
    // The first does not wait.
    let apart = u32::try_from(proxy.seen().len() - 1).unwrap();
    assert!(begun.elapsed() >= std::time::Duration::from_millis(200) * apart);
}
