use crate::proxy::Proxy;
use crate::world::{NODE, Registry, World, run, until};

fn build(host: &str) -> String {
    format!(
        "
apiVersion: charon.dev/v1alpha1
kind: PayloadBuild
metadata: {{name: slow}}
spec:
  images: [{{image: '{host}/app:1'}}]
  output: {{persistentVolumeClaim: {{claimName: transfer, path: slow.zip}}}}
  registries: [{{host: '{host}', insecure: true}}]
"
    )
}

#[test]
fn a_build_outlives_its_controller_and_a_deleted_one_leaves_nothing_under_the_final_name() {
    let world = World::new("interrupted");
    let volume = world.claim("transfer", "pv-4");
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::start(5104, folder.path(), None);
    registry.image("app:1", "I am one", folder.path());
    let (whole, partial) = (volume.join("slow.zip"), volume.join("slow.zip.partial"));
    let transferring = || {
        until("the build to stand still in the middle", || {
            let status = world.get("pbuild", "slow")["status"].clone();
            let is_there = status["progress"]["stage"] == "Transferring" && partial.exists();
            if is_there { Ok(status) } else { Err(status.to_string()) }
        })
    };

    // Manifests and configs pass, the shell's layer does not.
    let proxy = Proxy::start(&format!("{NODE}:5105"), &registry.host, 20_000);
    world.apply(&build(&proxy.host));
    let before = transferring();
    assert!(!whole.exists());
    world.kubectl(&["delete", "pbuild", "slow"]);
    until("the worker to be gone", || {
        let pods = world.kubectl(&["get", "pods", "-o", "name"]);
        if pods.is_empty() { Ok(()) } else { Err(pods) }
    });
    assert!(!whole.exists());

    let proxy = Proxy::start(&format!("{NODE}:5106"), &registry.host, 20_000);
    world.apply(&build(&proxy.host));
    let again = transferring();
    assert_ne!(before["run"]["jobName"], again["run"]["jobName"]);
    run("kubectl", &["-n", "charon", "delete", "pod", "--all", "--wait=true"], None);
    run("kubectl", &["-n", "charon", "rollout", "status", "deployment/charon", "--timeout=120s"], None);
    proxy.open();
    world.until_condition("pbuild", "slow", "Ready", "True", "Succeeded");
    assert_eq!(world.get("pbuild", "slow")["status"]["run"]["jobName"], again["run"]["jobName"]);
    assert!(whole.exists() && !partial.exists());
}
