//! The worker's half of the contract: a run configuration goes in, an outcome comes out, and a report lies beside a
//! payload.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;

use charon::reason::Reason;
use serde_json::{Value, json};

use crate::gate::{Gate, wait_until};
use crate::image::{Image, Layer, Types};
use crate::pod::{Pod, asked_for, source};
use crate::program::{charon, crane_digest, tool};
use crate::proxy::{Misdeed, Proxy};
use crate::registry::{Registry, Software};

with_each_registry!(
    a_build_leaves_a_report_and_the_same_run_asks_nobody_again,
    two_names_at_the_far_side_are_kept_apart_by_as_and_reach_the_registry,
    what_a_build_left_out_and_what_an_import_wrote_anew_is_told,
    an_import_names_images_as_its_run_says_and_leaves_nothing_beside_its_source,
);

/// What a worker answers on its port, once it does.
fn progress(port: u16) -> Option<Value> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    write!(stream, "GET /progress HTTP/1.1\r\nhost: worker\r\nconnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
}

#[test]
fn a_worker_tells_its_plan_before_it_moves_a_byte() {
    let source = Registry::start(Software::Distribution3);
    let layers = ["a", "b"].map(|name| Layer::new(name, 1 << 20));
    Image::new(Types::Oci, &layers[..1]).push(&source, "base:1");
    Image::new(Types::Oci, &layers).push(&source, "ferry:1");
    // The layer is not let through.
    let gate = Gate::before(&source, 200_000);
    let (pod, name) = (Pod::new(), |image: &str| format!("{}/{image}", gate.host()));
    let images = json!([{ "name": name("ferry:1") }, { "name": name("gone:1") }]);
    let bases = json!([name("base:1")]);
    let work = json!({ "build": { "images": images, "alreadyTransferred": bases, "allowMissing": true, "path": "app.zip" } });
    let registries = json!([{ "host": gate.host(), "insecure": true }]);
    let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).unwrap().port();
    let worker =
        pod.worker("run", &work, &registries).arguments(["--progress-port", &port.to_string()]).start();
    let mut said = Value::Null;
    wait_until("it transfers", || {
        said = progress(port).unwrap_or_default();
        said["stage"] == "Transferring"
    });
    let plan = said["plan"].clone();
    gate.open();
    let outcome = pod.outcome(worker);
    let payload = outcome.payload.unwrap();
    assert_eq!(plan["digest"], json!(payload.digest), "{said}");
    assert_eq!(plan["sizeBytes"], fs::metadata(pod.payload("app.zip")).unwrap().len());
    let counts = ["images", "imagesFailed", "blobs", "blobsReused", "bytesPresent"].map(|field| &plan[field]);
    assert_eq!(counts, [1, 1, 2, 1, 0]);
    assert!(plan["roomBytes"].as_u64() > plan["sizeBytes"].as_u64(), "{said}");
}

fn a_build_leaves_a_report_and_the_same_run_asks_nobody_again(software: Software) {
    let source = source(software, &["ferry:1"]);
    let pod = Pod::new();
    let images = json!([{ "name": source.name("ferry:1"), "as": "base/ferry:2" }]);
    let built = pod.builds("run", &images, "out.zip", &source);
    assert_eq!(built.reason, Reason::Succeeded, "{built:?}");
    assert_eq!(pod.files(), ["out.zip", "out.zip.bill.json", "out.zip.report.json"]);

    let report = fs::read_to_string(pod.payload("out.zip.report.json")).unwrap();
    let read: Value = serde_json::from_str(&report).unwrap();
    let payload = built.payload.clone().unwrap();
    assert_eq!(read["runId"], "run");
    assert_eq!(read["payload"], serde_json::to_value(&payload).unwrap());
    let image = report.lines().nth(1).unwrap();
    let inspected = charon(["inspect".as_ref(), pod.payload("out.zip").as_os_str()]).run().succeeded().text();
    assert!(inspected.contains("arrives as base/ferry:2"), "{inspected}");
    assert!(image.contains("base/ferry:2") && image.contains(r#""outcome":"Carried""#), "{report}");

    let asked = asked_for(&source, "ferry");
    let again = pod.builds("run", &images, "out.zip", &source);
    assert_eq!((again.reason, again.payload), (Reason::AlreadyPresent, Some(payload)));
    assert_eq!(asked_for(&source, "ferry"), asked, "it asked a registry");

    // Another run, and a payload that is not the reported one any more, are built.
    assert_eq!(pod.builds("other", &images, "out.zip", &source).reason, Reason::Succeeded);
    assert_eq!(pod.builds("run", &images, "out.zip", &source).reason, Reason::Succeeded);
    let half = fs::metadata(pod.payload("out.zip")).unwrap().len() / 2;
    fs::File::options().write(true).open(pod.payload("out.zip")).unwrap().set_len(half).unwrap();
    assert_eq!(pod.builds("run", &images, "out.zip", &source).reason, Reason::Succeeded);
}

fn what_a_build_left_out_and_what_an_import_wrote_anew_is_told(software: Software) {
    let (source, target) = (Registry::start(software), Registry::start(software));
    let image = |name: &str| Image::for_platform(Types::Oci, name, &[Layer::new(name, 100)]);
    Image::index(Types::Oci, &[image("amd64"), image("arm64")]).push(&source, "ferry:1");
    let pod = Pod::new();
    let [ferry, gone] = ["ferry:1", "gone:1"].map(|name| source.name(name));
    let images = json!([{ "name": &ferry, "platforms": ["linux/arm64"] }, { "name": &gone }]);
    let work = json!({ "build": { "images": images, "allowMissing": true, "path": "out.zip" } });
    let built = pod.works("run", &work, &source);
    assert_eq!((built.reason, built.failures_total), (Reason::Succeeded, 1), "{built:?}");
    assert_eq!(
        (built.failures[0].item.as_str(), built.failures[0].reason),
        (gone.as_str(), Reason::ImageNotFound)
    );
    let report = fs::read_to_string(pod.payload("out.zip.report.json")).unwrap();
    assert!(
        report.lines().any(|line| line.contains(&gone) && line.contains(r#""outcome":"Missing""#)),
        "{report}"
    );
    let again = pod.works("run", &work, &source);
    assert_eq!((again.reason, again.failures), (Reason::AlreadyPresent, built.failures));

    let kept = pod.imports(&json!({}), "out.zip", &target);
    assert_eq!(kept.reason, Reason::UnsupportedImage, "{kept:?}");
    assert!(kept.message.contains("registry.sparseIndex: Rewrite"), "{}", kept.message);
    let rewritten = pod.imports(&json!({ "sparseIndex": "Rewrite" }), "out.zip", &target);
    assert_eq!(rewritten.reason, Reason::Succeeded, "{rewritten:?}");
    let result = rewritten.result.unwrap();
    assert_eq!((result.images, result.images_rewritten, result.rewritten.len()), (1, 1, 1));
    assert_eq!(result.rewritten[0].image, ferry);
    assert_eq!(result.rewritten[0].digest.as_str(), crane_digest(&target.name("ferry:1")));
}

#[test]
fn a_build_carries_signatures_unless_its_run_says_otherwise() {
    let source = source(Software::Distribution3, &["ferry:1"]);
    let pod = Pod::new();
    fs::write(pod.at("sbom.json"), "{}").unwrap();
    let attach = tool("oras", ["attach", "--plain-http", "--artifact-type", "application/spdx+json"]);
    let attach = attach.arguments([&source.name("ferry:1"), "sbom.json:application/json"]);
    attach.in_folder(pod.at("")).run().succeeded();
    for (referrers, expected) in
        [(None, "one manifest, 1 referrer"), (Some(true), "1 referrer"), (Some(false), "one manifest\n")]
    {
        let mut work = json!({ "images": [{ "name": source.name("ferry:1") }], "path": "out.zip" });
        if let Some(referrers) = referrers {
            work["referrers"] = json!(referrers);
        }
        let built = pod.works(&format!("run-{referrers:?}"), &json!({ "build": work }), &source);
        assert_eq!(built.reason, Reason::Succeeded, "{built:?}");
        let inspected =
            charon(["inspect".as_ref(), pod.payload("out.zip").as_os_str()]).run().succeeded().text();
        assert!(inspected.contains(expected), "{referrers:?}: {inspected}");
    }
}

#[test]
fn two_signatures_that_would_be_under_one_tag_are_told_and_neither_is_lost() {
    let (source, target) =
        (Registry::start(Software::Distribution3), Registry::start(Software::Distribution3));
    let image = Image::new(Types::Oci, &[Layer::new("common", 100)]);
    let tag = format!("{}.sig", image.digest.replace(':', "-"));
    for repository in ["ferry", "styx"] {
        image.push(&source, &format!("{repository}:1"));
        Image::new(Types::Oci, &[Layer::new(repository, 10)]).push(&source, &format!("{repository}:{tag}"));
    }
    let pod = Pod::new();
    let images = |names: [&str; 2]| {
        json!([
            { "name": source.name("ferry:1"), "as": names[0] }, { "name": source.name("styx:1"), "as": names[1] },
        ])
    };
    pod.builds("run", &images(["crew:1", "crew:2"]), "one.zip", &source);
    let imported = pod.imports(&json!({}), "one.zip", &target);
    assert_eq!((imported.reason, imported.failures_total), (Reason::InvalidSpec, 2), "{imported:?}");
    let told = format!("would both be crew:{tag} here; choose another naming");
    assert!(imported.failures.iter().all(|failure| failure.message.contains(&told)), "{imported:?}");
    assert!(target.is_empty());

    pod.builds("run", &images(["crew:1", "other/crew:2"]), "two.zip", &source);
    assert_eq!(pod.imports(&json!({}), "two.zip", &target).reason, Reason::Succeeded);
    assert_eq!(target.tags("crew"), ["1", &tag]);
    assert_eq!(target.tags("other/crew"), ["2", &tag]);
}

fn two_names_at_the_far_side_are_kept_apart_by_as_and_reach_the_registry(software: Software) {
    let source = source(software, &["team/app:1", "crew/app:1"]);
    let target = Registry::start(software);
    let pod = Pod::new();
    let images = json!([
        { "name": source.name("team/app:1"), "as": "base/app" },
        { "name": source.name("crew/app:1"), "as": "base/app:2" },
    ]);
    assert_eq!(pod.builds("run", &images, "out.zip", &source).reason, Reason::Succeeded);
    let payload = pod.payload("out.zip");
    let descriptor = charon::payload::FilePayload::open(fs::File::open(&payload).unwrap()).unwrap();
    let files: Vec<_> = descriptor.bill().files.iter().map(|file| file.path.as_str()).collect();
    assert!(files.contains(&"payload_descriptor.json"), "{files:?}");
    let zip = fs::read(&payload).unwrap();
    for name in ["base/app:1", "base/app:2"] {
        let key = format!("{name:?}:");
        assert!(String::from_utf8_lossy(&zip).contains(&key), "docker-charon would not see {name}");
    }

    let imported = pod.imports(&json!({ "repositoryPrefix": "mirror" }), "out.zip", &target);
    assert_eq!(imported.reason, Reason::Succeeded, "{imported:?}");
    assert_eq!(target.tags("mirror/base/app"), ["1", "2"]);
    assert!(target.tags("mirror/team/app").is_empty());
}

fn an_import_names_images_as_its_run_says_and_leaves_nothing_beside_its_source(software: Software) {
    let source = source(software, &["team/app:1"]);
    let target = Registry::start(software);
    let pod = Pod::new();
    let (_, manifest) = source.manifest("team/app", "1").unwrap();
    let digest = crate::image::digest(&manifest);
    let images = json!([{ "name": source.name(&format!("team/app@{digest}")) }]);
    assert_eq!(pod.builds("run", &images, "out.zip", &source).reason, Reason::Succeeded);
    for beside in ["out.zip.report.json", "out.zip.bill.json"] {
        fs::remove_file(pod.payload(beside)).unwrap();
    }

    let with_host = format!("{}/team/app", source.host().replace(':', "-"));
    let untagged = json!({ "naming": "WithHost", "tagDigests": false });
    assert_eq!(pod.imports(&untagged, "out.zip", &target).reason, Reason::Succeeded);
    assert!(target.manifest(&with_host, &digest).is_some());
    assert!(target.tags(&with_host).is_empty());
    assert_eq!(pod.imports(&json!({}), "out.zip", &target).reason, Reason::Succeeded);
    assert_eq!(target.tags("team/app").len(), 1);
    assert_eq!(pod.files(), ["out.zip"]);
}

#[test]
fn an_import_looks_for_its_base_in_the_repositories_that_it_is_told() {
    let (source, target) = (source(Software::Distribution3, &[]), Registry::start(Software::Distribution3));
    let (base, own) = (Layer::new("base", 200), Layer::new("own", 100));
    Image::new(Types::Docker, std::slice::from_ref(&base)).push(&source, "base:1");
    Image::new(Types::Docker, &[base.clone(), own]).push(&source, "app:1");
    // It was carried under another name than the payload can know.
    Image::new(Types::Docker, &[base]).push(&target, "elsewhere/base:1");
    let pod = Pod::new();
    let build = json!({ "build": {
        "images": [{ "name": source.name("app:1") }],
        "alreadyTransferred": [source.name("base:1")],
        "path": "out.zip",
    }});
    assert_eq!(pod.works("run", &build, &source).reason, Reason::Succeeded);
    let missing = pod.imports(&json!({}), "out.zip", &target);
    assert_eq!(missing.reason, Reason::MissingBase);
    let told = json!({ "baseRepositories": ["elsewhere/base"] });
    assert_eq!(pod.imports(&told, "out.zip", &target).reason, Reason::Succeeded);
    assert_eq!(target.tags("app"), ["1"]);
}

#[test]
fn a_build_that_lacks_images_tries_all_lists_what_failed_and_keeps_what_it_has_for_the_next() {
    let source = source(Software::Distribution3, &["whole:1"]);
    let lost = Layer::new("lost", 100);
    let image = Image::new(Types::Docker, std::slice::from_ref(&lost));
    image.push(&source, "lost:1");
    source.lose(&lost.digest());
    let pod = Pod::new();
    let images = |names: &[&str]| names.iter().map(|name| json!({ "name": source.name(name) })).collect();
    let fetched = || asked_for(&source, "GET /v2/whole/blobs/");

    let unknown = pod.builds("a", &images(&["nobody:1", "whole:1", "nothing:1"]), "a.zip", &source);
    assert_eq!((unknown.reason, unknown.failures_total), (Reason::ImageNotFound, 2));
    assert!(unknown.message.starts_with("2 images cannot be had: "), "{}", unknown.message);
    let items: Vec<_> = unknown.failures.iter().map(|failure| failure.item.as_str()).collect();
    assert_eq!(items, [source.name("nobody:1"), source.name("nothing:1")]);
    // The manifests of the one that is there.
    assert_eq!(pod.files(), ["a.zip.partial.journal"]);
    fs::remove_file(pod.payload("a.zip.partial.journal")).unwrap();

    let both = images(&["lost:1", "whole:1"]);
    let incomplete = pod.builds("b", &both, "b.zip", &source);
    assert_eq!((incomplete.reason, incomplete.failures_total), (Reason::ImageNotFound, 1));
    assert_eq!(incomplete.failures[0].item, source.name("lost:1"));
    assert_eq!(pod.files(), ["b.zip.partial", "b.zip.partial.journal"]);
    let before = fetched();
    assert_eq!(before, 2, "it did not try all");
    image.push(&source, "lost:1");
    assert_eq!(pod.builds("b", &both, "b.zip", &source).reason, Reason::Succeeded);
    assert_eq!(fetched(), before, "it was fetched again");
    assert_eq!(pod.files(), ["b.zip", "b.zip.bill.json", "b.zip.report.json"]);
}

#[test]
fn an_import_that_lacks_a_base_pushes_what_it_can_and_nothing_if_it_is_strict() {
    let (source, target) = (source(Software::Distribution3, &[]), Registry::start(Software::Distribution3));
    let base = Layer::new("base", 200);
    Image::new(Types::Docker, std::slice::from_ref(&base)).push(&source, "base:1");
    Image::new(Types::Docker, &[base, Layer::new("own", 100)]).push(&source, "app:1");
    Image::new(Types::Docker, &[Layer::new("other", 100)]).push(&source, "other:1");
    let pod = Pod::new();
    let build = json!({ "build": {
        "images": [{ "name": source.name("app:1") }, { "name": source.name("other:1") }],
        "alreadyTransferred": [source.name("base:1")],
        "path": "out.zip",
    }});
    assert_eq!(pod.works("run", &build, &source).reason, Reason::Succeeded);

    let strict = pod.imports(&json!({ "strict": true }), "out.zip", &target);
    assert_eq!((strict.reason, strict.result, strict.failures_total), (Reason::MissingBase, None, 1));
    assert!(strict.message.starts_with("nothing was pushed: "), "{}", strict.message);
    assert!(strict.message.contains("app:1") && strict.message.contains("base:1"), "{}", strict.message);
    assert!(target.is_empty());
    assert!(!target.requests().iter().any(|request| request.starts_with('P')), "it began to write");

    let partial = pod.imports(&json!({}), "out.zip", &target);
    let result = partial.result.unwrap();
    assert_eq!((partial.reason, partial.failures_total), (Reason::MissingBase, 1));
    assert_eq!((result.images, result.images_failed), (1, 1));
    assert_eq!((target.tags("app"), target.tags("other")), (vec![], vec!["1".to_owned()]));
}

#[test]
fn a_file_that_is_no_payload_of_charons_is_never_replaced_and_nobody_is_asked() {
    let source = source(Software::Distribution3, &["ferry:1"]);
    let images = json!([{ "name": source.name("ferry:1") }]);
    let zip = |path: &Path| {
        let mut zip = zip::ZipWriter::new(fs::File::create(path).unwrap());
        let stored =
            zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        zip.start_file("letters.txt", stored).unwrap();
        zip.write_all(b"dear").unwrap();
        zip.finish().unwrap();
    };
    let asked = asked_for(&source, "ferry");
    for (path, put) in [
        ("text.zip", &(|path: &Path| fs::write(path, "a letter").unwrap()) as &dyn Fn(&Path)),
        ("empty.zip", &|path: &Path| fs::write(path, "").unwrap()),
        ("photos.zip", &zip),
        ("folder", &|path: &Path| fs::create_dir(path).unwrap()),
    ] {
        let pod = Pod::new();
        put(&pod.payload(path));
        let before = fs::read(pod.payload(path)).ok();
        let refused = pod.builds("run", &images, path, &source);
        assert_eq!(refused.reason, Reason::OutputConflict, "{path}: {refused:?}");
        assert!(
            refused.message.contains(path) && refused.message.contains("move it away"),
            "{}",
            refused.message
        );
        assert_eq!(fs::read(pod.payload(path)).ok(), before, "{path}");
        assert_eq!(pod.files(), [path]);
    }
    assert_eq!(asked_for(&source, "ferry"), asked);
    // A payload is, whole or not.
    let pod = Pod::new();
    assert_eq!(pod.builds("run", &images, "out.zip", &source).reason, Reason::Succeeded);
    let head = fs::read(pod.payload("out.zip")).unwrap()[..300].to_vec();
    fs::write(pod.payload("out.zip"), head).unwrap();
    assert_eq!(pod.builds("next", &images, "out.zip", &source).reason, Reason::Succeeded);
}

#[test]
fn a_registry_that_asks_to_be_left_alone_is_told_of_to_the_controller() {
    let source = source(Software::Distribution3, &["ferry:1"]);
    let proxy = Proxy::before(&source);
    let limited = Misdeed::pause("429 Too Many Requests", 4000);
    proxy.does(limited.clone(), "GET", "/manifests/", 1);
    let registries = json!([{ "host": proxy.host(), "insecure": true }]);
    let name = format!("{}/ferry:1", proxy.host());
    let build = json!({ "build": { "images": [{ "name": name }], "path": "out.zip" } });
    let pod = Pod::new();
    let outcome = pod.works_with("run", &build, &registries);
    assert_eq!(outcome.reason, Reason::RateLimited);
    assert!((3900..=4000).contains(&outcome.retry_after_seconds.unwrap()), "{outcome:?}");
    let outcome = pod.works_with("run", &build, &registries);
    assert_eq!((outcome.reason, outcome.retry_after_seconds), (Reason::Succeeded, None));

    proxy.does(limited, "PUT", "/manifests/", 1);
    let import =
        json!({ "import": { "path": "out.zip", "registry": proxy.host(), "repositoryPrefix": "far" } });
    let outcome = pod.works_with("import", &import, &registries);
    assert_eq!(outcome.reason, Reason::RateLimited);
    assert!((3900..=4000).contains(&outcome.retry_after_seconds.unwrap()), "{outcome:?}");
}
