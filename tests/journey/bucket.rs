use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::world::{FAR, NODE, Registry, World, listening, run};

const CREDENTIALS: [(&str, &str); 2] =
    [("ROOT_ACCESS_KEY", "charon"), ("ROOT_SECRET_KEY", "a-secret-of-the-store")];

/// A real S3 server on the node, with a bucket `transfer`, behind a certificate that no public authority signed.
struct Store {
    host: String,
    process: Child,
}

impl Store {
    fn start(port: u16, folder: &Path) -> Self {
        let host = format!("{NODE}:{port}");
        let [data, iam, key] = ["data", "iam", "tls.key"].map(|name| folder.join(name));
        let certificate = folder.join("ca.crt");
        fs::create_dir_all(data.join("transfer")).unwrap();
        fs::create_dir_all(&iam).unwrap();
        signed_by_itself(&certificate, &key);
        let process = Command::new("versitygw")
            .args(["--port", &host, "--quiet", "--iam-dir", iam.to_str().unwrap()])
            .args(["--cert", certificate.to_str().unwrap(), "--key", key.to_str().unwrap()])
            .args(["posix", data.to_str().unwrap()])
            .envs(CREDENTIALS)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("versitygw is in the PATH that the test cluster gives");
        listening("the store", &host);
        Self { host, process }
    }
}

/// A certificate of the node that no authority signed.
fn signed_by_itself(certificate: &Path, key: &Path) {
    let subject =
        format!("/CN=store -addext subjectAltName=IP:{NODE} -addext basicConstraints=critical,CA:FALSE");
    let request =
        format!("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj {subject}");
    let files = ["-keyout", key.to_str().unwrap(), "-out", certificate.to_str().unwrap()];
    run("openssl", &request.split(' ').chain(files).collect::<Vec<_>>(), None);
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_payload_is_built_into_a_bucket_behind_a_private_authority_and_imported_from_it() {
    let world = World::new("bucket");
    // versitygw keeps what it knows of objects in extended attributes, which a file system in memory may lack.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let store = Store::start(5132, folder.path());
    let registry = Registry::start(5131, folder.path(), None);
    let digest = registry.image("app:1", "I was in a bucket", folder.path());
    let [(_, access), (_, secret)] = CREDENTIALS;
    let [access, secret] =
        [format!("--from-literal=accesskey={access}"), format!("--from-literal=secretkey={secret}")];
    world.kubectl(&["create", "secret", "generic", "store", &access, &secret]);
    let object = |authority: &str| {
        format!(
            "{{endpoint: 'https://{}', bucket: transfer, key: out/app.zip, secretRef: {{name: store}}, \
             certSecretRef: {{name: {authority}}}}}",
            store.host
        )
    };

    // With the wrong authority nothing is trusted; with the right one the same run goes on.
    let stranger = folder.path().join("stranger.crt");
    signed_by_itself(&stranger, Path::new("/dev/null"));
    for (name, file) in [("infra", folder.path().join("ca.crt")), ("stranger", stranger)] {
        let file = format!("--from-file=ca.crt={}", file.display());
        world.kubectl(&["create", "secret", "generic", name, &file]);
    }
    let build = |authority: &str| {
        format!(
            "
apiVersion: charon.dev/v1alpha1
kind: PayloadBuild
metadata: {{name: app}}
spec:
  images: [{{image: '{host}/app:1'}}]
  output: {{objectStore: {object}}}
  registries: [{{host: '{host}', insecure: true}}]
",
            host = registry.host,
            object = object(authority)
        )
    };
    world.apply(&build("stranger"));
    let message = world.until_condition("pbuild", "app", "Ready", "False", "InvalidSpec");
    assert!(message.contains("certSecretRef"), "{message}");
    world.apply(&build("infra"));
    world.until_condition("pbuild", "app", "Ready", "True", "Succeeded");
    let payload = world.get("pbuild", "app")["status"]["payload"].clone();
    assert_eq!(payload["location"], "s3://transfer/out/app.zip");
    assert_eq!(world.differences(&build("infra")), "");

    drop(registry);
    world.apply(&format!(
        "
apiVersion: charon.dev/v1alpha1
kind: PayloadImport
metadata: {{name: app}}
spec:
  source: {{objectStore: {object}}}
  expectedDigest: {digest}
  registry: {{host: '{FAR}', insecure: true, repositoryPrefix: bucket}}
",
        object = object("infra"),
        digest = payload["digest"].as_str().unwrap()
    ));
    world.until_condition("pimport", "app", "Ready", "True", "Succeeded");
    assert_eq!(run("crane", &["digest", "--insecure", &format!("{FAR}/bucket/app:1")], None), digest);
    assert_eq!(world.says("app", "bucket/app:1"), "I was in a bucket");
}
