//! What a build finds to belong to its images, what it takes for nothing, and how often it asks.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::front::Front;
use crate::image::{Image, Layer, Types, digest};
use crate::program::{charon, crane_digest, tool};
use crate::proxy::{Misdeed, Proxy};
use crate::referrers::{Form, Sides, described, image, sorted};
use crate::registry::Software;

#[test]
fn that_a_signature_cannot_be_looked_for_does_not_mean_that_there_is_none() {
    let sides = Sides::new(Software::Olareg, Software::Distribution3);
    image("a").push(&sides.source, "ferry:1");
    image("b").push(&sides.source, "styx:1");
    let front = Front::before(&sides.source, |request| {
        request.contains("ferry/referrers/").then(|| (403, Vec::new()))
    });
    let make = || charon(["make-payload", "ferry:1,styx:1", "-q", "-i", "-r", front.host()]);
    // An image is not left out because its signature cannot be had.
    for options in [&[][..], &["--allow-missing"]] {
        let refused = make().arguments(options).run().ended_with(1);
        assert!(refused.stdout.is_empty());
        for words in
            ["cannot list what refers to", "answered 403 Forbidden", "--no-referrers", "referrers: false"]
        {
            assert!(refused.stderr.contains(words), "{}", refused.stderr);
        }
    }
    let before = front.requests().len();
    make().arguments(["--no-referrers"]).run().succeeded();
    let asked = front.requests().split_off(before);
    assert!(
        !asked.iter().any(|request| request.contains("referrers") || request.contains("sha256-")),
        "{asked:?}"
    );
}

#[test]
fn what_registries_answer_instead_of_a_list_is_not_taken_for_one() {
    let sides = Sides::new(Software::Distribution3, Software::Distribution3);
    let image = image("a");
    image.push(&sides.source, "ferry:1");
    let web = Front::before(&sides.source, |_| Some((200, Vec::new())));
    // GHCR sends on to a web page; GitLab takes the fallback tag for the digest.
    let (page, hash) = (format!("http://{}/login", web.host()), image.digest.clone());
    let fallback = format!("/manifests/{}", image.digest.replace(':', "-"));
    let front = Front::before(&sides.source, move |request| {
        if request.contains("/referrers/") {
            return Some((303, vec![("location", page.clone())]));
        }
        request.ends_with(&fallback).then(|| (200, vec![("docker-content-digest", hash.clone())]))
    });
    let make = || charon(["make-payload", "ferry:1", "-q", "-i", "-r", front.host()]);
    let with = make().run().succeeded().stdout;
    assert!(with == make().arguments(["--no-referrers"]).run().succeeded().stdout);
    assert_eq!(web.requests(), Vec::<String>::new());
}

#[test]
fn what_is_listed_and_does_not_refer_to_the_image_or_is_gone_is_left_out() {
    let sides = Sides::new(Software::Distribution3, Software::Distribution3);
    let [image, stranger, gone] = ["a", "stranger", "gone"].map(image);
    image.push(&sides.source, "ferry:1");
    stranger.push(&sides.source, "ferry:stranger");
    gone.push(&sides.source, "ferry:gone");
    let index = json!({
        "schemaVersion": 2, "mediaType": Types::Oci.index(),
        "manifests": [described(&stranger), described(&gone)],
    });
    let tag = image.digest.replace(':', "-");
    sides.source.push_manifest("ferry", &tag, Types::Oci.index(), index.to_string().as_bytes());
    sides.source.lose(&gone.digest);
    assert!(sides.payload(&[], "ferry:1") == sides.payload(&["--no-referrers"], "ferry:1"));
}

#[test]
fn an_image_without_referrers_costs_one_list_and_a_head_for_each_tag_and_none_for_what_is_attested_of_it() {
    let sides = Sides::new(Software::Distribution3, Software::Distribution3);
    let platform = image("a");
    let attestation = Image::attestation(&platform);
    let index = Image::index(Types::Oci, &[platform.clone(), attestation.clone()]);
    index.push(&sides.source, "ferry:1");
    let before = sides.source.requests().len();
    let with = sides.payload(&[], "ferry:1");
    let requests = sides.source.requests().split_off(before);
    let about = |image: &Image| {
        let tag = image.digest.replace(':', "-");
        requests.iter().filter(|request| request.contains(&tag)).count()
    };
    assert_eq!((about(&index), about(&platform), about(&attestation)), (4, 4, 0), "{requests:?}");
    assert!(
        requests
            .iter()
            .filter(|request| request.contains("sha256-"))
            .all(|request| request.starts_with("HEAD"))
    );
    let lists = requests.iter().filter(|request| request.contains("/referrers/"));
    assert_eq!(lists.count(), 1, "it says once that it has no lists: {requests:?}");
    assert!(with == sides.payload(&["--no-referrers"], "ferry:1"));
}

#[test]
fn the_same_image_with_the_same_referrers_gives_the_same_bytes_which_inspect_tells_of() {
    let sides = Sides::new(Software::Olareg, Software::Distribution3);
    let image = Image::new(Types::Docker, &[Layer::new("a", 2000)]);
    image.push(&sides.source, "ferry:1");
    sides.sign(Form::Tag, &sides.source.name(&format!("ferry@{}", image.digest)));
    let sboms = ["sbom.json", "other.json"].map(|file| sides.attach(&sides.source, "ferry:1", file));
    let payload = sides.payload(&[], "ferry:1");
    assert!(payload == sides.payload(&[], "ferry:1"));
    let file = sides.folder.path().join("payload.zip");
    fs::write(&file, payload).unwrap();
    charon(["verify"]).arguments([&file]).run().succeeded();
    let told = charon(["inspect"]).arguments([&file]).run().succeeded().text();
    assert!(told.contains("one manifest, 3 referrers"), "{told}");
    assert!(told.contains("can push its images, too, without their referrers"), "{told}");
    let told = charon(["inspect", "--json"]).arguments([&file]).run().succeeded().text();
    let told: Value = serde_json::from_str(&told).unwrap();
    let referrers = told["bill"]["images"][0]["referrers"].as_array().unwrap();
    let tag = format!("{}.sig", image.digest.replace(':', "-"));
    let signature = crane_digest(&sides.source.name(&format!("ferry:{tag}")));
    let digests: Vec<&str> = referrers.iter().map(|referrer| referrer["digest"].as_str().unwrap()).collect();
    let mut expected = sorted(&[&sboms[0], &sboms[1]]);
    expected.push(signature);
    assert_eq!(digests, expected);
    for referrer in referrers {
        assert_eq!(referrer["subject"].as_str(), Some(image.digest.as_str()));
        assert!(referrer["size"].as_u64() > Some(0) && referrer["mediaType"].is_string(), "{referrer}");
    }
    assert_eq!(referrers[2]["tag"].as_str(), Some(tag.as_str()));
}

#[test]
fn a_payload_is_an_oci_layout_in_which_oras_finds_the_referrers() {
    let sides = Sides::new(Software::Olareg, Software::Distribution3);
    let image = image("a");
    image.push(&sides.source, "ferry:1");
    let sbom = sides.attach(&sides.source, "ferry:1", "sbom.json");
    let of_sbom = sides.attach(&sides.source, &format!("ferry@{sbom}"), "other.json");
    let file = sides.folder.path().join("payload.zip");
    fs::write(&file, sides.payload(&[], "ferry:1")).unwrap();
    tool("unzip", ["-q", "-d", "layout", "payload.zip"]).in_folder(sides.folder.path()).run().succeeded();
    let name = format!("layout@{}", image.digest);
    let found = tool("oras", ["discover", "--oci-layout", "--format", "json", &name]);
    let found = found.in_folder(sides.folder.path()).run().succeeded().text();
    let found: Value = serde_json::from_str(&found).unwrap();
    let first = &found["referrers"][0];
    assert_eq!(first["digest"].as_str(), Some(sbom.as_str()), "{found}");
    assert_eq!(first["referrers"][0]["digest"].as_str(), Some(of_sbom.as_str()), "{found}");
}

#[test]
fn a_build_that_goes_on_lists_nothing_again() {
    let sides = Sides::new(Software::Distribution3, Software::Distribution3);
    let image = image("a");
    image.push(&sides.source, "ferry:1");
    let sbom = sides.attach(&sides.source, "ferry:1", "sbom.json");
    let lost = digest(&image.blobs[1]);
    let is_shut = Arc::new(AtomicBool::new(true));
    let shut = is_shut.clone();
    let front = Front::before(&sides.source, move |request| {
        let refuses = shut.load(Ordering::SeqCst) && request.contains(&lost);
        refuses.then(|| (403, Vec::new()))
    });
    let payload = sides.folder.path().join("payload.zip");
    let make = || {
        charon(["make-payload", "ferry:1", "-q", "-i", "-r", front.host(), "-f"]).arguments([&payload]).run()
    };
    make().ended_with(1);
    // What comes later is of another payload.
    sides.attach(&sides.source, "ferry:1", "other.json");
    is_shut.store(false, Ordering::SeqCst);
    let before = front.requests().len();
    make().succeeded();
    let asked = front.requests().split_off(before);
    assert!(asked.iter().all(|request| request.contains("/blobs/")), "{asked:?}");
    let told = charon(["inspect", "--json"]).arguments([&payload]).run().succeeded().text();
    let told: Value = serde_json::from_str(&told).unwrap();
    let referrers = told["bill"]["images"][0]["referrers"].as_array().unwrap();
    assert_eq!((referrers.len(), referrers[0]["digest"].as_str()), (1, Some(sbom.as_str())));
}

#[test]
fn what_lies_beyond_eight_referrers_of_one_another_is_left_out_and_told() {
    let sides = Sides::new(Software::Olareg, Software::Distribution3);
    image("a").push(&sides.source, "ferry:1");
    let mut name = "ferry:1".to_owned();
    for depth in 1..=9 {
        if depth == 9 {
            let made = charon(["make-payload", "ferry:1", "-q", "-i", "-r", sides.source.host()]).run();
            assert_eq!(made.succeeded().stderr, "", "all eight are carried");
        }
        name = format!("ferry@{}", sides.attach(&sides.source, &name, "sbom.json"));
    }
    let made = charon(["make-payload", "ferry:1", "-q", "-i", "-r", sides.source.host()]).run().succeeded();
    assert!(made.stderr.starts_with("warning: ferry:1: what refers to sha256:"), "{}", made.stderr);
    assert_eq!(made.stderr.lines().count(), 1, "{}", made.stderr);
    sides.push(&made.stdout).succeeded();
}

/// Registries of today take no such manifest any more: it is served before one. Blobs are optional in it.
#[test]
fn an_artifact_manifest_without_blobs_is_carried_with_its_image() {
    let sides = Sides::new(Software::Distribution3, Software::Distribution3);
    let image = image("a");
    image.push(&sides.source, "ferry:1");
    let media_type = "application/vnd.oci.artifact.manifest.v1+json";
    let artifact = json!({
        "mediaType": media_type, "artifactType": "application/x.note", "subject": described(&image),
    });
    let (bytes, artifact_digest) = (artifact.to_string(), digest(artifact.to_string().as_bytes()));
    let proxy = Proxy::before(&sides.source);
    let served = Misdeed::Serve(media_type, bytes.into_bytes());
    proxy.does(served, "GET", &format!("/manifests/{artifact_digest}"), usize::MAX);
    let fallback = image.digest.replace(':', "-");
    let list = json!({"schemaVersion": 2, "mediaType": Types::Oci.index(), "manifests": [
        {"mediaType": media_type, "digest": artifact_digest, "size": artifact.to_string().len()},
    ]});
    let served = Misdeed::Serve(Types::Oci.index(), list.to_string().into_bytes());
    for method in ["HEAD", "GET"] {
        proxy.does(served.clone(), method, &format!("/manifests/{fallback}"), usize::MAX);
    }
    let file = sides.folder.path().join("payload.zip");
    let made = charon(["make-payload", "ferry:1", "-q", "-i", "-r", proxy.host(), "-f"]).arguments([&file]);
    made.run().succeeded();
    charon(["verify"]).arguments([&file]).run().succeeded();
    let told = charon(["inspect", "--json"]).arguments([&file]).run().succeeded().text();
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["bill"]["images"][0]["referrers"][0]["digest"], artifact_digest, "{told}");
}
