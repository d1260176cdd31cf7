//! Images that cannot be had and may be left out.

use serde_json::{Value, json};

use crate::image::{Image, Layer, Types};
use crate::program::{Program, charon};
use crate::proxy::{Misdeed, Proxy};
use crate::registry::{Registry, Software};

with_each_registry!(
    images_that_cannot_be_had_are_left_out_and_told_of_on_both_sides,
    where_none_can_be_had_the_build_fails,
    a_registry_that_does_not_answer_or_a_base_that_is_gone_fails_the_build,
    what_is_a_manifest_and_an_index_at_once_is_refused_and_the_image_beside_it_arrives,
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
