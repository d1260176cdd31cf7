//! Builds that end while they are planned: what they read of manifests is not read again.

use std::fs;
use std::time::Duration;

use charon::reason::Reason;
use serde_json::{Value, json};

use crate::gate::wait_until;
use crate::image::{Image, Layer, Types};
use crate::pod::{Pod, opened};
use crate::program::{Program, Running, charon};
use crate::proxy::{Misdeed, Proxy};
use crate::rate_limits::{MANIFESTS, source};
use crate::registry::{Registry, Software};
use crate::s3::S3;

/// Reads of manifests that are there: what a tag means is asked for, and where there is no such tag, asked for once more.
const READS: &str = "/manifests/sha256:";

/// A worker that builds from a registry behind a proxy: into a file of its volume, or into a bucket.
struct Attempts {
    source: Registry,
    proxy: Proxy,
    pod: Pod,
    store: Option<S3>,
    images: Vec<&'static str>,
}

impl Attempts {
    /// Both of them, with six manifests to read.
    fn each() -> [Self; 2] {
        [None, Some(S3::start())].map(|store| {
            let source = source(Software::Distribution3);
            let proxy = Proxy::before(&source);
            Self { source, proxy, pod: Pod::new(), store, images: vec!["one:1", "two:1", "three:1"] }
        })
    }

    fn worker(&self) -> Program {
        let host = self.proxy.host();
        let images: Vec<Value> =
            self.images.iter().map(|image| json!({ "name": format!("{host}/{image}") })).collect();
        let mut work = json!({ "build": { "images": images } });
        match &self.store {
            None => work["build"]["path"] = json!("app.zip"),
            Some(store) => work["build"]["objectStore"] = opened(&self.pod, store, "app.zip"),
        }
        let registries = json!([{ "host": host, "insecure": true }]);
        self.pod.worker("run", &work, &registries).arguments(["--progress-port", "0"])
    }

    fn ends_with(&self, reason: Reason) {
        let outcome = self.pod.outcome(self.worker().start());
        assert_eq!(outcome.reason, reason, "{outcome:?}");
    }

    fn reads(&self) -> usize {
        self.proxy.count("GET", READS)
    }

    /// What lies where the payload goes.
    fn names(&self) -> Vec<String> {
        self.store.as_ref().map_or_else(|| self.pod.files(), S3::keys)
    }

    /// How many manifests are kept for the next attempt.
    fn kept(&self) -> usize {
        let kept = match &self.store {
            None => fs::read_to_string(self.pod.payload("app.zip.partial.journal")),
            Some(store) => fs::read_to_string(store.file("app.zip.partial.manifests")),
        };
        kept.unwrap_or_default().lines().filter(|line| line.starts_with("{\"manifest\":")).count()
    }

    /// What an attempt leaves that came no further than to manifests.
    fn only_manifests(&self) -> [&'static str; 1] {
        if self.store.is_none() { ["app.zip.partial.journal"] } else { ["app.zip.partial.manifests"] }
    }
}

const WHOLE: [&str; 3] = ["app.zip", "app.zip.bill.json", "app.zip.report.json"];

#[test]
fn a_worker_that_is_stopped_or_killed_while_it_plans_reads_no_manifest_twice() {
    for stop in [Running::terminate, Running::kill] {
        for attempts in Attempts::each() {
            // The fifth does not come.
            attempts.proxy.does(Misdeed::Delay(Duration::ZERO), "GET", MANIFESTS, 4);
            attempts.proxy.does(Misdeed::Delay(Duration::from_hours(1)), "GET", MANIFESTS, 1);
            let worker = attempts.worker().start();
            wait_until("what was read is kept", || attempts.kept() == 4);
            stop(&worker);
            assert_ne!(worker.end().status, Some(0));
            attempts.ends_with(Reason::Succeeded);
            assert_eq!(attempts.reads(), 6 + 1);
            assert_eq!(attempts.names(), WHOLE);
        }
    }
}

#[test]
fn whatever_may_pass_ends_attempts_no_manifest_is_read_twice_over_all_of_them() {
    for mut attempts in Attempts::each() {
        attempts.images.insert(1, "late:1");
        attempts.proxy.does(Misdeed::Delay(Duration::ZERO), "GET", MANIFESTS, 2);
        attempts.proxy.does(Misdeed::pause("429 Too Many Requests", 3600), "GET", MANIFESTS, 1);
        attempts.ends_with(Reason::RateLimited);
        assert_eq!((attempts.reads(), attempts.kept()), (2 + 1, 2));
        // The image that is not there yet does not keep the others from being read.
        for _ in 0..2 {
            attempts.ends_with(Reason::ImageNotFound);
            assert_eq!((attempts.reads(), attempts.kept()), (6 + 1, 6));
            assert_eq!(attempts.names(), attempts.only_manifests());
        }
        Image::new(Types::Oci, &[Layer::new("late", 1000)]).push(&attempts.source, "late:1");
        attempts.ends_with(Reason::Succeeded);
        assert_eq!(attempts.reads(), 7 + 1);
        assert_eq!(attempts.names(), WHOLE);
    }
}

#[test]
fn what_was_read_for_a_payload_that_can_never_be_is_not_kept() {
    for attempts in Attempts::each() {
        attempts.proxy.does(Misdeed::Delay(Duration::ZERO), "GET", MANIFESTS, 2);
        attempts.proxy.does(Misdeed::pause("429 Too Many Requests", 3600), "GET", MANIFESTS, 1);
        attempts.ends_with(Reason::RateLimited);
        assert_eq!(attempts.names(), attempts.only_manifests());
        attempts.proxy.does(Misdeed::Answer("403 Forbidden", vec![]), "HEAD", "/v2/three/", usize::MAX);
        attempts.ends_with(Reason::AccessDenied);
        assert_eq!(attempts.names(), [""; 0]);
    }
}

#[test]
fn what_is_kept_of_a_plan_is_named_and_the_right_list_of_images_has_use_for_it() {
    let source = source(Software::Distribution3);
    let (proxy, folder) = (Proxy::before(&source), tempfile::tempdir().unwrap());
    let file = folder.path().join("payload.zip");
    let make = |images: &str| {
        let make = charon(["make-payload", images, "-q", "-i", "-r", proxy.host(), "-f"]);
        make.arguments([&file]).run()
    };
    let names = || fs::read_dir(folder.path()).unwrap().count();
    // Where nothing was read nothing is left.
    let mistyped = make("tow:1").ended_with(1).stderr;
    assert!(!mistyped.contains("kept") && names() == 0, "{mistyped}");
    let mistyped = make("one:1,tow:1").ended_with(1).stderr;
    let told = format!(
        "warning: the manifests that were read are kept in {}.partial.journal, for the next attempt; remove it if there is to be none\n",
        file.display()
    );
    assert!(mistyped.contains(&told) && names() == 1, "{mistyped}");
    make("one:1,two:1").succeeded();
    assert_eq!(proxy.count("GET", READS), 6);
    assert_eq!(names(), 2, "more than the payload and its bill");
}

/// A registry with an image, and with what refers to it in an index under its fallback tag.
fn signed() -> Registry {
    let source = Registry::start(Software::Distribution3);
    let image = Image::new(Types::Oci, &[Layer::new("a", 1000)]);
    image.push(&source, "one:1");
    crate::dry_runs::refer(&source, "one", &image);
    source
}

#[test]
fn the_index_that_lists_what_refers_to_an_image_is_not_read_twice() {
    let (source, folder) = (signed(), tempfile::tempdir().unwrap());
    let proxy = Proxy::before(&source);
    let make = || {
        let make = charon(["make-payload", "one:1", "-q", "-i", "-r", proxy.host(), "-f", "out.zip"]);
        make.in_folder(folder.path()).run()
    };
    // The image and the index are read, and what is listed there comes at the second attempt.
    proxy.does(Misdeed::Delay(Duration::ZERO), "GET", MANIFESTS, 2);
    proxy.does(Misdeed::pause("429 Too Many Requests", 3600), "GET", MANIFESTS, 1);
    make().ended_with(1);
    make().succeeded();
    assert_eq!(proxy.count("GET", MANIFESTS), 3 + 1);
}

#[test]
fn where_a_registry_tells_no_digests_each_manifest_that_is_read_to_know_one_is_counted() {
    let source = signed();
    let proxy = Proxy::before(&source);
    proxy.does(Misdeed::WithoutHeader("docker-content-digest"), "HEAD", MANIFESTS, usize::MAX);
    let planned =
        charon(["make-payload", "one:1", "-q", "-i", "-r", proxy.host(), "--dry-run"]).run().succeeded();
    let read = proxy.count("GET", MANIFESTS);
    assert_eq!(
        crate::dry_runs::line(&planned.text(), "manifests read"),
        format!("{read} of {}", proxy.host())
    );
    assert_eq!(read, 3);
}
