use std::fs;

use crate::world::{FAR, Registry, World, run};

fn build(name: &str, host: &str, image: &str, already_transferred: &str) -> String {
    format!(
        "
apiVersion: charon.dev/v1alpha1
kind: PayloadBuild
metadata: {{name: {name}}}
spec:
  images: [{{image: '{host}/{image}'}}]
  alreadyTransferred: {{images: [{already_transferred}]}}
  output: {{persistentVolumeClaim: {{claimName: near, path: out/{name}.zip}}}}
  registries: [{{host: '{host}', insecure: true}}]
"
    )
}

fn import(name: &str, digest: &str) -> String {
    format!(
        "
apiVersion: charon.dev/v1alpha1
kind: PayloadImport
metadata: {{name: {name}}}
spec:
  source: {{persistentVolumeClaim: {{claimName: far, path: {name}.zip}}}}
  expectedDigest: {digest}
  registry: {{host: '{FAR}', insecure: true, repositoryPrefix: carried}}
  strict: true
"
    )
}

#[test]
fn an_image_is_carried_over_the_gap_runs_there_and_its_next_version_needs_less() {
    let (near, far) = (World::new("carry-near"), World::new("carry-far"));
    let (near_volume, far_volume) = (near.claim("near", "pv-0"), far.claim("far", "pv-1"));
    let folder = tempfile::tempdir().unwrap();

    let registry = Registry::start(5101, folder.path(), None);
    let host = registry.host.clone();
    let digest_1 = registry.image("team/app:1", "I am one", folder.path());
    near.apply(&build("one", &host, "team/app:1", ""));
    near.until_condition("pbuild", "one", "Ready", "True", "Succeeded");
    let payload_1 = near.get("pbuild", "one")["status"]["payload"].clone();
    assert_eq!(near.get("pbuild", "one")["status"]["observedGeneration"], 1);
    let listed = near.kubectl(&["get", "pbuild", "one"]);
    assert!(listed.contains("True") && listed.contains("Succeeded"), "{listed}");

    // The gap: nothing of the near side can be reached any more.
    drop(registry);
    fs::copy(near_volume.join("out/one.zip"), far_volume.join("one.zip")).unwrap();
    far.apply(&import("one", payload_1["digest"].as_str().unwrap()));
    far.until_condition("pimport", "one", "Ready", "True", "Succeeded");
    assert_eq!(far.differences(&import("one", payload_1["digest"].as_str().unwrap())), "");
    let crane_digest =
        |image: &str| run("crane", &["digest", "--insecure", &format!("{FAR}/carried/{image}")], None);
    assert_eq!(crane_digest("team/app:1"), digest_1);
    assert_eq!(far.says("one", "carried/team/app:1"), "I am one");
    assert_eq!(far.get("pimport", "one")["status"]["result"]["blobsPushed"], 3);

    let registry = Registry::start(5101, folder.path(), None);
    let digest_2 = registry.image("team/app:2", "I am two", folder.path());
    near.apply(&build("two", &host, "team/app:2", &format!("'{host}/team/app:1'")));
    near.until_condition("pbuild", "two", "Ready", "True", "Succeeded");
    let payload_2 = near.get("pbuild", "two")["status"]["payload"].clone();
    let size = |payload: &serde_json::Value| payload["sizeBytes"].as_u64().unwrap();
    assert!(size(&payload_2) * 10 < size(&payload_1), "{payload_2} {payload_1}");
    assert_eq!(payload_2["blobsReused"], 1);

    drop(registry);
    fs::copy(near_volume.join("out/two.zip"), far_volume.join("two.zip")).unwrap();
    far.apply(&import("two", payload_2["digest"].as_str().unwrap()));
    far.until_condition("pimport", "two", "Ready", "True", "Succeeded");
    assert_eq!(crane_digest("team/app:2"), digest_2);
    assert_eq!(far.says("two", "carried/team/app:2"), "I am two");
}
