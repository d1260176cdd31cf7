//! A choice of platforms: what is carried, what is left out, and registries that refuse an index of which something is.

use std::path::Path;

use serde_json::Value;

use crate::image::{Image, Layer, Types};
use crate::program::{Ended, Program, charon, crane_digest, tool};
use crate::registry::{Registry, Software};

with_each_registry!(
    an_index_is_carried_with_the_platforms_that_are_wanted_and_what_is_attested_of_them,
    an_index_in_an_index_is_carried_with_the_platforms_that_are_wanted,
    a_platform_that_an_image_does_not_have_is_told_with_those_that_it_has,
    an_image_that_its_registry_has_lost_fails_its_index_which_can_be_had_without_it,
    an_index_without_all_its_images_is_refused_and_told_or_written_anew,
    indexes_that_name_one_another_many_times_are_looked_into_once,
);

/// The registry takes an index without all its images, which distribution 2 never does.
const LENIENT: &[(&str, &str)] = &[("REGISTRY_VALIDATION_MANIFESTS_INDEXES_PLATFORMS", "none")];

fn layers(names: &[&str]) -> Vec<Layer> {
    names.iter().map(|name| Layer::new(name, 2000)).collect()
}

/// Images for three platforms, with an attestation of each.
struct Fleet {
    images: [Image; 3],
    attestations: [Image; 3],
    index: Image,
}

impl Fleet {
    fn new() -> Self {
        let amd64 = Image::for_platform(Types::Oci, "amd64", &layers(&["common", "amd64"]));
        let arm64 = Image::for_variant("arm64", "v8", &layers(&["common", "arm64"]));
        let arm = Image::for_variant("arm", "v6", &layers(&["common", "arm"]));
        let images = [amd64, arm64, arm];
        let attestations = images.each_ref().map(Image::attestation);
        let index = Image::index(Types::Oci, &[images.as_slice(), attestations.as_slice()].concat());
        Self { images, attestations, index }
    }
}

fn make(source: &Registry, images: &str, options: &[&str], folder: &Path) -> Program {
    let make = charon(["make-payload", images, "-q", "-i", "-r", source.host(), "-f", "payload.zip"]);
    make.arguments(options).in_folder(folder)
}

fn push(target: &Registry, options: &[&str], folder: &Path) -> Ended {
    let push = charon(["push-payload", "-q", "-i", "-r", target.host(), "-f", "payload.zip"]);
    push.arguments(options).in_folder(folder).run()
}

fn inspect(folder: &Path) -> (String, Value) {
    let inspect = || charon(["inspect", "payload.zip"]).in_folder(folder);
    charon(["verify", "payload.zip"]).in_folder(folder).run().succeeded();
    let json = inspect().arguments(["--json"]).run().succeeded().stdout;
    (inspect().run().succeeded().text(), serde_json::from_slice(&json).unwrap())
}

/// The digests of a list in a bill.
fn digests<'a>(images: impl IntoIterator<Item = &'a Image>) -> Vec<Value> {
    images.into_iter().map(|image| Value::from(image.digest.clone())).collect()
}

/// The index is in the registry as it was, with these of the images that it names, and without the others.
fn assert_has_of(target: &Registry, index: &Image, kept: &[&Image]) {
    let expected = Some((index.media_type.to_owned(), index.manifest.clone()));
    assert_eq!(target.manifest("ferry", "1"), expected);
    assert_eq!(crane_digest(&target.name("ferry:1")), index.digest);
    for child in &index.children {
        if kept.iter().any(|kept| kept.digest == child.digest) {
            child.assert_is_whole_in(target, &format!("ferry:{}", child.digest));
        } else {
            assert_eq!(target.manifest("ferry", &child.digest), None);
        }
    }
}

/// Lets crane pull for a platform all that its image has.
fn crane_pulls(name: &str, platform: &str, folder: &Path) {
    let pull = ["pull", "--insecure", "--platform", platform, "--format", "oci", name];
    tool("crane", pull).arguments([folder.join(platform.replace('/', "-"))]).run().succeeded();
}

fn an_index_is_carried_with_the_platforms_that_are_wanted_and_what_is_attested_of_them(software: Software) {
    let (source, fleet) = (Registry::start(software), Fleet::new());
    fleet.index.push(&source, "ferry:1");
    let folder = tempfile::tempdir().unwrap();
    let [amd64, arm64, arm] = &fleet.images;
    let [of_amd64, of_arm64, of_arm] = &fleet.attestations;
    for (options, kept, omitted) in [
        (&["--platform", "linux/arm64"][..], vec![arm64, of_arm64], vec![amd64, arm, of_amd64, of_arm]),
        (
            &["--platform", "linux/arm", "--platform", "linux/amd64"],
            vec![amd64, arm, of_amd64, of_arm],
            vec![arm64, of_arm64],
        ),
        (
            &["--platform", "linux/arm64/v8,linux/amd64,linux/arm/v6"],
            fleet.index.children.iter().collect(),
            vec![],
        ),
    ] {
        make(&source, "ferry:1", options, folder.path()).run().succeeded();
        let (text, json) = inspect(folder.path());
        let image = &json["bill"]["images"][0];
        let carried: Vec<Value> = image["manifests"]
            .as_array()
            .unwrap()
            .iter()
            .map(|manifest| manifest["digest"].clone())
            .collect();
        assert_eq!(carried, digests(kept.iter().copied().chain([&fleet.index])));
        let told = image["omitted"].as_array().cloned().unwrap_or_default();
        assert_eq!(told, digests(omitted.iter().copied()));
        assert_eq!(json["completeLayout"], Value::from(omitted.is_empty()));
        assert_eq!(text.contains("images of other platforms are left out"), !omitted.is_empty(), "{text}");
        if software == Software::Distribution3 {
            let target = Registry::start(software);
            let lenient = target.entrance(LENIENT);
            assert_eq!(push(&lenient, &[], folder.path()).succeeded().text(), "ferry:1\n");
            assert_has_of(&target, &fleet.index, &kept);
            // Again: it is there.
            let again = push(&target, &[], folder.path()).succeeded();
            assert_eq!((again.text().as_str(), again.stderr.as_str()), ("ferry:1\n", ""));
        }
    }
    // Whoever pulls for the platform gets it.
    let target = Registry::start(Software::Distribution3);
    make(&source, "ferry:1", &["--platform", "linux/arm64"], folder.path()).run().succeeded();
    let lenient = target.entrance(LENIENT);
    push(&lenient, &[], folder.path()).succeeded();
    crane_pulls(&target.name("ferry:1"), "linux/arm64/v8", folder.path());
}

#[test]
fn a_platform_that_a_later_payload_brings_of_the_same_index_is_pushed() {
    let (source, target) =
        (Registry::start(Software::Distribution3), Registry::start(Software::Distribution3));
    let (fleet, lenient, folder) = (Fleet::new(), target.entrance(LENIENT), tempfile::tempdir().unwrap());
    fleet.index.push(&source, "ferry:1");
    let [amd64, arm64, _] = &fleet.images;
    let [of_amd64, of_arm64, _] = &fleet.attestations;
    make(&source, "ferry:1", &["--platform", "linux/amd64"], folder.path()).run().succeeded();
    push(&lenient, &[], folder.path()).succeeded();
    assert_has_of(&target, &fleet.index, &[amd64, of_amd64]);

    let both = ["--platform", "linux/amd64,linux/arm64"];
    make(&source, "ferry:1", &both, folder.path()).run().succeeded();
    push(&lenient, &[], folder.path()).succeeded();
    assert_has_of(&target, &fleet.index, &[amd64, of_amd64, arm64, of_arm64]);
    crane_pulls(&target.name("ferry:1"), "linux/arm64/v8", folder.path());
}

fn an_index_in_an_index_is_carried_with_the_platforms_that_are_wanted(software: Software) {
    let source = Registry::start(software);
    let [amd64, s390x] =
        ["amd64", "s390x"].map(|name| Image::for_platform(Types::Oci, name, &layers(&[name])));
    // Its index does not say what it is for: its config does.
    let silent = Image::for_platform(Types::Docker, "s390x", &layers(&["silent"])).of_no_platform();
    let other = Image::index(Types::Oci, std::slice::from_ref(&s390x));
    let of_silent = Image::attestation(&silent);
    let inner = Image::index(Types::Oci, &[amd64.clone(), s390x, silent.clone(), of_silent.clone()]);
    let index = Image::index(Types::Oci, &[other.clone(), inner.clone()]);
    index.push(&source, "ferry:1");
    let folder = tempfile::tempdir().unwrap();
    make(&source, "ferry:1", &["--platform", "linux/amd64"], folder.path()).run().succeeded();
    let (_, json) = inspect(folder.path());
    let image = &json["bill"]["images"][0];
    assert_eq!(image["manifests"].as_array().unwrap().len(), 3, "{image}");
    assert_eq!(image["omitted"].as_array().unwrap().len(), 4, "{image}");

    let target = Registry::start(software);
    let rewrite = ["--sparse-index", "rewrite"];
    assert_eq!(push(&target, &rewrite, folder.path()).succeeded().text(), "ferry:1\n");
    amd64.assert_is_whole_in(&target, &format!("ferry:{}", amd64.digest));
    for absent in [&silent, &of_silent, &other, &inner] {
        assert_eq!(target.manifest("ferry", &absent.digest), None);
    }
    tool("crane", ["validate", "--insecure", "--remote", &target.name("ferry:1")]).run().succeeded();
}

fn a_platform_that_an_image_does_not_have_is_told_with_those_that_it_has(software: Software) {
    let (source, fleet) = (Registry::start(software), Fleet::new());
    fleet.index.push(&source, "ferry:1");
    Image::new(Types::Docker, &layers(&["single"])).push(&source, "single:1");
    let folder = tempfile::tempdir().unwrap();
    let refused = make(&source, "ferry:1,single:1", &["--platform", "linux/arm/v7"], folder.path());
    let advice = "ask for a platform that it has (platforms, --platform)";
    let told = format!(
        "error: ferry:1: it has no linux/arm/v7; it has linux/amd64, linux/arm/v6, linux/arm64: {advice}\n\
         error: single:1: it has no linux/arm/v7; it has linux/amd64: {advice}\n"
    );
    let stderr = refused.run().ended_with(1).stderr;
    assert!(
        stderr.ends_with(&told) && stderr.starts_with("warning: the manifests that were read are kept in"),
        "{stderr}"
    );
    assert!(!folder.path().join("payload.zip").exists());
    // Of two that are wanted each must be there.
    let both = ["--platform", "linux/amd64,linux/s390x"];
    let refused = make(&source, "ferry:1", &both, folder.path()).run().ended_with(1);
    assert!(refused.stderr.contains("it has no linux/s390x; it has"), "{}", refused.stderr);
    make(&source, "single:1", &["--platform", "linux/amd64"], folder.path()).run().succeeded();
}

fn an_image_that_its_registry_has_lost_fails_its_index_which_can_be_had_without_it(software: Software) {
    let (source, fleet) = (Registry::start(software), Fleet::new());
    fleet.index.push(&source, "ferry:1");
    let [amd64, arm64, _] = &fleet.images;
    source.lose(&arm64.digest);
    let folder = tempfile::tempdir().unwrap();
    let refused = make(&source, "ferry:1", &[], folder.path()).run().ended_with(1);
    let told = format!(
        "error: ferry:1: its index names {} for linux/arm64, and the registry does not",
        arm64.digest
    );
    assert!(refused.stderr.contains(&told) && refused.stderr.contains("--platform"), "{}", refused.stderr);
    make(&source, "ferry:1", &["--platform", "linux/amd64"], folder.path()).run().succeeded();
    assert_eq!(
        inspect(folder.path()).1["bill"]["images"][0]["manifests"][0]["digest"],
        Value::from(amd64.digest.clone())
    );
}

fn an_index_without_all_its_images_is_refused_and_told_or_written_anew(software: Software) {
    let (source, fleet) = (Registry::start(software), Fleet::new());
    fleet.index.push(&source, "ferry:1");
    let [amd64, arm64, _] = &fleet.images;
    let other = Image::new(Types::Docker, &layers(&["single"]));
    other.push(&source, "single:1");
    let folder = tempfile::tempdir().unwrap();
    make(&source, "ferry:1,single:1", &["--platform", "linux/amd64"], folder.path()).run().succeeded();

    let target = Registry::start(software);
    let kept = push(&target, &[], folder.path()).ended_with(1);
    assert_eq!(kept.text(), "single:1\n");
    for words in
        ["error: ferry:1: cannot push", "validation.manifests.indexes.platforms", "--sparse-index rewrite"]
    {
        assert!(kept.stderr.contains(words), "{}", kept.stderr);
    }
    assert_eq!(target.tags("ferry"), [""; 0]);
    // Nothing was sent a second time for a fault that is not the blobs'.
    let begun = target.requests().iter().filter(|request| request.starts_with("POST")).count();
    // One for each repository, to see whether it may be pushed to.
    assert_eq!(begun, 2 + amd64.blobs.len() + fleet.attestations[0].blobs.len() + other.blobs.len());

    // olareg says the same in other words.
    let olareg = Registry::start(Software::Olareg);
    let kept = push(&olareg, &[], folder.path()).ended_with(1);
    assert!(kept.stderr.contains("--sparse-index rewrite"), "{}", kept.stderr);
    push(&olareg, &["--sparse-index", "rewrite"], folder.path()).succeeded();
    crane_pulls(&olareg.name("ferry:1"), "linux/amd64", &folder.path().join("of-olareg"));

    for round in ["pushed", "pushed again"] {
        let rewritten = push(&target, &["--sparse-index", "rewrite"], folder.path()).succeeded();
        assert_eq!(rewritten.text(), "ferry:1\nsingle:1\n", "{round}");
        let digest = crane_digest(&target.name("ferry:1"));
        assert_ne!(digest, fleet.index.digest);
        let told = format!("its digest is {digest} instead of {}\n", fleet.index.digest);
        assert!(rewritten.stderr.starts_with("warning: ferry:1: "), "{}", rewritten.stderr);
        assert!(rewritten.stderr.ends_with(&told), "{}", rewritten.stderr);
    }
    let (_, index) = target.manifest("ferry", "1").unwrap();
    let index: Value = serde_json::from_slice(&index).unwrap();
    let children: Vec<Value> =
        index["manifests"].as_array().unwrap().iter().map(|child| child["digest"].clone()).collect();
    assert_eq!(children, digests([amd64, &fleet.attestations[0]]));
    crane_pulls(&target.name("ferry:1"), "linux/amd64", folder.path());
    assert_eq!(target.manifest("ferry", &arm64.digest), None);
}

/// Looked into at every mention they would be 20 to the power of 7.
fn indexes_that_name_one_another_many_times_are_looked_into_once(software: Software) {
    let source = Registry::start(software);
    let mut nested = Image::for_platform(Types::Oci, "arm64", &layers(&["arm64"]));
    nested.push(&source, "ferry:only");
    for depth in 0..8 {
        // Every child has the same bytes; the innermost alone tells its platform.
        let children = vec![nested.clone(); if depth == 0 { 1 } else { 20 }];
        let mut index = Image::index(Types::Oci, &children);
        source.push_manifest("ferry", "1", index.media_type, &index.manifest);
        // Once it is stored, it is not to be pushed again.
        index.children = Vec::new();
        nested = index;
    }
    let folder = tempfile::tempdir().unwrap();
    let told = make(&source, "ferry:1", &["--platform", "linux/amd64"], folder.path()).run().ended_with(1);
    assert!(told.stderr.contains("it has no linux/amd64; it has linux/arm64"), "{}", told.stderr);
    make(&source, "ferry:1", &["--platform", "linux/arm64"], folder.path()).run().succeeded();
}
