//! What the far side has is not carried again.

use crate::image::{Image, Layer, Types, digest};
use crate::program::{Program, charon};
use crate::registry::{Registry, Software};

with_each_registry!(
    what_is_shared_is_not_carried_and_is_mounted_at_the_far_side,
    an_image_that_is_itself_there_is_named_and_printed_and_not_touched,
    the_base_may_have_another_tag_by_now,
    what_is_required_is_found_beside_the_image_itself,
);

/// A source with a base and an image on top of it, and a target that has the base.
struct Shared {
    source: Registry,
    target: Registry,
    base: Image,
    top: Image,
}

impl Shared {
    fn new(software: Software) -> Self {
        let (source, target) = (Registry::start(software), Registry::start(software));
        let layers = ["one", "two"].map(|name| Layer::new(name, 4000));
        let base = Image::new(Types::Docker, &layers);
        let top = Image::new(Types::Docker, &[&layers[..], &[Layer::new("top", 500)]].concat());
        base.push(&source, "base:1");
        top.push(&source, "top:1");
        let shared = Self { source, target, base, top };
        shared.push(shared.make(&["base:1"])).run().succeeded();
        shared
    }

    fn make(&self, arguments: &[&str]) -> Vec<u8> {
        let made = charon(["make-payload", "-i", "-r", self.source.host()]).arguments(arguments).run();
        made.succeeded().stdout
    }

    fn push(&self, payload: Vec<u8>) -> Program {
        charon(["push-payload", "-i", "-r", self.target.host()]).fed(payload)
    }

    /// The digests of the layers of the base, which the top has too.
    fn layers(&self) -> Vec<String> {
        self.base.blobs[1..].iter().map(|blob| digest(blob)).collect()
    }
}

fn contains(payload: &[u8], bytes: &[u8]) -> bool {
    payload.windows(bytes.len()).any(|window| window == bytes)
}

fn what_is_shared_is_not_carried_and_is_mounted_at_the_far_side(software: Software) {
    let shared = Shared::new(software);
    let payload = shared.make(&["top:1", "-a", "base:1"]);
    for layer in &shared.base.blobs[1..] {
        assert!(contains(&shared.make(&["top:1"]), layer) && !contains(&payload, layer));
    }
    assert_eq!(shared.push(payload).run().succeeded().text(), "top:1\n");
    shared.top.assert_is_whole_in(&shared.target, "top:1");

    let requests = shared.target.requests();
    for layer in shared.layers() {
        let mounts = requests.iter().filter(|request| {
            request.starts_with("POST /v2/top/blobs/uploads/?")
                && request.contains("from=base")
                && request.contains(&layer.replace(':', "%3A"))
                && request.ends_with(" 201")
        });
        assert_eq!(mounts.count(), 1, "{requests:#?}");
    }
}

fn an_image_that_is_itself_there_is_named_and_printed_and_not_touched(software: Software) {
    let shared = Shared::new(software);
    let payload = shared.make(&["top:1,base:1", "-a", "base:1"]);
    for blob in shared.base.blobs.iter().chain([&shared.base.manifest]) {
        assert!(!contains(&payload, blob));
    }
    let before = shared.target.requests().len();
    let pushed = shared.push(payload).run().succeeded();
    assert_eq!(pushed.text(), "top:1\nbase:1\n");
    let requests = shared.target.requests().split_off(before);
    let is_change = |request: &&String| !request.starts_with("GET") && !request.starts_with("HEAD");
    let changed: Vec<_> =
        requests.iter().filter(is_change).filter(|request| request.contains("/v2/base/")).collect();
    assert!(changed.is_empty(), "{changed:#?}");
}

fn the_base_may_have_another_tag_by_now(software: Software) {
    let shared = Shared::new(software);
    let payload = shared.make(&["top:1,base:1", "-a", "base:1"]);
    // At the far side the tag means something else by the time of the push.
    let other = Image::new(Types::Docker, &[Layer::new("other", 100)]);
    other.push(&shared.target, "base:1");
    assert_eq!(shared.push(payload).run().succeeded().text(), "top:1\nbase:1\n");
    shared.top.assert_is_whole_in(&shared.target, "top:1");
    other.assert_is_whole_in(&shared.target, "base:1");
}

fn what_is_required_is_found_beside_the_image_itself(software: Software) {
    let shared = Shared::new(software);
    // The far side has the layers where nobody said that they are: in an image that this payload writes anew.
    let far = Registry::start(software);
    shared.base.push(&far, "top:0");
    let payload = shared.make(&["top:1", "-a", "base:1"]);
    let pushed = charon(["push-payload", "-i", "-s", "-r", far.host()]).fed(payload).run().succeeded();
    assert_eq!(pushed.text(), "top:1\n");
    shared.top.assert_is_whole_in(&far, "top:1");
}
