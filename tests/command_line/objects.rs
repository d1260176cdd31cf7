//! Payloads that lie in an object store: built into it, told of, verified and pushed from it.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::dry_runs::{bytes, line};
use crate::gate::{Gate, wait_until};
use crate::image::{Image, Layer, Types, digest};
use crate::program::{Program, Running, charon, crane_digest, crane_validates, tool};
use crate::proxy::{Misdeed, Proxy};
use crate::registry::{Registry, Software};
use crate::s3::S3;

pub(crate) const OBJECT: &str = "s3://transfer/ferry.zip";

/// What a build leaves.
pub(crate) const WHOLE: [&str; 2] = ["ferry.zip", "ferry.zip.bill.json"];

/// A registry with an image of layers of these sizes, in MiB.
pub(crate) fn source(layers: &[usize]) -> (Registry, Image) {
    let source = Registry::start(Software::Distribution3);
    let layers: Vec<Layer> = layers
        .iter()
        .enumerate()
        .map(|(index, size)| Layer::new(&format!("layer-{index}"), size << 20))
        .collect();
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
    assert_eq!(store.keys(), WHOLE);
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

/// A build into the bucket that stops in the middle of three large layers: somewhere, since pieces come in parallel.
struct Stalled {
    source: Registry,
    gate: Gate,
    store: S3,
}

/// A layer's size in MiB: parts are of 8.
const LAYER: usize = 12;

impl Stalled {
    fn new() -> Self {
        let (source, _) = source(&[LAYER; 3]);
        let gate = Gate::before(&source, 30 << 20);
        Self { source, gate, store: S3::start() }
    }

    fn make(&self, name: &str) -> Program {
        self.make_by(self.store.host(), name)
    }

    /// The same by another way to the store.
    fn make_by(&self, store: &str, name: &str) -> Program {
        let make = charon(["make-payload", name, "-i", "-r", self.gate.host(), "-f", OBJECT]);
        crate::s3::lets_at(make, &format!("http://{store}"))
    }

    /// What is left of a build that was killed in the middle; the registry answers all again.
    fn killed() -> Self {
        let stalled = Self::new();
        let build = stalled.in_the_middle();
        build.kill();
        build.end();
        stalled.gate.open();
        stalled
    }

    /// A build that has come to where the registry stops, and whose journal tells of two parts or more.
    fn in_the_middle(&self) -> Running {
        let build = self.make("ferry:1").start();
        self.gate.wait_until_shut();
        wait_until("the journal tells of two parts", || self.parts() >= 2);
        build
    }

    fn parts(&self) -> usize {
        let journal = fs::read(self.store.file("ferry.zip.partial.journal")).unwrap_or_default();
        let journal: serde_json::Value = serde_json::from_slice(&journal).unwrap_or_default();
        journal["parts"].as_array().map_or(0, Vec::len)
    }

    /// The bytes of the payload, as an undisturbed build makes them: the host is in them.
    fn expected(&self) -> Vec<u8> {
        charon(["make-payload", "ferry:1", "-i", "-r", self.gate.host()]).run().succeeded().stdout
    }
}

/// What an interrupted build leaves.
const PARTIAL: [&str; 2] = ["ferry.zip.partial", "ferry.zip.partial.journal"];

#[test]
fn a_build_that_was_killed_goes_on_behind_the_parts_that_it_uploaded() {
    let stalled = Stalled::new();
    let build = stalled.in_the_middle();
    build.kill();
    build.end();
    assert_eq!(stalled.store.keys(), PARTIAL);
    assert_eq!(stalled.store.open_uploads(), 1);
    let there = stalled.parts() * (8 << 20);
    stalled.gate.open();
    let expected = stalled.expected();
    // What is under the tag by now does not matter: a run resolves it once.
    Image::new(Types::Oci, &[Layer::new("other", 1 << 20)]).push(&stalled.source, "ferry:1");

    let before = stalled.gate.passed();
    let log = stalled.make("ferry:1").run().succeeded().stderr;
    assert!(
        log.contains(&format!("Going on behind {there} bytes that an earlier attempt uploaded")),
        "{log}"
    );
    assert!(log.contains("Verifying s3://transfer/ferry.zip"), "{log}");
    assert!(fs::read(stalled.store.file("ferry.zip")).unwrap() == expected);
    assert_eq!(stalled.store.keys(), WHOLE);
    assert_eq!(stalled.store.open_uploads(), 0);
    let (came, missing) = (stalled.gate.passed() - before, ((3 * LAYER) << 20) - there);
    assert!(came < missing + (1 << 20), "{came} bytes came, {missing} were missing");
}

#[test]
fn a_build_into_a_bucket_that_is_only_planned_tells_what_an_attempt_that_was_killed_left_and_writes_nothing()
{
    let stalled = Stalled::new();
    let plan = |stalled: &Stalled| {
        let before = (stalled.store.keys(), stalled.store.open_uploads());
        let told = stalled.make("ferry:1").arguments(["--dry-run"]).run().succeeded().text();
        assert_eq!((stalled.store.keys(), stalled.store.open_uploads()), before);
        assert!(!told.contains("room"), "{told}");
        told
    };
    let whole = plan(&stalled);
    assert!(!whole.contains("there already"), "{whole}");
    let carried = bytes(&whole, "carries");
    assert_eq!(bytes(&whole, "to fetch"), carried);
    assert_eq!(stalled.store.keys(), [""; 0]);

    let build = stalled.in_the_middle();
    build.kill();
    build.end();
    // Another image under the tag is none of this run's.
    Image::new(Types::Oci, &[Layer::new("other", 1 << 20)]).push(&stalled.source, "ferry:1");
    let there = (stalled.parts() * (8 << 20)) as u64;
    let rest = plan(&stalled);
    assert_eq!(line(&rest, "payload digest"), line(&whole, "payload digest"));
    // Before the blobs, and between them, there is a little more.
    let told = bytes(&rest, "there already");
    assert!(told < there && there - told < 64 << 10, "{told} of {there}");
    assert_eq!(bytes(&rest, "to fetch"), carried - told);
    stalled.gate.open();
    stalled.make("ferry:1").run().succeeded();
    assert_eq!(bytes(&whole, "size"), fs::metadata(stalled.store.file("ferry.zip")).unwrap().len());
}

#[test]
fn of_two_builds_of_one_object_the_one_that_began_last_succeeds_and_the_other_one_writes_no_more() {
    let stalled = Stalled::new();
    let first = stalled.in_the_middle();
    // By another way to the registry: it is another payload.
    let host = stalled.source.host();
    let second = charon(["make-payload", "ferry:1", "-i", "-r", host, "-f", OBJECT]);
    stalled.store.lets(second).run().succeeded();
    stalled.gate.open();
    let ended = first.end().ended_with(1);
    let words = "s3://transfer/ferry.zip.partial.journal is another charon's by now, which writes the same object; \
                 wait for it, or choose another key";
    assert!(ended.stderr.contains(words), "{}", ended.stderr);
    let expected = charon(["make-payload", "ferry:1", "-i", "-r", host]).run().succeeded().stdout;
    assert!(fs::read(stalled.store.file("ferry.zip")).unwrap() == expected);
    assert_eq!(stalled.store.keys(), WHOLE);
    assert_eq!(stalled.store.open_uploads(), 0);
}

#[test]
fn an_upload_whose_parts_are_gone_is_begun_anew() {
    let stalled = Stalled::new();
    let build = stalled.in_the_middle();
    build.kill();
    build.end();
    // The store may still be about to take the part that was on its way.
    let parts = stalled.store.file(".sgwtmp/multipart");
    wait_until("the store lost its parts", || fs::remove_dir_all(&parts).is_ok());
    stalled.gate.open();
    let log = stalled.make("ferry:1").run().succeeded().stderr;
    assert!(log.contains("is gone; all is fetched anew"), "{log}");
    assert!(fs::read(stalled.store.file("ferry.zip")).unwrap() == stalled.expected());
    assert_eq!(stalled.store.keys(), WHOLE);
}

#[test]
fn parts_that_were_altered_are_found_before_success_is_told() {
    let stalled = Stalled::new();
    let build = stalled.in_the_middle();
    build.kill();
    build.end();
    let uploads = fs::read_dir(stalled.store.file(".sgwtmp/multipart")).unwrap();
    let uploads = uploads.flat_map(|object| fs::read_dir(object.unwrap().path()).unwrap());
    let part = uploads.map(|upload| upload.unwrap().path().join("1")).find(|part| part.is_file()).unwrap();
    let file = fs::OpenOptions::new().write(true).open(part).unwrap();
    file.write_at(b"altered", 5 << 20).unwrap();
    stalled.gate.open();
    let ended = stalled.make("ferry:1").run().ended_with(1);
    assert!(
        ended.stderr.contains("what an earlier attempt had uploaded is not what it noted"),
        "{}",
        ended.stderr
    );
    assert_eq!(stalled.store.keys(), [""; 0]);
    stalled.make("ferry:1").run().succeeded();
    assert!(fs::read(stalled.store.file("ferry.zip")).unwrap() == stalled.expected());
}

#[test]
fn a_part_that_the_store_lost_makes_the_upload_begin_anew() {
    let stalled = Stalled::killed();
    let uploads = fs::read_dir(stalled.store.file(".sgwtmp/multipart")).unwrap();
    let uploads = uploads.flat_map(|object| fs::read_dir(object.unwrap().path()).unwrap());
    let part = uploads.map(|upload| upload.unwrap().path().join("2")).find(|part| part.is_file()).unwrap();
    fs::remove_file(part).unwrap();
    let log = stalled.make("ferry:1").run().succeeded().stderr;
    assert!(log.contains("is gone; all is fetched anew"), "{log}");
    assert!(fs::read(stalled.store.file("ferry.zip")).unwrap() == stalled.expected());
    assert_eq!(stalled.store.keys(), WHOLE);
    assert_eq!(stalled.store.open_uploads(), 0);
}

#[test]
fn an_upload_whose_completion_was_not_answered_is_looked_at_and_not_fetched_again() {
    let (source, _) = source(&[12, 12]);
    let (store, gate) = (S3::start(), Gate::before(&source, usize::MAX));
    let proxy = Proxy::to(store.host());
    proxy.does(Misdeed::LoseAnswer, "POST", "uploadId=", 1);
    // Asked again, this store would answer the same, and others know nothing of it any more.
    proxy.does(Misdeed::Answer("404 Not Found", vec![]), "POST", "uploadId=", 1);
    let make = charon(["make-payload", "ferry:1", "-i", "-r", gate.host(), "-f", OBJECT]);
    let log = crate::s3::lets_at(make, &format!("http://{}", proxy.host())).run().succeeded().stderr;
    assert_eq!(proxy.count("POST", "uploadId="), 2);
    assert!(log.contains("Verifying s3://transfer/ferry.zip"), "{log}");
    assert!(gate.passed() < 25 << 20, "{} bytes came", gate.passed());
    assert_eq!(store.keys(), WHOLE);
    assert_eq!(store.open_uploads(), 0);
    store.lets(charon(["verify", OBJECT])).run().succeeded();
}

/// A build that goes on after it was killed, and has read a part of the object which it verifies.
struct Verifying {
    stalled: Stalled,
    /// What it reads of the object ends behind this and begins again.
    proxy: Proxy,
    gate: Gate,
    build: Running,
}

impl Verifying {
    fn new() -> Self {
        let stalled = Stalled::killed();
        let proxy = Proxy::to(stalled.store.host());
        proxy.does(Misdeed::CutAnswer(6 << 20), "GET", "/transfer/ferry.zip", usize::MAX);
        let gate = Gate::to(proxy.host(), 4 << 20);
        let build = stalled.make_by(gate.host(), "ferry:1").start();
        gate.wait_until_shut();
        Self { stalled, proxy, gate, build }
    }
}

#[test]
fn an_object_that_cannot_be_verified_for_now_stays_with_its_journal_and_is_verified_by_the_next_attempt() {
    let Verifying { stalled, proxy, gate, build } = Verifying::new();
    proxy.behaves();
    proxy.does(Misdeed::Answer("403 Forbidden", vec![]), "GET", "/transfer/ferry.zip", 1);
    gate.open();
    let ended = build.end().ended_with(1);
    assert!(ended.stderr.contains("the store answered 403"), "{}", ended.stderr);
    assert_eq!(stalled.store.keys(), ["ferry.zip", PARTIAL[0], PARTIAL[1]]);
    let before = stalled.gate.passed();
    let log = stalled.make("ferry:1").run().succeeded().stderr;
    assert!(log.contains("Verifying s3://transfer/ferry.zip"), "{log}");
    assert!(stalled.gate.passed() - before < 1 << 20);
    assert_eq!(stalled.store.keys(), WHOLE);
    assert!(fs::read(stalled.store.file("ferry.zip")).unwrap() == stalled.expected());
}

#[test]
fn an_object_that_somebody_else_replaced_while_it_was_verified_is_left_alone() {
    let Verifying { stalled, gate, build, .. } = Verifying::new();
    let scratch = tempfile::tempdir().unwrap();
    let other = scratch.path().join("other.zip");
    let host = stalled.source.host();
    charon(["make-payload", "ferry:1", "-q", "-i", "-r", host, "-f"]).arguments([&other]).run().succeeded();
    put(&stalled.store, "ferry.zip", &other);
    gate.open();
    let ended = build.end().ended_with(1);
    assert!(
        ended.stderr.contains("s3://transfer/ferry.zip was replaced while it was read"),
        "{}",
        ended.stderr
    );
    assert!(fs::read(stalled.store.file("ferry.zip")).unwrap() == fs::read(other).unwrap());
    stalled.make("ferry:1").run().succeeded();
    assert_eq!(stalled.store.keys(), WHOLE);
    assert!(fs::read(stalled.store.file("ferry.zip")).unwrap() == stalled.expected());
}

#[test]
fn a_build_that_ends_leaves_the_journal_of_one_that_began_later() {
    let Verifying { stalled, proxy, gate, build } = Verifying::new();
    proxy.behaves();
    // By another way to the registry: it is another payload.
    let host = Gate::before(&stalled.source, 30 << 20);
    let later = charon(["make-payload", "ferry:1", "-i", "-r", host.host(), "-f", OBJECT]);
    let later = stalled.store.lets(later).start();
    host.wait_until_shut();
    wait_until("the journal is the later one's", || (2..4).contains(&stalled.parts()));
    gate.open();
    let ended = build.end().succeeded();
    assert!(ended.stderr.contains("is another charon's by now"), "{}", ended.stderr);
    assert_eq!(stalled.store.keys(), [WHOLE, PARTIAL].concat());
    host.open();
    later.end().succeeded();
    assert_eq!(stalled.store.keys(), WHOLE);
    assert_eq!(stalled.store.open_uploads(), 0);
    store_has(&stalled.store, host.host());
}

/// That the payload in the bucket is the one of `ferry:1` by this way to the registry.
fn store_has(store: &S3, host: &str) {
    let expected = charon(["make-payload", "ferry:1", "-i", "-r", host]).run().succeeded().stdout;
    assert!(fs::read(store.file("ferry.zip")).unwrap() == expected);
}

#[test]
fn a_refusal_that_may_pass_leaves_the_upload_for_the_next_attempt() {
    let stalled = Stalled::killed();
    let there = stalled.parts() * (8 << 20);
    let proxy = Proxy::to(stalled.store.host());
    proxy.does(Misdeed::Answer("403 Forbidden", vec![]), "PUT", "partNumber=", usize::MAX);
    let ended = stalled.make_by(proxy.host(), "ferry:1").run().ended_with(1);
    assert!(ended.stderr.contains("check the credentials"), "{}", ended.stderr);
    assert_eq!((stalled.store.keys(), stalled.store.open_uploads()), (PARTIAL.map(str::to_owned).into(), 1));
    let log = stalled.make("ferry:1").run().succeeded().stderr;
    assert!(log.contains(&format!("Going on behind {there} bytes")), "{log}");
}

#[test]
fn a_build_that_was_killed_before_it_could_tidy_up_only_verifies() {
    let stalled = Stalled::new();
    let build = stalled.in_the_middle();
    build.kill();
    build.end();
    stalled.gate.open();
    let saved = PARTIAL.map(|key| fs::read(stalled.store.file(key)).unwrap());
    stalled.make("ferry:1").run().succeeded();
    let scratch = tempfile::tempdir().unwrap();
    for (key, bytes) in PARTIAL.iter().zip(saved) {
        let file = scratch.path().join(key);
        fs::write(&file, bytes).unwrap();
        put(&stalled.store, key, &file);
    }
    let before = stalled.gate.passed();
    stalled.make("ferry:1").run().succeeded();
    assert_eq!(stalled.store.keys(), WHOLE);
    assert!(stalled.gate.passed() - before < 1 << 20);
}

/// curl does not know what it is going to send.
const UNSIGNED: &str = "x-amz-content-sha256: UNSIGNED-PAYLOAD";

/// Stores a file as an object, by another client.
fn put(store: &S3, key: &str, file: &Path) {
    let user = format!("{}:{}", crate::s3::ACCESS, crate::s3::SECRET);
    let url = format!("http://{}/transfer/{key}", store.host());
    tool(
        "curl",
        ["-sS", "--fail-with-body", "--aws-sigv4", "aws:amz:us-east-1:s3", "-u", &user, "-H", UNSIGNED, "-T"],
    )
    .arguments([file.as_os_str(), url.as_ref()])
    .run()
    .succeeded();
}

#[test]
fn what_is_no_journal_is_neither_read_nor_replaced_and_is_told_of() {
    let (source, _) = source(&[1]);
    let store = S3::start();
    let make = || {
        let make = charon(["make-payload", "ferry:1", "-q", "-i", "-r", source.host(), "-f", OBJECT]);
        store.lets(make).run().ended_with(1).stderr
    };
    let scratch = tempfile::NamedTempFile::new().unwrap();
    for (bytes, words) in [
        (vec![b' '; 17 << 20], "ferry.zip.partial.journal has more than 16777216 bytes"),
        (b"{\"version\":7}".to_vec(), "ferry.zip.partial.journal is no journal that this charon reads"),
    ] {
        fs::write(scratch.path(), &bytes).unwrap();
        put(&store, PARTIAL[1], scratch.path());
        let told = make();
        assert!(told.contains(words), "{told}");
        assert!(fs::read(store.file(PARTIAL[1])).unwrap() == bytes);
        assert_eq!(store.keys(), [PARTIAL[1]]);
    }
}

#[test]
fn a_build_that_can_never_succeed_leaves_no_upload() {
    let (source, image) = source(&[LAYER, LAYER, 1]);
    let (proxy, store) = (Proxy::before(&source), S3::start());
    let fails = |words: &str, blob: &str| {
        let make = charon(["make-payload", "ferry:1", "-i", "-r", proxy.host(), "-f", OBJECT]);
        let ended = store.lets(make).run().ended_with(1);
        assert!(ended.stderr.contains(words) && ended.stderr.contains(blob), "{}", ended.stderr);
        assert_eq!(store.keys(), [""; 0]);
        assert_eq!(store.open_uploads(), 0);
    };
    let [denied, damaged] = [3, 2].map(|layer| digest(&image.blobs[layer]));
    proxy.does(Misdeed::Answer("403 Forbidden", vec![]), "GET", &denied, usize::MAX);
    fails("403 Forbidden", &denied);
    source.damage(&damaged);
    fails("the digest", &damaged);
}

#[test]
fn what_is_wrong_with_a_store_is_told_with_what_was_done_where_and_what_to_do() {
    let (source, _) = source(&[1]);
    let (store, far) = (S3::start(), Registry::start(Software::Distribution3));
    let make =
        |object: &str| charon(["make-payload", "ferry:1", "-q", "-i", "-r", source.host(), "-f", object]);
    let push = |object: &str| charon(["push-payload", "-q", "-i", "-r", far.host(), "-f", object]);
    let fails = |program: Program, words: &[&str]| {
        let ended = program.run().ended_with(1);
        assert!(words.iter().all(|words| ended.stderr.contains(words)), "{words:?}: {}", ended.stderr);
        assert!(!ended.stderr.contains(crate::s3::SECRET), "{}", ended.stderr);
    };
    let nowhere = "s3://nowhere/ferry.zip";
    let no_bucket = [nowhere, "404 NoSuchBucket", "is there a bucket \"nowhere\" at this store?"];
    fails(store.lets(make(nowhere)), &no_bucket);
    fails(store.lets(push(nowhere)), &no_bucket);
    let missing =
        ["there is no object s3://transfer/ferry.zip; copy the payload there, or name the right key"];
    fails(store.lets(push(OBJECT)), &missing);
    fails(store.lets(charon(["inspect", OBJECT])), &missing);
    fails(store.lets(charon(["verify", OBJECT])), &missing);
    let denied =
        ["cannot read s3://transfer/ferry.zip", "403 SignatureDoesNotMatch", "check the credentials"];
    for program in [make(OBJECT), push(OBJECT)] {
        fails(store.lets(program).variable("AWS_SECRET_ACCESS_KEY", "wrong"), &denied);
    }
    let ended = make("s3://transfer").run().ended_with(2);
    assert!(ended.stderr.contains("\"s3://transfer\" names no object: it has no key"), "{}", ended.stderr);
    assert!(far.is_empty());
}

#[test]
fn of_a_truncated_or_altered_object_nothing_is_pushed() {
    let (source, _) = source(&[1, 2]);
    let (store, far) = (S3::start(), Registry::start(Software::Distribution3));
    store
        .lets(charon(["make-payload", "ferry:1", "-i", "-r", source.host(), "-f", OBJECT]))
        .run()
        .succeeded();
    let push = || store.lets(charon(["push-payload", "-q", "-i", "-r", far.host(), "-f", OBJECT]));
    let whole = fs::read(store.file("ferry.zip")).unwrap();
    let scratch = tempfile::NamedTempFile::new().unwrap();
    let mut altered = whole.clone();
    let last = altered.len() - 30;
    altered[last] ^= 1;
    for (bytes, words) in [
        (&whole[..whole.len() - 1], "the payload is not complete"),
        (&altered, "its directory and its bill disagree"),
        (&[], "the payload is not complete: it is empty"),
        (b"hello", "this is no payload"),
    ] {
        fs::write(scratch.path(), bytes).unwrap();
        put(&store, "ferry.zip", scratch.path());
        let ended = push().run().ended_with(1);
        assert!(ended.stderr.contains(words), "{words}: {}", ended.stderr);
    }
    assert!(far.is_empty());
}

#[test]
fn an_object_that_is_replaced_while_it_is_pushed_fails_the_push_and_gives_no_tag() {
    // More layers than are pushed at once.
    let (source, _) = source(&[4; 7]);
    let (store, far) = (S3::start(), Registry::start(Software::Distribution3));
    store
        .lets(charon(["make-payload", "ferry:1", "-i", "-r", source.host(), "-f", OBJECT]))
        .run()
        .succeeded();
    let gate = Gate::to(store.host(), 3 << 20);
    let push = charon(["push-payload", "-q", "-i", "-r", far.host(), "-f", OBJECT]);
    let push = crate::s3::lets_at(push, &format!("http://{}", gate.host())).start();
    gate.wait_until_shut();
    let other = tempfile::NamedTempFile::new().unwrap();
    fs::write(other.path(), vec![1; 13 << 20]).unwrap();
    put(&store, "ferry.zip", other.path());
    gate.open();
    let ended = push.end().ended_with(1);
    assert!(
        ended.stderr.contains("s3://transfer/ferry.zip was replaced while it was read"),
        "{}",
        ended.stderr
    );
    assert_eq!(far.tags("ferry"), [""; 0]);
}

/// A certificate of 127.0.0.1 that no authority signed, and its key, in files of a folder.
pub(crate) fn certificate(folder: &Path) -> [PathBuf; 2] {
    let [certificate, key] = ["tls.crt", "tls.key"].map(|name| folder.join(name));
    let openssl =
        ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
    let subject = [
        "-subj",
        "/CN=store",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-addext",
        "basicConstraints=critical,CA:FALSE",
        "-keyout",
    ];
    let files = [key.as_os_str(), "-out".as_ref(), certificate.as_os_str()];
    tool("openssl", openssl).arguments(subject).arguments(files).run().succeeded();
    [certificate, key]
}

#[test]
fn a_store_behind_a_private_authority_is_reached_by_https_and_never_without_it() {
    let folder = tempfile::tempdir().unwrap();
    let [certificate, key] = certificate(folder.path());
    let (source, _) = source(&[1]);
    let store = S3::with_certificate(&certificate, &key);
    let endpoint = format!("https://{}", store.host());
    let make = || {
        let make = charon(["make-payload", "ferry:1", "-q", "-i", "-r", source.host(), "-f", OBJECT]);
        crate::s3::lets_at(make, &endpoint)
    };
    let ended = make().run().ended_with(1);
    assert!(
        ended.stderr.contains("invalid peer certificate") && ended.stderr.contains("SSL_CERT_FILE"),
        "{}",
        ended.stderr
    );
    make().variable("SSL_CERT_FILE", &certificate).run().succeeded();
    assert_eq!(store.keys(), WHOLE);
}
