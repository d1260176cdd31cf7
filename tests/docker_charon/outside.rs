//! Payloads of docker-charon's form that somebody wrote by hand, with paths that lead elsewhere.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};
use zip::write::SimpleFileOptions;

use crate::image::{Image, digest};
use crate::program::charon;
use crate::registry::{Registry, Software};
use crate::stage::images;

/// A zip with these entries and this descriptor.
fn payload(path: &Path, entries: &[(&str, &[u8])], descriptor: &Value) {
    let mut zip = zip::ZipWriter::new(fs::File::create(path).unwrap());
    let stored = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, bytes) in entries {
        zip.start_file(*name, stored).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.start_file("payload_descriptor.json", stored).unwrap();
    zip.write_all(descriptor.to_string().as_bytes()).unwrap();
    zip.finish().unwrap();
}

/// A descriptor of `a:1` with its manifest and all its blobs at these paths.
fn descriptor(image: &Image, manifest: &str, blob: impl Fn(usize) -> String) -> Value {
    let blobs = image.blobs.iter().enumerate();
    let blobs: serde_json::Map<String, Value> =
        blobs.map(|(index, bytes)| (digest(bytes), json!({"zip_path": blob(index)}))).collect();
    json!({"manifests_paths": {"a:1": manifest}, "blobs_paths": blobs})
}

/// All files below a folder.
fn files(folder: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path.to_string_lossy().into_owned());
        }
    }
    found
}

/// Pushes from within a folder's folder `in`, and sees that no file comes or goes.
fn push(folder: &Path, target: &Registry) -> crate::program::Ended {
    let inside = folder.join("in");
    let before = files(folder);
    let push = charon(["push-payload", "-q", "-i", "-r", target.host(), "-f", "payload.zip"]);
    let ended = push.in_folder(&inside).variable("TMPDIR", &inside).run();
    assert_eq!(files(folder), before);
    ended
}

#[test]
fn a_path_that_is_no_entry_is_refused_even_where_a_file_is_there() {
    let image = &images()["base:1"];
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("in")).unwrap();
    let absolute = folder.path().to_string_lossy().into_owned();
    // What the paths lead to is just what is wanted: whoever reads it pushes an image.
    fs::write(folder.path().join("manifest"), &image.manifest).unwrap();
    for (index, blob) in image.blobs.iter().enumerate() {
        fs::write(folder.path().join(format!("blob-{index}")), blob).unwrap();
        fs::write(folder.path().join(format!("in/blob-{index}")), blob).unwrap();
    }
    let target = Registry::start(Software::Distribution3);
    for (manifest, blob, named) in [
        (format!("{absolute}/manifest"), "blobs/", format!("{absolute}/manifest")),
        ("../manifest".to_owned(), "blobs/", "../manifest".to_owned()),
        ("manifests/a:1".to_owned(), "../", "../blob-0".to_owned()),
        ("manifests/a:1".to_owned(), &format!("{absolute}/"), format!("{absolute}/blob-0")),
        ("manifests/a:1".to_owned(), "", "blob-0".to_owned()),
        ("nothing".to_owned(), "blobs/", "nothing".to_owned()),
    ] {
        let path = folder.path().join("in/payload.zip");
        let descriptor = descriptor(image, &manifest, |index| format!("{blob}blob-{index}"));
        payload(&path, &[("manifests/a:1", &image.manifest)], &descriptor);
        let refused = push(folder.path(), &target).ended_with(1);
        assert_eq!(
            refused.stderr,
            format!(
                "error: payload.zip: the payload is corrupt: its payload_descriptor.json names {named:?}, which the zip has not; \
                 copy it again from where it was made\n"
            )
        );
        assert!(target.is_empty());
    }
}

#[test]
fn an_entry_whose_name_leads_outside_is_read_and_nothing_is_written_there() {
    let image = &images()["base:1"];
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("in")).unwrap();
    let names: Vec<String> = (0..image.blobs.len()).map(|index| format!("../blob-{index}")).collect();
    let manifest = format!("{}/manifest", folder.path().display());
    let mut entries = vec![(manifest.as_str(), image.manifest.as_slice())];
    entries.extend(names.iter().map(String::as_str).zip(image.blobs.iter().map(Vec::as_slice)));
    let descriptor = descriptor(image, &manifest, |index| names[index].clone());
    payload(&folder.path().join("in/payload.zip"), &entries, &descriptor);
    let target = Registry::start(Software::Distribution3);
    assert_eq!(push(folder.path(), &target).succeeded().text(), "a:1\n");
    image.assert_is_whole_in(&target, "a:1");
}

#[test]
fn names_and_repositories_that_lead_outside_are_refused() {
    let image = &images()["base:1"];
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("in")).unwrap();
    let path = folder.path().join("in/payload.zip");
    let target = Registry::start(Software::Distribution3);
    let blob_of = |repository: &str| {
        let blobs = image.blobs.iter().map(|bytes| (digest(bytes), json!({"repository": repository})));
        json!({"manifests_paths": {"a:1": "manifest"}, "blobs_paths": blobs.collect::<serde_json::Map<_, _>>()})
    };
    let named = |name: &str| json!({"manifests_paths": {name: "manifest"}, "blobs_paths": {}});
    for (descriptor, message) in [
        (named("../a:1"), "the payload is corrupt: its payload_descriptor.json names \"../a:1\": "),
        (named("a/../../b:1"), "the payload is corrupt: its payload_descriptor.json names \"a/../../b:1\": "),
        (
            blob_of("../../_catalog?"),
            "the payload is corrupt: its payload_descriptor.json names the repository \"../../_catalog?\", which is none",
        ),
        (
            json!({"manifests_paths": {"a:1": "manifest"}, "blobs_paths": {}}),
            "the payload is corrupt: its payload_descriptor.json lacks the blob sha256:",
        ),
        (
            json!({"manifests_paths": {"a:1": "manifest"}}),
            "the payload is corrupt: its payload_descriptor.json cannot be read: missing field `blobs_paths`",
        ),
    ] {
        payload(&path, &[("manifest", &image.manifest)], &descriptor);
        let refused = push(folder.path(), &target).ended_with(1);
        assert!(refused.stderr.starts_with(&format!("error: payload.zip: {message}")), "{}", refused.stderr);
        assert!(target.is_empty());
    }
    let asked = target.requests();
    assert!(
        asked.iter().all(|request| !request.contains("..") && !request.contains("_catalog")),
        "{asked:#?}"
    );
}
