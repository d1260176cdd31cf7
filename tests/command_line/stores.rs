//! Object stores of several kinds and moods, and what a build into one costs.

use std::fs;

use crate::gate::Gate;
use crate::image::Image;
use crate::objects::{OBJECT, WHOLE, source};
use crate::program::{Program, charon};
use crate::proxy::{Misdeed, Proxy};
use crate::registry::{Registry, Software};
use crate::s3::{S3, lets_at};
use crate::s3s::S3s;

fn make(source: &Registry) -> Program {
    charon(["make-payload", "ferry:1", "-i", "-r", source.host(), "-f", OBJECT])
}

/// The bytes of the payload, as a build into a stream makes them.
fn expected(source: &Registry) -> Vec<u8> {
    charon(["make-payload", "ferry:1", "-i", "-r", source.host()]).run().succeeded().stdout
}

#[test]
fn another_server_takes_a_payload_in_parts_and_a_push_reads_no_byte_of_it_much_more_than_once() {
    let (source, image): (Registry, Image) = source(&[1, 20, 3]);
    let (store, far) = (S3s::start(), Registry::start(Software::Distribution3));
    store.lets(make(&source)).run().succeeded();
    assert_eq!(store.keys(), WHOLE);
    let payload = fs::read(store.file("ferry.zip")).unwrap();
    assert!(payload == expected(&source));

    let gate = Gate::to(store.host(), usize::MAX);
    let push = charon(["push-payload", "-q", "-i", "-r", far.host(), "-f", OBJECT]);
    lets_at(push, &format!("http://{}", gate.host())).run().succeeded();
    image.assert_is_whole_in(&far, "ferry:1");
    // The bill, the directory and the manifests come in windows of a mebibyte.
    let more = gate.passed().checked_sub(payload.len()).expect("it was read");
    assert!(more < 6 << 20, "{more} bytes more than the payload has");
}

#[test]
fn a_store_without_conditional_writes_is_written_to_all_the_same_and_told_of_once() {
    let (source, _) = source(&[20]);
    let store = S3s::without_conditions();
    let log = store.lets(make(&source)).run().succeeded().stderr;
    assert_eq!(log.matches("the object store knows no conditional writes").count(), 1, "{log}");
    assert!(fs::read(store.file("ferry.zip")).unwrap() == expected(&source));
    assert_eq!(store.keys(), WHOLE);
}

#[test]
fn a_store_that_fails_in_passing_in_the_middle_of_an_upload_is_tried_again() {
    let (source, _) = source(&[20]);
    let store = S3::start();
    let proxy = Proxy::to(store.host());
    proxy.does(Misdeed::pause("503 Slow Down", 0), "PUT", "partNumber=1", 2);
    proxy.does(Misdeed::CutRequest(1 << 20), "PUT", "partNumber=2", 1);
    proxy.does(Misdeed::LoseAnswer, "PUT", "partNumber=2", 1);
    // The answer to a first try of the journal's is lost: what is found there is its own.
    proxy.does(Misdeed::LoseAnswer, "PUT", "ferry.zip.partial.journal", 1);
    let log = lets_at(make(&source), &format!("http://{}", proxy.host())).run().succeeded().stderr;
    assert!(!log.contains("trying again"), "passing failures are for those who ask: {log}");
    assert_eq!(proxy.count("PUT", "partNumber=1"), 3);
    assert!(proxy.count("PUT", "partNumber=2") >= 3);
    assert!(fs::read(store.file("ferry.zip")).unwrap() == expected(&source));
    assert_eq!((store.keys(), store.open_uploads()), (WHOLE.map(str::to_owned).into(), 0));
}

/// The most memory that a program had, in bytes.
const PEAK: &str = "import resource, subprocess, sys
status = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(status)";

#[test]
fn a_build_into_a_bucket_takes_no_more_memory_for_a_payload_that_is_four_times_as_large() {
    let store = S3::start();
    let [small, large] = [32, 128].map(|size| {
        let (source, _) = source(&[size]);
        let ended = store.lets(make(&source)).by("python3", &["-c", PEAK]).run().succeeded();
        let kibibytes: usize = ended.stderr.lines().last().unwrap().parse().unwrap();
        kibibytes << 10
    });
    assert!(large < small + (24 << 20), "{large} bytes, and {small} for the small one");
}
