//! Payloads that lie in an object store: built into it, told of, verified and pushed from it.

use std::fs;

use crate::image::{Image, Layer, Types};
use crate::program::{charon, crane_digest, crane_validates, tool};
use crate::registry::{Registry, Software};
use crate::s3::S3;

const OBJECT: &str = "s3://transfer/ferry.zip";

/// A registry with an image of layers of these sizes, in MiB.
fn source(layers: &[usize]) -> (Registry, Image) {
    let source = Registry::start(Software::Distribution3);
    let layers: Vec<Layer> =
        layers.iter().enumerate().map(|(index, size)| Layer::new(&format!("layer-{index}"), size << 20)).collect();
    let image = Image::new(Types::Oci, &layers);
    image.push(&source, "ferry:1");
    (source, image)
}

#[test]
fn a_payload_goes_through_a_bucket_and_has_the_bytes_that_it_has_in_a_file() {
    let (source, image) = source(&[1, 20, 3]);
    let (store, far) = (S3::start(), Registry::start(Software::Distribution3));
    let make = || charon(["make-payload", "ferry:1", "-i", "-r", source.host(), "-f"]);
    let ended = store.lets(make().arguments([OBJECT])).run().succeeded();
    assert!(ended.stderr.contains("Wrote s3://transfer/ferry.zip, "), "{}", ended.stderr);
    assert_eq!(store.keys(), ["ferry.zip"]);
    assert_eq!(store.open_uploads(), 0);

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ferry.zip");
    make().arguments([&file]).run().succeeded();
    assert!(fs::read(store.file("ferry.zip")).unwrap() == fs::read(file).unwrap());
    let python = "import sys, zipfile; assert zipfile.ZipFile(sys.argv[1]).testzip() is None";
    tool("python3", ["-c", python]).arguments([store.file("ferry.zip")]).run().succeeded();

    let told = store.lets(charon(["inspect", OBJECT])).run().succeeded().text();
    assert!(told.contains("ferry:1"), "{told}");
    let told = store.lets(charon(["verify", OBJECT])).run().succeeded().text();
    assert!(told.starts_with("s3://transfer/ferry.zip is whole: 1 image, 4 blobs"), "{told}");

    let push = charon(["push-payload", "-i", "-r", far.host(), "-f", OBJECT]);
    assert_eq!(store.lets(push).run().succeeded().text(), "ferry:1\n");
    image.assert_is_whole_in(&far, "ferry:1");
    crane_validates(&far.name("ferry:1"));
    assert_eq!(crane_digest(&far.name("ferry:1")), image.digest);
}
