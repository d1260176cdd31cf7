//! What a push does at the same time: nothing waits for what it does not need.

use std::sync::{Arc, Barrier};
use std::time::Duration;

use tempfile::TempDir;

use crate::image::{Image, Layer, Types};
use crate::program::{Program, charon};
use crate::proxy::{Misdeed, Proxy};
use crate::registry::{Registry, Software};

const REPOSITORIES: usize = 5;

/// A payload of images in repositories of their own, a far side, and what is before it.
struct Crossing {
    images: Vec<(String, Image)>,
    target: Registry,
    proxy: Proxy,
    folder: TempDir,
}

impl Crossing {
    fn of(layers: impl Fn(&str) -> Vec<Layer>) -> Self {
        let source = Registry::start(Software::Distribution3);
        let names = (0..REPOSITORIES).map(|index| format!("ferry-{index}:1"));
        let images: Vec<_> =
            names.map(|name| (name.clone(), Image::new(Types::Oci, &layers(&name)))).collect();
        for (name, image) in &images {
            image.push(&source, name);
        }
        let folder = tempfile::tempdir().unwrap();
        let names: Vec<&str> = images.iter().map(|(name, _)| name.as_str()).collect();
        let make = charon(["make-payload", &names.join(","), "-q", "-i", "-r", source.host(), "-f"]);
        make.arguments([folder.path().join("payload.zip")]).run().succeeded();
        let target = Registry::start(Software::Distribution3);
        let proxy = Proxy::before(&target);
        Self { images, target, proxy, folder }
    }

    /// So many of the next requests like this go on when all of them are there, and not before.
    fn hold_until_all_came(&self, count: usize, method: &'static str, part: &str) {
        let all = Arc::new(Barrier::new(count));
        self.proxy.does(Misdeed::Together(all), method, part, count);
    }

    fn push(&self) -> Program {
        let push = charon(["push-payload", "-q", "-i", "-r", self.proxy.host(), "-f"]);
        push.arguments([self.folder.path().join("payload.zip")])
    }

    fn assert_arrived(&self) {
        for (name, image) in &self.images {
            image.assert_is_whole_in(&self.target, name);
        }
    }
}

#[test]
fn a_blob_of_many_repositories_is_asked_for_and_mounted_in_all_of_them_at_once() {
    let shared = Layer::new("shared", 1 << 20);
    let crossing = Crossing::of(|name| vec![shared.clone(), Layer::new(name, 1000)]);
    crossing.hold_until_all_came(REPOSITORIES, "HEAD", &shared.digest());
    crossing.hold_until_all_came(REPOSITORIES - 1, "POST", "mount=");
    crossing.push().run().succeeded();
    // None of them was given up and asked again.
    assert_eq!(crossing.proxy.count("HEAD", &shared.digest()), REPOSITORIES);
    assert_eq!(crossing.proxy.count("POST", "mount="), REPOSITORIES - 1);
    crossing.assert_arrived();
}

#[test]
fn a_blob_that_cannot_be_mounted_from_where_it_was_said_to_be_is_sent_once_and_mounted_from_there() {
    let shared = Layer::new("shared", 1 << 20);
    let crossing = Crossing::of(|name| vec![shared.clone(), Layer::new(name, 1000)]);
    let lies = format!("/ferry-{}/blobs/{}", REPOSITORIES - 1, shared.digest());
    crossing.proxy.does(Misdeed::Answer("200 OK", vec![]), "HEAD", &lies, 1);
    crossing.push().run().succeeded();
    let uploads = crossing.proxy.seen();
    let uploads = uploads.iter().filter(|request| {
        request.method == "PUT"
            && request.target.contains("/blobs/")
            && request.passed > shared.bytes.len() / 2
    });
    // And once to the one that has it not, when it does not take its manifest.
    assert_eq!(uploads.count(), 1 + 1);
    crossing.assert_arrived();
}

#[test]
fn small_blobs_do_not_wait_for_large_ones() {
    let crossing = Crossing::of(|name| vec![Layer::new(name, 100 << 10)]);
    // Whether one may push is found out beforehand, in each repository.
    crossing.proxy.does(Misdeed::Delay(Duration::ZERO), "POST", "/blobs/uploads/", REPOSITORIES);
    // Four of the large ones, as many as are under way at once, and one small one.
    crossing.hold_until_all_came(4 + 1, "POST", "/blobs/uploads/");
    crossing.push().run().succeeded();
    // None of them was given up and begun again. Each image has a layer and a configuration.
    assert_eq!(crossing.proxy.count("POST", "/blobs/uploads/"), REPOSITORIES + 2 * REPOSITORIES);
    crossing.assert_arrived();
}
