//! What trouble costs: nothing is fetched twice because of it, and nobody is asked in vain.

use charon::reason::Reason;
use serde_json::json;

use crate::image::{Image, Layer, Types};
use crate::pod::Pod;
use crate::program::charon;
use crate::proxy::{Misdeed, Proxy};
use crate::registry::{Registry, Software};

const BLOBS: &str = "/blobs/";

/// A registry with an image of forty layers.
fn source(software: Software) -> Registry {
    let source = Registry::start(software);
    let names: Vec<String> = (0..40).map(|number| format!("layer-{number}")).collect();
    let layers: Vec<Layer> = names.iter().map(|name| Layer::new(name, 50_000)).collect();
    Image::new(Types::Oci, &layers).push(&source, "ferry:1");
    source
}

with_each_registry!(
    a_build_through_one_outage_after_another_fetches_less_than_a_tenth_more_than_its_payload,
    a_registry_that_denies_is_asked_once_and_ends_the_job_with_its_first_pod,
);

fn a_build_through_one_outage_after_another_fetches_less_than_a_tenth_more_than_its_payload(
    software: Software,
) {
    let (source, folder) = (source(software), tempfile::tempdir().unwrap());
    let (proxy, payload) = (Proxy::before(&source), folder.path().join("payload.zip"));
    let build = || {
        let made =
            charon(["make-payload", "ferry:1", "-q", "-i", "-r", proxy.host(), "--retry-for", "1s", "-f"]);
        made.arguments([&payload]).run()
    };
    // The registry comes back for ten blobs, of which one breaks off, and is gone again: longer than anyone waits.
    for outage in 1..=4 {
        proxy.behaves();
        proxy.does(Misdeed::CutAnswer(20_000), "GET", BLOBS, 1);
        proxy.does(Misdeed::Header("x-outage", "over".to_owned()), "GET", BLOBS, 9);
        proxy.does(Misdeed::Answer("503 Service Unavailable", Vec::new()), "GET", BLOBS, usize::MAX);
        let said = build().ended_with(1).stderr;
        assert!(said.contains("503 Service Unavailable"), "outage {outage}: {said}");
        assert!(!payload.exists());
    }
    proxy.behaves();
    build().succeeded();
    let size = usize::try_from(payload.metadata().unwrap().len()).unwrap();
    let fetched = proxy.answered();
    assert!(fetched * 10 <= size * 11, "{fetched} bytes were fetched for a payload of {size}");
}

fn a_registry_that_denies_is_asked_once_and_ends_the_job_with_its_first_pod(software: Software) {
    let (source, pod) = (source(software), Pod::new());
    let proxy = Proxy::before(&source);
    proxy.does(Misdeed::Answer("403 Forbidden", Vec::new()), "HEAD", "", usize::MAX);
    proxy.does(Misdeed::Answer("403 Forbidden", Vec::new()), "GET", "", usize::MAX);
    let work = json!({ "build": { "images": [{ "name": format!("{}/ferry:1", proxy.host()) }], "path": "app.zip" } });
    let outcome = pod.works_with("run", &work, &json!([{ "host": proxy.host(), "insecure": true }]));
    assert_eq!(outcome.reason, Reason::AccessDenied);
    // With this one the Job's policy lets no other pod follow.
    assert_eq!(outcome.reason.exit_code(), 77);
    // Some registries refuse only to be asked without reading.
    assert_eq!((proxy.count("HEAD", ""), proxy.count("GET", "")), (1, 1), "{:?}", proxy.seen());
}
