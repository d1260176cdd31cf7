//! The payload as a file that other programs read.

use std::fs::{self, File};
use std::path::Path;

use crate::image::{Image, Layer, Types};
use crate::program::{charon, tool};
use crate::registry::{Registry, Software};

with_each_registry!(
    shared_blobs_are_carried_once,
    the_same_images_give_the_same_bytes_in_a_file_and_on_standard_output,
);

fn make(source: &Registry, images: &str, path: &Path) {
    let made = charon(["make-payload", images, "-i", "-r", source.host(), "-f"]).arguments([path]);
    made.run().succeeded();
}

/// The names of a zip's entries, as a reader that is not ours tells them.
fn entries(path: &Path) -> Vec<String> {
    let zip = zip::ZipArchive::new(File::open(path).unwrap()).unwrap();
    let mut names: Vec<String> = zip.file_names().map(|name| name.unwrap().into_owned()).collect();
    names.sort();
    names
}

fn entry_of(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

fn shared_blobs_are_carried_once(software: Software) {
    let folder = tempfile::tempdir().unwrap();
    let source = Registry::start(software);
    let base = Layer::new("base", 5000);
    let images = ["one", "two"].map(|name| Image::new(Types::Docker, &[base.clone(), Layer::new(name, 100)]));
    images[0].push(&source, "one:1");
    images[1].push(&source, "two:1");
    // The same image again under another name.
    images[1].push(&source, "three:1");
    let path = folder.path().join("payload.zip");
    make(&source, "one:1,two:1,three:1", &path);

    let blobs = images.iter().flat_map(|image| image.blobs.iter().map(|blob| crate::image::digest(blob)));
    let mut expected: Vec<String> = blobs.map(|digest| entry_of(&digest)).collect();
    expected.extend(images.iter().map(|image| entry_of(&image.digest)));
    expected
        .extend(["charon.json", "oci-layout", "index.json", "payload_descriptor.json"].map(str::to_owned));
    expected.sort();
    expected.dedup();
    assert_eq!(entries(&path), expected);
}

fn the_same_images_give_the_same_bytes_in_a_file_and_on_standard_output(software: Software) {
    let folder = tempfile::tempdir().unwrap();
    let source = Registry::start(software);
    let image = Image::new(Types::Oci, &[Layer::new("oar", 70_000)]);
    image.push(&source, "ferry:1");
    Image::index(Types::Oci, &[image]).push(&source, "ferry:2");
    let [one, two] = ["one.zip", "two.zip"].map(|name| folder.path().join(name));
    make(&source, "ferry:1,ferry:2", &one);
    make(&source, "ferry:1,ferry:2", &two);
    let bytes = fs::read(one).unwrap();
    assert!(bytes == fs::read(two).unwrap());
    let made = charon(["make-payload", "ferry:1,ferry:2", "-i", "-r", source.host()]).run().succeeded();
    assert!(bytes == made.stdout);
}

#[test]
fn unzip_and_pythons_zipfile_accept_it_and_crane_pushes_what_they_unpack() {
    let folder = tempfile::tempdir().unwrap();
    let source = Registry::start(Software::Distribution3);
    let layers = [Layer::new("oar", 70_000), Layer::without_files()];
    let cases = [
        ("docker:1", Image::new(Types::Docker, &layers)),
        ("oci:1", Image::new(Types::Oci, &layers)),
        ("index:1", Image::index(Types::Oci, &[Image::new(Types::Oci, &layers)])),
    ];
    for (name, image) in cases {
        image.push(&source, name);
        let path = folder.path().join("payload.zip");
        make(&source, name, &path);

        tool("unzip", ["-q", "-t"]).arguments([&path]).run().succeeded();
        let test = "import sys, zipfile; zip = zipfile.ZipFile(sys.argv[1]); sys.exit(zip.testzip())";
        tool("python3", ["-c", test]).arguments([&path]).run().succeeded();

        let layout = folder.path().join(name);
        tool("unzip", ["-q", "-d"]).arguments([&layout, &path]).run().succeeded();
        let far = Registry::start(Software::Distribution3);
        let push = tool("crane", ["push", "--insecure"]).arguments([&layout]);
        push.arguments([far.name(name)]).run().succeeded();
        image.assert_is_whole_in(&far, name);
    }
}
