//! What is no image: charts, files of any type, empty configs, and digests that are not sha256.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::image::{Image, Layer, Types};
use crate::program::{Program, charon, tool};
use crate::registry::{Registry, Software};

with_each_registry!(
    a_chart_that_helm_pushed_arrives_and_helm_pulls_it,
    files_of_any_type_that_oras_pushed_arrive_and_oras_pulls_them,
);

/// A program that keeps what it has to keep in a folder of the test's.
fn at_home(name: &str, arguments: &[&str], folder: &Path) -> Program {
    tool(name, arguments).variable("HOME", folder).in_folder(folder)
}

/// Carries an image; platforms are of no matter to what has none.
fn carry(source: &Registry, target: &Registry, image: &str) -> String {
    let made = charon(["make-payload", "-i", "-r", source.host(), "--platform", "linux/s390x", image]).run();
    let pushed = charon(["push-payload", "-i", "-r", target.host()]).fed(made.succeeded().stdout).run();
    pushed.succeeded().text()
}

fn a_chart_that_helm_pushed_arrives_and_helm_pulls_it(software: Software) {
    let (source, target) = (Registry::start(software), Registry::start(software));
    let folder = tempfile::tempdir().unwrap();
    let helm = |arguments: &[&str]| at_home("helm", arguments, folder.path()).run().succeeded();
    helm(&["create", "boat"]);
    helm(&["package", "boat"]);
    let packed = fs::read(folder.path().join("boat-0.1.0.tgz")).unwrap();
    helm(&["push", "--plain-http", "boat-0.1.0.tgz", &format!("oci://{}/charts", source.host())]);
    assert_eq!(carry(&source, &target, "charts/boat:0.1.0"), "charts/boat:0.1.0\n");
    let chart = format!("oci://{}/charts/boat", target.host());
    fs::create_dir(folder.path().join("there")).unwrap();
    helm(&["pull", "--plain-http", "--version", "0.1.0", "--destination", "there", &chart]);
    assert!(fs::read(folder.path().join("there/boat-0.1.0.tgz")).unwrap() == packed);
}

fn files_of_any_type_that_oras_pushed_arrive_and_oras_pulls_them(software: Software) {
    let (source, target) = (Registry::start(software), Registry::start(software));
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in [("chart.txt", "depths"), ("empty.bin", "")] {
        fs::write(folder.path().join(name), content).unwrap();
    }
    let oras = |arguments: &[&str]| at_home("oras", arguments, folder.path()).run().succeeded();
    let files = ["chart.txt:application/vnd.ferry.depths.v1+text", "empty.bin:application/x-nothing"];
    let artifact = ["--artifact-type", "application/vnd.ferry.chart.v1"];
    for (name, more) in [("files:1", &artifact[..]), ("files:2", &[])] {
        oras(&[&["push", "--plain-http", &source.name(name)], &files[..], more].concat());
        assert_eq!(carry(&source, &target, name), format!("{name}\n"));
        let digest = |registry: &Registry| oras(&["resolve", "--plain-http", &registry.name(name)]).text();
        assert_eq!(digest(&source), digest(&target));
        oras(&["pull", "--plain-http", "--output", name, &target.name(name)]);
        assert_eq!(fs::read(folder.path().join(name).join("chart.txt")).unwrap(), b"depths");
        assert_eq!(fs::read(folder.path().join(name).join("empty.bin")).unwrap(), b"");
    }
    // An empty config, an empty file: nobody is asked for a part of them.
    oras(&["push", "--plain-http", &source.name("files:3")]);
    assert_eq!(carry(&source, &target, "files:3"), "files:3\n");
    assert!(source.requests().iter().all(|request| !request.ends_with("206")));
}

#[test]
fn sha512_digests_arrive_where_the_registry_keeps_them_and_are_told_of_where_it_does_not() {
    let (source, target) = (Registry::start(Software::Olareg), Registry::start(Software::Olareg));
    let index = Image::index(Types::Oci, &[Image::new(Types::Oci, &[Layer::new("oar", 3000)])]);
    index.push(&source, "ferry:256");
    let folder = tempfile::tempdir().unwrap();
    let regctl = |registry: &Registry, arguments: &[&str]| {
        let host = format!("reg={},tls=disabled", registry.host());
        at_home("regctl", &[&["--host", &host], arguments].concat(), folder.path()).run().succeeded().text()
    };
    let (old, new) = (source.name("ferry:256"), source.name("ferry:512"));
    regctl(&source, &["image", "mod", "--digest-algo", "sha512", "--create", &new, &old]);
    let digest = regctl(&source, &["manifest", "head", &new]).trim().to_owned();
    assert!(digest.starts_with("sha512:"), "{digest}");

    let made =
        charon(["make-payload", "-i", "-r", source.host(), &format!("ferry:512,ferry@{digest}")]).run();
    let payload = made.succeeded().stdout;
    let push =
        |target: &Registry| charon(["push-payload", "-i", "-r", target.host()]).fed(payload.clone()).run();
    push(&target).succeeded();
    let arrived = target.name("ferry:512");
    assert_eq!(regctl(&target, &["manifest", "head", &arrived]).trim(), digest);
    let child: Value =
        serde_json::from_str(&regctl(&target, &["manifest", "get", "--format", "raw-body", &arrived]))
            .unwrap();
    assert!(child["manifests"][0]["digest"].as_str().unwrap().starts_with("sha512:"), "{child}");
    regctl(&target, &["image", "copy", &arrived, "ocidir://layout:512"]);
    let again = push(&target).succeeded();
    assert!(again.stderr.contains("Skipping ferry:512 as it's already"), "{}", again.stderr);

    let refused = push(&Registry::start(Software::Distribution3)).ended_with(1);
    assert!(refused.stderr.contains("keeps no manifest by its sha512 digest"), "{}", refused.stderr);
}
