//! A build that is killed at any byte goes on, and fetches next to nothing twice.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

use crate::gate::{Gate, wait_until};
use crate::image::{Image, Layer, Types};
use crate::interruption::noted;
use crate::program::{Program, Running, charon};
use crate::registry::{Registry, Software};
use crate::s3::{S3, lets_at};

const LAYERS: usize = 14;
const LAYER: usize = 9 << 20;
/// What passes the gate beside blobs while a build is planned, and as the heads of all answers.
const BESIDES: u64 = 64 << 10;
/// What a kill may lose: of each of four blobs that are fetched at once a piece that was not written yet, of a quarter of
/// a mebibyte and what came with its last bytes.
const WINDOW: u64 = 4 * (320 << 10);

/// A payload of more than a hundred megabytes, whose registry answers as far as it is allowed to.
struct Large {
    _source: Registry,
    gate: Gate,
    folder: TempDir,
}

impl Large {
    fn new() -> Self {
        let source = Registry::start(Software::Distribution3);
        let layers: Vec<_> = (0..LAYERS).map(|number| Layer::raw(&number.to_string(), LAYER)).collect();
        Image::new(Types::Oci, &layers).push(&source, "ferry:1");
        let gate = Gate::before(&source, 0);
        Self { _source: source, gate, folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn make(&self, name: &str) -> Program {
        charon(["make-payload", "ferry:1", "-q", "-i", "-r", self.gate.host(), "-f"])
            .arguments([self.path(name)])
    }

    fn noted(&self) -> u64 {
        noted(&self.path("a.zip.partial.journal"))
    }

    /// Lets a build fetch so many bytes, and kills it when it has written what it got.
    fn kill_after(&self, bytes: usize) {
        let (noted, passed) = (self.noted(), self.gate.passed());
        self.gate.let_through(bytes);
        let build = self.make("a.zip").start();
        self.gate.wait_until_shut();
        wait_until("what came is written", || {
            let came = (self.gate.passed() - passed) as u64;
            self.noted() + BESIDES + WINDOW >= noted + came
        });
        kill(build);
    }

    /// Makes the payload without being disturbed.
    fn undisturbed(&self) -> Vec<u8> {
        self.gate.let_through(usize::MAX);
        self.make("b.zip").run().succeeded();
        fs::read(self.path("b.zip")).unwrap()
    }
}

/// What a kill of a build into a bucket may lose at most: three parts of 8 MiB, and 16 MiB that were read ahead of them.
const OF_OBJECT: u64 = 40 << 20;

#[test]
fn a_kill_of_a_build_into_a_bucket_costs_at_most_what_the_manual_says() {
    let (large, store) = (Large::new(), S3::start());
    // All answers of the store pass, until they are held back.
    let way = Gate::to(store.host(), usize::MAX);
    let make = || {
        let make = charon(["make-payload", "ferry:1", "-q", "-i", "-r", large.gate.host(), "-f"]);
        lets_at(make.arguments(["s3://transfer/a.zip"]), &format!("http://{}", way.host()))
    };
    large.gate.let_through(usize::MAX);
    let build = make().start();
    let journal = store.file("a.zip.partial.journal");
    wait_until("a part is noted", || {
        fs::read_to_string(&journal).is_ok_and(|text| !text.contains("\"parts\":[]"))
    });
    way.let_through(0);
    // No part is noted from now on, and it fetches until it can hold no more.
    wait_until("nothing more comes", || {
        let passed = large.gate.passed();
        thread::sleep(Duration::from_millis(500));
        large.gate.passed() == passed
    });
    kill(build);
    way.open();
    make().run().succeeded();
    let (passed, size) = (large.gate.passed() as u64, fs::metadata(store.file("a.zip")).unwrap().len());
    assert!(passed <= size + OF_OBJECT + BESIDES, "{passed} bytes passed for {size}");
    assert!(fs::read(store.file("a.zip")).unwrap() == large.undisturbed());
}

fn kill(build: Running) {
    build.kill();
    assert_eq!(build.end().status, None);
}

#[test]
fn a_kill_costs_at_most_a_fiftieth_of_the_payload() {
    let large = Large::new();
    large.kill_after(70 << 20);
    large.gate.let_through(usize::MAX);
    large.make("a.zip").run().succeeded();
    let passed = large.gate.passed() as u64;
    let payload = fs::read(large.path("a.zip")).unwrap();
    let size = payload.len() as u64;
    assert!(size > 100_000_000 && passed * 100 <= size * 102, "{passed} bytes passed for {size}");
    assert!(payload == large.undisturbed());
}

#[test]
fn however_often_and_wherever_a_build_is_killed_the_payload_is_the_same_and_little_is_fetched_twice() {
    let large = Large::new();
    let wanted = large.undisturbed();
    let size = wanted.len() as u64;
    let before = large.gate.passed();
    let mut random = fastrand::Rng::with_seed(12);
    // While it is planned.
    for _ in 0..2 {
        large.gate.let_through(random.usize(100..2500));
        let build = large.make("a.zip").start();
        large.gate.wait_until_shut();
        kill(build);
    }
    assert_eq!(large.noted(), 0);
    for _ in 0..7 {
        // While it fetches.
        large.kill_after(random.usize(1..16 << 20));
        if random.bool() {
            // While it hashes again what is there: it has opened the journal, and nothing comes yet.
            let journal = large.path("a.zip.partial.journal");
            let length = || fs::metadata(&journal).map_or(0, |found| found.len());
            let before = length();
            large.gate.let_through(0);
            let build = large.make("a.zip").start();
            wait_until("it goes on", || length() > before);
            kill(build);
        }
    }
    // While it ends: all is written, and may not have its name yet.
    large.gate.let_through(usize::MAX);
    let build = large.make("a.zip").start();
    let (partial, payload) = (large.path("a.zip.partial"), large.path("a.zip"));
    // The directory comes when all blobs are there, and ends where the payload does.
    let is_written = || fs::metadata(&partial).map_or(payload.exists(), |found| found.len() == size);
    wait_until("all is written", is_written);
    build.kill();
    build.end();
    if !payload.exists() {
        large.gate.let_through(usize::MAX);
        large.make("a.zip").run().succeeded();
    }
    let passed = (large.gate.passed() - before) as u64;
    // A window for each of the seven kills while it fetched.
    assert!(passed * 100 <= size * 102 + 700 * WINDOW, "{passed} bytes passed for {size}");
    assert!(fs::read(payload).unwrap() == wanted);
}
