//! Signatures, attestations and SBOMs travel with the images; cosign and oras judge what arrives.

use std::fs;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::front::Front;
use crate::image::{Image, Layer, Types, digest};
use crate::program::{Ended, Program, charon, crane_digest, tool};
use crate::registry::{Registry, Software};

/// Proves each of the sentences between registries that list referrers by themselves and such that do not.
macro_rules! between_registries {
    ($($name:ident),+ $(,)?) => {
        mod from_distribution_to_distribution {
            $(#[test] fn $name() { super::$name(&super::Sides::new(super::Software::Distribution3, super::Software::Distribution3)); })+
        }
        mod from_olareg_to_olareg {
            $(#[test] fn $name() { super::$name(&super::Sides::new(super::Software::Olareg, super::Software::Olareg)); })+
        }
        mod from_olareg_to_distribution {
            $(#[test] fn $name() { super::$name(&super::Sides::new(super::Software::Olareg, super::Software::Distribution3)); })+
        }
        mod from_distribution_to_docker_registry_2 {
            $(#[test] fn $name() { super::$name(&super::Sides::new(super::Software::Distribution3, super::Software::Distribution2)); })+
        }
    };
}

between_registries!(
    an_image_signed_at_the_near_side_is_verified_at_the_far_side,
    what_is_attested_of_one_platform_is_verified_at_the_far_side,
    an_sbom_and_what_refers_to_it_are_discovered_at_the_far_side,
    what_the_far_side_has_of_an_image_stays_beside_what_arrives,
    referrers_arrive_although_the_image_is_there,
    an_index_that_refers_to_an_image_arrives_with_what_it_names,
    what_is_a_part_of_an_image_and_refers_to_another_part_is_listed_too,
);

/// Both sides of an air gap, and somebody who signs.
pub(crate) struct Sides {
    pub(crate) source: Registry,
    pub(crate) target: Registry,
    pub(crate) folder: TempDir,
    /// Who pushes a manifest there lists it by himself.
    source_lists_nothing: bool,
}

/// In which form cosign keeps what it makes.
#[derive(Clone, Copy)]
pub(crate) enum Form {
    /// Under tags that are made of the image's digest, as before version 3.
    Tag,
    /// As bundles that refer to the image.
    Bundle,
}

impl Form {
    const BOTH: [Self; 2] = [Self::Tag, Self::Bundle];

    /// Without any service in any network.
    fn to_make(self) -> &'static [&'static str] {
        match self {
            Self::Tag => &["--tlog-upload=false", "--use-signing-config=false", "--new-bundle-format=false"],
            Self::Bundle => &["--signing-config", "services.json"],
        }
    }

    fn to_verify(self) -> &'static [&'static str] {
        match self {
            Self::Tag => &["--new-bundle-format=false"],
            Self::Bundle => &["--trusted-root", "roots.json"],
        }
    }
}

impl Sides {
    pub(crate) fn new(source: Software, target: Software) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (file, kind) in [
            ("services.json", "application/vnd.dev.sigstore.signingconfig.v0.2+json"),
            ("roots.json", "application/vnd.dev.sigstore.trustedroot+json;version=0.1"),
        ] {
            fs::write(folder.path().join(file), format!(r#"{{"mediaType":"{kind}"}}"#)).unwrap();
        }
        fs::write(folder.path().join("sbom.json"), r#"{"spdxVersion":"SPDX-2.3"}"#).unwrap();
        fs::write(folder.path().join("other.json"), r#"{"other":true}"#).unwrap();
        let source_lists_nothing = source != Software::Olareg;
        let (source, target) = (Registry::start(source), Registry::start(target));
        let sides = Self { source, target, folder, source_lists_nothing };
        sides.cosign(&["generate-key-pair"]).run().succeeded();
        sides
    }

    /// cosign, which would ask its makers' services if it could.
    fn cosign(&self, arguments: &[&str]) -> Program {
        let program = tool("cosign", arguments).in_folder(self.folder.path());
        let program = program.variable("HOME", self.folder.path()).variable("COSIGN_PASSWORD", "");
        program.variable("https_proxy", "http://127.0.0.1:1")
    }

    fn make(&self, form: Form, arguments: &[&str], name: &str) {
        let program = self.cosign(arguments).arguments(form.to_make());
        program.arguments(["--key", "cosign.key", "--allow-http-registry", "-y", name]).run().succeeded();
    }

    pub(crate) fn sign(&self, form: Form, name: &str) {
        self.make(form, &["sign"], name);
    }

    fn attest(&self, form: Form, name: &str) {
        self.make(form, &["attest", "--predicate", "sbom.json", "--type", "spdxjson"], name);
    }

    fn verify(&self, form: Form, arguments: &[&str], name: &str) -> Ended {
        let program = self.cosign(arguments).arguments(form.to_verify());
        let how = ["--key", "cosign.pub", "--insecure-ignore-tlog", "--allow-http-registry", name];
        program.arguments(how).run()
    }

    /// Attaches a file to an image as oras does; gives the digest of what refers to it.
    pub(crate) fn attach(&self, registry: &Registry, name: &str, file: &str) -> String {
        let file = format!("{file}:application/json");
        let arguments =
            ["attach", "--plain-http", "--format", "json", "--artifact-type", "application/spdx+json"];
        let attached = tool("oras", arguments).arguments([registry.name(name), file]);
        let attached = attached.in_folder(self.folder.path()).run().succeeded().text();
        serde_json::from_str::<Value>(&attached).unwrap()["digest"].as_str().unwrap().to_owned()
    }

    pub(crate) fn payload(&self, options: &[&str], images: &str) -> Vec<u8> {
        let made = charon(["make-payload", "-q", "-i", "-r", self.source.host(), images]).arguments(options);
        made.run().succeeded().stdout
    }

    pub(crate) fn push(&self, payload: &[u8]) -> Ended {
        charon(["push-payload", "-i", "-r", self.target.host()]).fed(payload).run()
    }
}

/// The digests of what oras finds to refer to an image.
fn discovered(registry: &Registry, name: &str) -> Vec<String> {
    let found =
        tool("oras", ["discover", "--plain-http", "--format", "json", "--depth", "1", &registry.name(name)]);
    let found: Value = serde_json::from_str(&found.run().succeeded().text()).unwrap();
    let found = found["referrers"].as_array().cloned().unwrap_or_default();
    let mut digests: Vec<String> =
        found.iter().map(|found| found["digest"].as_str().unwrap().to_owned()).collect();
    digests.sort();
    digests
}

pub(crate) fn sorted(digests: &[&String]) -> Vec<String> {
    let mut digests: Vec<String> = digests.iter().map(|digest| (*digest).clone()).collect();
    digests.sort();
    digests
}

pub(crate) fn image(name: &str) -> Image {
    Image::new(Types::Oci, &[Layer::new("common", 2000), Layer::new(name, 2000)])
}

fn an_image_signed_at_the_near_side_is_verified_at_the_far_side(sides: &Sides) {
    for (form, tag) in [(Form::Tag, "tag"), (Form::Bundle, "bundle")] {
        let name = format!("ferry:{tag}");
        let image = image(&name);
        image.push(&sides.source, &name);
        sides.sign(form, &sides.source.name(&format!("ferry@{}", image.digest)));

        let target = sides.target.name(&name);
        sides.push(&sides.payload(&["--no-referrers"], &name)).succeeded();
        assert_ne!(sides.verify(form, &["verify"], &target).status, Some(0), "it was left out");
        let pushed = sides.push(&sides.payload(&[], &name)).succeeded();
        assert_eq!(pushed.text(), format!("{name}\n"));
        image.assert_is_whole_in(&sides.target, &name);
        let verified = sides.verify(form, &["verify"], &target).succeeded();
        assert!(verified.text().contains(&image.digest), "{}", verified.text());
    }
}

fn what_is_attested_of_one_platform_is_verified_at_the_far_side(sides: &Sides) {
    let children = ["amd64", "arm64"]
        .map(|architecture| Image::for_platform(Types::Oci, architecture, &[Layer::new(architecture, 2000)]));
    let index = Image::index(Types::Oci, &children);
    index.push(&sides.source, "ferry:1");
    let child = format!("ferry@{}", children[1].digest);
    for form in Form::BOTH {
        sides.attest(form, &sides.source.name(&child));
    }
    let payload = sides.folder.path().join("payload.zip");
    let make = charon(["make-payload", "ferry:1", "-q", "-i", "-r", sides.source.host(), "-f"]);
    make.arguments([&payload]).run().succeeded();
    charon(["verify"]).arguments([&payload]).run().succeeded();
    charon(["push-payload", "-i", "-r", sides.target.host(), "-f"]).arguments([&payload]).run().succeeded();
    index.assert_is_whole_in(&sides.target, "ferry:1");
    for form in Form::BOTH {
        let verify = ["verify-attestation", "--type", "spdxjson"];
        sides.verify(form, &verify, &sides.target.name(&child)).succeeded();
        assert_ne!(
            sides.verify(form, &verify, &sides.target.name("ferry:1")).status,
            Some(0),
            "only of the child"
        );
    }
}

fn an_sbom_and_what_refers_to_it_are_discovered_at_the_far_side(sides: &Sides) {
    let image = image("a");
    image.push(&sides.source, "ferry:1");
    let sbom = sides.attach(&sides.source, "ferry:1", "sbom.json");
    let of_sbom = sides.attach(&sides.source, &format!("ferry@{sbom}"), "other.json");
    sides.sign(Form::Bundle, &sides.source.name(&format!("ferry@{of_sbom}")));
    sides.push(&sides.payload(&[], "ferry:1")).succeeded();
    assert_eq!(discovered(&sides.target, "ferry:1"), sorted(&[&sbom]));
    assert_eq!(discovered(&sides.target, &format!("ferry@{sbom}")), sorted(&[&of_sbom]));
    sides.verify(Form::Bundle, &["verify"], &sides.target.name(&format!("ferry@{of_sbom}"))).succeeded();
    let pulled = tempfile::tempdir().unwrap();
    let name = sides.target.name(&format!("ferry@{sbom}"));
    tool("oras", ["pull", "--plain-http", &name]).in_folder(pulled.path()).run().succeeded();
    assert_eq!(fs::read(pulled.path().join("sbom.json")).unwrap(), br#"{"spdxVersion":"SPDX-2.3"}"#);
}

fn what_the_far_side_has_of_an_image_stays_beside_what_arrives(sides: &Sides) {
    let image = image("a");
    image.push(&sides.source, "ferry:1");
    image.push(&sides.target, "ferry:1");
    let near = sides.attach(&sides.source, "ferry:1", "sbom.json");
    let far = sides.attach(&sides.target, "ferry:1", "other.json");
    sides.push(&sides.payload(&[], "ferry:1")).succeeded();
    assert_eq!(discovered(&sides.target, "ferry:1"), sorted(&[&near, &far]));
}

fn referrers_arrive_although_the_image_is_there(sides: &Sides) {
    let image = image("a");
    image.push(&sides.source, "ferry:1");
    sides.push(&sides.payload(&[], "ferry:1")).succeeded();
    let name = format!("ferry@{}", image.digest);
    for form in Form::BOTH {
        sides.sign(form, &sides.source.name(&name));
        let payload = sides.payload(&[], "ferry:1");
        let log = sides.push(&payload).succeeded().stderr;
        assert!(log.contains("Pushed what belongs to ferry:1"), "{log}");
        let layer = digest(&image.blobs[1]);
        assert!(!log.contains(&layer), "nothing of the image is sent again: {log}");
        sides.verify(form, &["verify"], &sides.target.name("ferry:1")).succeeded();
        let log = sides.push(&payload).succeeded().stderr;
        assert!(log.contains("Skipping ferry:1 as it's already in the destination registry"), "{log}");
    }
}

/// A manifest of JSON in a registry; gives its digest.
fn push_manifest(registry: &Registry, manifest: &Value) -> String {
    let bytes = manifest.to_string();
    let digest = digest(bytes.as_bytes());
    let media_type = manifest["mediaType"].as_str().unwrap();
    registry.push_manifest("ferry", &digest, media_type, bytes.as_bytes());
    digest
}

pub(crate) fn described(image: &Image) -> Value {
    json!({"mediaType": image.media_type, "digest": image.digest, "size": image.manifest.len()})
}

/// Sees to it that a registry lists a referrer of an image, which Charon's own far side does for a distribution.
fn list(registry: &Registry, subject: &str, referrer: &Value, digest: &str) {
    let index = json!({
        "schemaVersion": 2, "mediaType": Types::Oci.index(), "manifests": [
            {"mediaType": referrer["mediaType"], "digest": digest, "size": referrer.to_string().len()},
        ],
    });
    let tag = subject.replace(':', "-");
    registry.push_manifest("ferry", &tag, Types::Oci.index(), index.to_string().as_bytes());
}

fn an_index_that_refers_to_an_image_arrives_with_what_it_names(sides: &Sides) {
    let [image, named] = ["a", "named"].map(image);
    image.push(&sides.source, "ferry:1");
    named.push(&sides.source, "ferry:named");
    let index = json!({
        "schemaVersion": 2, "mediaType": Types::Oci.index(), "artifactType": "application/x.set",
        "manifests": [described(&named)], "subject": described(&image),
    });
    let set = push_manifest(&sides.source, &index);
    if sides.source_lists_nothing {
        list(&sides.source, &image.digest, &index, &set);
    }
    sides.push(&sides.payload(&[], "ferry:1")).succeeded();
    assert_eq!(discovered(&sides.target, "ferry:1"), [set.as_str()]);
    assert_eq!(sides.target.manifest("ferry", &set).unwrap().1, index.to_string().into_bytes());
    assert_eq!(sides.target.manifest("ferry", &named.digest).unwrap().1, named.manifest);
    for blob in &named.blobs {
        assert!(sides.target.has_blob("ferry", &digest(blob)));
    }
}

/// So `BuildKit` writes what it attests, if it is asked to.
fn what_is_a_part_of_an_image_and_refers_to_another_part_is_listed_too(sides: &Sides) {
    let platform = image("a");
    platform.push(&sides.source, "ferry:platform");
    let statement = br#"{"_type":"https://in-toto.io/Statement/v1"}"#;
    for blob in [b"{}".as_slice(), statement] {
        sides.source.push_blob("ferry", blob);
    }
    let blob =
        |kind: &str, bytes: &[u8]| json!({"mediaType": kind, "digest": digest(bytes), "size": bytes.len()});
    let attestation = json!({
        "schemaVersion": 2, "mediaType": Types::Oci.manifest(), "artifactType": "application/vnd.docker.attestation.manifest.v1+json",
        "config": blob("application/vnd.oci.empty.v1+json", b"{}"),
        "layers": [blob("application/vnd.in-toto+json", statement)], "subject": described(&platform),
    });
    let attested = push_manifest(&sides.source, &attestation);
    if sides.source_lists_nothing {
        list(&sides.source, &platform.digest, &attestation, &attested);
    }
    let mut child = json!({
        "mediaType": Types::Oci.manifest(), "digest": attested, "size": attestation.to_string().len(),
        "platform": {"architecture": "unknown", "os": "unknown"},
    });
    child["annotations"] = json!({
        "vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": platform.digest,
    });
    let index = json!({
        "schemaVersion": 2, "mediaType": Types::Oci.index(), "manifests": [described(&platform), child],
    });
    sides.source.push_manifest("ferry", "1", Types::Oci.index(), index.to_string().as_bytes());
    sides.push(&sides.payload(&[], "ferry:1")).succeeded();
    assert_eq!(crane_digest(&sides.target.name("ferry:1")), digest(index.to_string().as_bytes()));
    assert_eq!(discovered(&sides.target, &format!("ferry@{}", platform.digest)), [attested.as_str()]);
}

#[test]
fn the_tag_is_pushed_behind_all_that_belongs_to_the_image() {
    for software in [Software::Distribution3, Software::Olareg] {
        let sides = Sides::new(Software::Distribution3, software);
        let image = image("a");
        image.push(&sides.source, "ferry:1");
        sides.sign(Form::Tag, &sides.source.name(&format!("ferry@{}", image.digest)));
        let sbom = sides.attach(&sides.source, "ferry:1", "sbom.json");
        let payload = sides.payload(&[], "ferry:1");
        let front = Front::before(&sides.target, |_| None);
        charon(["push-payload", "-q", "-i", "-r", front.host()]).fed(payload).run().succeeded();
        let fallback = image.digest.replace(':', "-");
        let mut expected =
            vec![image.digest.clone(), sbom, fallback.clone(), format!("{fallback}.sig"), "1".to_owned()];
        if software == Software::Olareg {
            expected.remove(2);
        }
        let requests = front.requests();
        let puts = requests.iter().filter_map(|request| request.strip_prefix("PUT /v2/ferry/manifests/"));
        assert_eq!(puts.collect::<Vec<_>>(), expected);
        let last_blob =
            requests.iter().rposition(|request| request.starts_with("PUT") && request.contains("/blobs/"));
        let first_manifest =
            requests.iter().position(|request| request.starts_with("PUT /v2/ferry/manifests/"));
        assert!(last_blob < first_manifest, "{requests:?}");
    }
}

#[test]
fn of_a_choice_of_platforms_only_what_belongs_to_it_travels_and_nothing_of_an_index_that_is_written_anew() {
    let sides = Sides::new(Software::Distribution3, Software::Distribution3);
    let [amd64, arm64] =
        ["amd64", "arm64"].map(|name| Image::for_platform(Types::Oci, name, &[Layer::new(name, 2000)]));
    let index = Image::index(Types::Oci, &[amd64.clone(), arm64.clone()]);
    index.push(&sides.source, "ferry:1");
    let attach = |of: &str| sides.attach(&sides.source, &format!("ferry@{of}"), "sbom.json");
    let [of_amd64, of_arm64, of_index] = [&amd64, &arm64, &index].map(|image| attach(&image.digest));
    let of_of_index = attach(&of_index);
    let chosen = ["--platform", "linux/amd64"];
    let payload = sides.payload(&chosen, "ferry:1");
    fs::write(sides.folder.path().join("payload.zip"), &payload).unwrap();
    let inspect = charon(["inspect", "--json", "payload.zip"]).in_folder(sides.folder.path());
    let bill = inspect.run().succeeded().text();
    for (digest, is_carried) in
        [(&of_amd64, true), (&of_index, true), (&of_of_index, true), (&of_arm64, false)]
    {
        assert_eq!(bill.contains(digest.as_str()), is_carried, "{bill}");
    }

    let push = |registry: &Registry, payload: &[u8]| {
        let push = charon(["push-payload", "-q", "-i", "-r", registry.host(), "--sparse-index", "rewrite"]);
        push.fed(payload).run().succeeded().stderr
    };
    // That the image is there already is no reason to leave out what belongs to it, written anew or not.
    push(&sides.target, &sides.payload(&[&chosen[..], &["--no-referrers"]].concat(), "ferry:1"));
    let left_out = format!("what belongs to {} is left out, 2 signatures", index.digest);
    for round in ["pushed", "pushed again"] {
        let told = push(&sides.target, &payload);
        assert!(told.contains(&left_out), "{round}: {told}");
        assert_eq!(discovered(&sides.target, &format!("ferry@{}", amd64.digest)), [of_amd64.as_str()]);
    }
    assert_eq!(sides.target.manifest("ferry", &of_index), None);
    assert_eq!(sides.target.manifest("ferry", &of_of_index), None);

    // Where the index is taken as it is, so is what belongs to it.
    let registry = Registry::start(Software::Distribution3);
    let lenient = registry.entrance(&[("REGISTRY_VALIDATION_MANIFESTS_INDEXES_PLATFORMS", "none")]);
    assert_eq!(push(&lenient, &payload), "");
    assert_eq!(discovered(&lenient, "ferry:1"), [of_index.as_str()]);
    assert_eq!(discovered(&lenient, &format!("ferry@{of_index}")), [of_of_index.as_str()]);
    assert_eq!(crane_digest(&lenient.name("ferry:1")), index.digest);
}

#[test]
fn an_image_whose_signature_is_refused_gets_no_tag() {
    let sides = Sides::new(Software::Distribution3, Software::Distribution3);
    let [signed, unsigned] = ["a", "b"].map(image);
    signed.push(&sides.source, "ferry:1");
    unsigned.push(&sides.source, "styx:1");
    let sbom = sides.attach(&sides.source, "ferry:1", "sbom.json");
    let payload = sides.payload(&[], "ferry:1,styx:1");
    let refused = format!("PUT /v2/ferry/manifests/{sbom}");
    let front = Front::before(&sides.target, move |request| (request == refused).then(|| (403, Vec::new())));
    let host = front.host();
    let pushed = charon(["push-payload", "-q", "-i", "-r", host]).fed(payload).run().ended_with(1);
    assert_eq!(pushed.text(), "styx:1\n");
    assert_eq!(
        pushed.stderr,
        format!(
            "error: ferry:1: cannot push {host}/ferry@{sbom}: {host} answered 403 Forbidden; check that the account may push to this repository; \
             it is a signature, an attestation or the like, without which no tag is pushed\n"
        )
    );
    assert_eq!(sides.target.tags("ferry"), Vec::<String>::new());
    unsigned.assert_is_whole_in(&sides.target, "styx:1");
}
