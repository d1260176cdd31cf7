//! How images are called at the far side, and which payload is wanted there.

use crate::image::{Image, Layer, Types};
use crate::program::{Program, charon};
use crate::registry::{Registry, Software};

with_each_registry!(
    a_prefix_goes_in_front_of_every_repository,
    a_base_that_lies_elsewhere_is_found_where_it_is_said_to_be,
    another_payload_than_the_expected_one_is_refused,
);

fn make(source: &Registry, arguments: &[&str]) -> Vec<u8> {
    let made = charon(["make-payload", "-i", "-r", source.host()]).arguments(arguments);
    made.run().succeeded().stdout
}

fn push(target: &Registry, options: &[&str]) -> Program {
    charon(["push-payload", "-q", "-i", "-r", target.host()]).arguments(options)
}

fn a_prefix_goes_in_front_of_every_repository(software: Software) {
    let (source, target) = (Registry::start(software), Registry::start(software));
    let image = Image::new(Types::Oci, &[Layer::new("oar", 1000)]);
    image.push(&source, "ferry:1");
    let payload = make(&source, &["ferry:1"]);
    // What is printed is what was asked for, wherever it is now.
    let pushed = push(&target, &["--prefix", "mirror/of"]).fed(payload.clone()).run().succeeded();
    assert_eq!(pushed.text(), "ferry:1\n");
    image.assert_is_whole_in(&target, "mirror/of/ferry:1");

    push(&target, &["--naming", "with-host"]).fed(payload).run().succeeded();
    image.assert_is_whole_in(&target, &format!("{}/ferry:1", source.host().replace(':', "-")));
    assert_eq!(target.tags("ferry"), Vec::<String>::new());
}

fn a_base_that_lies_elsewhere_is_found_where_it_is_said_to_be(software: Software) {
    let (source, target) = (Registry::start(software), Registry::start(software));
    let base = Layer::new("base", 1000);
    let top = Image::new(Types::Docker, &[base.clone(), Layer::new("top", 100)]);
    Image::new(Types::Docker, std::slice::from_ref(&base)).push(&source, "base:1");
    top.push(&source, "top:1");
    Image::new(Types::Docker, &[base]).push(&target, "moved/away:1");
    let payload = make(&source, &["top:1", "-a", "base:1"]);
    push(&target, &["-s"]).fed(payload.clone()).run().ended_with(1);
    push(&target, &["-s", "--base-repository", "moved/away"]).fed(payload).run().succeeded();
    top.assert_is_whole_in(&target, "top:1");
}

fn another_payload_than_the_expected_one_is_refused(software: Software) {
    let (source, target) = (Registry::start(software), Registry::start(software));
    Image::new(Types::Docker, &[Layer::new("oar", 1000)]).push(&source, "ferry:1");
    let made = charon(["make-payload", "-i", "-r", source.host(), "ferry:1"]).run().succeeded();
    let found = made.stderr.trim_end().rsplit(' ').next().unwrap();
    let expected = format!("sha256:{}", "0".repeat(64));
    let refused = push(&target, &["--expected-digest", &expected]).fed(made.stdout.clone()).run();
    assert_eq!(
        refused.ended_with(1).stderr,
        format!(
            "error: the payload has the digest {found}, expected was {expected}; nothing was pushed: check which file was carried over\n"
        )
    );
    assert!(target.is_empty());
    let pushed = push(&target, &["--expected-digest", found]).fed(made.stdout).run().succeeded();
    assert_eq!(pushed.text(), "ferry:1\n");
}
