//! `kubectl charon`: payloads out of claims and into them, by kubectl itself.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use crate::proxy::Proxy;
use crate::world::{FAR, NODE, Registry, World, image_of_noise, run, until, variable};

/// The API server.
const API: &str = "10.88.0.1:6443";
/// So many bytes come through before a transfer stands still.
const HALF: usize = 9_000_000;

/// A machine of a user's: kubectl with the plugin beside it, a kubeconfig, and a folder.
struct Desk {
    folder: tempfile::TempDir,
    namespace: String,
}

impl Desk {
    fn new(world: &World) -> Self {
        let folder = tempfile::tempdir().unwrap();
        symlink(variable("CHARON_BIN"), folder.path().join("kubectl-charon")).unwrap();
        Self { folder, namespace: world.namespace.clone() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The administrator's kubeconfig, with the API server at `host`.
    fn kubeconfig(&self, host: &str) -> PathBuf {
        let text = fs::read_to_string(variable("KUBECONFIG")).unwrap();
        let server = format!("https://{API}");
        assert!(text.contains(&server), "{text}");
        let path = self.path("kubeconfig");
        fs::write(&path, text.replace(&server, &format!("https://{host}"))).unwrap();
        path
    }

    /// kubectl with these arguments for the plugin.
    fn kubectl(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        let path = format!("{}:{}", self.folder.path().display(), variable("PATH"));
        command.arg("charon").args(arguments).args(["-n", &self.namespace]).env("PATH", path);
        command
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// What it prints where it succeeds.
    fn prints(&self, arguments: &[&str]) -> String {
        let Output { status, stdout, stderr } = self.kubectl(arguments).output().unwrap();
        assert!(status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&stderr));
        String::from_utf8(stdout).unwrap()
    }

    /// What it says where it fails.
    fn refuses(&self, arguments: &[&str]) -> String {
        let Output { status, stdout, stderr } = self.kubectl(arguments).output().unwrap();
        let stderr = String::from_utf8(stderr).unwrap();
        assert!(status.code() == Some(1) && stdout.is_empty(), "{arguments:?}: {status}: {stderr}");
        stderr
    }
}

fn build(name: &str, host: &str) -> String {
    format!(
        "
apiVersion: charon.dev/v1alpha1
kind: PayloadBuild
metadata: {{name: {name}}}
spec:
  images: [{{image: '{host}/{name}:1'}}]
  output: {{persistentVolumeClaim: {{claimName: transfer, path: out/{name}.zip}}}}
  registries: [{{host: '{host}', insecure: true}}]
"
    )
}

fn import() -> String {
    format!(
        "
apiVersion: charon.dev/v1alpha1
kind: PayloadImport
metadata: {{name: late}}
spec:
  source: {{persistentVolumeClaim: {{claimName: inbox, path: in/app.zip}}}}
  registry: {{host: '{FAR}', insecure: true, repositoryPrefix: plugin}}
"
    )
}

fn sha256(path: &Path) -> String {
    let sum = run("sha256sum", &[path.to_str().unwrap()], None);
    sum.split_whitespace().next().unwrap().to_owned()
}

fn transfer_pods(world: &World) -> String {
    world.kubectl(&["get", "pods", "-l", "app.kubernetes.io/component=transfer", "-o", "name"])
}

fn until_no_transfer_pod(world: &World) {
    until("the pod of the transfer to be gone", || {
        let pods = transfer_pods(world);
        if pods.is_empty() { Ok(()) } else { Err(pods) }
    });
}

fn until_still(way: &Proxy) {
    until("the transfer to stand still in the middle", || match way.passed() {
        HALF => Ok(()),
        passed => Err(format!("{passed} bytes")),
    });
}

fn signal(child: &Child, name: &str) {
    run("kill", &[&format!("-{name}"), &child.id().to_string()], None);
}

#[test]
fn a_payload_leaves_its_claim_through_an_interrupted_transfer_and_comes_into_another_where_an_import_waits() {
    const NOISE: usize = 30_000_000;
    let world = World::new("plugin");
    let (volume, inbox) = (world.claim("transfer", "pv-12"), world.claim("inbox", "pv-13"));
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::start(5121, folder.path(), None);
    image_of_noise(&registry, "app:1", NOISE, folder.path());
    let desk = Desk::new(&world);
    world.apply(&build("app", &registry.host));
    world.until_condition("pbuild", "app", "Ready", "True", "Succeeded");

    // By a way to the API server on which only so much comes through. SIGTERM takes the pod away, SIGKILL cannot.
    let mut left = Vec::new();
    for (way, end) in [("5122", "TERM"), ("5123", "KILL")] {
        let way = Proxy::start(&format!("{NODE}:{way}"), API, HALF);
        let kubeconfig = desk.kubeconfig(&way.host);
        let kubeconfig = ["--kubeconfig", kubeconfig.to_str().unwrap()];
        let get = [&["get", "pbuild/app", "-o", "app.zip"], kubeconfig.as_slice()].concat();
        let mut get = desk.kubectl(&get).spawn().unwrap();
        until_still(&way);
        assert!(transfer_pods(&world).contains("pod/"));
        signal(&get, end);
        if end == "TERM" {
            way.open();
            assert_eq!(get.wait().unwrap().code(), Some(143));
            until_no_transfer_pod(&world);
        }
        get.wait().unwrap();
        assert!(!desk.path("app.zip").exists());
        left.push(fs::metadata(desk.path("app.zip.partial")).unwrap().len());
    }
    assert!(left[0] > 1_000_000 && left[1] > left[0] + 1_000_000, "{left:?}");

    // Then a connection breaks, and the program goes on by another one.
    let way = Proxy::start(&format!("{NODE}:5124"), API, HALF);
    let kubeconfig = desk.kubeconfig(&way.host);
    let get = ["get", "pbuild/app", "-o", "app.zip", "--kubeconfig", kubeconfig.to_str().unwrap()];
    let getting = desk.kubectl(&get).spawn().unwrap();
    until_still(&way);
    way.cut();
    let Output { status, stdout, stderr } = getting.wait_with_output().unwrap();
    let (printed, stderr) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
    assert!(status.success() && stderr.contains("the connection broke: "), "{status}: {stderr}");
    let expected = sha256(&volume.join("out/app.zip"));
    assert_eq!(printed, format!("{expected}  app.zip\n"));
    assert_eq!(sha256(&desk.path("app.zip")), expected);
    let (passed, whole) = (way.passed(), fs::metadata(desk.path("app.zip")).unwrap().len());
    let rest = usize::try_from(whole - left[1]).unwrap();
    assert!((rest..rest + 3_000_000).contains(&passed), "{passed} bytes came for the last {rest}");
    // It is there: nothing comes again.
    assert_eq!(desk.prints(&get), printed);
    assert!(way.passed() < passed + 2_000_000);
    // The pod of the killed one ends by itself, for want of anybody.
    until("the pod that was left to end by itself", || {
        let pods =
            world.kubectl(&["get", "pods", "-l", "app.kubernetes.io/component=transfer", "-o", "wide"]);
        if pods.contains("Running") { Err(pods) } else { Ok(()) }
    });

    world.apply(&import());
    world.until_condition("pimport", "late", "Ready", "False", "SourceNotFound");
    let put = ["put", "app.zip", "--pvc", "inbox", "--path", "in/app.zip"];
    assert_eq!(desk.prints(&put), format!("{expected}  inbox/in/app.zip\n"));
    world.until_condition("pimport", "late", "Ready", "True", "Succeeded");
    assert_eq!(sha256(&inbox.join("in/app.zip")), expected);
    until_no_transfer_pod(&world);

    let table = desk.prints(&["status"]);
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["NAME", "READY", "STATUS", "PROGRESS", "SPEED", "LEFT", "AGE"]);
    assert_eq!(rows[1][..6], ["pbuild/app", "True", "Succeeded", "100%", "-", "-"]);
    assert_eq!(rows[2][..6], ["pimport/late", "True", "Succeeded", "100%", "-", "-"]);
    assert!(desk.prints(&["status", "-A"]).contains("NAMESPACE"));
}

/// A kubeconfig of somebody who may do what `rules` say in the namespace.
fn somebody(world: &World, desk: &Desk, name: &str, rules: &str) -> PathBuf {
    world.apply(&format!(
        "
apiVersion: v1
kind: ServiceAccount
metadata: {{name: {name}}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {{name: {name}}}
rules: {rules}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {{name: {name}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: {name}}}
subjects: [{{kind: ServiceAccount, name: {name}}}]
"
    ));
    let token = world.kubectl(&["create", "token", name]);
    let path = desk.path(&format!("{name}.kubeconfig"));
    let server = format!("https://{API}");
    let file = path.to_str().unwrap();
    let config =
        |arguments: &[&str]| run("kubectl", &[&["--kubeconfig", file, "config"], arguments].concat(), None);
    config(&["set-cluster", "c", "--server", &server, "--insecure-skip-tls-verify=true"]);
    config(&["set-credentials", "u", "--token", &token]);
    config(&["set-context", "c", "--cluster=c", "--user=u"]);
    config(&["use-context", "c"]);
    path
}

/// The rights that docs/kubectl-charon.md lists, as the YAML of a role's rules.
fn documented_rights() -> String {
    let docs = fs::read_to_string("docs/kubectl-charon.md").unwrap();
    let (_, rules) = docs.split_once("\nrules:\n").unwrap();
    let (rules, _) = rules.split_once("```").unwrap();
    let rules: serde_json::Value = serde_saphyr::from_str(rules).unwrap();
    rules.to_string()
}

#[test]
fn what_keeps_a_payload_from_being_carried_is_told_with_the_way_out() {
    let world = World::new("plugin-refusals");
    let volume = world.claim("transfer", "pv-14");
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::start(5125, folder.path(), None);
    registry.image("app:1", "I am one", folder.path());
    let desk = Desk::new(&world);
    let says = |arguments: &[&str], words: &[&str]| {
        let said = desk.refuses(arguments);
        assert!(words.iter().all(|word| said.contains(word)), "{arguments:?}: {said}");
    };
    says(&["get", "pbuild/app"], &["there is no PayloadBuild app in namespace plugin-refusals"]);
    fs::write(desk.path("letter"), "to the far side").unwrap();
    says(&["put", "letter", "--pvc", "transfer"], &["letter: "]);
    says(&["put", "nothing", "--pvc", "transfer"], &["there is no file nothing"]);
    says(&["status", "--context", "elsewhere"], &["elsewhere", "kubectl config view"]);

    world.apply(&build("app", &registry.host));
    world.apply(&build("unknown", &registry.host));
    world.until_condition("pbuild", "app", "Ready", "True", "Succeeded");
    world.until_condition("pbuild", "unknown", "Ready", "False", "ImageNotFound");
    says(
        &["get", "pbuild/unknown"],
        &["PayloadBuild unknown is not ready (ImageNotFound: ", "kubectl -n plugin-refusals wait"],
    );
    fs::write(desk.path("app.zip"), "something else").unwrap();
    says(&["get", "pbuild/app"], &["app.zip is there, and is another file", "--output"]);
    fs::remove_file(desk.path("app.zip")).unwrap();

    // Whoever has what the docs list can do all of it, and whoever lacks a right is told which.
    let listed = documented_rights();
    let courier = somebody(&world, &desk, "courier", &listed);
    let as_courier = |arguments: &[&str]| {
        desk.prints(&[arguments, &["--kubeconfig", courier.to_str().unwrap()]].concat());
    };
    as_courier(&["get", "pbuild/app"]);
    as_courier(&["put", "app.zip", "--pvc", "transfer", "--path", "in/app.zip"]);
    as_courier(&["status"]);
    until_no_transfer_pod(&world);
    fs::rename(desk.path("app.zip"), desk.path("got.zip")).unwrap();
    for (name, right, words) in [
        (
            "blind",
            "payloadbuilds",
            &["cannot read PayloadBuild app", "payloadbuilds", "docs/kubectl-charon.md"][..],
        ),
        ("podless", "pods", &["cannot create a pod", "resource \"pods\"", "docs/kubectl-charon.md"]),
        ("speechless", "pods/exec", &["create and get on pods/exec"]),
    ] {
        let without = listed.replace(&format!("\"{right}\""), "\"nothing\"");
        let user = somebody(&world, &desk, name, &without);
        says(&["get", "pbuild/app", "--kubeconfig", user.to_str().unwrap()], words);
    }
    until_no_transfer_pod(&world);

    // What the pod needs.
    says(
        &["put", "got.zip", "--pvc", "nothing"],
        &["there is no PersistentVolumeClaim nothing in namespace plugin-refusals", "get pvc"],
    );
    says(
        &["put", "got.zip", "--pvc", "transfer", "--image", "charon.local/registry:3"],
        &["ended at once", "--image"],
    );
    world.apply(
        "{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: unbound}, spec: {volumeName: nowhere, \
         storageClassName: local, accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}",
    );
    // Both may pass by themselves, and are waited for.
    let waiting = [
        (
            &["put", "got.zip", "--pvc", "transfer", "--image", "charon.local/nothing:1"][..],
            "cannot get its own image",
        ),
        (&["put", "got.zip", "--pvc", "unbound"], "waits for its PersistentVolumeClaim to be bound"),
    ];
    let waiting = waiting.map(|(arguments, words)| (desk.kubectl(arguments).spawn().unwrap(), words));
    for (child, words) in waiting {
        let Output { status, stderr, .. } = child.wait_with_output().unwrap();
        let said = String::from_utf8(stderr).unwrap();
        assert!(status.code() == Some(1) && said.contains(words), "{status}: {said}");
    }
    until_no_transfer_pod(&world);
    // What is no payload is nobody's to replace.
    fs::write(volume.join("got.zip"), "a letter").unwrap();
    says(
        &["put", "got.zip", "--pvc", "transfer", "--replace"],
        &["is no payload of charon's", "is not replaced"],
    );
    assert_eq!(fs::read(volume.join("got.zip")).unwrap(), b"a letter");
}
