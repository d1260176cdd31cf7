//! The same images give the same bytes, whoever builds and wherever.

use std::fs;

use crate::image::{Image, Layer, Types};
use crate::program::charon;
use crate::registry::{Registry, Software};

#[test]
fn the_same_build_gives_the_same_bytes_at_another_place_in_another_zone_and_in_another_tongue() {
    let source = Registry::start(Software::Distribution3);
    let layers = [Layer::new("one", 70_000), Layer::new("two", 300)];
    Image::new(Types::Docker, &layers[..1]).push(&source, "base:1");
    Image::new(Types::Docker, &layers).push(&source, "top:1");
    let child = Image::new(Types::Oci, &layers);
    Image::index(Types::Oci, &[child]).push(&source, "list:1");
    let build = |zone: &str, tongue: &str| {
        let folder = tempfile::tempdir().unwrap();
        let made = charon(["make-payload", "top:1,list:1,base:1", "-a", "base:1", "-i", "-r", source.host()]);
        let made = made.arguments(["-f", "payload.zip"]).in_folder(folder.path());
        made.variable("TZ", zone)
            .variable("LC_ALL", tongue)
            .variable("HOME", folder.path())
            .run()
            .succeeded();
        fs::read(folder.path().join("payload.zip")).unwrap()
    };
    assert!(build("Pacific/Auckland", "C") == build("America/Los_Angeles", "el_GR.UTF-8"));
}
