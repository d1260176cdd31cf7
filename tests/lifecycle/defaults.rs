//! What the chart's values say for all resources.

use serde_json::Value;

use crate::release::{CHART, Release};
use crate::world::{NODE, Registry, World, restricted_namespace, run};

#[test]
fn a_build_that_says_nothing_of_registries_has_the_mirror_and_the_authorities_of_all() {
    let folder = tempfile::tempdir().unwrap();
    let authority = folder.path().join("ca.crt");
    let key = folder.path().join("ca.key");
    let (certificate, key) = (authority.to_str().unwrap(), key.to_str().unwrap());
    let subject = ["-subj", "/CN=corp", "-keyout", key, "-out", certificate];
    run("openssl", &[["req", "-x509", "-newkey", "rsa:2048", "-nodes"].as_slice(), &subject].concat(), None);
    restricted_namespace("charon");
    let from_file = format!("--from-file=ca.crt={certificate}");
    run("kubectl", &["-n", "charon", "create", "configmap", "corp-ca", &from_file], None);
    let registries = format!(
        r#"worker.registries=[{{"host":"nowhere.example","endpoint":"{NODE}:5129","insecure":true}}]"#
    );
    let release =
        Release::install(CHART, &["--set", "worker.caBundle.configMap=corp-ca", "--set-json", &registries]);
    release.until_ready();

    let registry = Registry::start(5129, folder.path(), None);
    registry.image("app:1", "I am one", folder.path());
    let world = World::alone("defaults");
    let volume = world.late_claim("transfer");
    world.apply(
        "
apiVersion: charon.dev/v1alpha1
kind: PayloadBuild
metadata: {name: app}
spec:
  images: [{image: 'nowhere.example/app:1'}]
  output: {persistentVolumeClaim: {claimName: transfer, path: app.zip}}
",
    );
    world.until_condition("pbuild", "app", "Ready", "True", "Succeeded");
    assert!(volume.join("app.zip").exists());
    let pods: Value = serde_json::from_str(&world.kubectl(&["get", "pods", "-o", "json"])).unwrap();
    let given = &pods["items"][0]["metadata"]["annotations"]["charon.dev/ca-bundle"];
    assert_eq!(*given, std::fs::read_to_string(&authority).unwrap());
    run("kubectl", &["-n", "charon", "delete", "configmap", "corp-ca"], None);
    world.kubectl(&["delete", "pbuild", "app"]);
}
