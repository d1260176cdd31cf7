//! What was declared already transferred, and is not there.

use crate::image::{Image, Layer, Types, digest};
use crate::program::{Ended, charon};
use crate::registry::{Registry, Software};

with_each_registry!(
    an_image_whose_base_is_missing_gets_no_tag_and_the_others_are_pushed,
    strict_means_that_nothing_is_pushed_if_a_base_is_missing,
    an_image_that_is_only_named_and_missing_is_a_warning_unless_strict,
    a_base_tag_that_moved_at_the_source_does_not_make_a_broken_image,
);

/// A source with a base, an image on top of it, and one that has nothing to do with them.
fn source(software: Software) -> (Registry, Layer, Image) {
    let source = Registry::start(software);
    let shared = Layer::new("base", 3000);
    let top = Image::new(Types::Docker, &[shared.clone(), Layer::new("top", 1000)]);
    Image::new(Types::Docker, std::slice::from_ref(&shared)).push(&source, "base:1");
    top.push(&source, "top:1");
    Image::new(Types::Oci, &[Layer::new("other", 1000)]).push(&source, "other:1");
    (source, shared, top)
}

fn make(source: &Registry, arguments: &[&str]) -> Vec<u8> {
    let made = charon(["make-payload", "-i", "-r", source.host()]).arguments(arguments);
    made.run().succeeded().stdout
}

fn push(target: &Registry, payload: &[u8], options: &[&str]) -> Ended {
    charon(["push-payload", "-q", "-i", "-r", target.host()]).arguments(options).fed(payload).run()
}

/// That a file does the same as a pipe is proved where it matters: from a file everything is known before.
fn push_file(target: &Registry, payload: &[u8], options: &[&str]) -> Ended {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), payload).unwrap();
    let pushed = charon(["push-payload", "-q", "-i", "-r", target.host(), "-f"]).arguments([file.path()]);
    pushed.arguments(options).run()
}

fn lacks(host: &str, layer: &str) -> String {
    format!(
        "{host} lacks 1 blob that the payload leaves out since base:1 had been transferred, {layer} among them; \
         transfer base:1 first, or build the payload without declaring it"
    )
}

fn an_image_whose_base_is_missing_gets_no_tag_and_the_others_are_pushed(software: Software) {
    let (source, shared, top) = source(software);
    let payload = make(&source, &["top:1,other:1", "-a", "base:1"]);
    for push in [push, push_file] {
        let target = Registry::start(software);
        let pushed = push(&target, &payload, &[]).ended_with(1);
        assert_eq!(pushed.stderr, format!("error: top:1: {}\n", lacks(target.host(), &shared.digest())));
        assert_eq!(pushed.text(), "other:1\n");
        assert_eq!((target.tags("top"), target.tags("other")), (vec![], vec!["1".to_owned()]));
        assert!(!target.stores(&top.digest));
    }
}

fn strict_means_that_nothing_is_pushed_if_a_base_is_missing(software: Software) {
    let (source, shared, _) = source(software);
    let payload = make(&source, &["top:1,other:1", "-a", "base:1"]);
    for push in [push, push_file] {
        let target = Registry::start(software);
        let pushed = push(&target, &payload, &["--strict"]).ended_with(1);
        let why = lacks(target.host(), &shared.digest());
        assert_eq!(pushed.stderr, format!("error: nothing was pushed: top:1: {why}\n"));
        assert_eq!(pushed.text(), "");
        assert!(target.is_empty());
        assert!(!target.requests().iter().any(|request| request.starts_with('P')));
    }
}

fn an_image_that_is_only_named_and_missing_is_a_warning_unless_strict(software: Software) {
    let (source, ..) = source(software);
    let target = Registry::start(software);
    let payload = make(&source, &["base:1,other:1", "-a", "base:1"]);
    let (_, base) = source.manifest("base", "1").unwrap();
    let (host, base) = (target.host(), digest(&base));

    let pushed = push(&target, &payload, &["-s"]).ended_with(1);
    assert_eq!(
        pushed.stderr,
        format!(
            "warning: base:1 was declared already transferred, but {host}/base has no {base}\n\
             error: nothing was pushed: base:1 was declared already transferred, but base has no {base}; \
             transfer it first, or build the payload without declaring it\n"
        )
    );
    assert!(target.is_empty());

    let pushed = push(&target, &payload, &[]).succeeded();
    assert_eq!(
        pushed.stderr,
        format!("warning: base:1 was declared already transferred, but {host}/base has no {base}\n")
    );
    // As docker-charon does.
    assert_eq!(pushed.text(), "base:1\nother:1\n");
    assert_eq!((target.tags("base"), target.tags("other")), (vec![], vec!["1".to_owned()]));
}

fn a_base_tag_that_moved_at_the_source_does_not_make_a_broken_image(software: Software) {
    let (source, ..) = source(software);
    let target = Registry::start(software);
    push(&target, &make(&source, &["base:1"]), &[]).succeeded();
    // base:1 is rebuilt, and so is what stands on it; the far side has only the base that was.
    let moved = Layer::new("moved", 3000);
    Image::new(Types::Docker, std::slice::from_ref(&moved)).push(&source, "base:1");
    Image::new(Types::Docker, &[moved.clone(), Layer::new("top", 1000)]).push(&source, "top:1");
    let payload = make(&source, &["top:1", "-a", "base:1"]);
    let pushed = push(&target, &payload, &[]).ended_with(1);
    assert_eq!(pushed.stderr, format!("error: top:1: {}\n", lacks(target.host(), &moved.digest())));
    assert_eq!((pushed.text(), target.tags("top")), (String::new(), vec![]));
}
