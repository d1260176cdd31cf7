//! Uploads that break on the way, and registries that take no large requests.

use std::fs;
use std::time::Duration;

use tempfile::TempDir;

use crate::image::{Image, Layer, Types};
use crate::program::{Program, charon};
use crate::proxy::{Misdeed, Proxy};
use crate::registry::{Registry, Software};

with_each_registry!(
    an_upload_that_is_cut_goes_on_with_the_bytes_that_did_not_arrive,
    an_upload_from_a_pipe_that_is_cut_goes_on_too,
    a_proxy_that_takes_no_large_requests_gets_small_ones,
    an_upload_that_is_cut_again_and_again_arrives_in_pieces,
    an_upload_whose_answer_was_lost_is_not_sent_again;
    and olareg
);

const LAYER: usize = 20 << 20;
const UPLOADS: &str = "/blobs/uploads/";

/// A payload with `ferry:1`, and a registry behind a proxy to push it to.
struct Crossing {
    image: Image,
    payload: Vec<u8>,
    folder: TempDir,
    target: Registry,
    proxy: Proxy,
}

impl Crossing {
    fn new(software: Software) -> Self {
        let source = Registry::start(Software::Distribution3);
        let image = Image::new(Types::Oci, &[Layer::new("water", LAYER)]);
        image.push(&source, "ferry:1");
        let payload = charon(["make-payload", "ferry:1", "-i", "-r", source.host()]).run().succeeded().stdout;
        let target = Registry::start(software);
        let proxy = Proxy::before(&target);
        Self { image, payload, folder: tempfile::tempdir().unwrap(), target, proxy }
    }

    fn push(&self) -> Program {
        charon(["push-payload", "-q", "-i", "-r", self.proxy.host()])
    }

    fn push_file(&self) -> Program {
        let file = self.folder.path().join("payload.zip");
        fs::write(&file, &self.payload).unwrap();
        self.push().arguments(["-f"]).arguments([file])
    }

    /// How many bytes were sent that need not have been.
    fn sent_twice(&self) -> usize {
        self.image.assert_is_whole_in(&self.target, "ferry:1");
        let needed: usize = self.image.blobs.iter().map(Vec::len).sum();
        // Each of the two manifests is put once by its digest and once by its tag.
        self.proxy.passed().saturating_sub(needed + 2 * self.image.manifest.len())
    }
}

fn an_upload_that_is_cut_goes_on_with_the_bytes_that_did_not_arrive(software: Software) {
    let crossing = Crossing::new(software);
    crossing.proxy.does(Misdeed::CutRequest(15 << 20), "PUT", UPLOADS, 1);
    assert_eq!(crossing.push_file().run().succeeded().text(), "ferry:1\n");
    let twice = crossing.sent_twice();
    match software {
        // Its storage is asked for what it has.
        Software::Distribution3 => assert!(twice < 1 << 20, "{twice} bytes were sent twice"),
        // These give up an upload whose request was cut, and get all of it again.
        Software::Distribution2 | Software::Olareg => assert!(twice <= 15 << 20, "{twice}"),
    }
}

fn an_upload_from_a_pipe_that_is_cut_goes_on_too(software: Software) {
    let crossing = Crossing::new(software);
    // docker-registry 2.8 forgets an upload whose request was cut: what has passed by then is lost.
    let pieces_before = usize::from(software != Software::Distribution2);
    crossing.proxy.does(Misdeed::Delay(Duration::ZERO), "PATCH", UPLOADS, pieces_before);
    crossing.proxy.does(Misdeed::CutRequest(3 << 20), "PATCH", UPLOADS, 1);
    let pushed = crossing.push().fed(crossing.payload.clone()).run().succeeded();
    assert_eq!(pushed.text(), "ferry:1\n");
    let twice = crossing.sent_twice();
    assert!(twice <= 3 << 20, "{twice} bytes were sent twice");
    assert_eq!(crossing.proxy.count("PATCH", UPLOADS), 4);
}

fn a_proxy_that_takes_no_large_requests_gets_small_ones(software: Software) {
    for by_pipe in [false, true] {
        let crossing = Crossing::new(software);
        crossing.proxy.does(Misdeed::TooLarge(1 << 20), "PUT", UPLOADS, usize::MAX);
        crossing.proxy.does(Misdeed::TooLarge(1 << 20), "PATCH", UPLOADS, usize::MAX);
        let push = if by_pipe { crossing.push().fed(crossing.payload.clone()) } else { crossing.push_file() };
        assert_eq!(push.run().succeeded().text(), "ferry:1\n");
        assert_eq!(crossing.sent_twice(), 0);
    }
}

fn an_upload_that_is_cut_again_and_again_arrives_in_pieces(software: Software) {
    let crossing = Crossing::new(software);
    crossing.proxy.does(Misdeed::CutRequest(2 << 20), "PUT", UPLOADS, 2);
    crossing.proxy.does(Misdeed::CutRequest(2 << 20), "PATCH", UPLOADS, 1);
    assert_eq!(crossing.push_file().run().succeeded().text(), "ferry:1\n");
    crossing.sent_twice();
    assert!(crossing.proxy.count("PATCH", UPLOADS) > 2);
}

fn an_upload_whose_answer_was_lost_is_not_sent_again(software: Software) {
    let crossing = Crossing::new(software);
    // The answer is cut before its first byte.
    crossing.proxy.does(Misdeed::LoseAnswer, "PUT", UPLOADS, 1);
    assert_eq!(crossing.push_file().run().succeeded().text(), "ferry:1\n");
    assert_eq!(crossing.sent_twice(), 0);
}
