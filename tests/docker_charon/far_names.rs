//! How images are called at the far side.

use std::fs;
use std::path::Path;

use crate::content;
use crate::image::{Image, Layer, Types};
use crate::payload;
use crate::program::{Program, charon};
use crate::registry::{Registry, Software};
use crate::stage::images;

/// Writes a payload of images from registries that no test can ask.
fn payload(path: &Path, images: &[(&str, &Image)]) {
    fs::write(path, payload::payload(images, None)).unwrap();
}

fn push(target: &Registry, path: &Path) -> Program {
    charon(["push-payload", "-q", "-i", "-r", target.host(), "-f"]).arguments([path])
}

/// The names that a registry has, with those digests' images.
fn assert_names(target: &Registry, expected: &[(&str, &Image)]) {
    let found = content::images(target);
    let expected = expected.iter().map(|(name, image)| ((*name).to_owned(), image.digest.clone())).collect();
    assert_eq!(found, expected);
}

#[test]
fn names_of_many_registries_arrive_as_written_or_canonical_or_with_their_hosts_behind_the_prefix() {
    let (images, folder) = (images(), tempfile::tempdir().unwrap());
    let (base, other, oci) = (&images["base:1"], &images["team/other:1"], &images["oci:1"]);
    let path = folder.path().join("payload.zip");
    let named = [("python:3", base), ("library/redis", oci), ("quay.io:443/team/tool:2", other)];
    payload(&path, &named);
    for (options, [python, redis, tool]) in [
        (&[][..], ["python:3", "library/redis:latest", "team/tool:2"]),
        (&["--naming", "as-written"], ["python:3", "library/redis:latest", "team/tool:2"]),
        (&["--naming", "canonical"], ["library/python:3", "library/redis:latest", "team/tool:2"]),
        (
            &["--naming", "with-host"],
            ["docker.io/library/python:3", "docker.io/library/redis:latest", "quay.io-443/team/tool:2"],
        ),
        (&["--prefix", "mirror"], ["mirror/python:3", "mirror/library/redis:latest", "mirror/team/tool:2"]),
        (
            &["--prefix=/a/b/", "--naming=with-host"],
            [
                "a/b/docker.io/library/python:3",
                "a/b/docker.io/library/redis:latest",
                "a/b/quay.io-443/team/tool:2",
            ],
        ),
    ] {
        let target = Registry::start(Software::Distribution3);
        let pushed = push(&target, &path).arguments(options).run().succeeded();
        // What is printed is what whoever made the payload wrote.
        assert_eq!(pushed.text(), "python:3\nlibrary/redis\nquay.io:443/team/tool:2\n", "{options:?}");
        assert_names(&target, &[(python, base), (redis, oci), (tool, other)]);
    }
}

#[test]
fn two_images_that_would_get_one_name_are_refused_with_both_and_the_others_arrive() {
    let (images, folder) = (images(), tempfile::tempdir().unwrap());
    let (base, other, oci) = (&images["base:1"], &images["team/other:1"], &images["oci:1"]);
    let path = folder.path().join("payload.zip");
    payload(&path, &[("quay.io/tool:1", base), ("app:1", oci), ("ghcr.io/tool:1", other)]);
    let target = Registry::start(Software::Distribution3);
    let refused = push(&target, &path).run().ended_with(1);
    let both = "quay.io/tool:1 and ghcr.io/tool:1 would both be tool:1 here; choose another naming, or build the payload with another name for one (spec.images[].as)";
    assert_eq!(refused.stderr, format!("error: quay.io/tool:1: {both}\nerror: ghcr.io/tool:1: {both}\n"));
    assert_eq!(refused.text(), "app:1\n");
    assert_names(&target, &[("app:1", oci)]);

    let strict = Registry::start(Software::Distribution3);
    let refused = push(&strict, &path).arguments(["--strict"]).run().ended_with(1);
    assert!(refused.stderr.contains(both), "{}", refused.stderr);
    assert!(strict.is_empty());

    push(&target, &path).arguments(["--naming", "with-host"]).run().succeeded();
    assert_names(
        &target,
        &[
            ("app:1", oci),
            ("docker.io/library/app:1", oci),
            ("ghcr.io/tool:1", other),
            ("quay.io/tool:1", base),
        ],
    );
}

#[test]
fn one_image_under_two_names_that_become_one_is_no_clash() {
    let (images, folder) = (images(), tempfile::tempdir().unwrap());
    let base = &images["base:1"];
    let path = folder.path().join("payload.zip");
    payload(&path, &[("quay.io/tool:1", base), ("ghcr.io/tool:1", base)]);
    let target = Registry::start(Software::Distribution3);
    assert_eq!(push(&target, &path).run().succeeded().text(), "quay.io/tool:1\nghcr.io/tool:1\n");
    assert_names(&target, &[("tool:1", base)]);
}

#[test]
fn a_reference_by_digest_gets_a_tag_that_keeps_it_unless_that_is_not_wanted() {
    let (images, folder) = (images(), tempfile::tempdir().unwrap());
    let (base, other) = (&images["base:1"], &images["team/other:1"]);
    let path = folder.path().join("payload.zip");
    let (untagged, tagged) = (format!("tool@{}", base.digest), format!("app:2@{}", other.digest));
    payload(&path, &[(&untagged, base), (&tagged, other)]);
    let printed = format!("{untagged}\n{tagged}\n");

    let target = Registry::start(Software::Distribution3);
    assert_eq!(push(&target, &path).run().succeeded().text(), printed);
    let tag = format!("tool:charon-{}", &base.digest["sha256:".len()..][..32]);
    assert_names(&target, &[(&tag, base), ("app:2", other)]);
    base.assert_is_whole_in(&target, &tag);

    let target = Registry::start(Software::Distribution3);
    assert_eq!(push(&target, &path).arguments(["--no-digest-tags"]).run().succeeded().text(), printed);
    assert_names(&target, &[("app:2", other)]);
    let found = target.manifest("tool", &base.digest).expect("it is there by its digest");
    assert_eq!(found.1, base.manifest);
}

#[test]
fn a_name_that_the_prefix_makes_impossible_is_refused() {
    let (images, folder) = (images(), tempfile::tempdir().unwrap());
    let path = folder.path().join("payload.zip");
    payload(&path, &[("tool:1", &images["base:1"])]);
    let target = Registry::start(Software::Distribution3);
    for prefix in ["Mirror", "a//b", "../a"] {
        let refused = push(&target, &path).arguments(["--prefix", prefix]).run().ended_with(1);
        assert_eq!(
            refused.stderr,
            format!("error: tool:1: \"{prefix}/tool\" is no name for a repository; check the prefix\n")
        );
        assert!(target.is_empty());
    }
}

#[test]
fn what_is_left_out_is_found_in_a_base_repository_and_nowhere_without_it() {
    let (images, folder) = (images(), tempfile::tempdir().unwrap());
    let (source, target) = [Software::Distribution3; 2].map(Registry::start).into();
    for name in ["base:1", "top:1"] {
        images[name].push(&source, name);
    }
    images["base:1"].push(&target, "mirror/base:1");
    let path = folder.path().join("payload.zip");
    let made = charon(["make-payload", "top:1", "-a", "base:1", "-i", "-r", source.host(), "-f"]);
    made.arguments([&path]).run().succeeded();

    let refused = push(&target, &path).run().ended_with(1);
    let message = format!(
        "error: top:1: {} lacks 2 blobs that the payload leaves out since base:1 had been transferred, ",
        target.host()
    );
    assert!(refused.stderr.starts_with(&message), "{}", refused.stderr);
    let pushed = push(&target, &path).arguments(["--base-repository", "nowhere,mirror/base"]).run();
    assert_eq!(pushed.succeeded().text(), "top:1\n");
    images["top:1"].assert_is_whole_in(&target, "top:1");
}

#[test]
fn an_index_is_pushed_behind_its_images_where_these_are_named_by_themselves_too() {
    let folder = tempfile::tempdir().unwrap();
    let children: Vec<Image> = ["amd64", "arm64", "riscv64", "s390x", "ppc64le", "loong64"]
        .map(|name| Image::for_platform(Types::Oci, name, &[Layer::new(name, 100)]))
        .into();
    let index = Image::index(Types::Oci, &children);
    let names: Vec<String> = children.iter().map(|child| format!("list@{}", child.digest)).collect();
    let mut images: Vec<(&str, &Image)> = names.iter().map(String::as_str).zip(&children).collect();
    images.push(("list:1", &index));
    let path = folder.path().join("payload.zip");
    payload(&path, &images);
    let target = Registry::start(Software::Distribution3);
    push(&target, &path).run().succeeded();
    index.assert_is_whole_in(&target, "list:1");
}
