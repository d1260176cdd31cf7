//! Payloads that are not what they should be: what is told, and that nothing false arrives.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::image::{Image, Layer, Types, digest};
use crate::program::{Program, charon};
use crate::registry::{Registry, Software};

with_each_registry!(
    a_file_that_was_cut_is_told_and_nothing_is_pushed,
    a_stream_that_was_cut_is_told_and_no_tag_appears,
    an_altered_blob_is_never_committed_and_images_without_it_are_pushed,
    an_altered_blob_in_a_stream_is_never_committed_and_no_tag_appears,
    an_altered_manifest_is_told_and_nothing_is_pushed,
);

/// A payload with `one:1` and `two:1`, which share nothing.
struct Payload {
    bytes: Vec<u8>,
    one: Image,
    folder: TempDir,
}

impl Payload {
    fn new(software: Software) -> Self {
        let source = Registry::start(software);
        let [one, two] = ["one", "two"].map(|name| Image::new(Types::Docker, &[Layer::new(name, 300_000)]));
        one.push(&source, "one:1");
        two.push(&source, "two:1");
        let made = charon(["make-payload", "one:1,two:1", "-i", "-r", source.host()]).run().succeeded();
        Self { bytes: made.stdout, one, folder: tempfile::tempdir().unwrap() }
    }

    /// Where something lies in the payload.
    fn position(&self, of: &[u8]) -> usize {
        self.bytes.windows(of.len()).position(|window| window == of).expect("the payload has it")
    }

    /// The payload with one bit turned.
    fn altered(&self, position: usize) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        bytes[position] ^= 1;
        bytes
    }

    fn file(&self, bytes: &[u8]) -> PathBuf {
        let path = self.folder.path().join("payload.zip");
        fs::write(&path, bytes).unwrap();
        path
    }
}

fn push(target: &Registry) -> Program {
    charon(["push-payload", "-q", "-i", "-r", target.host()])
}

fn push_file(target: &Registry, file: &Path) -> Program {
    push(target).arguments(["-f"]).arguments([file])
}

fn a_file_that_was_cut_is_told_and_nothing_is_pushed(software: Software) {
    let (payload, target) = (Payload::new(software), Registry::start(software));
    let whole = payload.bytes.len();
    let layer = payload.position(&payload.one.blobs[1]);
    let again = "copy it again, or wait until the copy is done";
    for (length, why) in [
        (0, "it is empty".to_owned()),
        (20, "it has 20 bytes".to_owned()),
        (100, "it has 100 bytes, and ends within its bill".to_owned()),
        (layer + 1000, format!("it has {} of {whole} bytes", layer + 1000)),
        (whole - 1, format!("it has {} of {whole} bytes", whole - 1)),
    ] {
        let file = payload.file(&payload.bytes[..length]);
        // By its name, and as standard input: a file is read by position either way.
        let by_name = push_file(&target, &file).run().ended_with(1);
        let why = format!("the payload is not complete: {why}; {again}");
        assert_eq!(by_name.stderr, format!("error: {}: {why}\n", file.display()));
        let as_input = push(&target).reading(File::open(&file).unwrap()).run().ended_with(1);
        assert_eq!(
            (as_input.text(), as_input.stderr),
            (String::new(), format!("error: standard input: {why}\n"))
        );
    }
    assert!(target.is_empty());
}

fn a_stream_that_was_cut_is_told_and_no_tag_appears(software: Software) {
    let (payload, target) = (Payload::new(software), Registry::start(software));
    let layer = payload.position(&payload.one.blobs[1]);
    let again = "copy it again, or wait until the copy is done";
    for (length, why) in [
        (0, "it is empty"),
        (100, "the stream ended early"),
        (layer + 1000, "the stream ended early"),
        // All blobs have passed by then.
        (payload.bytes.len() - 1, "the stream ended early"),
    ] {
        let pushed = push(&target).fed(&payload.bytes[..length]).run().ended_with(1);
        assert_eq!(
            pushed.stderr,
            format!("error: standard input: the payload is not complete: {why}; {again}\n"),
            "{length}"
        );
        assert_eq!(pushed.text(), "");
    }
    for repository in ["one", "two"] {
        assert_eq!(target.tags(repository), Vec::<String>::new());
    }
    assert!(!target.stores(&payload.one.digest));
}

fn an_altered_blob_is_never_committed_and_images_without_it_are_pushed(software: Software) {
    let (payload, target) = (Payload::new(software), Registry::start(software));
    let layer = &payload.one.blobs[1];
    let mut wrong = layer.clone();
    wrong[200_000] ^= 1;
    let file = payload.file(&payload.altered(payload.position(layer) + 200_000));
    let why = format!(
        "the payload is corrupt: {} has the digest {}; copy it again from where it was made",
        digest(layer),
        digest(&wrong)
    );
    for pushed in [push_file(&target, &file), push(&target).reading(File::open(&file).unwrap())] {
        let pushed = pushed.run().ended_with(1);
        assert_eq!(pushed.stderr, format!("error: one:1: {why}\n"));
        assert_eq!(pushed.text(), "two:1\n");
    }
    assert!(!target.stores(&digest(layer)) && !target.stores(&digest(&wrong)));
    assert!(!target.has_blob("one", &digest(layer)));
    assert!(!target.stores(&payload.one.digest));
    assert_eq!((target.tags("one"), target.tags("two")), (vec![], vec!["1".to_owned()]));
}

fn an_altered_blob_in_a_stream_is_never_committed_and_no_tag_appears(software: Software) {
    let (payload, target) = (Payload::new(software), Registry::start(software));
    let layer = &payload.one.blobs[1];
    let mut wrong = layer.clone();
    wrong[200_000] ^= 1;
    let altered = payload.altered(payload.position(layer) + 200_000);
    let pushed = push(&target).fed(altered).run().ended_with(1);
    assert_eq!(
        pushed.stderr,
        format!(
            "error: standard input: the payload is corrupt: {} has the digest {}; copy it again from where it was made\n",
            digest(layer),
            digest(&wrong)
        )
    );
    assert_eq!(pushed.text(), "");
    assert!(!target.stores(&digest(layer)) && !target.stores(&digest(&wrong)));
    assert_eq!((target.tags("one"), target.tags("two")), (vec![], vec![]));
}

fn an_altered_manifest_is_told_and_nothing_is_pushed(software: Software) {
    let (payload, target) = (Payload::new(software), Registry::start(software));
    let mut wrong = payload.one.manifest.clone();
    wrong[50] ^= 1;
    let altered = payload.altered(payload.position(&payload.one.manifest) + 50);
    let file = payload.file(&altered);
    let why = format!(
        "the payload is corrupt: {} has the digest {}; copy it again from where it was made",
        payload.one.digest,
        digest(&wrong)
    );
    let told = push_file(&target, &file).run().ended_with(1).stderr;
    assert_eq!(told, format!("error: {}: {why}\n", file.display()));
    let streamed = push(&target).fed(altered).run().ended_with(1).stderr;
    assert_eq!(streamed, format!("error: standard input: {why}\n"));
    assert!(target.is_empty());
}

#[test]
fn a_file_that_is_no_payload_is_told() {
    let target = Registry::start(Software::Distribution3);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("payload.zip");
    let asked = "was it made by charon make-payload?";
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    zip.start_file(
        "holiday.jpg",
        zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored),
    )
    .unwrap();
    let other_zip = zip.finish().unwrap().into_inner();
    let text = b"#!/bin/sh\necho I am a script, and long enough to be taken for something else\n".to_vec();
    for (bytes, why) in [
        (text, format!("this is no payload: it is no zip; {asked}")),
        (
            other_zip,
            format!("this is no payload: it is a zip with neither charon.json at its start nor payload_descriptor.json; {asked}"),
        ),
        (
            vec![0; 1000],
            "the payload is not complete: it begins with zeros; copy it again, or wait until the copy is done".to_owned(),
        ),
    ] {
        fs::write(&file, &bytes).unwrap();
        let told = push_file(&target, &file).run().ended_with(1).stderr;
        assert_eq!(told, format!("error: {}: {why}\n", file.display()));
        let told = push(&target).fed(bytes).run().ended_with(1).stderr;
        assert_eq!(told, format!("error: standard input: {why}\n"));
    }
    assert!(target.is_empty());
}

#[test]
fn a_file_that_cannot_be_opened_is_told() {
    let target = Registry::start(Software::Distribution3);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("payload.zip");
    let path = file.display();
    assert_eq!(
        push_file(&target, &file).run().ended_with(1).stderr,
        format!("error: there is no file {path}; copy the payload there, or name the right file\n")
    );
    fs::create_dir(&file).unwrap();
    assert_eq!(
        push_file(&target, &file).run().ended_with(1).stderr,
        format!("error: cannot read {path}: is a directory; name a file in it\n")
    );
}
