//! Workers that are killed behind their last step: the payload has its name, and what tells of it is not there yet.

use std::fs;
use std::os::unix::fs::FileExt;

use charon::reason::Reason;
use serde_json::{Value, json};

use crate::gate::Gate;
use crate::image::{Image, Layer, Types, digest};
use crate::pod::{Pod, opened};
use crate::program::charon;
use crate::registry::{Registry, Software};
use crate::s3::S3;

const WHOLE: [&str; 3] = ["app.zip", "app.zip.bill.json", "app.zip.report.json"];

/// A registry with an image of one layer of so many bytes.
fn source(layer: usize) -> Registry {
    let source = Registry::start(Software::Distribution3);
    Image::new(Types::Oci, &[Layer::new("layer", layer)]).push(&source, "ferry:1");
    source
}

fn fetched(source: &Registry) -> usize {
    let of_blobs = |request: &&String| request.contains("GET /v2/ferry/blobs/");
    source.requests().iter().filter(of_blobs).count()
}

#[test]
fn of_a_payload_that_has_its_name_and_no_report_nothing_is_fetched_unless_it_is_damaged() {
    for store in [None, Some(S3::start())] {
        let (source, pod) = (source(1 << 20), Pod::new());
        let mut build = json!({ "images": [{ "name": source.name("ferry:1") }] });
        match &store {
            None => build["path"] = json!("app.zip"),
            Some(store) => build["objectStore"] = opened(&pod, store, "app.zip"),
        }
        let file = |name: &str| store.as_ref().map_or_else(|| pod.payload(name), |store| store.file(name));
        let names = || store.as_ref().map_or_else(|| pod.files(), S3::keys);
        let builds = || {
            let outcome = pod.works("run", &json!({ "build": build }), &source);
            assert_eq!(outcome.reason, Reason::Succeeded, "{outcome:?}");
            assert_eq!(names(), WHOLE);
            (outcome.payload, fs::read(file("app.zip")).unwrap())
        };
        let whole = builds();
        let before = fetched(&source);
        for name in &WHOLE[1..] {
            fs::remove_file(file(name)).unwrap();
        }
        if store.is_none() {
            // A build of something else may have begun to write there.
            fs::write(file("app.zip.partial"), "begun").unwrap();
        }
        assert!(builds() == whole);
        assert_eq!(fetched(&source), before);

        fs::remove_file(file("app.zip.report.json")).unwrap();
        let damaged = fs::OpenOptions::new().write(true).open(file("app.zip")).unwrap();
        damaged.write_at(b"damaged", 500_000).unwrap();
        assert!(builds() == whole);
        assert!(fetched(&source) > before);
    }
}

#[test]
fn a_worker_that_is_killed_while_it_sums_the_file_leaves_no_more_to_do_than_that() {
    let (source, store, pod) = (source(12 << 20), S3::start(), Pod::new());
    // All that is small passes, and half of the object when it is read for its sum.
    let gate = Gate::to(store.host(), 6 << 20);
    let object = opened(&pod, &store, "app.zip");
    let work = |endpoint: &str| {
        let mut object = object.clone();
        object["endpoint"] = json!(format!("http://{endpoint}"));
        let images = json!([{ "name": source.name("ferry:1") }]);
        json!({ "build": { "images": images, "objectStore": object, "fileDigest": true } })
    };
    let registries = json!([{ "host": source.host(), "insecure": true }]);
    let worker = pod.worker("run", &work(gate.host()), &registries).arguments(["--progress-port", "0"]);
    let worker = worker.start();
    gate.wait_until_shut();
    worker.kill();
    worker.end();
    assert_eq!(store.keys(), WHOLE);

    let asked = source.requests().len();
    let again = pod.works("run", &work(store.host()), &source);
    assert_eq!(again.reason, Reason::AlreadyPresent, "{again:?}");
    let sum = digest(&fs::read(store.file("app.zip")).unwrap());
    assert_eq!(again.payload.unwrap().file_digest.unwrap().to_string(), sum);
    let report: Value =
        serde_json::from_slice(&fs::read(store.file("app.zip.report.json")).unwrap()).unwrap();
    assert_eq!(report["payload"]["fileDigest"], json!(sum));
    let beside = fs::read_to_string(store.file("app.zip.sha256")).unwrap();
    assert_eq!(beside, format!("{}  app.zip\n", sum.trim_start_matches("sha256:")));
    assert_eq!(source.requests().len(), asked + 1, "a registry was asked: one request is the test's own");
}

#[test]
fn a_payload_that_is_there_already_is_told_of_by_a_dry_run_and_verified_by_a_build() {
    let (source, folder) = (source(1 << 20), tempfile::tempdir().unwrap());
    let make = |more: &[&str]| {
        let make = charon(["make-payload", "ferry:1", "-i", "-r", source.host(), "-f", "out.zip"]);
        make.arguments(more).in_folder(folder.path()).run().succeeded()
    };
    let planned = make(&["--dry-run"]).text();
    assert!(crate::dry_runs::bytes(&planned, "to fetch") > 1 << 20, "{planned}");
    make(&[]);
    let before = fetched(&source);
    let planned = make(&["--dry-run"]).text();
    assert_eq!(crate::dry_runs::bytes(&planned, "to fetch"), 0, "{planned}");
    let said = make(&[]).stderr;
    assert!(said.contains("Verifying out.zip\nout.zip is payload sha256:"), "{said}");
    assert_eq!(fetched(&source), before);
}
