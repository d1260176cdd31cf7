//! Layers that may not be distributed: where they come from, and registries that want no manifest that names them by
//! urls.

use std::net::TcpListener;

use crate::image::{Image, Layer, Types, digest};
use crate::program::{Ended, charon};
use crate::registry::{Registry, Software};

with_each_registry!(
    a_layer_that_may_not_be_distributed_is_carried_if_its_registry_has_it,
    without_it_the_image_fails_and_the_option_is_named,
    with_the_option_it_is_asked_for_by_https_and_in_the_public_internet_alone,
);

/// Manifests with urls are taken.
const WITH_URLS: &[(&str, &str)] = &[("REGISTRY_VALIDATION_MANIFESTS_URLS_ALLOW", r#"["^http"]"#)];

fn make(source: &Registry, images: &str, options: &[&str]) -> Ended {
    let make = charon(["make-payload", images, "-q", "-i", "-r", source.host()]);
    make.arguments(options).run()
}

/// A source whose `windows:1` has a layer that may not be distributed, at these urls.
fn source(software: Software, urls: &[&str]) -> (Registry, Image, String) {
    let source = Registry::start(software);
    let foreign = Layer::foreign("glass", urls);
    let name = foreign.digest();
    let image = Image::new(Types::Docker, &[foreign, Layer::new("frame", 1000)]);
    image.push(&source.entrance(WITH_URLS), "windows:1");
    (source, image, name)
}

fn a_layer_that_may_not_be_distributed_is_carried_if_its_registry_has_it(software: Software) {
    let (source, image, _) = source(software, &["https://layers.example/glass"]);
    let payload = make(&source, "windows:1", &[]).succeeded().stdout;

    // distribution calls its dislike of urls an error of its own, which another try would not change.
    let target = Registry::start(software);
    let push = |target: &Registry| {
        let push = charon(["push-payload", "-q", "-i", "-r", target.host()]);
        push.fed(payload.clone()).run()
    };
    let refused = push(&target).ended_with(1);
    for words in
        ["error: windows:1: cannot push", "it names layers by urls", "validation.manifests.urls.allow"]
    {
        assert!(refused.stderr.contains(words), "{}", refused.stderr);
    }
    let puts =
        target.requests().iter().filter(|request| request.starts_with("PUT /v2/windows/manifests")).count();
    assert_eq!((puts, refused.text().as_str()), (1, ""));

    let target = target.entrance(WITH_URLS);
    assert_eq!(push(&target).succeeded().text(), "windows:1\n");
    image.assert_is_whole_in(&target, "windows:1");
}

fn without_it_the_image_fails_and_the_option_is_named(software: Software) {
    let (source, _, glass) = source(software, &["https://layers.example/glass"]);
    source.lose(&glass);
    Image::new(Types::Docker, &[Layer::new("frame", 1000)]).push(&source, "other:1");
    let refused = make(&source, "windows:1,other:1", &[]).ended_with(1);
    assert_eq!(
        refused.stderr,
        format!(
            "error: windows:1: its layer {glass} may not be distributed, and the registry does not have it; have such \
             layers fetched from where the manifest says (foreignLayers: true, --foreign-layers)\n"
        )
    );
    assert!(refused.stdout.is_empty());
    // It can be left out, and it is not asked for where the far side has it.
    let allowed = make(&source, "windows:1,other:1", &["--allow-missing"]).succeeded();
    assert!(allowed.stderr.contains("warning: windows:1: its layer"), "{}", allowed.stderr);
    let base = Image::new(Types::Docker, &[Layer::foreign("glass", &["https://layers.example/glass"])]);
    base.push(&source.entrance(WITH_URLS), "base:1");
    source.lose(&glass);
    make(&source, "windows:1", &["-a", "base:1"]).succeeded();
}

fn with_the_option_it_is_asked_for_by_https_and_in_the_public_internet_alone(software: Software) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    for (url, told) in [
        (format!("http://localhost:{port}/glass"), "is not asked, since it is not named by https"),
        (format!("https://127.0.0.1:{port}/glass"), "it has the address 127.0.0.1"),
        (format!("https://localhost:{port}/glass"), "which is not of the public internet"),
        ("https://169.254.169.254/latest".to_owned(), "it has the address 169.254.169.254"),
    ] {
        let (source, _, glass) = source(software, &[&url]);
        source.lose(&glass);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("payload.zip").display().to_string();
        for options in [&["--foreign-layers"][..], &["--foreign-layers", "-f", &file]] {
            let refused = make(&source, "windows:1", options).ended_with(1).stderr;
            let start = format!(
                "error: windows:1: cannot read blob {}@{glass}: the registry does not have it, and",
                source.name("windows")
            );
            assert!(refused.starts_with(&start) && refused.contains(told), "{refused}");
        }
        assert!(listener.accept().is_err(), "it was asked");
    }
}

#[test]
fn a_layer_that_the_registry_has_is_never_asked_for_elsewhere() {
    let (source, image, glass) = source(Software::Distribution3, &["https://127.0.0.1:1/glass"]);
    assert_eq!(glass, digest(&image.blobs[1]));
    make(&source, "windows:1", &["--foreign-layers"]).succeeded();
}
