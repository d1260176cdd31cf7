//! Earlier payloads as the base of later ones.

use std::fs;
use std::path::{Path, PathBuf};

use charon::reason::Reason;
use charon::worker::contract::Outcome;
use serde_json::{Value, json};

use crate::image::{Image, Layer, Types};
use crate::program::{Ended, charon};
use crate::registry::{Registry, Software};
use crate::s3::S3;

with_each_registry!(
    upon_an_earlier_payload_only_what_is_new_is_carried_and_the_import_finds_the_rest,
    what_a_base_itself_left_out_is_at_the_far_side_too,
);

/// A source with three versions of an image, each of which adds a layer; and a folder for payloads.
struct Versions {
    source: Registry,
    layers: Vec<Layer>,
    images: Vec<Image>,
    folder: tempfile::TempDir,
}

impl Versions {
    fn new(software: Software) -> Self {
        let source = Registry::start(software);
        let layers: Vec<_> = ["one", "two", "three"].map(|name| Layer::new(name, 3000)).into();
        let images: Vec<_> = (1..=3).map(|count| Image::new(Types::Docker, &layers[..count])).collect();
        for (image, version) in images.iter().zip(1..) {
            image.push(&source, &format!("app:{version}"));
        }
        // What else a payload holds has nothing to do with it.
        Image::new(Types::Oci, &[Layer::new("other", 500)]).push(&source, "other:1");
        Self { source, layers, images, folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn try_to_make(&self, file: &str, images: &str, bases: &[&str]) -> Ended {
        let made = charon(["make-payload", "-i", "-r", self.source.host(), images, "-f"]);
        let bases = bases.iter().flat_map(|base| ["--base".into(), self.path(base)]);
        made.arguments([self.path(file)]).arguments(bases).run()
    }

    fn make(&self, file: &str, images: &str, bases: &[&str]) -> Vec<u8> {
        self.try_to_make(file, images, bases).succeeded();
        fs::read(self.path(file)).unwrap()
    }

    /// Which of the layers a payload carries.
    fn carried(&self, payload: &[u8]) -> Vec<bool> {
        let carries = |layer: &Vec<u8>| payload.windows(layer.len()).any(|window| window == layer);
        self.images[2].blobs[1..].iter().map(carries).collect()
    }
}

fn push(target: &Registry, file: &Path) -> Ended {
    charon(["push-payload", "-q", "-i", "-r", target.host(), "-f"]).arguments([file]).run()
}

fn upon_an_earlier_payload_only_what_is_new_is_carried_and_the_import_finds_the_rest(software: Software) {
    let versions = Versions::new(software);
    versions.make("1.zip", "app:1,other:1", &[]);
    let second = versions.make("2.zip", "app:2", &["1.zip"]);
    assert_eq!(versions.carried(&second), [false, true, false]);

    let target = Registry::start(software);
    let missing = push(&target, &versions.path("2.zip")).ended_with(1);
    let why = format!(
        "error: app:2: {} lacks 1 blob that the payload leaves out since app:1 had been transferred, {} among them; \
         transfer app:1 first, or build the payload without declaring it\n",
        target.host(),
        versions.layers[0].digest(),
    );
    assert_eq!((missing.stderr, target.tags("app").len()), (why, 0));
    push(&target, &versions.path("1.zip")).succeeded();
    push(&target, &versions.path("2.zip")).succeeded();
    versions.images[1].assert_is_whole_in(&target, "app:2");

    // The zip has left; its bill is the same.
    let bill = versions.path("1.zip.bill.json");
    let zip = fs::read(versions.path("1.zip")).unwrap();
    let kept = fs::read(&bill).unwrap();
    assert!(zip.windows(kept.len()).any(|window| window == kept), "the bill is another one");
    fs::remove_file(versions.path("1.zip")).unwrap();
    for base in ["1.zip.bill.json", "1.zip"] {
        assert_eq!(versions.make("again.zip", "app:2", &[base]), second);
    }
    fs::remove_file(&bill).unwrap();
    let refused = versions.try_to_make("3.zip", "app:2", &["1.zip"]).ended_with(1);
    let (zip, bill) = (versions.path("1.zip"), bill.display());
    assert_eq!(
        refused.stderr,
        format!(
            "error: there is neither {} nor {bill}, to tell what the far side has; bring one of them back, or build without this base\n",
            zip.display()
        )
    );
}

fn what_a_base_itself_left_out_is_at_the_far_side_too(software: Software) {
    let versions = Versions::new(software);
    versions.make("1.zip", "app:1", &[]);
    versions.make("2.zip", "app:2", &["1.zip"]);
    let third = versions.make("3.zip", "app:3", &["2.zip"]);
    assert_eq!(versions.carried(&third), [false, false, true]);
    let target = Registry::start(software);
    for file in ["1.zip", "2.zip", "3.zip"] {
        push(&target, &versions.path(file)).succeeded();
    }
    versions.images[2].assert_is_whole_in(&target, "app:3");
    // Both brought the first layer, and several bases are one.
    let inspected = charon(["inspect".as_ref(), versions.path("3.zip").as_os_str()]).run().succeeded().text();
    assert!(inspected.contains("app:1 or app:2"), "{inspected}");
    versions.make("other.zip", "other:1", &[]);
    let both = versions.make("both.zip", "app:2,other:1", &["other.zip", "1.zip"]);
    assert_eq!(versions.carried(&both), [false, true, false]);
    let nothing = versions.make("nothing.zip", "app:2", &["2.zip", "1.zip"]);
    assert_eq!(versions.carried(&nothing), [false; 3]);
}

#[test]
fn a_base_whose_images_have_names_of_their_own_is_found_under_those() {
    let software = Software::Distribution3;
    let (source, target) = (Registry::start(software), Registry::start(software));
    let layers = ["one", "two"].map(|name| Layer::new(name, 1000));
    Image::new(Types::Docker, &layers[..1]).push(&source, "app:1");
    Image::new(Types::Docker, &layers).push(&source, "top:1");
    let pod = crate::pod::Pod::new();
    let registries = json!([{ "host": source.host(), "insecure": true }]);
    let first = json!({ "build": {
        "images": [{ "name": source.name("app:1"), "as": "moved/app" }], "path": "1.zip",
    }});
    pod.works_with("first", &first, &registries);
    let second = charon(["make-payload", "-i", "-r", source.host(), "top:1", "--base"]);
    let second = second.arguments([pod.payload("1.zip")]).run().succeeded().stdout;
    charon(["push-payload", "-i", "-r", target.host(), "-f"])
        .arguments([pod.payload("1.zip")])
        .run()
        .succeeded();
    charon(["push-payload", "-i", "-s", "-r", target.host()]).fed(second).run().succeeded();
    assert_eq!(target.tags("top"), ["1"]);
}

#[test]
fn a_worker_builds_upon_the_payload_that_it_was_told_of_and_waits_where_another_one_lies() {
    let versions = Versions::new(Software::Distribution3);
    let pod = crate::pod::Pod::new();
    let registries = json!([{ "host": versions.source.host(), "insecure": true }]);
    let build = |run: &str, image: &str, path: &str, bases: Value| {
        let images = json!([{ "name": versions.source.name(image) }]);
        let work = json!({ "build": { "images": images, "bases": bases, "path": path } });
        pod.works_with(run, &work, &registries)
    };
    let digest = |outcome: &Outcome| outcome.payload.clone().unwrap().digest.unwrap();
    let first = digest(&build("first", "app:1", "out/1.zip", json!([])));
    let base = json!([{ "name": "one", "path": "out/1.zip", "digest": first }]);
    let second = build("second", "app:2", "2.zip", base.clone());
    assert_eq!((second.reason, second.payload.unwrap().blobs_reused), (Reason::Succeeded, 1));

    // It is built anew, and its old bill has left with it.
    let anew = digest(&build("anew", "app:3", "out/1.zip", json!([])));
    let waits = build("third", "app:2", "3.zip", base.clone());
    assert_eq!(waits.reason, Reason::WaitingForBase);
    let words = ["PayloadBuild \"one\"", first.as_str(), anew.as_str()];
    assert!(words.iter().all(|word| waits.message.contains(word)), "{}", waits.message);
    // Its bill alone is enough, and that of another payload in its place is not.
    let base = json!([{ "name": "one", "path": "out/1.zip", "digest": anew }]);
    fs::remove_file(pod.payload("out/1.zip")).unwrap();
    let third = build("third", "app:2", "3.zip", base.clone());
    assert_eq!((third.reason, third.payload.unwrap().blobs_reused), (Reason::Succeeded, 2));
    fs::remove_file(pod.payload("out/1.zip.bill.json")).unwrap();
    let waits = build("fourth", "app:2", "4.zip", base);
    assert_eq!(waits.reason, Reason::WaitingForBase);
    assert!(waits.message.contains("1.zip.bill.json"), "{}", waits.message);
}

#[test]
fn a_payload_in_a_bucket_or_the_bill_that_stayed_behind_of_it_is_a_base() {
    let (versions, store) = (Versions::new(Software::Distribution3), S3::start());
    let object = |name: &str| format!("s3://transfer/{name}");
    let make = |file: &str, image: &str, base: &[&str]| {
        let make = charon(["make-payload", "-q", "-i", "-r", versions.source.host(), image, "-f", file]);
        store.lets(make).arguments(base.iter().flat_map(|base| ["--base", base])).run()
    };
    make(&object("1.zip"), "app:1", &[]).succeeded();
    make(&object("2.zip"), "app:2", &[&object("1.zip")]).succeeded();
    let second = fs::read(store.file("2.zip")).unwrap();
    assert_eq!(versions.carried(&second), [false, true, false]);
    assert_eq!(store.keys(), ["1.zip", "1.zip.bill.json", "2.zip", "2.zip.bill.json"]);

    // The zip has left; its bill is the same, and a file is built upon it as well.
    fs::remove_file(store.file("1.zip")).unwrap();
    let file = versions.path("2.zip").display().to_string();
    for base in [object("1.zip"), object("1.zip.bill.json")] {
        make(&file, "app:2", &[&base]).succeeded();
        assert!(fs::read(&file).unwrap() == second, "{base}");
    }
    fs::remove_file(store.file("1.zip.bill.json")).unwrap();
    let refused = make(&file, "app:2", &[&object("1.zip")]).ended_with(1).stderr;
    let words = "error: there is neither s3://transfer/1.zip nor s3://transfer/1.zip.bill.json, to tell";
    assert!(refused.starts_with(words), "{refused}");
}

#[test]
fn a_worker_that_writes_into_a_bucket_builds_upon_what_lies_there_and_waits_where_another_payload_lies() {
    let (versions, store) = (Versions::new(Software::Distribution3), S3::start());
    let pod = crate::pod::Pod::new();
    let registries = json!([{ "host": versions.source.host(), "insecure": true }]);
    let build = |run: &str, image: &str, key: &str, bases: Value| {
        let object = crate::pod::opened(&pod, &store, key);
        let images = json!([{ "name": versions.source.name(image) }]);
        let work = json!({ "build": { "images": images, "bases": bases, "objectStore": object } });
        pod.works_with(run, &work, &registries)
    };
    let first = build("first", "app:1", "out/1.zip", json!([])).payload.unwrap().digest.unwrap();
    let base = json!([{ "name": "one", "path": "out/1.zip", "digest": first }]);
    let second = build("second", "app:2", "2.zip", base.clone());
    assert_eq!((second.reason, second.payload.unwrap().blobs_reused), (Reason::Succeeded, 1));
    fs::remove_file(store.file("out/1.zip")).unwrap();
    let third = build("third", "app:3", "3.zip", base.clone());
    assert_eq!((third.reason, third.payload.unwrap().blobs_reused), (Reason::Succeeded, 1));
    build("anew", "app:2", "out/1.zip", json!([]));
    let waits = build("fourth", "app:2", "4.zip", base);
    assert_eq!(waits.reason, Reason::WaitingForBase);
    let words = ["PayloadBuild \"one\": s3://transfer/out/1.zip is the payload", first.as_str()];
    assert!(words.iter().all(|word| waits.message.contains(word)), "{}", waits.message);
}

#[test]
fn what_is_no_payload_of_charons_is_no_base() {
    let versions = Versions::new(Software::Distribution3);
    let asked = || versions.source.requests().iter().filter(|request| request.contains("/v2/app/")).count();
    let before = asked();
    let mut zip = zip::ZipWriter::new(fs::File::create(versions.path("docker-charon.zip")).unwrap());
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    zip.start_file("payload_descriptor.json", stored).unwrap();
    zip.finish().unwrap();
    fs::write(versions.path("letter"), "dear").unwrap();
    fs::write(versions.path("later.json"), r#"{"formatVersion":2}"#).unwrap();
    fs::write(versions.path("torn.json"), r#"{"formatVersion":1,"images":["#).unwrap();
    for (file, why) in [
        (
            "docker-charon.zip",
            "this is no payload: it has no bill, as those of docker-charon have none: name its images as already transferred instead; was it made by charon make-payload?",
        ),
        ("letter", "this is no payload: it is no zip; was it made by charon make-payload?"),
        (
            "later.json",
            "the payload has format version 2, this charon reads version 1; update charon at this side",
        ),
        ("torn.json", "the payload is corrupt: its bill, charon.json, cannot be read: "),
    ] {
        let refused = versions.try_to_make("out.zip", "app:1", &[file]).ended_with(1).stderr;
        let told = format!("error: {}: {why}", versions.path(file).display());
        assert!(refused.starts_with(&told), "{refused}");
        assert!(!versions.path("out.zip").exists());
    }
    assert_eq!(asked(), before, "a registry was asked");
}
