//! A namespace on the real node, with claims and registries of its own.

use std::fs::{self, File};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

/// The registry inside the cluster.
pub(crate) const FAR: &str = "10.96.0.50:5000";
/// The address of the node, where the tests' own registries listen.
pub(crate) const NODE: &str = "10.88.0.1";
/// How long work may take on a machine that is busy.
pub(crate) const PATIENCE: Duration = Duration::from_mins(2);
/// What is wrong must be told within a minute.
const TOLD_WITHIN: Duration = Duration::from_mins(1);
/// `someone` with the password `right`, by bcrypt.
pub(crate) const HTPASSWD: &str = "someone:$2y$05$abcdefghijklmnopqrstuu8xaCxxL82bnl.UY74PMksDxIJShppPC\n";
/// The pause between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(300);

/// What a variable of the test cluster says.
pub(crate) fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: this test runs inside the test cluster, by `make test`")
    })
}

/// Waits until `look` sees something, or fails with what it was waiting for.
pub(crate) fn until<T>(what: &str, look: impl FnMut() -> Result<T, String>) -> T {
    within(PATIENCE, what, look)
}

/// Waits until somebody takes connections at `host`.
pub(crate) fn listening(who: &str, host: &str) {
    until(&format!("{who} to listen"), || TcpStream::connect(host).map_err(|error| error.to_string()));
}

fn within<T>(patience: Duration, what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + patience;
    loop {
        match look() {
            Ok(seen) => return seen,
            Err(last) if Instant::now() > end => panic!("waited in vain for {what}; last seen: {last}"),
            Err(_) => sleep(LOOK_AGAIN),
        }
    }
}

fn output(command: &mut Command, input: Option<&str>) -> Output {
    use std::io::Write;
    let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
    command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
        stdin.write_all(input.as_bytes()).unwrap();
    }
    child.wait_with_output().unwrap()
}

/// Runs a command that must succeed; gives its standard output, trimmed.
pub(crate) fn run(program: &str, arguments: &[&str], input: Option<&str>) -> String {
    let output = output(Command::new(program).args(arguments), input);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {stderr}", arguments.join(" "));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Runs the program as the command line.
pub(crate) fn charon(arguments: &[&str]) -> String {
    run(&variable("CHARON_BIN"), arguments, None)
}

/// A namespace with Charon looking after it.
pub(crate) struct World {
    pub(crate) namespace: String,
}

impl World {
    /// Makes a namespace; the first that comes installs Charon by its chart, and the far registry.
    pub(crate) fn new(namespace: &str) -> Self {
        let cluster = PathBuf::from(variable("CHARON_CLUSTER"));
        let lock = File::create(cluster.join("journey.lock")).unwrap();
        lock.lock().unwrap();
        if !cluster.join("journey.ready").exists() {
            install();
            File::create(cluster.join("journey.ready")).unwrap();
        }
        Self::alone(namespace)
    }

    /// Makes a namespace, whoever looks after it.
    pub(crate) fn alone(namespace: &str) -> Self {
        restricted_namespace(namespace);
        Self { namespace: namespace.to_owned() }
    }

    pub(crate) fn kubectl(&self, arguments: &[&str]) -> String {
        run("kubectl", &[&["--namespace", &self.namespace], arguments].concat(), None)
    }

    pub(crate) fn apply(&self, manifest: &str) {
        run("kubectl", &["--namespace", &self.namespace, "apply", "-f", "-"], Some(manifest));
    }

    /// What `kubectl diff` says that applying `manifest` again would change.
    pub(crate) fn differences(&self, manifest: &str) -> String {
        let diff = ["--namespace", &self.namespace, "diff", "-f", "-"];
        let output = output(Command::new("kubectl").args(diff), Some(manifest));
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.code().is_some_and(|code| code < 2), "{}", String::from_utf8_lossy(&said));
        String::from_utf8(said).unwrap()
    }

    pub(crate) fn get(&self, kind: &str, name: &str) -> Value {
        serde_json::from_str(&self.kubectl(&["get", kind, name, "-o", "json"])).unwrap()
    }

    /// A Secret with the password of `someone` for a registry.
    pub(crate) fn pull_secret(&self, name: &str, host: &str, password: &str) {
        let auths = format!(r#"{{"auths":{{"{host}":{{"username":"someone","password":"{password}"}}}}}}"#);
        let literal = format!("--from-literal=.dockerconfigjson={auths}");
        let type_ = "--type=kubernetes.io/dockerconfigjson";
        self.kubectl(&["create", "secret", "generic", name, type_, &literal]);
    }

    /// A claim on a volume of the node; gives the volume's folder.
    pub(crate) fn claim(&self, name: &str, volume: &str) -> PathBuf {
        self.apply(&format!(
            "{{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {{name: {name}}}, spec: {{volumeName: {volume}, \
             storageClassName: local, accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 1Gi}}}}}}}}"
        ));
        PathBuf::from(variable("CHARON_CLUSTER")).join("volumes").join(volume)
    }

    /// A claim that has no volume before a pod wants it, of a storage class of its own; gives the volume's folder.
    pub(crate) fn late_claim(&self, name: &str) -> PathBuf {
        let class = format!("late-{}", self.namespace);
        let folder = PathBuf::from(variable("CHARON_CLUSTER")).join("volumes").join(&class);
        fs::create_dir_all(&folder).unwrap();
        let path = folder.display();
        self.apply(&format!(
            "
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {{name: {class}}}
provisioner: kubernetes.io/no-provisioner
volumeBindingMode: WaitForFirstConsumer
---
apiVersion: v1
kind: PersistentVolume
metadata: {{name: {class}}}
spec:
  capacity: {{storage: 1Gi}}
  accessModes: [ReadWriteOnce]
  storageClassName: {class}
  local: {{path: {path}}}
  nodeAffinity:
    required:
      nodeSelectorTerms: [{{matchExpressions: [{{key: kubernetes.io/hostname, operator: In, values: [node-1]}}]}}]
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: {name}}}
spec:
  storageClassName: {class}
  accessModes: [ReadWriteOnce]
  resources: {{requests: {{storage: 1Gi}}}}
"
        ));
        folder
    }

    /// Waits until a condition has a status and a reason; gives its message. What is wrong is waited for
    /// no longer than a user should have to.
    pub(crate) fn until_condition(
        &self,
        kind: &str,
        name: &str,
        type_: &str,
        status: &str,
        reason: &str,
    ) -> String {
        let patience = if (type_, status) == ("Ready", "True") { PATIENCE } else { TOLD_WITHIN };
        within(patience, &format!("{kind} {name} to be {type_}={status}/{reason}"), || {
            let object = self.get(kind, name);
            let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let found = conditions.iter().find(|condition| {
                condition["type"] == type_ && condition["status"] == status && condition["reason"] == reason
            });
            match found {
                Some(condition) => Ok(condition["message"].as_str().unwrap_or_default().to_owned()),
                None => Err(object["status"].to_string()),
            }
        })
    }

    /// Runs a pod from an image of the far registry to its end; gives what it says.
    pub(crate) fn says(&self, pod: &str, image: &str) -> String {
        self.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {pod}}}, spec: {{restartPolicy: Never, \
             securityContext: {{runAsNonRoot: true, runAsUser: 65532, seccompProfile: {{type: RuntimeDefault}}}}, containers: [\
             {{name: app, image: '{FAR}/{image}', securityContext: {{allowPrivilegeEscalation: false, capabilities: {{drop: [ALL]}}}}}}]}}}}"
        ));
        until(&format!("pod {pod} to end well"), || {
            let status = self.get("pod", pod)["status"].clone();
            if status["phase"] == "Succeeded" { Ok(()) } else { Err(status.to_string()) }
        });
        self.kubectl(&["logs", pod])
    }
}

fn install() {
    far_registry();
    restricted_namespace("charon");
    // With default values: the node has the image under the name that the chart takes.
    run("helm", &["install", "charon", "charts/charon", "-n", "charon"], None);
    // Nobody waits five minutes in a test for the controller to look again.
    run("kubectl", &["-n", "charon", "set", "env", "deployment/charon", "CHARON_WAIT_INTERVAL=2s"], None);
    run("kubectl", &["-n", "charon", "rollout", "status", "deployment/charon", "--timeout=120s"], None);
}

/// Sees to it that the registry inside the cluster is there.
pub(crate) fn far_registry() {
    run("kubectl", &["apply", "-f", "tests/cluster/manifests/registry.yaml"], None);
    run("kubectl", &["-n", "registry", "rollout", "status", "deployment/registry", "--timeout=120s"], None);
}

pub(crate) fn restricted_namespace(name: &str) {
    let manifest = format!(
        "{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}, labels: {{pod-security.kubernetes.io/enforce: restricted}}}}}}"
    );
    run("kubectl", &["apply", "-f", "-"], Some(&manifest));
}

/// A registry of the connected side; it is gone when it is dropped, its images are not.
pub(crate) struct Registry {
    pub(crate) host: String,
    process: Child,
}

impl Registry {
    /// Starts a registry at a port of the node, with what lies in `folder`, and with `htpasswd` if it
    /// is to ask who comes.
    pub(crate) fn start(port: u16, folder: &Path, htpasswd: Option<&str>) -> Self {
        let host = format!("{NODE}:{port}");
        let mut command = Command::new("registry");
        command
            .args(["serve", "tests/cluster/registry.yml"])
            .env("REGISTRY_HTTP_ADDR", &host)
            .env("REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY", folder.join("registry"))
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if let Some(htpasswd) = htpasswd {
            let file = folder.join("htpasswd");
            fs::write(&file, htpasswd).unwrap();
            command.env("REGISTRY_AUTH", "htpasswd");
            command.env("REGISTRY_AUTH_HTPASSWD_REALM", "test").env("REGISTRY_AUTH_HTPASSWD_PATH", file);
        }
        let process = command.spawn().expect("the registry is in the PATH that the test cluster gives");
        listening("the source registry", &host);
        Self { host, process }
    }

    /// Pushes an image that says `words`: one layer with a shell, shared by all, and one of its own.
    /// Gives its digest.
    pub(crate) fn image(&self, name: &str, words: &str, folder: &Path) -> String {
        let reference = format!("{}/{name}", self.host);
        let shell = folder.join("shell.tar");
        if !shell.exists() {
            layer(&shell, "bin/busybox", &fs::read(which("busybox")).unwrap());
        }
        let own = folder.join("own.tar");
        layer(&own, "words", words.as_bytes());
        let layers = format!("{},{}", shell.display(), own.display());
        run("crane", &["append", "--insecure", "--oci-empty-base", "-f", &layers, "-t", &reference], None);
        let entrypoint = "/bin/busybox,cat,/words";
        run(
            "crane",
            &["mutate", "--insecure", "--entrypoint", entrypoint, "-t", &reference, &reference],
            None,
        );
        run("crane", &["digest", "--insecure", &reference], None)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Pushes an image that shares nothing with others.
pub(crate) fn image_without_a_shell(registry: &Registry, name: &str, folder: &Path) {
    let (reference, words) = (format!("{}/{name}", registry.host), folder.join("words.tar"));
    layer(&words, "words", name.as_bytes());
    run(
        "crane",
        &["append", "--insecure", "--oci-empty-base", "-f", words.to_str().unwrap(), "-t", &reference],
        None,
    );
}

/// Pushes an image with one layer of `size` bytes that cannot be compressed.
pub(crate) fn image_of_noise(registry: &Registry, name: &str, size: usize, folder: &Path) {
    let (reference, noise) = (format!("{}/{name}", registry.host), folder.join("noise.tar"));
    let bytes: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(size).collect();
    layer(&noise, "noise", &bytes);
    run(
        "crane",
        &["append", "--insecure", "--oci-empty-base", "-f", noise.to_str().unwrap(), "-t", &reference],
        None,
    );
}

/// A layer with one file that everybody may run.
fn layer(tar: &Path, name: &str, content: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(name);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, content).unwrap();
    let root = folder.path().to_str().unwrap();
    let owner = ["--owner=0", "--group=0", "--mtime=@0", "--mode=a+rx", "-C", root, name];
    run("tar", &[&["-cf", tar.to_str().unwrap()], owner.as_slice()].concat(), None);
}

fn which(program: &str) -> PathBuf {
    let path = variable("PATH");
    let found = std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file());
    found.unwrap_or_else(|| panic!("{program} is not in the PATH that the test cluster gives"))
}
