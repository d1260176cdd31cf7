//! Payloads in Azure, an emulator of it, and in Google Cloud Storage, a stand-in for it.

use std::fs;

use charon::reason::Reason;
use charon::worker::contract::Outcome;
use serde_json::{Value, json};

use crate::azurite::{ACCOUNT, Azurite, KEY};
use crate::gate::{Gate, wait_until};
use crate::google::Google;
use crate::image::Image;
use crate::objects::source;
use crate::pod::Pod;
use crate::program::Running;
use crate::proxy::Proxy;
use crate::registry::{Registry, Software};

/// A store, what is before it, and pods that may use it.
struct Cloud<S> {
    store: S,
    proxy: Proxy,
    object: Value,
    /// What a Secret holds.
    keys: &'static [(&'static str, &'static str)],
    /// What tells of the identity in the cloud.
    variables: Vec<(&'static str, String)>,
}

impl Cloud<Azurite> {
    fn azure() -> Self {
        let store = Azurite::start();
        let proxy = Proxy::to(store.host());
        let endpoint = format!("http://{}/{ACCOUNT}", proxy.host());
        let object = json!({
            "provider": "Azure", "bucket": "transfer", "key": "out/ferry.zip", "endpoint": endpoint, "credentials": true,
        });
        Self { store, proxy, object, keys: &[("accesskey", ACCOUNT), ("secretkey", KEY)], variables: vec![] }
    }
}

impl Cloud<Google> {
    fn google() -> Self {
        let store = Google::start();
        let proxy = Proxy::to(store.host());
        let endpoint = format!("http://{}", proxy.host());
        let object =
            json!({ "provider": "GCS", "bucket": "transfer", "key": "out/ferry.zip", "endpoint": endpoint });
        let variables = vec![("GCE_METADATA_HOST", store.host().to_owned())];
        Self { store, proxy, object, keys: &[], variables }
    }
}

impl<S> Cloud<S> {
    fn pod(&self) -> Pod {
        let pod = Pod::new();
        fs::create_dir_all(pod.at("object-store")).unwrap();
        for (name, value) in self.keys {
            fs::write(pod.at("object-store").join(name), value).unwrap();
        }
        pod
    }

    fn start(&self, pod: &Pod, run: &str, work: &Value, registry: &str) -> Running {
        let registries = json!([{ "host": registry, "insecure": true }]);
        let mut worker = pod.worker(run, work, &registries).arguments(["--progress-port", "0"]);
        for (name, value) in &self.variables {
            worker = worker.variable(name, value);
        }
        worker.start()
    }

    /// A build of what is at the registry: a run of its own.
    fn build(&self, pod: &Pod, registry: &str) -> Running {
        let images = json!([{ "name": format!("{registry}/ferry:1") }]);
        self.start(
            pod,
            registry,
            &json!({ "build": { "images": images, "objectStore": self.object } }),
            registry,
        )
    }

    fn built(&self, registry: &str) -> Outcome {
        let pod = self.pod();
        pod.outcome(self.build(&pod, registry))
    }

    fn imported(&self, registry: &Registry) -> Outcome {
        let import = json!({ "import": { "objectStore": self.object, "registry": registry.host() } });
        let pod = self.pod();
        pod.outcome(self.start(&pod, "import", &import, registry.host()))
    }

    /// Waits until the journal tells of two parts.
    fn has_two_parts(&self, gate: &Gate) {
        gate.wait_until_shut();
        wait_until("the journal tells of two parts", || self.proxy.count("PUT", "journal") >= 4);
    }
}

/// A layer's size in MiB: parts are of 8.
const LAYER: usize = 12;

fn stalled() -> (Registry, Image, Gate) {
    let (source, image) = source(&[LAYER; 3]);
    let gate = Gate::before(&source, 30 << 20);
    (source, image, gate)
}

fn goes_on_and_arrives<S>(cloud: &Cloud<S>) {
    let (_source, image, gate) = stalled();
    let pod = cloud.pod();
    let build = cloud.build(&pod, gate.host());
    cloud.has_two_parts(&gate);
    build.kill();
    build.end();
    gate.open();
    let before = gate.passed();
    let outcome = cloud.built(gate.host());
    assert_eq!(outcome.reason, Reason::Succeeded, "{outcome:?}");
    let (came, all) = (gate.passed() - before, (3 * LAYER) << 20);
    assert!(came < all - (15 << 20), "{came} bytes came of {all}, though two parts were there");
    assert_eq!(cloud.built(gate.host()).reason, Reason::AlreadyPresent);

    let target = Registry::start(Software::Distribution3);
    let imported = cloud.imported(&target);
    assert_eq!(imported.reason, Reason::Succeeded, "{imported:?}");
    image.assert_is_whole_in(&target, "ferry:1");
    let ranged = |request: &crate::proxy::Request| {
        ["range", "x-ms-range"].iter().any(|name| request.header(name).is_some())
    };
    assert!(cloud.proxy.seen().iter().any(ranged));
}

fn the_later_of_two_wins_and_wrong_bytes_leave_nothing<S>(cloud: &Cloud<S>) {
    let (source, image, gate) = stalled();
    let pod = cloud.pod();
    let first = cloud.build(&pod, gate.host());
    cloud.has_two_parts(&gate);
    let second = cloud.built(source.host());
    assert_eq!(second.reason, Reason::Succeeded, "{second:?}");
    gate.open();
    let first = pod.outcome(first);
    assert_eq!(first.reason, Reason::StorageBusy, "{first:?}");
    assert!(first.message.contains("is another charon's by now"), "{}", first.message);
    let target = Registry::start(Software::Distribution3);
    assert_eq!(cloud.imported(&target).reason, Reason::Succeeded);

    // Another build there begins, and gives up.
    source.damage(&crate::image::digest(&image.blobs[1]));
    let gate = Gate::before(&source, usize::MAX);
    let wrong = cloud.built(gate.host());
    assert_eq!(wrong.reason, Reason::DigestMismatch, "{wrong:?}");
    let gone = cloud.imported(&target);
    assert_eq!(gone.reason, Reason::Succeeded, "what was whole is there: {gone:?}");
}

#[test]
fn a_build_into_azure_goes_on_behind_its_parts_and_is_imported_from_there() {
    goes_on_and_arrives(&Cloud::azure());
}

#[test]
fn a_build_into_google_cloud_storage_goes_on_behind_its_parts_and_is_imported_from_there() {
    let cloud = Cloud::google();
    goes_on_and_arrives(&cloud);
    assert_eq!(cloud.store.open_uploads(), 0);
}

#[test]
fn of_two_builds_of_one_object_in_azure_the_later_one_wins_and_one_of_wrong_bytes_leaves_it_alone() {
    the_later_of_two_wins_and_wrong_bytes_leave_nothing(&Cloud::azure());
}

#[test]
fn of_two_builds_of_one_object_at_google_the_later_one_wins_and_one_of_wrong_bytes_leaves_no_upload() {
    let cloud = Cloud::google();
    the_later_of_two_wins_and_wrong_bytes_leave_nothing(&cloud);
    assert_eq!(cloud.store.open_uploads(), 0);
    assert!(cloud.proxy.count("DELETE", "uploadId=") > 0);
}
