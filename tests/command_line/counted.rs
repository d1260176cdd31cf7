//! How often the far side is asked, and how much it is sent: no more than is needed.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;

use crate::gate::wait_until;
use crate::image::{Image, Layer, Types, digest};
use crate::program::{Program, charon};
use crate::proxy::{Misdeed, Proxy, Request};
use crate::registry::{Registry, Software};

const ALWAYS: usize = usize::MAX;
const LAYER: usize = 1 << 20;

/// A payload in a file, of two images that share a layer, and a far side.
struct Crossing {
    images: [(&'static str, Image); 2],
    target: Registry,
    folder: TempDir,
}

impl Crossing {
    fn new() -> Self {
        let source = Registry::start(Software::Distribution3);
        let layers = |names: &[&str]| names.iter().map(|name| Layer::new(name, LAYER)).collect::<Vec<_>>();
        let images = [
            ("ferry:1", Image::new(Types::Oci, &layers(&["shared", "a", "b", "c", "d"]))),
            ("styx:1", Image::new(Types::Oci, &layers(&["shared", "e", "f", "g", "h"]))),
        ];
        for (name, image) in &images {
            image.push(&source, name);
        }
        let folder = tempfile::tempdir().unwrap();
        let make = charon(["make-payload", "ferry:1,styx:1", "-q", "-i", "-r", source.host(), "-f"]);
        make.arguments([folder.path().join("payload.zip")]).run().succeeded();
        Self { images, target: Registry::start(Software::Distribution3), folder }
    }

    fn payload(&self) -> PathBuf {
        self.folder.path().join("payload.zip")
    }

    fn push(&self, proxy: &Proxy, options: &[&str]) -> Program {
        let push = charon(["push-payload", "-q", "-i", "-r", proxy.host(), "-f"]).arguments([self.payload()]);
        push.arguments(options)
    }

    /// The bytes of the blobs that the far side does not have, each once.
    fn lacking(&self) -> usize {
        let blobs = self.images.iter().flat_map(|(_, image)| &image.blobs);
        let blobs: HashMap<String, usize> = blobs.map(|blob| (digest(blob), blob.len())).collect();
        blobs.iter().filter(|(digest, _)| !self.target.stores(digest)).map(|(_, size)| size).sum()
    }

    fn assert_arrived(&self) {
        for (name, image) in &self.images {
            image.assert_is_whole_in(&self.target, name);
        }
    }
}

fn is_upload(request: &Request) -> bool {
    request.method != "GET" && request.target.contains("/blobs/uploads/")
}

/// How often which blob was asked for in which repository, of the HEADs that came.
fn asked(proxy: &Proxy) -> HashMap<String, usize> {
    let mut asked = HashMap::new();
    for request in proxy.seen() {
        if request.method == "HEAD" && request.target.contains("/blobs/") {
            *asked.entry(request.target).or_default() += 1;
        }
    }
    asked
}

fn assert_asked_once(proxy: &Proxy) {
    let asked = asked(proxy);
    assert!(asked.values().all(|times| *times == 1), "{asked:?}");
}

fn sent(proxy: &Proxy) -> usize {
    proxy.seen().iter().filter(|request| is_upload(request)).map(|request| request.passed).sum()
}

#[test]
fn an_import_that_was_killed_and_is_started_again_asks_once_a_blob_and_sends_only_what_had_not_arrived() {
    let crossing = Crossing::new();
    let slow = Proxy::before(&crossing.target);
    for method in ["PUT", "PATCH"] {
        slow.does(Misdeed::Throttle(1 << 20), method, "/blobs/uploads/", ALWAYS);
    }
    let push = crossing.push(&slow, &[]).start();
    let all = crossing.lacking();
    wait_until("some blobs have arrived", || crossing.lacking() < all - 2 * LAYER);
    push.kill();
    push.end();
    let (lacking, target) = (crossing.lacking(), &crossing.target);
    assert!(lacking > 0 && target.tags("ferry").is_empty() && target.tags("styx").is_empty());

    let proxy = Proxy::before(target);
    crossing.push(&proxy, &[]).run().succeeded();
    crossing.assert_arrived();
    assert_asked_once(&proxy);
    assert!(sent(&proxy) <= lacking, "{} bytes were sent, {lacking} had not arrived", sent(&proxy));
}

#[test]
fn an_import_again_asks_for_tags_alone_and_a_deep_one_once_a_blob_and_neither_sends_any() {
    let crossing = Crossing::new();
    crossing.push(&Proxy::before(&crossing.target), &[]).run().succeeded();
    for options in [&[][..], &["--deep"]] {
        let proxy = Proxy::before(&crossing.target);
        crossing.push(&proxy, options).run().succeeded();
        assert_asked_once(&proxy);
        let is_deep = !options.is_empty();
        // Twice a config and five layers.
        assert_eq!(asked(&proxy).len(), if is_deep { 12 } else { 0 }, "{options:?}");
        assert_eq!(sent(&proxy), 0, "{options:?}");
        assert_eq!(proxy.count("PUT", "/manifests/"), if is_deep { 2 } else { 0 }, "{options:?}");
        // A tag that is right may be one that must not be put again.
        assert_eq!(proxy.count("PUT", "/manifests/1"), 0, "{options:?}");
    }
}

#[test]
fn what_a_registry_lost_behind_a_tag_is_pushed_again_if_that_is_asked_for() {
    let crossing = Crossing::new();
    let proxy = Proxy::before(&crossing.target);
    crossing.push(&proxy, &[]).run().succeeded();
    let lost = &crossing.images[0].1.blobs[2];
    crossing.target.lose(&digest(lost));
    crossing.push(&proxy, &[]).run().succeeded();
    assert!(!crossing.target.stores(&digest(lost)), "the tag is right, and nothing else is looked at");
    // What would be done is told, too.
    let told = crossing.push(&proxy, &["--deep", "--dry-run"]).run().succeeded().text();
    assert!(told.contains("it is pushed"), "{told}");
    let before = sent(&proxy);
    crossing.push(&proxy, &["--deep"]).run().succeeded();
    assert_eq!(sent(&proxy) - before, lost.len());
    crossing.assert_arrived();
}

#[test]
fn images_upon_one_base_ask_for_its_layers_once() {
    let source = Registry::start(Software::Distribution3);
    let target = Registry::start(Software::Distribution3);
    let base = Layer::new("base", 1000);
    for registry in [&source, &target] {
        Image::new(Types::Oci, std::slice::from_ref(&base)).push(registry, "base:1");
    }
    let names: Vec<String> = (0..8).map(|number| format!("top{number}:1")).collect();
    for name in &names {
        Image::new(Types::Oci, &[base.clone(), Layer::new(name, 1000)]).push(&source, name);
    }
    let make = charon(["make-payload", &names.join(","), "-a", "base:1", "-q", "-i", "-r", source.host()]);
    let payload = make.run().succeeded().stdout;
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), payload).unwrap();
    let proxy = Proxy::before(&target);
    // Who asks while another is being answered waits for that answer.
    proxy.does(Misdeed::Delay(Duration::from_millis(200)), "HEAD", "/blobs/", ALWAYS);
    let push = charon(["push-payload", "-q", "-s", "-i", "-r", proxy.host(), "-f"]).arguments([file.path()]);
    push.run().succeeded();
    assert_asked_once(&proxy);
    assert_eq!(asked(&proxy)[&format!("/v2/base/blobs/{}", base.digest())], 1);
}
