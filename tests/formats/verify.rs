//! `verify` finds every kind of damage, and names it.

use std::fmt::Write as _;
use std::fs;
use std::io::{Cursor, Write};

use zip::write::SimpleFileOptions;

use crate::golden::file;
use crate::image::digest;
use crate::program::{Ended, charon};

/// What the bill of the golden payload says of its blobs.
const CONFIG: &str = "sha256:eeb27d9a0d44e4006a003d3f58cf0bceb0e90be64f7942648854464b01f77a3b";
const LAYER: &str = "sha256:3eba02384897010af079c88424b75f03269086b27c22fd8890e855b9412d2344";
const OF_LAYER: &str = "\",\"size\":2071,\"kind\":\"blob\"";

fn verify(bytes: &[u8]) -> Ended {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("payload.zip"), bytes).unwrap();
    let ended = charon(["verify", "payload.zip"]).in_folder(folder.path()).run();
    assert!(ended.status == Some(0) || ended.stdout.is_empty(), "a damaged payload is called whole");
    ended
}

/// The golden payload with one byte altered, so far behind where these bytes stand for the `nth` time.
fn altered(find: &[u8], nth: usize, behind: usize) -> Vec<u8> {
    let mut bytes = fs::read(file("docker.zip")).unwrap();
    let found = bytes.windows(find.len()).enumerate().filter(|(_, window)| *window == find).nth(nth);
    let (position, _) = found.expect("the golden payload has these bytes");
    bytes[position + behind] ^= 1;
    bytes
}

/// The golden payload with a word of the bill replaced by one of the same length, and the checksum of the bill put right.
fn rewritten(word: &str, other: &str) -> Vec<u8> {
    assert_eq!(word.len(), other.len());
    let mut bytes = fs::read(file("docker.zip")).unwrap();
    let size = u32::from_le_bytes(bytes[18..22].try_into().unwrap()) as usize;
    let bill = String::from_utf8(bytes[41..41 + size].to_vec()).unwrap();
    assert!(bill.contains(word), "{bill}");
    let bill = bill.replacen(word, other, 1);
    bytes[41..41 + size].copy_from_slice(bill.as_bytes());
    let crc = crc32fast::hash(bill.as_bytes()).to_le_bytes();
    bytes[14..18].copy_from_slice(&crc);
    bytes
}

#[test]
fn a_whole_payload_is_told_with_its_digest_and_what_it_holds() {
    let bytes = fs::read(file("docker.zip")).unwrap();
    let size = u32::from_le_bytes(bytes[18..22].try_into().unwrap()) as usize;
    let told = verify(&bytes).succeeded();
    let digest = digest(&bytes[41..41 + size]);
    assert_eq!(told.text(), format!("payload.zip is whole: 2 images, 2 blobs, payload digest {digest}\n"));
}

#[test]
fn each_kind_of_damage_is_found_and_named() {
    let golden = fs::read(file("docker.zip")).unwrap();
    let mut said = String::new();
    for (damage, bytes) in [
        ("empty", Vec::new()),
        ("of zeros", vec![0; 1000]),
        ("another kind of file", b"a letter to the far side".to_vec()),
        ("another zip", {
            let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
            zip.start_file("letter", SimpleFileOptions::default()).unwrap();
            zip.write_all(b"to the far side").unwrap();
            zip.finish().unwrap().into_inner()
        }),
        ("cut in the bill's header", golden[..20].to_vec()),
        ("cut in the bill", golden[..100].to_vec()),
        ("cut in the middle", golden[..golden.len() / 2].to_vec()),
        ("cut before its last byte", golden[..golden.len() - 1].to_vec()),
        ("something behind its end", [&golden[..], b"x"].concat()),
        ("something before its start", [b"x", &golden[..]].concat()),
        ("altered in the bill", altered(b"formatVersion", 0, 20)),
        ("altered in oci-layout", altered(b"imageLayoutVersion", 0, 0)),
        ("altered in index.json", altered(b"schemaVersion\":2,\"mediaType", 0, 0)),
        ("altered in a manifest", altered(b"\"schemaVersion\": 2", 0, 3)),
        ("altered in a config", altered(b"diff_ids", 0, 0)),
        ("altered in a layer", altered(b"\x1f\x8b\x08", 0, 30)),
        ("altered in payload_descriptor.json", altered(b"manifests_paths", 0, 0)),
        ("altered in the header of oci-layout", altered(b"PK\x03\x04", 1, 14)),
        ("altered in the header of a blob", altered(b"PK\x03\x04", 4, 10)),
        ("altered in the checksum behind a blob", altered(b"PK\x07\x08", 0, 4)),
        ("altered in the directory", altered(b"PK\x01\x02", 2, 10)),
        ("altered in the directory's checksum of a blob", altered(b"PK\x01\x02", 4, 16)),
        ("altered in the end record", altered(b"PK\x05\x06", 0, 20)),
        ("of a later format", rewritten("\"formatVersion\":1", "\"formatVersion\":2")),
        (
            "of an encoding that is not known",
            rewritten("\"encoding\":\"identity\"", "\"encoding\":\"squeezed\""),
        ),
        ("with an entry twice", rewritten(&format!("{LAYER}{OF_LAYER}"), &format!("{CONFIG}{OF_LAYER}"))),
    ] {
        let ended = verify(&bytes).ended_with(1);
        write!(said, "{damage}:\n  {}", ended.stderr).unwrap();
    }
    insta::assert_snapshot!(said);
}

#[test]
fn a_byte_altered_anywhere_is_found() {
    let golden = fs::read(file("docker.zip")).unwrap();
    // The program is run for some of them, with all of the first header; src/payload tries more.
    for position in (0..42).chain((42..golden.len()).step_by(97)) {
        let mut bytes = golden.clone();
        bytes[position] ^= 0x20;
        verify(&bytes).ended_with(1);
    }
}

/// The only blob of what follows.
const BLOB: &[u8] = b"{}";

/// A payload in docker-charon's form, of one image with one blob.
pub(crate) fn docker_charons(path: &str, content: &[u8], manifest: &str) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let descriptor = serde_json::json!({
        "manifests_paths": {"a:1": "manifests/a:1", "b:1": null},
        "blobs_paths": {digest(BLOB): {"zip_path": path}},
    });
    for (name, bytes) in [
        ("blobs/a", content),
        ("manifests/a:1", manifest.as_bytes()),
        ("payload_descriptor.json", descriptor.to_string().as_bytes()),
    ] {
        zip.start_file(name, stored).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// The manifest of its image.
pub(crate) fn manifest() -> String {
    format!(r#"{{"schemaVersion":2,"config":{{"digest":"{}","size":2}},"layers":[]}}"#, digest(BLOB))
}

/// One byte altered, so far behind where these bytes stand first.
fn altered_in(whole: &[u8], find: &[u8], behind: usize) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    bytes[whole.windows(find.len()).position(|window| window == find).unwrap() + behind] ^= 1;
    bytes
}

#[test]
fn damage_of_a_payload_of_docker_charons_is_found_and_named() {
    let whole = docker_charons("blobs/a", BLOB, &manifest());
    assert_eq!(verify(&whole).succeeded().text(), "payload.zip is whole: 2 images, 1 blob\n");
    let mut said = String::new();
    for (damage, bytes) in [
        ("cut in the middle", whole[..whole.len() / 2].to_vec()),
        ("cut before its last byte", whole[..whole.len() - 1].to_vec()),
        ("a blob that is another", docker_charons("blobs/a", b"[]", &manifest())),
        ("a blob of another size", docker_charons("blobs/a", b"{ }", &manifest())),
        ("a blob that is not there", docker_charons("blobs/b", BLOB, &manifest())),
        ("a manifest that is none", docker_charons("blobs/a", BLOB, "{}")),
        ("another checksum in the directory", altered_in(&whole, b"PK\x01\x02", 16)),
        ("another name in a header", altered_in(&whole, b"PK\x03\x04", 30)),
    ] {
        write!(said, "{damage}:\n  {}", verify(&bytes).ended_with(1).stderr).unwrap();
    }
    insta::assert_snapshot!(said);
}
