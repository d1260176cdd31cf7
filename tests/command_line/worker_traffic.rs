//! What a run configuration says of how registries are treated.

use std::time::{Duration, Instant};

use charon::reason::Reason;
use charon::worker::contract::Outcome;
use serde_json::{Value, json};

use crate::image::{Image, Layer, Types};
use crate::pod::Pod;
use crate::proxy::{Misdeed, Proxy};
use crate::registry::{Registry, Software};

fn source() -> Registry {
    let source = Registry::start(Software::Distribution3);
    let layers: Vec<Layer> = (0..6).map(|layer| Layer::new(&format!("layer-{layer}"), 1000)).collect();
    Image::new(Types::Oci, &layers).push(&source, "ferry:1");
    source
}

/// A build of what is behind the proxy, with what its run configuration says of traffic.
fn build(proxy: &Proxy, traffic: &Value) -> Outcome {
    let images = json!([{ "name": format!("{}/ferry:1", proxy.host()) }]);
    let work = json!({ "build": { "images": images, "path": "ferry.zip" }, "traffic": traffic });
    Pod::new().works_with("run", &work, &json!([{ "host": proxy.host(), "insecure": true }]))
}

#[test]
fn a_worker_asks_as_many_things_at_once_and_as_often_as_it_is_told() {
    let source = source();
    let most_at_once = |traffic: Value| {
        let proxy = Proxy::before(&source);
        // Whoever may ask meanwhile does.
        proxy.does(Misdeed::Delay(Duration::from_millis(100)), "GET", "/blobs/", usize::MAX);
        let outcome = build(&proxy, &traffic);
        assert_eq!(outcome.reason, Reason::Succeeded, "{outcome:?}");
        proxy.most_at_once()
    };
    assert_eq!(most_at_once(json!({ "parallel": 1 })), 1);
    assert!(most_at_once(json!({})) > 1);

    let (proxy, begun) = (Proxy::before(&source), Instant::now());
    assert_eq!(build(&proxy, &json!({ "requestsPerSecond": 10 })).reason, Reason::Succeeded);
    // The first does not wait.
    let apart = u32::try_from(proxy.seen().len() - 1).unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(100) * apart);
}

#[test]
fn a_worker_waits_for_a_registry_that_fails_for_as_long_as_it_is_told() {
    let source = source();
    for (traffic, reason) in [
        (json!({ "retryForSeconds": 0 }), Reason::RegistryUnavailable),
        (json!({ "retryForSeconds": 60 }), Reason::Succeeded),
        (json!({}), Reason::Succeeded),
    ] {
        let proxy = Proxy::before(&source);
        proxy.does(Misdeed::Answer("503 Service Unavailable", vec![]), "HEAD", "/manifests/1", 1);
        let outcome = build(&proxy, &traffic);
        assert_eq!(outcome.reason, reason, "{traffic}: {outcome:?}");
    }
}
