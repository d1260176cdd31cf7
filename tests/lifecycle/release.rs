//! An installation of Charon for the whole cluster, for as long as a test lasts.

use std::process::Command;

use serde_json::Value;

use crate::proxy::Proxy;
use crate::world::{NODE, Registry, World, restricted_namespace, run, until};

/// The chart of this version.
pub(crate) const CHART: &str = "charts/charon";
/// This version.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The definitions of the resources.
pub(crate) const DEFINITIONS: [&str; 2] = ["payloadbuilds.charon.dev", "payloadimports.charon.dev"];

/// The release `charon` in the namespace `charon`; it is gone when it is dropped, with all definitions and resources.
pub(crate) struct Release;

impl Release {
    /// Installs a chart, and waits for nothing.
    pub(crate) fn install(chart: &str, options: &[&str]) -> Self {
        restricted_namespace("charon");
        // From here on there is something to take away.
        let release = Self;
        run("helm", &[&["install", "charon", chart, "-n", "charon"], options].concat(), None);
        release
    }

    pub(crate) fn upgrade(&self, chart: &str) {
        run("helm", &["upgrade", "charon", chart, "-n", "charon"], None);
    }

    /// Takes it away; fails if that takes more than a minute.
    pub(crate) fn uninstall(&self) {
        run("helm", &["uninstall", "charon", "-n", "charon", "--wait", "--timeout", "60s"], None);
    }

    pub(crate) fn until_ready(&self) {
        let rollout = ["-n", "charon", "rollout", "status", "deployment/charon", "--timeout=120s"];
        run("kubectl", &rollout, None);
    }
}

impl Drop for Release {
    fn drop(&mut self) {
        for command in [
            "helm uninstall charon -n charon --wait --ignore-not-found".to_owned(),
            format!("kubectl delete crd --ignore-not-found {}", DEFINITIONS.join(" ")),
        ] {
            let mut words = command.split(' ');
            let _ = Command::new(words.next().unwrap_or_default()).args(words).output();
        }
    }
}

/// A build that stands still in the middle, until its way is opened.
pub(crate) struct Standing {
    pub(crate) world: World,
    pub(crate) way: Proxy,
    /// It ends with the rest.
    _registry: Registry,
    _folder: tempfile::TempDir,
}

impl Standing {
    /// Begins a build `app` in a namespace of its own, and waits until its layer is on the way. Two ports of the node.
    pub(crate) fn in_namespace(namespace: &str, ports: [u16; 2]) -> Self {
        let world = World::alone(namespace);
        world.late_claim("transfer");
        let folder = tempfile::tempdir().unwrap();
        let registry = Registry::start(ports[0], folder.path(), None);
        registry.image("app:1", "I am one", folder.path());
        // Manifests and configs pass, the shell's layer does not.
        let way = Proxy::start(&format!("{NODE}:{}", ports[1]), &registry.host, 20_000);
        let host = &way.host;
        world.apply(&format!(
            "
apiVersion: charon.dev/v1alpha1
kind: PayloadBuild
metadata: {{name: app}}
spec:
  images: [{{image: '{host}/app:1'}}]
  output: {{persistentVolumeClaim: {{claimName: transfer, path: app.zip}}}}
  registries: [{{host: '{host}', insecure: true}}]
"
        ));
        until("the build to stand still in the middle", || {
            let status = world.get("pbuild", "app")["status"].clone();
            if status["progress"]["stage"] == "Transferring" { Ok(()) } else { Err(status.to_string()) }
        });
        Self { world, way, _registry: registry, _folder: folder }
    }

    /// The uids of the namespace's Jobs and pods.
    pub(crate) fn work(&self) -> Vec<String> {
        let found = self.world.kubectl(&["get", "jobs,pods", "-o", "json"]);
        let found: Value = serde_json::from_str(&found).unwrap();
        let uid = |object: &Value| object["metadata"]["uid"].as_str().unwrap().to_owned();
        found["items"].as_array().unwrap().iter().map(uid).collect()
    }

    /// Deletes the namespace; fails if that takes more than a minute.
    pub(crate) fn delete_namespace(&self) {
        run("kubectl", &["delete", "namespace", &self.world.namespace, "--timeout=60s"], None);
    }
}
