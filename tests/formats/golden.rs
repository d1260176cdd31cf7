//! Two payloads that never change: what is written today is what these files have, byte by byte, and what they have is
//! read for as long as their format version is.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use crate::image::{Image, Layer, Types};
use crate::payload::payload;
use crate::program::charon;
use crate::registry::{Registry, Software};

/// The images of the golden payloads.
pub(crate) struct Golden {
    base: Image,
    top: Image,
    list: Image,
}

impl Golden {
    pub(crate) fn new() -> Self {
        let layers = [Layer::new("one", 40), Layer::new("two", 40)];
        let top = [&layers[..], &[Layer::new("three", 40)]].concat();
        let children = ["amd64", "arm64"]
            .map(|name| Image::for_platform(Types::Oci, name, &[layers[0].clone(), Layer::new(name, 40)]));
        Self {
            base: Image::new(Types::Docker, &layers),
            top: Image::new(Types::Docker, &top),
            list: Image::index(Types::Oci, &children),
        }
    }

    /// Docker's types, with a base that is only named: docker-charon can push it.
    pub(crate) fn docker(&self) -> Vec<u8> {
        payload(&[("team/top:2", &self.top), ("base", &self.base)], Some(("base", &self.base)))
    }

    /// OCI's types, an index, names with a host and with a digest.
    pub(crate) fn oci(&self) -> Vec<u8> {
        let child = &self.list.children[1];
        let by_digest = format!("quay.io/list@{}", child.digest);
        payload(&[("quay.io/list:1", &self.list), (&by_digest, child)], None)
    }
}

/// The path of a golden file.
pub(crate) fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/formats/golden").join(name)
}

#[test]
fn what_is_written_has_not_changed() {
    let golden = Golden::new();
    for (name, written) in [("docker.zip", golden.docker()), ("oci.zip", golden.oci())] {
        let path = file(name);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&path, &written).unwrap();
        }
        assert!(
            written == fs::read(&path).unwrap(),
            "{name} would be written in other bytes than those in tests/formats/golden. If that is meant, readers in \
             the field must be able to read it, or it needs a new format version; UPDATE_GOLDEN=1 writes the file."
        );
    }
}

#[test]
fn the_bill_and_the_other_tables_read_as_they_always_did() {
    for name in ["docker.zip", "oci.zip"] {
        let mut zip = zip::ZipArchive::new(fs::File::open(file(name)).unwrap()).unwrap();
        let mut text = String::new();
        for index in 0..zip.len() {
            use std::io::Read;
            let mut entry = zip.by_index(index).unwrap();
            writeln!(text, "{} ({} bytes)", entry.name().unwrap(), entry.size()).unwrap();
            if !entry.name().unwrap().starts_with("blobs/") {
                entry.read_to_string(&mut text).unwrap();
                text += "\n";
            }
        }
        insta::assert_snapshot!(name, text);
    }
}

#[test]
fn what_was_written_once_is_still_pushed() {
    let golden = Golden::new();
    let target = Registry::start(Software::Distribution3);
    golden.base.push(&target, "base:latest");
    for (name, printed) in [
        ("docker.zip", "team/top:2\nbase\n".to_owned()),
        ("oci.zip", format!("quay.io/list:1\nquay.io/list@{}\n", golden.list.children[1].digest)),
    ] {
        let pushed = charon(["push-payload", "-i", "-r", target.host(), "-f"]).arguments([file(name)]).run();
        assert_eq!(pushed.succeeded().text(), printed);
    }
    golden.top.assert_is_whole_in(&target, "team/top:2");
    golden.list.assert_is_whole_in(&target, "list:1");
}
