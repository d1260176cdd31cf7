//! Builds that cannot be done: what is told, and that nothing is left.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread;

use crate::gate::Gate;
use crate::image::{Image, Layer, Types, digest};
use crate::program::{Program, charon};
use crate::registry::{Registry, Software};

with_each_registry!(
    all_images_are_tried_and_all_that_are_unknown_are_told,
    a_layer_that_the_registry_has_lost_is_told,
    what_the_registry_gives_damaged_is_told,
);

/// A source with `ferry:1`, whose layer has 600,000 bytes.
fn source(software: Software) -> Registry {
    let source = Registry::start(software);
    Image::new(Types::Docker, &[Layer::new("oar", 600_000)]).push(&source, "ferry:1");
    source
}

fn names(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// Charon in a mount namespace where `folder` is a small disk.
fn on_a_small_disk(program: Program, folder: &Path, options: &str) -> Program {
    let script = format!("mount -t tmpfs -o {options} tmpfs {} && exec \"$@\"", folder.display());
    program.by("unshare", &["--mount", "--propagation", "private", "sh", "-c", &script, "sh"])
}

fn all_images_are_tried_and_all_that_are_unknown_are_told(software: Software) {
    let source = source(software);
    let folder = tempfile::tempdir().unwrap();
    let payload = folder.path().join("payload.zip");
    let host = source.host();
    let images = "nowhere:1,ferry:1,ferry:2,also/nowhere";
    let made = charon(["make-payload", images, "-a", "gone:1", "-q", "-i", "-r", host, "-f"]);
    let made = made.arguments([&payload]).run().ended_with(1);
    let line = |name: &str| {
        format!(
            "error: cannot read {host}/{name}: {host} answered 404 Not Found (MANIFEST_UNKNOWN: manifest unknown); \
             check the name, the tag or digest, and the registry\n"
        )
    };
    let expected = ["gone:1", "nowhere:1", "ferry:2", "also/nowhere:latest"].map(line);
    // One of them was read.
    let kept = folder.path().join("payload.zip.partial.journal");
    let told = format!(
        "warning: the manifests that were read are kept in {}, for the next attempt; remove it if there is to be none\n",
        kept.display()
    );
    assert_eq!(made.stderr, told + &expected.concat());
    assert_eq!(names(folder.path()), [kept]);
}

fn a_layer_that_the_registry_has_lost_is_told(software: Software) {
    let source = source(software);
    let image = Image::new(Types::Docker, &[Layer::new("lost", 1000)]);
    image.push(&source, "styx:1");
    let lost = digest(&image.blobs[1]);
    source.lose(&lost);
    let made =
        charon(["make-payload", "ferry:1,styx:1", "-q", "-i", "-r", source.host()]).run().ended_with(1);
    let host = source.host();
    assert_eq!(
        made.stderr,
        format!(
            "error: styx:1: cannot read blob {host}/styx@{lost}: {host} answered 404 Not Found (BLOB_UNKNOWN: blob unknown to registry); \
             check the name, the tag or digest, and the registry\n"
        )
    );
}

fn what_the_registry_gives_damaged_is_told(software: Software) {
    let source = source(software);
    let image = Image::new(Types::Docker, &[Layer::new("damaged", 1000)]);
    image.push(&source, "styx:1");
    let make = || charon(["make-payload", "styx:1", "-q", "-i", "-r", source.host()]);
    let [config, layer] = [0, 1].map(|index: usize| digest(&image.blobs[index]));
    let advice = "; leave the image out, or push it anew where it comes from\n";
    source.damage(&layer);
    let told = make().run().ended_with(1).stderr;
    let begin = format!("error: styx:1: the bytes of {layer} have the digest sha256:");
    assert!(told.starts_with(&begin) && told.ends_with(advice), "{told}");
    // It is read to know the platform.
    source.damage(&config);
    let told = make().arguments(["--platform", "linux/amd64"]).run().ended_with(1).stderr;
    let begin = format!("error: styx:1: the bytes of its config {config} have the digest sha256:");
    assert!(told.starts_with(&begin) && told.ends_with(advice), "{told}");
}

/// Registries do not take such manifests any more: what they kept is served by one that knows nothing of them.
#[test]
fn a_manifest_of_schema_1_is_refused_with_what_to_do() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let manifest = r#"{"schemaVersion":1,"name":"old","tag":"1","fsLayers":[],"history":[]}"#;
            let head =
                "HTTP/1.1 200 OK\r\ncontent-type: application/vnd.docker.distribution.manifest.v1+prettyjws";
            let length = manifest.len();
            let _ = stream.read(&mut [0; 4096]);
            let _ =
                write!(stream, "{head}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{manifest}");
        }
    });
    let made = charon(["make-payload", "old:1", "-q", "-i", "-r", &host]).run().ended_with(1);
    assert_eq!(
        made.stderr,
        format!(
            "error: cannot read {host}/old:1: it is a manifest of schema 1, which Docker gave up in 2017; \
             leave the image out, or push it anew where it comes from\n"
        )
    );
    assert!(made.stdout.is_empty());
}

#[test]
fn a_manifest_that_lies_about_a_size_is_told_before_the_first_byte_goes_into_a_stream() {
    let source = source(Software::Distribution3);
    let image = Image::new(Types::Oci, &[Layer::new("large", 2 << 20)]);
    image.push(&source, "styx:1");
    let (media_type, manifest) = source.manifest("styx", "1").unwrap();
    let mut lie: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let size = lie["layers"][0]["size"].as_u64().unwrap();
    lie["layers"][0]["size"] = (size + 1).into();
    source.push_manifest("styx", "1", &media_type, lie.to_string().as_bytes());
    let made = charon(["make-payload", "styx:1", "-q", "-i", "-r", source.host()]).run().ended_with(1);
    assert!(made.stdout.is_empty());
    let layer = digest(&image.blobs[1]);
    assert_eq!(
        made.stderr,
        format!(
            "error: styx:1: {layer} has {size} bytes, and the manifest says {}; \
             leave the image out, or push it anew where it comes from\n",
            size + 1
        )
    );
}

#[test]
fn a_build_that_met_a_lost_layer_asks_anew_what_the_tag_means() {
    let source = source(Software::Distribution3);
    let lost = Image::new(Types::Docker, &[Layer::new("lost", 1000)]);
    lost.push(&source, "styx:1");
    source.lose(&digest(&lost.blobs[1]));
    let folder = tempfile::tempdir().unwrap();
    let payload = folder.path().join("payload.zip");
    let make = || {
        charon(["make-payload", "ferry:1,styx:1", "-q", "-i", "-r", source.host(), "-f"])
            .arguments([&payload])
            .run()
    };
    make().ended_with(1);
    Image::new(Types::Docker, &[Layer::new("mended", 1000)]).push(&source, "styx:1");
    make().succeeded();
    assert!(payload.exists() && names(folder.path()).len() == 2, "more than the payload and its bill");
}

#[test]
fn a_registry_that_does_not_answer_is_told_once_patience_has_ended() {
    let folder = tempfile::tempdir().unwrap();
    let source = source(Software::Distribution3);
    let payload = folder.path().join("payload.zip");
    let made = charon(["make-payload", "ferry:1", "-i", "-r", source.host(), "-f"]).arguments([&payload]);
    made.run().succeeded();
    // Nobody listens on a port that is bound and closed again.
    let host = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).unwrap().to_string();

    // Both at once, for both are patient.
    let made = charon(["make-payload", "ferry:1,styx:1", "-q", "-i", "-r", &host]).start();
    let pushed = charon(["push-payload", "-q", "-i", "-r", &host, "-f"]).arguments([&payload]).start();
    let [made, pushed] = [made, pushed].map(|running| running.end().ended_with(1).stderr);
    // How often it was tried is a matter of chance.
    let told = |said: &str| {
        let mut parts = said.split(" (tried ");
        let mut text = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let (times, rest) = part.split_once(" times)").unwrap();
            assert!(times.parse::<u32>().unwrap() > 3, "{said}");
            text += rest;
        }
        text
    };
    let why = format!(
        "cannot read {host}/ferry:1: cannot connect to {host}: Connection refused (os error 111); check the host, the port and the network"
    );
    assert_eq!(told(&made), format!("error: {why}\nerror: styx:1 was not asked for: {why}\n"));
    assert_eq!(told(&pushed), format!("error: {why}\n"));
}

/// What is told of a disk without room: what the payload has, what lies beside it, and what is free.
fn numbers(told: &str, folder: &Path) -> [u64; 3] {
    let rest =
        told.strip_prefix(&format!("error: {} has no room for the payload: it has ", folder.display()));
    let rest = rest.unwrap_or_else(|| panic!("{told}"));
    let rest = rest.strip_suffix(" are free; make room or choose another volume\n").unwrap();
    let (size, rest) = rest.split_once(" bytes, and what lies beside it up to ").unwrap();
    let (beside, free) = rest.split_once("; ").unwrap();
    [size, beside, free].map(|number| number.parse().unwrap())
}

fn blobs_fetched(source: &Registry) -> usize {
    let fetch = |request: &&String| request.starts_with("GET") && request.contains("/blobs/");
    source.requests().iter().filter(fetch).count()
}

#[test]
fn a_disk_without_room_for_the_payload_and_what_lies_beside_it_is_told_before_anything_is_fetched() {
    let source = source(Software::Distribution3);
    let folder = tempfile::tempdir().unwrap();
    let payload = folder.path().join("payload.zip");
    let make = |bytes: u64| {
        let made = charon(["make-payload", "ferry:1", "-q", "-i", "-r", source.host(), "-f"]);
        on_a_small_disk(made.arguments([&payload]), folder.path(), &format!("size={bytes}")).run()
    };
    let told = make(512 << 10).ended_with(1).stderr;
    let [size, beside, free] = numbers(&told, folder.path());
    assert_eq!((free, blobs_fetched(&source)), (512 << 10, 0));
    let whole = charon(["make-payload", "ferry:1", "-i", "-r", source.host()]).run().succeeded().stdout;
    assert_eq!(size, whole.len() as u64);
    // With so much it fits, and with a block less it does not.
    let before = blobs_fetched(&source);
    assert_eq!(
        numbers(&make(size + beside - 4096).ended_with(1).stderr, folder.path())[2],
        size + beside - 4096
    );
    assert_eq!(blobs_fetched(&source), before);
    make(size + beside).succeeded();
}

#[test]
fn a_disk_that_fills_up_on_the_way_is_told_with_both_numbers_and_there_is_no_payload_on_it() {
    let source = source(Software::Distribution3);
    let gate = Gate::before(&source, 300_000);
    let folder = tempfile::tempdir().unwrap();
    let payload = folder.path().join("payload.zip");
    let script = format!(
        "mount -t tmpfs -o size=1m tmpfs {} && \"$@\"; status=$?; test ! -e {} || exit 99; exit $status",
        folder.path().display(),
        payload.display()
    );
    let made = charon(["make-payload", "ferry:1", "-q", "-i", "-r", gate.host(), "-f"]).arguments([&payload]);
    let made = made.by("unshare", &["--mount", "--propagation", "private", "sh", "-c", &script, "sh"]);
    let made = made.start();
    gate.wait_until_shut();
    let disk = PathBuf::from(format!("/proc/{}/root{}", made.id(), folder.path().display()));
    let ballast = disk.join("ballast");
    let full = fs::write(&ballast, vec![1; 2 << 20]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    gate.open();
    let told = made.end().ended_with(1).stderr;
    let [size, _, free] = numbers(&told, folder.path());
    assert!(size > 600_000 && free < size, "{told}");
}

#[test]
fn standard_output_that_takes_no_more_is_told() {
    let source = source(Software::Distribution3);
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let made = charon(["make-payload", "ferry:1", "-q", "-i", "-r", source.host()]).writing(full).run();
    assert_eq!(
        made.ended_with(1).stderr,
        "error: cannot write the payload to standard output: No space left on device (os error 28); \
         make room where it goes\n"
    );
}

#[test]
fn a_folder_that_cannot_be_written_to_is_told() {
    let source = source(Software::Distribution3);
    let folder = tempfile::tempdir().unwrap();
    let writing = |path: &Path| {
        charon(["make-payload", "ferry:1", "-q", "-i", "-r", source.host(), "-f"]).arguments([path])
    };
    let payload = folder.path().join("payload.zip");

    fs::set_permissions(folder.path(), Permissions::from_mode(0o555)).unwrap();
    // Without its capabilities root is a user like any other.
    let refused = writing(&payload).by("setpriv", &["--bounding-set=-all"]).run().ended_with(1);
    let (path, id) = (payload.display(), rustix::process::geteuid().as_raw());
    assert_eq!(
        refused.stderr,
        format!(
            "error: cannot write {path}.partial: Permission denied (os error 13); \
             {} belongs to {id}:{id} with mode 555, and charon runs as {id}:{id}\n",
            folder.path().display()
        )
    );

    let refused = on_a_small_disk(writing(&payload), folder.path(), "ro").run().ended_with(1);
    assert_eq!(
        refused.stderr,
        format!(
            "error: cannot write {path}.partial: Read-only file system (os error 30); it is mounted read-only\n"
        )
    );

    let nowhere = folder.path().join("nowhere/payload.zip");
    assert_eq!(
        writing(&nowhere).run().ended_with(1).stderr,
        format!(
            "error: cannot write {}.partial: No such file or directory (os error 2); does its folder exist?\n",
            nowhere.display()
        )
    );
    assert_eq!(
        writing(folder.path()).run().ended_with(1).stderr,
        format!("error: cannot write {}: is a directory; name a file in it\n", folder.path().display())
    );
}
