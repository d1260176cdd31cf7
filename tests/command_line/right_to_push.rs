//! What a registry will not take is known before any blob moves.

use crate::image::{Image, Layer, Types};
use crate::program::charon;
use crate::proxy::{Misdeed, Proxy};
use crate::registry::{Registry, Software};

with_each_registry!(
    a_repository_that_may_not_be_pushed_to_fails_its_images_before_any_blob_moves,
    strict_pushes_nothing_where_one_repository_refuses,
    what_is_there_already_needs_no_right,
    no_upload_is_left_behind,
);

const BEGIN: &str = "/blobs/uploads/";

/// A payload with an image for each of two repositories.
struct Payload {
    one: Image,
    two: Image,
    bytes: Vec<u8>,
}

impl Payload {
    fn new(software: Software) -> Self {
        let source = Registry::start(software);
        let [one, two] = ["one", "two"].map(|name| Image::new(Types::Docker, &[Layer::new(name, 1000)]));
        one.push(&source, "team/one:1");
        one.push(&source, "team/one:2");
        two.push(&source, "team/two:1");
        let made = charon(["make-payload", "-i", "-r", source.host(), "team/one:1,team/one:2,team/two:1"]);
        let bytes = made.run().succeeded().stdout;
        Self { one, two, bytes }
    }
}

fn a_repository_that_may_not_be_pushed_to_fails_its_images_before_any_blob_moves(software: Software) {
    let payload = Payload::new(software);
    for (answer, reason, advice) in [
        ("403 Forbidden", "answered 403 Forbidden", "check that the account may push to this repository"),
        (
            "404 Not Found",
            "answered 404 Not Found",
            "create the repository or project first, or use an account that may create it",
        ),
    ] {
        let target = Registry::start(software);
        let proxy = Proxy::before(&target);
        let host = proxy.host();
        proxy.does(Misdeed::Answer(answer, Vec::new()), "POST", "/v2/team/one/blobs/uploads/", usize::MAX);
        let push = || charon(["push-payload", "-q", "-i", "-r", host]).fed(payload.bytes.clone()).run();
        let pushed = push().ended_with(1);
        let why = format!("cannot push to {host}/team/one: {host} {reason}; {advice}");
        assert_eq!(pushed.stderr, format!("error: team/one:1: {why}\nerror: team/one:2: {why}\n"));
        assert_eq!(pushed.text(), "team/two:1\n");
        payload.two.assert_is_whole_in(&target, "team/two:1");
        assert_eq!(proxy.count("POST", "/v2/team/one/"), 1, "{:#?}", proxy.seen());
        // Nobody was told to look for what is not to go there.
        assert_eq!(proxy.count("HEAD", "/v2/team/one/blobs/"), 0);
        assert!(!target.stores(&payload.one.digest));
    }
}

fn strict_pushes_nothing_where_one_repository_refuses(software: Software) {
    let (payload, target) = (Payload::new(software), Registry::start(software));
    let proxy = Proxy::before(&target);
    let denied = Misdeed::Answer("403 Forbidden", Vec::new());
    proxy.does(denied, "POST", "/v2/team/one/blobs/uploads/", usize::MAX);
    let pushed = charon(["push-payload", "-s", "-q", "-i", "-r", proxy.host()]).fed(payload.bytes).run();
    let told = format!("error: nothing was pushed: team/one:1: cannot push to {}/team/one: ", proxy.host());
    assert!(pushed.ended_with(1).stderr.starts_with(&told));
    assert_eq!(proxy.count("PUT", ""), 0);
    assert!(target.tags("team/two").is_empty());
}

fn what_is_there_already_needs_no_right(software: Software) {
    let (payload, target) = (Payload::new(software), Registry::start(software));
    payload.one.push(&target, "team/one:1");
    payload.one.push(&target, "team/one:2");
    payload.two.push(&target, "team/two:1");
    let proxy = Proxy::before(&target);
    let pushed = charon(["push-payload", "-i", "-r", proxy.host()]).fed(payload.bytes).run().succeeded();
    assert_eq!(pushed.text(), "team/one:1\nteam/one:2\nteam/two:1\n");
    assert_eq!(proxy.count("POST", ""), 0, "{:#?}", proxy.seen());
}

fn no_upload_is_left_behind(software: Software) {
    let (payload, target) = (Payload::new(software), Registry::start(software));
    let proxy = Proxy::before(&target);
    charon(["push-payload", "-i", "-r", proxy.host()]).fed(payload.bytes).run().succeeded();
    // One to see for each repository, before all that bring a blob.
    assert_eq!(proxy.count("DELETE", BEGIN), 2);
    let seen = proxy.seen();
    let first_put = seen.iter().position(|request| request.method == "PUT").unwrap();
    let last_end = seen.iter().rposition(|request| request.method == "DELETE").unwrap();
    assert!(last_end < first_put, "{seen:#?}");
    if software != Software::Olareg {
        assert_eq!(target.open_uploads("team/one") + target.open_uploads("team/two"), 0);
    }
}
