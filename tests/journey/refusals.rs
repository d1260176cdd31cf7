use std::fs;

use crate::world::{FAR, HTPASSWD, Registry, World, charon, until};

fn build(name: &str, image: &str, access: &str) -> String {
    format!(
        "
apiVersion: charon.dev/v1alpha1
kind: PayloadBuild
metadata: {{name: {name}}}
spec:
  images: [{{image: '{image}'}}]
  output: {{persistentVolumeClaim: {{claimName: transfer, path: {name}.zip}}}}
  registries: [{{{access}}}]
"
    )
}

fn import(name: &str) -> String {
    format!(
        "
apiVersion: charon.dev/v1alpha1
kind: PayloadImport
metadata: {{name: {name}}}
spec:
  source: {{persistentVolumeClaim: {{claimName: inbox, path: {name}.zip}}}}
  registry: {{host: '{FAR}', insecure: true, repositoryPrefix: refusals}}
"
    )
}

#[test]
fn a_build_that_cannot_be_says_why() {
    let world = World::new("refused-builds");
    let volume = world.claim("transfer", "pv-2");
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::start(5102, folder.path(), Some(HTPASSWD));
    let host = &registry.host;
    world.pull_secret("right", host, "right");
    world.pull_secret("wrong", host, "wrong");
    let access = |secret: &str| format!("host: '{host}', insecure: true, secretRef: {{name: {secret}}}");
    world.apply(&build("unknown", &format!("{host}/team/nothing:1"), &access("right")));
    world.apply(&build("denied", &format!("{host}/team/nothing:1"), &access("wrong")));
    world.apply(&build("secretless", &format!("{host}/team/nothing:1"), &access("nobody")));

    let message = world.until_condition("pbuild", "unknown", "Ready", "False", "ImageNotFound");
    assert!(message.contains(&format!("{host}/team/nothing:1")), "{message}");
    let message = world.until_condition("pbuild", "denied", "Ready", "False", "AuthenticationFailed");
    assert!(message.contains(host.as_str()) && !message.contains("wrong"), "{message}");
    let message = world.until_condition("pbuild", "secretless", "Ready", "False", "SecretNotFound");
    assert!(message.contains("nobody"), "{message}");
    let files: Vec<_> = fs::read_dir(volume).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert!(files.is_empty(), "{files:?}");
}

#[test]
fn an_import_of_an_altered_payload_is_refused_and_one_that_is_not_there_waits_until_it_comes() {
    let world = World::new("refused-imports");
    let volume = world.claim("inbox", "pv-3");
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::start(5103, folder.path(), None);
    registry.image("app:1", "I am one", folder.path());
    let whole = folder.path().join("whole.zip");
    charon(&["make-payload", "app:1", "-r", &registry.host, "-i", "-f", whole.to_str().unwrap()]);

    let mut altered = fs::read(&whole).unwrap();
    let middle = altered.len() / 2;
    altered[middle] ^= 1;
    fs::write(volume.join("altered.zip"), altered).unwrap();
    world.apply(&import("altered"));
    world.apply(&import("late"));

    let message = world.until_condition("pimport", "altered", "Ready", "False", "PayloadCorrupt");
    assert!(message.contains("sha256:"), "{message}");
    world.until_condition("pimport", "altered", "Stalled", "True", "PayloadCorrupt");
    let message = world.until_condition("pimport", "late", "Ready", "False", "SourceNotFound");
    assert!(message.contains("late.zip"), "{message}");
    world.until_condition("pimport", "late", "Reconciling", "True", "SourceNotFound");

    fs::copy(&whole, volume.join("late.zip")).unwrap();
    world.until_condition("pimport", "late", "Ready", "True", "Succeeded");
    assert_eq!(world.says("late", "refusals/app:1"), "I am one");
    until("no condition but the good ones", || {
        let status = world.get("pimport", "late")["status"].clone();
        let text = status["conditions"].to_string();
        if text.contains("Stalled") || text.contains("Reconciling") { Err(text) } else { Ok(()) }
    });
}
