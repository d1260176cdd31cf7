//! Builds that are interrupted: nobody ever sees half a payload under the final name.

use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::io::Write;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::gate::{Gate, wait_until};
use crate::image::{Image, Layer, Types};
use crate::program::{Program, Running, charon};
use crate::registry::{Registry, Software};

/// A source whose registry stops in the middle of the second of three layers.
struct Stalled {
    source: Registry,
    gate: Gate,
    folder: TempDir,
    payload: PathBuf,
    partial: PathBuf,
}

impl Stalled {
    fn new() -> Self {
        let source = Registry::start(Software::Distribution3);
        let layers = ["a", "b", "c"].map(|name| Layer::new(name, 2 << 20));
        Image::new(Types::Oci, &layers).push(&source, "ferry:1");
        let gate = Gate::before(&source, 3 << 20);
        let folder = tempfile::tempdir().unwrap();
        let [payload, partial] = ["payload.zip", "payload.zip.partial"].map(|name| folder.path().join(name));
        Self { source, gate, folder, payload, partial }
    }

    fn make(&self, host: &str) -> Program {
        charon(["make-payload", "ferry:1", "-q", "-i", "-r", host, "-f"]).arguments([&self.payload])
    }

    /// The gate, which lets everything pass from now on.
    fn gate_opened(&self) -> &Gate {
        self.gate.open();
        &self.gate
    }

    /// A build that has come to where the registry stops.
    fn in_the_middle(&self) -> Running {
        let build = self.make(self.gate.host()).start();
        self.gate.wait_until_shut();
        wait_until("what came is in the partial file", || self.noted() > 2 << 20);
        build
    }

    fn noted(&self) -> u64 {
        noted(&self.folder.path().join(PARTIAL[1]))
    }
}

/// How many bytes of blobs have been written, by the journal.
pub(crate) fn noted(journal: &Path) -> u64 {
    let journal = fs::read_to_string(journal).unwrap_or_default();
    let lines = journal.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let noted = lines.filter_map(|line| Some((line["blob"].to_string(), line["have"].as_u64()?)));
    noted.collect::<HashMap<_, _>>().values().sum()
}

/// The bytes of the payload, as an undisturbed build makes them: the host is in them.
fn expected(host: &str) -> Vec<u8> {
    charon(["make-payload", "ferry:1", "-i", "-r", host]).run().succeeded().stdout
}

/// What an interrupted build leaves.
const PARTIAL: [&str; 2] = ["payload.zip.partial", "payload.zip.partial.journal"];
/// What passes the gate beside layers: at most 16 answers with their heads, each of less than 1 KiB. They are those to
/// the tag, its manifest, what refers to it (a list, an index and three tags of cosign's), the config and four layers.
const BESIDES: u64 = 16 << 10;

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_build_that_is_asked_to_stop_stops_and_keeps_what_it_has_for_the_next() {
    let stalled = Stalled::new();
    let build = stalled.in_the_middle();
    build.terminate();
    let ended = build.end().ended_with(128 + 15);
    assert_eq!(ended.stderr, "error: interrupted\n");
    assert_eq!(names(stalled.folder.path()), PARTIAL);
}

#[test]
fn a_build_that_is_killed_leaves_nothing_under_the_final_name_and_the_next_one_succeeds() {
    let stalled = Stalled::new();
    let build = stalled.in_the_middle();
    build.kill();
    assert_eq!(build.end().status, None);
    assert_eq!(names(stalled.folder.path()), PARTIAL);

    stalled.make(stalled.source.host()).run().succeeded();
    assert!(fs::read(&stalled.payload).unwrap() == expected(stalled.source.host()));
    assert_eq!(names(stalled.folder.path()), ["payload.zip", "payload.zip.bill.json"]);
}

#[test]
fn a_payload_that_cannot_have_its_name_in_the_end_leaves_no_bill_behind() {
    let stalled = Stalled::new();
    let build = stalled.in_the_middle();
    // Somebody takes the name meanwhile.
    fs::create_dir(&stalled.payload).unwrap();
    stalled.gate.open();
    build.end().ended_with(1);
    assert!(!names(stalled.folder.path()).contains(&"payload.zip.bill.json".to_owned()));
}

#[test]
fn a_build_that_was_killed_goes_on_in_the_middle_of_a_blob_and_gives_the_same_bytes() {
    let stalled = Stalled::new();
    let build = stalled.in_the_middle();
    build.kill();
    build.end();
    let noted = stalled.noted();
    // What is under the tag by now does not matter: a run resolves it once.
    let layers = ["a", "b", "other"].map(|name| Layer::new(name, 2 << 20));
    let moved = expected(stalled.gate_opened().host());
    Image::new(Types::Oci, &layers).push(&stalled.source, "ferry:1");

    let before = stalled.gate.passed();
    let log = charon(["make-payload", "ferry:1", "-i", "-r", stalled.gate.host(), "-f"])
        .arguments([&stalled.payload]);
    let log = log.run().succeeded().stderr;
    assert!(log.starts_with("Going on with what an earlier attempt left of payload sha256:"), "{log}");
    assert!(fs::read(&stalled.payload).unwrap() == moved);
    assert_eq!(names(stalled.folder.path()), ["payload.zip", "payload.zip.bill.json"]);
    let came = (stalled.gate.passed() - before) as u64;
    let missing = (6 << 20) - noted;
    assert!(came < missing + BESIDES, "{came} bytes came, {missing} were missing");
}

#[test]
fn a_dry_run_after_a_kill_tells_what_is_there_asks_nobody_and_touches_nothing() {
    let stalled = Stalled::new();
    let build = stalled.in_the_middle();
    build.kill();
    build.end();
    let left = || PARTIAL.map(|name| fs::read(stalled.folder.path().join(name)).unwrap());
    let asked = || stalled.source.requests().iter().filter(|request| request.contains("/ferry/")).count();
    let (before, asked_before) = (left(), asked());
    let planned =
        stalled.make(stalled.gate_opened().host()).arguments(["--dry-run"]).run().succeeded().text();
    assert_eq!(asked(), asked_before);
    let bytes = |name: &str| {
        let line = planned.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{planned}"));
        let (_, bytes) = line.rsplit_once('(').or(line.split_once(" (")).unwrap();
        bytes.split(' ').next().unwrap().parse::<u64>().unwrap()
    };
    let there = planned.lines().find(|line| line.starts_with("there already")).unwrap();
    assert!(there.contains(&format!("({} bytes), from an earlier attempt", stalled.noted())), "{planned}");
    assert_eq!(bytes("to fetch"), bytes("carries") - stalled.noted());
    assert!(planned.contains("manifests read    none"), "{planned}");
    assert!(left() == before);
    assert_eq!(names(stalled.folder.path()), PARTIAL);
}

#[test]
fn a_build_that_goes_on_remembers_what_it_left_out() {
    let source = Registry::start(Software::Distribution3);
    let children =
        ["amd64", "arm64"].map(|name| Image::for_platform(Types::Oci, name, &[Layer::new(name, 4 << 20)]));
    Image::index(Types::Oci, &children).push(&source, "ferry:1");
    let gate = Gate::before(&source, 3 << 20);
    let folder = tempfile::tempdir().unwrap();
    let make = |file: &str| {
        let make = charon(["make-payload", "gone:1,ferry:1", "-i", "-r", gate.host(), "-f", file]);
        make.arguments(["--platform", "linux/arm64", "--allow-missing"]).in_folder(folder.path())
    };
    let build = make("payload.zip").start();
    gate.wait_until_shut();
    wait_until("what came is noted", || {
        fs::read_to_string(folder.path().join(PARTIAL[1])).is_ok_and(|journal| journal.contains("\"have\":2"))
    });
    build.kill();
    build.end();
    gate.open();
    let log = make("payload.zip").run().succeeded().stderr;
    assert!(log.starts_with("Going on with what an earlier attempt left"), "{log}");
    make("whole.zip").run().succeeded();
    let read = |file: &str| fs::read(folder.path().join(file)).unwrap();
    assert!(read("payload.zip") == read("whole.zip"));
}

#[test]
fn what_was_damaged_since_the_build_was_killed_is_fetched_again() {
    let stalled = Stalled::new();
    let build = stalled.in_the_middle();
    build.kill();
    build.end();
    let moved = expected(stalled.gate_opened().host());
    let mut partial = fs::read(&stalled.partial).unwrap();
    for byte in partial.iter_mut().skip(100_000).step_by(1000) {
        *byte ^= 1;
    }
    fs::write(&stalled.partial, partial).unwrap();
    stalled.make(stalled.gate.host()).run().succeeded();
    assert!(fs::read(&stalled.payload).unwrap() == moved);
}

#[test]
fn another_build_takes_the_blobs_that_it_shares_with_the_one_that_was_killed() {
    let stalled = Stalled::new();
    let build = stalled.in_the_middle();
    build.kill();
    build.end();
    let noted = stalled.noted();
    let layers = ["a", "b", "c", "d"].map(|name| Layer::new(name, 2 << 20));
    Image::new(Types::Oci, &layers).push(&stalled.source, "ferry:2");
    let moved = charon(["make-payload", "ferry:2", "-i", "-r", stalled.gate_opened().host()])
        .run()
        .succeeded()
        .stdout;

    let before = stalled.gate.passed();
    let made = charon(["make-payload", "ferry:2", "-q", "-i", "-r", stalled.gate.host(), "-f"]);
    made.arguments([&stalled.payload]).run().succeeded();
    assert!(fs::read(&stalled.payload).unwrap() == moved);
    assert_eq!(names(stalled.folder.path()), ["payload.zip", "payload.zip.bill.json"]);
    let came = (stalled.gate.passed() - before) as u64;
    let missing = (8 << 20) - noted;
    assert!(came < missing + BESIDES, "{came} bytes came, {missing} were missing");
}

/// Makes `image` on a disk of `size` bytes that holds what lies in the folder by now; gives what was said, and the
/// payload.
fn make_on_a_small_disk(stalled: &Stalled, image: &str, size: u64) -> (String, Vec<u8>) {
    let folder = stalled.folder.path().display();
    let kept = tempfile::tempdir().unwrap();
    let out = kept.path().join("out.zip");
    let script = format!(
        "cp -a {folder}/. {kept} && mount -t tmpfs -o size={size} tmpfs {folder} && cp --sparse=always {kept}/payload.* {folder} && \"$@\" && cp {folder}/payload.zip {out}",
        kept = kept.path().display(),
        out = out.display()
    );
    let made = charon(["make-payload", image, "-i", "-r", stalled.gate_opened().host(), "-f"]);
    let made = made.arguments([&stalled.payload]);
    let made = made.by("unshare", &["--mount", "--propagation", "private", "sh", "-c", &script, "sh"]);
    let said = made.run().succeeded().stderr;
    (said, fs::read(out).unwrap())
}

/// What a disk must have for the payload of an image, by what is said of one that has less.
fn needed(stalled: &Stalled, image: &str) -> u64 {
    let folder = tempfile::tempdir().unwrap();
    let script = format!("mount -t tmpfs -o size=64k tmpfs {} && exec \"$@\"", folder.path().display());
    let made = charon(["make-payload", image, "-q", "-i", "-r", stalled.gate_opened().host(), "-f"]);
    let made = made.arguments([folder.path().join("payload.zip")]);
    let made = made.by("unshare", &["--mount", "--propagation", "private", "sh", "-c", &script, "sh"]);
    let told = made.run().ended_with(1).stderr;
    let numbers = told.split([' ', ';']).filter_map(|word| word.parse::<u64>().ok()).collect::<Vec<_>>();
    assert_eq!((numbers.len(), numbers[2]), (3, 64 << 10), "{told}");
    numbers[0] + numbers[1]
}

#[test]
fn what_a_killed_build_wrote_counts_as_room_for_the_next() {
    let stalled = Stalled::new();
    let build = stalled.in_the_middle();
    build.kill();
    build.end();
    let (said, payload) = make_on_a_small_disk(&stalled, "ferry:1", needed(&stalled, "ferry:1"));
    assert!(said.starts_with("Going on with what an earlier attempt left"), "{said}");
    assert!(payload == expected(stalled.gate.host()));
}

#[test]
fn where_there_is_no_room_for_both_what_another_build_left_makes_room() {
    let stalled = Stalled::new();
    let build = stalled.in_the_middle();
    build.kill();
    build.end();
    let layers = ["a", "b", "c", "d"].map(|name| Layer::new(name, 2 << 20));
    Image::new(Types::Oci, &layers).push(&stalled.source, "ferry:2");
    let wanted = charon(["make-payload", "ferry:2", "-i", "-r", stalled.gate_opened().host()]).run();
    let no_room = "There is no room to keep what an earlier run left; all is fetched anew\n";
    let (said, payload) = make_on_a_small_disk(&stalled, "ferry:2", needed(&stalled, "ferry:2"));
    assert!(said.contains(no_room) && payload == wanted.stdout, "{said}");
    let (said, payload) = make_on_a_small_disk(&stalled, "ferry:2", 64 << 20);
    assert!(!said.contains(no_room) && payload == wanted.stdout, "{said}");
}

#[test]
fn a_build_that_cannot_fit_leaves_what_another_one_wrote() {
    let stalled = Stalled::new();
    let build = stalled.in_the_middle();
    build.kill();
    build.end();
    let noted = stalled.noted();
    let left = fs::read(&stalled.partial).unwrap();
    // Somebody says that a layer is larger than any disk.
    let (media_type, manifest) = stalled.source.manifest("ferry", "1").unwrap();
    let mut huge: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    huge["layers"][0]["size"] = 4_000_000_000_000_000_u64.into();
    stalled.source.push_manifest("ferry", "huge", &media_type, huge.to_string().as_bytes());
    let make = |image: &str| {
        let host = stalled.gate_opened().host();
        charon(["make-payload", image, "-i", "-r", host, "-f"]).arguments([&stalled.payload]).run()
    };
    let told = make("ferry:huge").ended_with(1).stderr;
    assert!(told.contains("has no room for the payload"), "{told}");
    assert!(fs::read(&stalled.partial).unwrap() == left && stalled.noted() == noted);
    let before = stalled.gate.passed();
    let said = make("ferry:1").succeeded().stderr;
    assert!(said.starts_with("Going on with what an earlier attempt left"), "{said}");
    let (came, missing) = ((stalled.gate.passed() - before) as u64, (6 << 20) - noted);
    assert!(came < missing + BESIDES, "{came} bytes came, {missing} were missing");
}

#[test]
fn a_payload_from_before_stays_until_the_new_one_is_whole() {
    let stalled = Stalled::new();
    fs::write(&stalled.payload, "the payload from before").unwrap();
    let is_kept = || fs::read(&stalled.payload).unwrap() == b"the payload from before";
    let build = stalled.in_the_middle();
    assert!(is_kept());
    build.kill();
    build.end();
    assert!(is_kept());

    stalled.make(stalled.source.host()).run().succeeded();
    assert!(fs::read(&stalled.payload).unwrap() == expected(stalled.source.host()));
    assert_eq!(names(stalled.folder.path()), ["payload.zip", "payload.zip.bill.json"]);
}

#[test]
fn two_builds_never_write_one_file() {
    let stalled = Stalled::new();
    let first = stalled.in_the_middle();
    let second = stalled.make(stalled.source.host()).run().ended_with(1);
    assert_eq!(
        second.stderr,
        format!(
            "error: {} is being written by another charon; wait for it, or choose another name\n",
            stalled.payload.display()
        )
    );
    assert_eq!(names(stalled.folder.path()), PARTIAL);
    stalled.gate.open();
    first.end().succeeded();
    assert!(fs::read(&stalled.payload).unwrap() == expected(stalled.gate.host()));
}

#[test]
fn what_a_build_that_is_killed_wrote_to_a_pipe_is_not_taken_for_a_payload() {
    let stalled = Stalled::new();
    let target = Registry::start(Software::Distribution3);
    // The beginnings of the other layers come meanwhile.
    let gate = Gate::before(&stalled.source, 5 << 20);
    let mut made = charon(["make-payload", "ferry:1", "-q", "-i", "-r", gate.host()]).start();
    let mut output = made.output();
    let mut written = vec![0; 100_000];
    output.read_exact(&mut written).unwrap();
    gate.wait_until_shut();
    made.kill();
    output.read_to_end(&mut written).unwrap();
    let pushed = charon(["push-payload", "-q", "-i", "-r", target.host()]).fed(written).run().ended_with(1);
    assert_eq!(
        pushed.stderr,
        "error: standard input: the payload is not complete: the stream ended early; copy it again, or wait until the copy is done\n"
    );
    assert_eq!((pushed.text(), target.tags("ferry")), (String::new(), vec![]));
}

#[test]
fn a_push_that_is_killed_leaves_no_tag_and_the_next_one_completes_it() {
    let (stalled, target) = (Stalled::new(), Registry::start(Software::Distribution3));
    let payload = expected(stalled.source.host());
    // The registry's answers are small; somewhere between the first and the last of them it stops.
    let gate = Gate::before(&target, 1500);
    let push = |host: &str| charon(["push-payload", "-q", "-i", "-r", host]).fed(payload.clone());
    let pushed = push(gate.host()).start();
    gate.wait_until_shut();
    pushed.kill();
    assert_eq!(pushed.end().status, None);
    assert_eq!(target.tags("ferry"), Vec::<String>::new());
    assert_eq!(push(target.host()).run().succeeded().text(), "ferry:1\n");
    assert_eq!(target.tags("ferry"), ["1"]);
}

#[test]
fn a_push_that_is_asked_to_stop_leaves_no_upload_in_the_registry() {
    let source = Registry::start(Software::Distribution3);
    Image::new(Types::Oci, &[Layer::new("a", 4 << 20)]).push(&source, "ferry:1");
    let payload = expected(source.host());
    let target = Registry::start(Software::Distribution3);
    let (reader, mut writer) = std::io::pipe().unwrap();
    let pushed = charon(["push-payload", "-q", "-i", "-r", target.host()]).reading(reader).start();
    // Half of the payload comes, and then nothing more: the layer's upload has begun and cannot end.
    writer.write_all(&payload[..payload.len() / 2]).unwrap();
    wait_until("an upload has begun", || target.open_uploads("ferry") > 0);
    pushed.terminate();
    pushed.end().ended_with(128 + 15);
    assert_eq!(target.open_uploads("ferry"), 0);
    assert_eq!(target.tags("ferry"), Vec::<String>::new());
}
