//! What becomes of a run when a person or the cluster interferes.

use std::time::{Duration, Instant};

use crate::proxy::Proxy;
use crate::world::{NODE, Registry, World, image_of_noise, run, until};

fn build(name: &str, host: &str, images: &[&str], claim: &str, worker: &str) -> String {
    let images: Vec<_> =
        images.iter().map(|image| format!("{{image: '{host}/{image}', as: 'base/{image}'}}")).collect();
    let images = images.join(", ");
    format!(
        "
apiVersion: charon.dev/v1alpha1
kind: PayloadBuild
metadata: {{name: {name}}}
spec:
  images: [{images}]
  output: {{persistentVolumeClaim: {{claimName: {claim}, path: {name}.zip}}}}
  registries: [{{host: '{host}', insecure: true}}]
  backoffLimit: 0
{worker}
"
    )
}

#[test]
fn a_suspended_build_goes_on_where_it_was_and_a_lost_status_is_found_again_beside_the_payload() {
    let world = World::new("suspended");
    let volume = world.claim("transfer", "pv-9");
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::start(5111, folder.path(), None);
    registry.image("app:1", "I am one", folder.path());
    let proxy = Proxy::start(&format!("{NODE}:5112"), &registry.host, 300_000);
    let manifest = build("slow", &proxy.host, &["app:1"], "transfer", "");
    world.apply(&manifest);
    let (whole, partial) = (volume.join("slow.zip"), volume.join("slow.zip.partial"));
    until("the build to stand still in the middle", || {
        let status = world.get("pbuild", "slow")["status"].clone();
        let is_there = status["progress"]["stage"] == "Transferring" && partial.exists();
        if is_there { Ok(()) } else { Err(status.to_string()) }
    });

    let suspend = |wanted: &str| {
        let patch = format!(r#"{{"spec":{{"suspend":{wanted}}}}}"#);
        world.kubectl(&["patch", "pbuild", "slow", "--type=merge", "--patch", &patch]);
    };
    let told = Instant::now();
    suspend("true");
    world.until_condition("pbuild", "slow", "Ready", "False", "Suspended");
    until("the worker to be gone", || {
        let pods = world.kubectl(&["get", "pods,jobs", "-o", "name"]);
        if pods.is_empty() { Ok(()) } else { Err(pods) }
    });
    assert!(told.elapsed() < Duration::from_secs(35), "it took {:?}", told.elapsed());
    assert!(partial.exists() && !whole.exists());

    proxy.open();
    suspend("null");
    world.until_condition("pbuild", "slow", "Ready", "True", "Succeeded");
    let status = world.get("pbuild", "slow")["status"].clone();
    let log = world.kubectl(&["logs", &format!("job/{}", status["run"]["jobName"].as_str().unwrap())]);
    assert!(log.contains("Going on with what an earlier attempt left"), "{log}");
    assert_eq!(world.differences(&manifest), "");

    // The cluster comes back from a backup: neither status nor Job, and nobody to ask.
    drop(registry);
    world.kubectl(&["delete", "jobs", "--all", "--wait=true"]);
    let wipe = ["--subresource=status", "--type=merge", "--patch", r#"{"status":null}"#];
    world.kubectl(&[["patch", "pbuild", "slow"].as_slice(), &wipe].concat());
    world.until_condition("pbuild", "slow", "Ready", "True", "AlreadyPresent");
    let again = world.get("pbuild", "slow")["status"].clone();
    assert_eq!(again["payload"], status["payload"]);
    assert_eq!(world.differences(&manifest), "");
}

/// Gives the image an annotation that makes its manifest this long: what a worker has to hold at once, whatever it does.
fn with_a_manifest_of(bytes: usize, registry: &Registry, name: &str) {
    let reference = format!("{}/{name}", registry.host);
    let manifest = run("crane", &["manifest", "--insecure", &reference], None);
    let mut manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    manifest["annotations"]["org.example.notes"] = "x".repeat(bytes).into();
    let (repository, tag) = name.split_once(':').unwrap();
    let url = format!("http://{}/v2/{repository}/manifests/{tag}", registry.host);
    let kind = format!("Content-Type: {}", manifest["mediaType"].as_str().unwrap());
    let put = ["--silent", "--show-error", "--fail", "--upload-file", "-", "--header", &kind, &url];
    run("curl", &put, Some(&manifest.to_string()));
}

#[test]
fn a_worker_with_too_little_memory_says_so_and_gets_another_try_with_more() {
    let world = World::new("hungry");
    world.claim("transfer", "pv-10");
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::start(5113, folder.path(), None);
    // With less than that a container cannot even start.
    let memory = "  worker: {resources: {requests: {memory: 12Mi}, limits: {memory: 12Mi}}}";
    let images = ["app:1", "app:2", "app:3", "app:4"];
    for image in images {
        image_of_noise(&registry, image, 1_000_000, folder.path());
        with_a_manifest_of(3_500_000, &registry, image);
    }
    world.apply(&build("hungry", &registry.host, &images, "transfer", memory));
    let message = world.until_condition("pbuild", "hungry", "Ready", "False", "WorkerOutOfMemory");
    assert!(message.contains("raise spec.worker.resources.limits.memory"), "{message}");
    world.until_condition("pbuild", "hungry", "Stalled", "True", "BackoffLimitExceeded");
    let before = world.get("pbuild", "hungry")["status"]["run"].clone();

    let more = r#"{"spec":{"worker":{"resources":{"limits":{"memory":"128Mi"}}}}}"#;
    world.kubectl(&["patch", "pbuild", "hungry", "--type=merge", "--patch", more]);
    world.until_condition("pbuild", "hungry", "Ready", "True", "Succeeded");
    let after = world.get("pbuild", "hungry")["status"]["run"].clone();
    assert_eq!((&after["id"], &after["attempt"]), (&before["id"], &serde_json::json!(2)));
}

#[test]
fn a_claim_that_waits_for_its_first_consumer_gets_its_volume_by_the_worker() {
    let world = World::new("late");
    let volume = world.late_claim("transfer");
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::start(5114, folder.path(), None);
    registry.image("app:1", "I am one", folder.path());
    let phase = || world.get("pvc", "transfer")["status"]["phase"].clone();
    assert_eq!(phase(), "Pending");
    world.apply(&build("late", &registry.host, &["app:1"], "transfer", ""));
    world.until_condition("pbuild", "late", "Ready", "True", "Succeeded");
    assert_eq!(phase(), "Bound");
    assert!(volume.join("late.zip").exists());
}
