//! What fifty runs leave that were all cancelled: no more than one does.

use serde_json::{Value, json};

use crate::gate::{Gate, wait_until};
use crate::image::{Image, Layer, Types};
use crate::pod::Pod;
use crate::proxy::{Misdeed, Proxy};
use crate::registry::{Registry, Software};

const RUNS: usize = 50;

#[test]
fn fifty_cancelled_builds_of_one_path_leave_at_most_one_partial_file_and_its_journal() {
    let source = Registry::start(Software::Distribution3);
    for name in ["a", "b", "c"] {
        Image::new(Types::Oci, &[Layer::raw(name, 4 << 20)]).push(&source, &format!("{name}:1"));
    }
    let gate = Gate::before(&source, 0);
    let pod = Pod::new();
    for run in 0..RUNS {
        gate.let_through(1 << 20);
        // Other wishes for the same path, one after the other.
        let image = format!("{}/{}:1", gate.host(), ["a", "b", "c"][run % 3]);
        let work = json!({ "build": { "images": [{ "name": image }], "path": "app.zip" } });
        let registries = json!([{ "host": gate.host(), "insecure": true }]);
        let worker = pod.starts(&format!("run-{run}"), &work, &registries);
        gate.wait_until_shut();
        wait_until("there is something to leave", || pod.payload("app.zip.partial").exists());
        // By a person's wish, and by a node that goes away.
        if run % 2 == 0 {
            worker.terminate();
        } else {
            worker.kill();
        }
        worker.end();
        assert_eq!(pod.files(), ["app.zip.partial", "app.zip.partial.journal"], "after run {run}");
    }
}

#[test]
fn fifty_cancelled_imports_leave_no_upload_in_the_registry() {
    let source = Registry::start(Software::Distribution3);
    Image::new(Types::Oci, &[Layer::raw("a", 24 << 20)]).push(&source, "ferry:1");
    let target = Registry::start(Software::Distribution3);
    let slow = Proxy::before(&target);
    // A proxy on the way still has bytes to pass on when nobody sends any more.
    for method in ["PUT", "PATCH"] {
        slow.does(Misdeed::Throttle(24 << 20), method, "/blobs/uploads/", usize::MAX);
    }
    let pod = Pod::new();
    let images: Value = json!([{ "name": source.name("ferry:1") }]);
    assert!(pod.builds("build", &images, "app.zip", &source).reason.is_success());
    let work = json!({ "import": { "path": "app.zip", "registry": slow.host() } });
    let registries = json!([{ "host": slow.host(), "insecure": true }]);
    let sent = || slow.seen().iter().filter(|request| request.passed > 1 << 20).count();
    for run in 0..RUNS {
        let before = sent();
        let worker = pod.starts(&format!("run-{run}"), &work, &registries);
        wait_until("a layer is on its way", || sent() > before);
        worker.terminate();
        worker.end().ended_with(128 + 15);
        assert_eq!(target.open_uploads("ferry"), 0, "after run {run}");
    }
    assert!(target.tags("ferry").is_empty());
}
