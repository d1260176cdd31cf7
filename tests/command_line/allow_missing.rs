//! Images that cannot be had and may be left out.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::image::{Image, Layer, Types, digest};
use crate::program::{Program, charon, crane_digest};
use crate::proxy::{Misdeed, Proxy};
use crate::registry::{Registry, Software};
use crate::s3::S3;

with_each_registry!(
    images_that_cannot_be_had_are_left_out_and_told_of_on_both_sides,
    where_none_can_be_had_the_build_fails,
    a_registry_that_does_not_answer_or_a_base_that_is_gone_fails_the_build,
    what_is_a_manifest_and_an_index_at_once_is_refused_and_the_image_beside_it_arrives,
    an_image_that_lost_a_layer_is_left_out_of_a_file_a_stream_and_an_object,
    images_whose_manifests_lie_about_sizes_are_left_out_and_those_beside_them_are_not,
    a_layer_that_is_lost_while_it_is_fetched_fails_the_build,
    a_layer_that_is_given_although_head_denies_it_is_not_taken_for_lost,
    an_image_is_not_left_out_because_its_signature_lost_its_blob,
);

const ALWAYS: usize = usize::MAX;

fn source(software: Software) -> Registry {
    let source = Registry::start(software);
    let image = |name: &str| Image::for_platform(Types::Docker, name, &[Layer::new(name, 1000)]);
    image("amd64").push(&source, "ferry:1");
    image("arm64").push(&source, "other:1");
    source
}

fn make(source: &Registry, images: &str, options: &[&str]) -> Program {
    make_from(source.host(), images).arguments(options)
}

fn make_from(host: &str, images: &str) -> Program {
    charon(["make-payload", images, "-q", "-i", "-r", host, "--allow-missing"])
}

fn images_that_cannot_be_had_are_left_out_and_told_of_on_both_sides(software: Software) {
    let source = source(software);
    let folder = tempfile::tempdir().unwrap();
    let file = ["--platform", "linux/amd64", "-f", "payload.zip"];
    let names = "gone:1,ferry:1,other:1,nowhere/gone@sha256:0000000000000000000000000000000000000000000000000000000000000000";
    let made = make(&source, names, &file).in_folder(folder.path()).run().succeeded();
    let told: Vec<&str> = made.stderr.lines().collect();
    assert_eq!(told.len(), 3, "{}", made.stderr);
    for (line, words) in
        told.iter().zip(["/gone:1: ", "other:1: it has no linux/amd64", "/nowhere/gone@sha256:00"])
    {
        assert!(line.starts_with("warning: ") && line.contains(words), "{line}");
        assert!(line.ends_with("; the payload is made without it"), "{line}");
    }

    charon(["verify", "payload.zip"]).in_folder(folder.path()).run().succeeded();
    let inspect = |options: &[&str]| {
        let inspect = charon(["inspect", "payload.zip"]).arguments(options).in_folder(folder.path());
        inspect.run().succeeded().text()
    };
    let json: Value = serde_json::from_str(&inspect(&["--json"])).unwrap();
    let of = |name: &str, reference: &str| json!({ "name": name, "reference": source.name(reference), "reason": "ImageNotFound" });
    let last = names.rsplit(',').next().unwrap();
    assert_eq!(
        json["bill"]["missing"],
        json!([of("gone:1", "gone:1"), of("other:1", "other:1"), of(last, last)])
    );
    assert!(inspect(&[]).contains("NOT TO BE HAD"));
    assert!(inspect(&[]).contains("ImageNotFound"));

    let target = Registry::start(software);
    let pushed = charon(["push-payload", "-q", "-s", "-i", "-r", target.host(), "-f", "payload.zip"]);
    let pushed = pushed.in_folder(folder.path()).run().succeeded();
    assert_eq!(pushed.text(), "ferry:1\n");
    assert_eq!(
        pushed.stderr.lines().filter(|line| line.starts_with("warning: ")).count(),
        3,
        "{}",
        pushed.stderr
    );
    assert!(pushed.stderr.starts_with("warning: gone:1 is not in this payload"), "{}", pushed.stderr);

    // The same registry, the same bytes.
    let again = make(&source, names, &file[..2]).run().succeeded();
    assert!(again.stdout == std::fs::read(folder.path().join("payload.zip")).unwrap());
}

fn where_none_can_be_had_the_build_fails(software: Software) {
    let source = source(software);
    let refused = make(&source, "gone:1,gone:2", &[]).run().ended_with(1);
    assert!(refused.stdout.is_empty());
    assert_eq!(refused.stderr.matches("MANIFEST_UNKNOWN").count(), 2, "{}", refused.stderr);
    assert_eq!(refused.stderr.matches("error: ").count(), 2, "{}", refused.stderr);
}

fn a_registry_that_does_not_answer_or_a_base_that_is_gone_fails_the_build(software: Software) {
    let source = source(software);
    let refused = make(&source, "ferry:1", &["-a", "gone:1"]).run().ended_with(1);
    assert!(refused.stderr.starts_with("error: ") && refused.stderr.contains("gone:1"), "{}", refused.stderr);
    // It speaks no TLS, which another try would not change.
    let other = Registry::start(software);
    let images = format!("ferry:1,{}", other.name("ferry:1"));
    let refused = make(&source, &images, &[]).run().ended_with(1);
    assert!(refused.stderr.contains("does not speak TLS"), "{}", refused.stderr);
    assert!(refused.stdout.is_empty());
}

/// Registries of today do not take such a manifest: it is served before one.
fn what_is_a_manifest_and_an_index_at_once_is_refused_and_the_image_beside_it_arrives(software: Software) {
    let source = source(software);
    let image = Image::new(Types::Oci, &[Layer::new("both", 1000)]);
    image.push(&source, "both:1");
    let mut both: Value = serde_json::from_slice(&image.manifest).unwrap();
    let child =
        json!({"mediaType": Types::Oci.manifest(), "digest": image.digest, "size": image.manifest.len()});
    both["manifests"] = json!([child]);
    let proxy = Proxy::before(&source);
    for method in ["HEAD", "GET"] {
        let both = both.to_string().into_bytes();
        proxy.does(Misdeed::Serve(Types::Oci.manifest(), both), method, "/both/manifests/1", ALWAYS);
    }
    let refused =
        charon(["make-payload", "both:1,ferry:1", "-q", "-i", "-r", proxy.host()]).run().ended_with(1);
    assert!(refused.stdout.is_empty());
    assert!(refused.stderr.starts_with("error: both:1: sha256:"), "{}", refused.stderr);
    assert!(refused.stderr.contains("it has both manifests and a config or layers"), "{}", refused.stderr);

    let made = make_from(proxy.host(), "both:1,ferry:1").run().succeeded();
    let target = Registry::start(software);
    let pushed = charon(["push-payload", "-q", "-i", "-r", target.host()]).fed(made.stdout).run().succeeded();
    assert_eq!(pushed.text(), "ferry:1\n");
}

/// The names and reasons of what a payload is without.
fn missing(folder: &Path) -> Value {
    let told = charon(["inspect", "--json", "payload.zip"]).in_folder(folder).run().succeeded().text();
    let told: Value = serde_json::from_str(&told).unwrap();
    let missing = told["bill"]["missing"].as_array().cloned().unwrap_or_default();
    missing.iter().map(|missing| json!([missing["name"], missing["reason"]])).collect()
}

fn an_image_that_lost_a_layer_is_left_out_of_a_file_a_stream_and_an_object(software: Software) {
    let source = source(software);
    let shared = Layer::new("shared", 1000);
    let lost = Image::new(Types::Oci, &[shared.clone(), Layer::new("lost", 1000)]);
    lost.push(&source, "styx:1");
    Image::new(Types::Oci, &[shared]).push(&source, "top:1");
    source.lose(&digest(&lost.blobs[2]));
    let make = || make(&source, "gone:1,styx:1,top:1,gone:2,ferry:1", &[]);
    let (store, folder) = (S3::start(), tempfile::tempdir().unwrap());
    let file = folder.path().join("payload.zip");
    let told = make().arguments(["-f"]).arguments([&file]).run().succeeded().stderr;
    let warning = told.lines().find(|line| line.contains("styx:1")).unwrap();
    assert!(warning.starts_with("warning: styx:1: cannot read blob "), "{told}");
    assert!(warning.ends_with("; the payload is made without it"), "{told}");
    let expected = ["gone:1", "styx:1", "gone:2"].map(|name| json!([name, "ImageNotFound"]));
    assert_eq!(missing(folder.path()), json!(expected));

    let payload = fs::read(&file).unwrap();
    assert!(make().run().succeeded().stdout == payload);
    let object = "s3://transfer/payload.zip";
    store.lets(make().arguments(["-f", object])).run().succeeded();
    assert!(fs::read(store.file("payload.zip")).unwrap() == payload);

    let target = Registry::start(software);
    let pushed = charon(["push-payload", "-q", "-i", "-r", target.host(), "-f"]).arguments([&file]);
    assert_eq!(pushed.run().succeeded().text(), "top:1\nferry:1\n");

    // If nothing is left, there is no payload.
    let refused = make_from(source.host(), "styx:1,gone:1").run().ended_with(1);
    assert_eq!(refused.stderr.matches("error: ").count(), 2, "{}", refused.stderr);
}

/// The same image with the size of something that it names altered.
fn lie(source: &Registry, name: &str, image: &Image, list: &str) {
    let mut manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
    let size = manifest[list][0]["size"].as_u64().unwrap();
    manifest[list][0]["size"] = (size + 1).into();
    let (repository, tag) = name.split_once(':').unwrap();
    source.push_manifest(repository, tag, image.media_type, manifest.to_string().as_bytes());
}

fn images_whose_manifests_lie_about_sizes_are_left_out_and_those_beside_them_are_not(software: Software) {
    let source = source(software);
    let image = Image::new(Types::Oci, &[Layer::new("layer", 1000)]);
    let index = Image::index(Types::Oci, std::slice::from_ref(&image));
    for name in ["liar:1", "true:1"] {
        image.push(&source, name);
    }
    index.push(&source, "index:1");
    lie(&source, "index:1", &index, "manifests");
    lie(&source, "liar:1", &image, "layers");
    let folder = tempfile::tempdir().unwrap();
    // Who is contradicted by a liar comes behind it, and is carried all the same.
    let made = make(&source, "index:1,liar:1,true:1", &["-f", "payload.zip"]).in_folder(folder.path());
    made.run().succeeded();
    let expected = ["index:1", "liar:1"].map(|name| json!([name, "DigestMismatch"]));
    assert_eq!(missing(folder.path()), json!(expected));
}

fn a_layer_that_is_lost_while_it_is_fetched_fails_the_build(software: Software) {
    let source = source(software);
    let proxy = Proxy::before(&source);
    let image = Image::new(Types::Oci, &[Layer::new("late", 1000)]);
    image.push(&source, "late:1");
    let late = format!("/late/blobs/{}", digest(&image.blobs[1]));
    proxy.does(Misdeed::Answer("404 Not Found", vec![]), "GET", &late, ALWAYS);
    let refused = make_from(proxy.host(), "ferry:1,late:1").run().ended_with(1);
    let told = format!("error: late:1: cannot read blob {}/late@", proxy.host());
    assert!(refused.stderr.starts_with(&told), "{}", refused.stderr);
}

fn a_layer_that_is_given_although_head_denies_it_is_not_taken_for_lost(software: Software) {
    let source = source(software);
    let proxy = Proxy::before(&source);
    proxy.does(Misdeed::Answer("404 Not Found", vec![]), "HEAD", "/blobs/", ALWAYS);
    let made = make_from(proxy.host(), "ferry:1").run().succeeded();
    assert_eq!(made.stderr, "");
}

fn an_image_is_not_left_out_because_its_signature_lost_its_blob(software: Software) {
    let source = source(software);
    let ferry = crane_digest(&source.name("ferry:1"));
    let signature = Image::new(Types::Oci, &[Layer::new("signature", 1000)]);
    signature.push(&source, &format!("ferry:{}.sig", ferry.replace(':', "-")));
    source.lose(&digest(&signature.blobs[1]));
    let refused = make(&source, "ferry:1,other:1", &[]).run().ended_with(1);
    assert!(refused.stderr.contains("ferry:1: cannot read blob"), "{}", refused.stderr);
    assert!(refused.stderr.contains("--no-referrers"), "{}", refused.stderr);
    make(&source, "ferry:1,other:1", &["--no-referrers"]).run().succeeded();
}
