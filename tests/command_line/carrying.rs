//! What goes in comes out: files, pipes, and what is printed.

use std::fs::{self, File};

use crate::image::{Image, Layer, Types};
use crate::program::{charon, crane_digest, crane_validates, tool};
use crate::registry::{Registry, Software};

with_each_registry!(
    images_arrive_through_a_file_with_their_digests,
    images_arrive_through_a_pipe_and_no_file_is_written,
    images_arrive_through_a_pipe_with_a_name,
    images_arrive_from_a_file_that_is_standard_input,
    standard_output_has_the_images_in_payload_order_and_nothing_else,
);

/// A source with two images that crane made.
fn source_by_crane(software: Software, folder: &std::path::Path) -> Registry {
    let source = Registry::start(software);
    for (image, file) in [("ferry:1", "oar"), ("river/styx:deep", "water")] {
        fs::write(folder.join(file), fastrand::u128(..).to_string()).unwrap();
        let tar = format!("{file}.tar");
        tool("tar", ["--create", "--file", tar.as_str(), file]).in_folder(folder).run().succeeded();
        let name = source.name(image);
        let append = ["append", "--insecure", "--new_layer", tar.as_str(), "--new_tag", name.as_str()];
        tool("crane", append).in_folder(folder).run().succeeded();
    }
    source
}

fn images_arrive_through_a_file_with_their_digests(software: Software) {
    let folder = tempfile::tempdir().unwrap();
    let (source, target) = (source_by_crane(software, folder.path()), Registry::start(software));
    let payload = folder.path().join("payload.zip");

    let made = charon(["make-payload", "ferry:1,river/styx:deep", "-i", "-r", source.host(), "-f"]);
    let made = made.arguments([&payload]).run().succeeded();
    assert_eq!(made.text(), "");
    let pushed = charon(["push-payload", "-i", "-r", target.host(), "-f"]).arguments([&payload]).run();
    assert_eq!(pushed.succeeded().text(), "ferry:1\nriver/styx:deep\n");

    for image in ["ferry:1", "river/styx:deep"] {
        assert_eq!(crane_digest(&target.name(image)), crane_digest(&source.name(image)));
        crane_validates(&target.name(image));
    }
}

fn images_arrive_through_a_pipe_and_no_file_is_written(software: Software) {
    let folder = tempfile::tempdir().unwrap();
    let (source, target) = (source_by_crane(software, folder.path()), Registry::start(software));

    // Who is allowed files of no bytes cannot put anything aside.
    let made = charon(["make-payload", "ferry:1", "river/styx:deep", "-i", "-r", source.host()]);
    let mut made = made.by("prlimit", &["--fsize=0"]).start();
    let pushed = charon(["push-payload", "-i", "-r", target.host()]).by("prlimit", &["--fsize=0"]);
    let pushed = pushed.reading(made.output()).run();
    made.end().succeeded();
    assert_eq!(pushed.succeeded().text(), "ferry:1\nriver/styx:deep\n");

    for image in ["ferry:1", "river/styx:deep"] {
        assert_eq!(crane_digest(&target.name(image)), crane_digest(&source.name(image)));
        crane_validates(&target.name(image));
    }
}

fn images_arrive_through_a_pipe_with_a_name(software: Software) {
    let folder = tempfile::tempdir().unwrap();
    let (source, target) = (Registry::start(software), Registry::start(software));
    let image = Image::new(Types::Docker, &[Layer::new("oar", 3000)]);
    image.push(&source, "ferry:1");
    tool("mkfifo", ["pipe"]).in_folder(folder.path()).run().succeeded();
    let made = charon(["make-payload", "ferry:1", "-i", "-r", source.host(), "-f", "pipe"]);
    let made = made.in_folder(folder.path()).start();
    let pushed = charon(["push-payload", "-i", "-r", target.host(), "-f", "pipe"]).in_folder(folder.path());
    assert_eq!(pushed.run().succeeded().text(), "ferry:1\n");
    made.end().succeeded();
    image.assert_is_whole_in(&target, "ferry:1");
}

fn images_arrive_from_a_file_that_is_standard_input(software: Software) {
    let folder = tempfile::tempdir().unwrap();
    let (source, target) = (Registry::start(software), Registry::start(software));
    let image = Image::new(Types::Docker, &[Layer::new("oar", 3000)]);
    image.push(&source, "ferry:1");
    let payload = folder.path().join("payload.zip");

    let made = charon(["make-payload", "ferry:1", "-i", "-r", source.host()]);
    made.writing(File::create(&payload).unwrap()).run().succeeded();
    let pushed = charon(["push-payload", "-i", "-r", target.host()]).reading(File::open(&payload).unwrap());
    assert_eq!(pushed.run().succeeded().text(), "ferry:1\n");
    image.assert_is_whole_in(&target, "ferry:1");
}

fn standard_output_has_the_images_in_payload_order_and_nothing_else(software: Software) {
    let (source, target) = (Registry::start(software), Registry::start(software));
    for name in ["b:1", "c:1", "a:1"] {
        Image::new(Types::Oci, &[Layer::new(name, 100)]).push(&source, name);
    }
    let payload = |images: &[&str]| {
        let made = charon(["make-payload", "-i", "-r", source.host()]).arguments(images);
        made.run().succeeded().stdout
    };
    let push = |payload: Vec<u8>| {
        let pushed = charon(["push-payload", "-i", "-v", "-r", target.host()]).fed(payload);
        pushed.run().succeeded().text()
    };

    assert_eq!(push(payload(&["b:1"])), "b:1\n");
    // What was there already is told in its place.
    assert_eq!(push(payload(&["c:1", "b:1", "a:1"])), "c:1\nb:1\na:1\n");
}
