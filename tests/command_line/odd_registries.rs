//! Registries, and what stands before them, that answer otherwise than one would like.

use std::fs;

use crate::access::{Locked, PASSWORD};
use crate::image::{Image, Layer, Types};
use crate::program::{Program, charon};
use crate::proxy::{Misdeed, Proxy};
use crate::registry::{Registry, Software};

with_each_registry!(
    a_link_that_ended_in_the_middle_of_a_blob_is_asked_for_again,
    a_blob_that_is_cut_is_read_on_even_where_no_ranges_are_served,
    a_blob_without_a_length_is_read,
    a_blob_without_a_length_that_is_cut_is_read_on,
    a_digest_that_is_not_told_or_not_true_misleads_nobody,
    a_registry_that_does_not_answer_to_head_is_read,
    a_mount_that_becomes_an_upload_is_given_up_and_the_blob_comes_from_the_payload,
    a_slow_and_busy_registry_is_waited_for;
    and olareg
);

const BLOBS: &str = "/blobs/sha256:";
const LAYER: usize = 3 << 20;
const ALWAYS: usize = usize::MAX;

/// A registry with `ferry:1`, a proxy before it, and what comes of it undisturbed.
struct Odd {
    registry: Registry,
    proxy: Proxy,
    payload: Vec<u8>,
}

impl Odd {
    fn new(software: Software) -> Self {
        let registry = Registry::start(software);
        let image = Image::new(Types::Oci, &[Layer::new("water", LAYER)]);
        image.push(&registry, "ferry:1");
        let proxy = Proxy::before(&registry);
        let payload = make(&proxy).run().succeeded().stdout;
        Self { registry, proxy, payload }
    }

    fn makes_the_same(&self) {
        assert!(make(&self.proxy).run().succeeded().stdout == self.payload);
    }
}

fn make(proxy: &Proxy) -> Program {
    charon(["make-payload", "ferry:1", "-q", "-i", "-r", proxy.host()])
}

#[test]
fn no_credential_follows_a_redirect_to_where_blobs_are_stored() {
    let locked = Locked::new(Software::Distribution3);
    let (proxy, storage) = (Proxy::before(&locked.entrance), Proxy::before(&locked.registry));
    proxy.does(Misdeed::Redirect(storage.host().to_owned()), "GET", BLOBS, ALWAYS);
    make(&proxy).arguments(["-u", "charon", "-p", PASSWORD]).run().succeeded();
    assert!(proxy.seen().iter().any(|request| request.header("authorization").is_some()));
    assert_eq!(storage.count("GET", BLOBS), 2);
    assert!(storage.seen().iter().all(|request| request.header("authorization").is_none()));
}

fn a_link_that_ended_in_the_middle_of_a_blob_is_asked_for_again(software: Software) {
    let odd = Odd::new(software);
    let storage = Proxy::before(&odd.registry);
    odd.proxy.does(Misdeed::Redirect(storage.host().to_owned()), "GET", BLOBS, ALWAYS);
    storage.does(Misdeed::CutAnswer(1 << 20), "GET", BLOBS, 2);
    storage.does(Misdeed::Answer("403 Forbidden", vec![]), "GET", BLOBS, 2);
    odd.makes_the_same();
    let mut asked: Vec<String> = storage.seen().into_iter().map(|request| request.target).collect();
    let count = asked.len();
    asked.sort();
    asked.dedup();
    assert_eq!(asked.len(), count, "no link is used twice");

    // One that is refused for good is told.
    storage.does(Misdeed::Answer("403 Forbidden", vec![]), "GET", BLOBS, ALWAYS);
    let said = make(&odd.proxy).run().ended_with(1).stderr;
    assert!(said.contains(&format!("{} answered 403 Forbidden", storage.host())), "{said}");
    assert!(!said.contains("signature"), "{said}");
}

fn a_blob_that_is_cut_is_read_on_even_where_no_ranges_are_served(software: Software) {
    for ranges in [true, false] {
        let odd = Odd::new(software);
        odd.proxy.does(Misdeed::CutAnswer(1 << 20), "GET", BLOBS, 2);
        if !ranges {
            odd.proxy.does(Misdeed::WithoutAsking("range"), "GET", BLOBS, ALWAYS);
        }
        odd.makes_the_same();
    }
}

fn a_blob_without_a_length_that_is_cut_is_read_on(software: Software) {
    for ranges in [true, false] {
        let odd = Odd::new(software);
        // Into a file each blob is asked for as a whole.
        odd.proxy.does(Misdeed::CutAnswerWithoutLength(1 << 20), "GET", BLOBS, 2);
        if !ranges {
            odd.proxy.does(Misdeed::WithoutAsking("range"), "GET", BLOBS, ALWAYS);
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        make(&odd.proxy).arguments(["-f"]).arguments([file.path()]).run().succeeded();
        assert!(fs::read(file.path()).unwrap() == odd.payload);
    }
}

fn a_blob_without_a_length_is_read(software: Software) {
    let odd = Odd::new(software);
    odd.proxy.does(Misdeed::WithoutHeader("content-length"), "GET", BLOBS, ALWAYS);
    odd.proxy.does(Misdeed::WithoutHeader("content-length"), "HEAD", BLOBS, ALWAYS);
    odd.makes_the_same();
}

fn a_digest_that_is_not_told_or_not_true_misleads_nobody(software: Software) {
    let another = format!("sha256:{}", "0".repeat(64));
    for misdeed in [
        Misdeed::WithoutHeader("docker-content-digest"),
        Misdeed::Header("docker-content-digest", another),
        Misdeed::Header("docker-content-digest", "nonsense".to_owned()),
    ] {
        let odd = Odd::new(software);
        odd.proxy.does(misdeed.clone(), "HEAD", "/manifests/", ALWAYS);
        odd.proxy.does(misdeed, "GET", "/manifests/", ALWAYS);
        odd.makes_the_same();
        // A far side that says nothing of its tags is read, too.
        let push = charon(["push-payload", "-q", "-i", "-r", odd.proxy.host()]).fed(odd.payload.clone());
        assert_eq!(push.run().succeeded().text(), "ferry:1\n");
    }
}

fn a_registry_that_does_not_answer_to_head_is_read(software: Software) {
    for status in ["404 Not Found", "405 Method Not Allowed"] {
        let odd = Odd::new(software);
        odd.proxy.does(Misdeed::Answer(status, vec![]), "HEAD", "/manifests/", ALWAYS);
        odd.makes_the_same();
    }
}

fn a_mount_that_becomes_an_upload_is_given_up_and_the_blob_comes_from_the_payload(software: Software) {
    let source = Registry::start(Software::Distribution3);
    let image = Image::new(Types::Oci, &[Layer::new("water", LAYER)]);
    image.push(&source, "one:1");
    image.push(&source, "two:1");
    let target = Registry::start(software);
    let proxy = Proxy::before(&target);
    proxy.does(Misdeed::WithoutQuery, "POST", "mount=", ALWAYS);
    let payload = charon(["make-payload", "one:1,two:1", "-i", "-r", source.host()]).run().succeeded().stdout;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("payload.zip");
    fs::write(&file, payload).unwrap();
    let push = charon(["push-payload", "-q", "-i", "-r", proxy.host(), "-f"]).arguments([file]);
    assert_eq!(push.run().succeeded().text(), "one:1\ntwo:1\n");
    image.assert_is_whole_in(&target, "one:1");
    image.assert_is_whole_in(&target, "two:1");
    assert_eq!(proxy.count("POST", "mount="), 2);
    assert_eq!(proxy.count("GET", BLOBS), 0, "nothing is copied inside the registry");
    // And one for each repository, to see whether it may be pushed to.
    assert_eq!(proxy.count("DELETE", "/blobs/uploads/"), 2 + 2);
    if software != Software::Olareg {
        assert_eq!(target.open_uploads("two"), 0);
    }
}

fn a_slow_and_busy_registry_is_waited_for(software: Software) {
    let odd = Odd::new(software);
    odd.proxy.does(Misdeed::pause("503 Service Unavailable", 1), "HEAD", "/manifests/", 1);
    odd.proxy.does(Misdeed::pause("429 Too Many Requests", 1), "GET", BLOBS, 1);
    odd.proxy.does(Misdeed::Throttle(4 << 20), "GET", BLOBS, ALWAYS);
    odd.makes_the_same();
}
