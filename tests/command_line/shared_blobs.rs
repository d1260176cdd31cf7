//! A blob that several images have: lost in one repository, it is had from another.

use std::fs;

use crate::image::{Image, Layer, Types, digest};
use crate::program::{Program, charon};
use crate::proxy::{Misdeed, Proxy};
use crate::registry::{Registry, Software};

with_each_registry!(
    a_blob_that_one_repository_lost_or_denies_is_had_from_another,
    a_blob_that_every_repository_lost_fails_all_its_images,
);

const ALWAYS: usize = usize::MAX;

fn shared() -> Layer {
    Layer::new("shared", 3 << 20)
}

/// Two images of a registry that share a layer.
fn source(software: Software) -> Registry {
    let source = Registry::start(software);
    for name in ["lost", "good"] {
        Image::new(Types::Oci, &[shared(), Layer::new(name, 1000)]).push(&source, &format!("me/{name}:1"));
    }
    source
}

/// The payload, in a file and as a stream: the same bytes.
fn payload(make: impl Fn() -> Program) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("payload.zip");
    make().arguments(["-f"]).arguments([&file]).run().succeeded();
    let bytes = fs::read(&file).unwrap();
    assert!(make().run().succeeded().stdout == bytes);
    bytes
}

fn a_blob_that_one_repository_lost_or_denies_is_had_from_another(software: Software) {
    let source = source(software);
    for status in ["404 Not Found", "403 Forbidden"] {
        let proxy = Proxy::before(&source);
        let make = || charon(["make-payload", "me/lost:1,me/good:1", "-q", "-i", "-r", proxy.host()]);
        let undisturbed = payload(make);
        let blob = format!("/me/lost/blobs/{}", shared().digest());
        for method in ["HEAD", "GET"] {
            proxy.does(Misdeed::Answer(status, vec![]), method, &blob, ALWAYS);
        }
        assert!(payload(make) == undisturbed);
    }
}

fn a_blob_that_every_repository_lost_fails_all_its_images(software: Software) {
    let source = source(software);
    let lost = shared().digest();
    source.lose(&lost);
    let refused = charon(["make-payload", "me/lost:1,me/good:1", "-q", "-i", "-r", source.host()]);
    let refused = refused.run().ended_with(1);
    for name in ["me/lost:1", "me/good:1"] {
        assert!(refused.stderr.contains(&format!("error: {name}: cannot read blob ")), "{}", refused.stderr);
    }
    assert_eq!(refused.stderr.matches(&digest(&shared().bytes)).count(), 2, "{}", refused.stderr);
}
