//! Bad input of every kind, as a real worker on a real node tells it.

use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread;

use serde_json::{Value, json};

use crate::world::{FAR, HTPASSWD, NODE, Registry, World, charon, image_without_a_shell, run};

/// A registry that forbids everything; it is there until the test ends.
fn forbidding(port: u16) -> String {
    answering(port, "403 Forbidden", "DENIED: not for you")
}

/// A registry that answers all that it is asked with an error.
fn answering(port: u16, status: &'static str, error: &'static str) -> String {
    let host = format!("{NODE}:{port}");
    let listener = TcpListener::bind(&host).unwrap();
    thread::spawn(move || {
        for mut client in listener.incoming().map_while(Result::ok) {
            let (code, message) = error.split_once(": ").unwrap();
            let body = json!({ "errors": [{ "code": code, "message": message }] }).to_string();
            let _ = client.read(&mut [0; 4096]);
            let _ = write!(
                client,
                "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
        }
    });
    host
}

/// A file system of its own in place of a volume's folder.
struct Mount {
    folder: PathBuf,
}

impl Mount {
    fn new(folder: PathBuf, options: &str) -> Self {
        let options = format!("gid=65532,mode=2775,{options}");
        run("mount", &["-t", "tmpfs", "-o", &options, "tmpfs", folder.to_str().unwrap()], None);
        Self { folder }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // The pods that used it may not be gone yet.
        run("umount", &["--lazy", self.folder.to_str().unwrap()], None);
    }
}

/// Makes a volume look as if its group had been set: what is in it keeps the mode that it has.
fn keep_modes(volume: &Path) {
    run("chown", &["0:65532", volume.to_str().unwrap()], None);
    fs::set_permissions(volume, Permissions::from_mode(0o2775)).unwrap();
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// A build of `images`, each with its own name at the far side or none, to `claim`.
fn build(
    name: &str,
    images: &[&str],
    claim: &str,
    path: &str,
    registry: &str,
    secret: Option<&str>,
) -> String {
    let images: Vec<_> = images.iter().map(|image| json!({ "image": image })).collect();
    json!({
        "apiVersion": "charon.dev/v1alpha1",
        "kind": "PayloadBuild",
        "metadata": { "name": name },
        "spec": {
            "images": images,
            "output": { "persistentVolumeClaim": { "claimName": claim, "path": path } },
            "registries": [{
                "host": registry, "insecure": true, "secretRef": secret.map(|name| json!({ "name": name })),
            }],
            // Rows are looked at one after the other: what is tried again must not have been given up by then.
            "backoffLimit": 6,
        },
    })
    .to_string()
    .replace(r#","secretRef":null"#, "")
}

/// An import with further fields of its spec, such as `registry/secretRef`.
fn import(name: &str, claim: &str, path: &str, registry: &str, fields: &[(&str, Value)]) -> String {
    let mut import = json!({
        "apiVersion": "charon.dev/v1alpha1",
        "kind": "PayloadImport",
        "metadata": { "name": name },
        "spec": {
            "source": { "persistentVolumeClaim": { "claimName": claim, "path": path } },
            "registry": { "host": registry, "insecure": true, "repositoryPrefix": format!("{claim}/{name}") },
        },
    });
    for (field, value) in fields {
        let place = field.split('/').fold(&mut import["spec"], |place, part| &mut place[part]);
        *place = value.clone();
    }
    import.to_string()
}

/// Name, reason, what its message says, and whether it is stalled.
type Row<'a> = (&'a str, &'a str, &'a [&'a str], bool);

fn tells(world: &World, kind: &str, rows: &[Row<'_>]) {
    for (name, reason, words, is_stalled) in rows {
        let message = world.until_condition(kind, name, "Ready", "False", reason);
        for word in *words {
            assert!(message.contains(word), "{name}: {word:?} is not in {message:?}");
        }
        assert!(message.ends_with(|c: char| c != '\n') && message.lines().count() == 1, "{message}");
        let (type_, reason) = if *is_stalled { ("Stalled", *reason) } else { ("Reconciling", "") };
        let conditions = world.get(kind, name)["status"]["conditions"].as_array().cloned().unwrap();
        let found = conditions.iter().find(|condition| condition["type"] == type_);
        let found = found.unwrap_or_else(|| panic!("{name} is not {type_}: {conditions:?}"));
        assert!(reason.is_empty() || found["reason"] == reason, "{name}: {found}");
    }
}

#[test]
fn every_build_that_cannot_be_says_why_on_a_real_node() {
    let world = World::new("table-builds");
    let volume = world.claim("transfer", "pv-5");
    keep_modes(&volume);
    let small = Mount::new(world.claim("small", "pv-6"), "size=256k");
    let sealed = Mount::new(world.claim("sealed", "pv-7"), "ro");
    fs::create_dir(volume.join("locked")).unwrap();
    set_mode(&volume.join("locked"), 0o700);
    fs::write(volume.join("letters.zip"), "dear").unwrap();
    let busy = File::create(volume.join("busy.zip.partial")).unwrap();
    busy.lock().unwrap();
    set_mode(&volume.join("busy.zip.partial"), 0o666);

    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::start(5107, folder.path(), None);
    registry.image("app:1", "I am one", folder.path());
    let (host, forbidding) = (registry.host.as_str(), forbidding(5108));
    let limiting = answering(5118, "429 Too Many Requests", "TOOMANYREQUESTS: come again tomorrow");
    let nobody = format!("{NODE}:5199");
    world.kubectl(&["create", "secret", "generic", "keyless", "--from-literal=password=x"]);
    let image = format!("{host}/app:1");
    let images = [image.as_str()];
    let to = |name: &str, claim: &str, path: &str| build(name, &images, claim, path, host, None);
    let manifests = [
        build("unreachable", &[&format!("{nobody}/app:1")], "transfer", "a.zip", &nobody, None),
        build("forbidden", &[&format!("{forbidding}/app:1")], "transfer", "b.zip", &forbidding, None),
        build("keyless", &images, "transfer", "c.zip", host, Some("keyless")),
        build("two-names", &[&image, "other.example/app:1"], "transfer", "d.zip", host, None),
        to("claimless", "nowhere", "e.zip"),
        to("locked", "transfer", "locked/f.zip"),
        to("sealed", "sealed", "g.zip"),
        to("small", "small", "h.zip"),
        to("letters", "transfer", "letters.zip"),
        to("busy", "transfer", "busy.zip"),
        build("limited", &[&format!("{limiting}/app:1")], "transfer", "i.zip", &limiting, None),
        to("nodeless", "transfer", "j.zip")
            .replace(r#""backoffLimit":6"#, r#""backoffLimit":6,"worker":{"nodeSelector":{"disk":"none"}}"#),
    ];
    world.apply(&manifests.join("\n---\n"));
    tells(
        &world,
        "pbuild",
        &[
            ("two-names", "InvalidSpec", &[&image, "other.example/app:1", "by its field as"], true),
            ("forbidden", "AccessDenied", &[&forbidding], true),
            (
                "keyless",
                "SecretNotFound",
                &["key \".dockerconfigjson\" of Secret \"keyless\"; add it"],
                false,
            ),
            ("claimless", "StorageNotFound", &["PersistentVolumeClaim \"nowhere\"; create it"], false),
            (
                "nodeless",
                "WorkerUnschedulable",
                &["finds no node; free what it asks for", "node(s) didn't match"],
                false,
            ),
            (
                "limited",
                "RateLimited",
                &[&limiting, "429", "use credentials that have a higher limit"],
                false,
            ),
            ("locked", "StorageAccessDenied", &["locked", "0:65532 with mode 700", "65532:65532"], true),
            ("sealed", "StorageReadOnly", &["g.zip", "read-only"], true),
            ("small", "StorageFull", &["are free", "make room"], true),
            ("letters", "OutputConflict", &["letters.zip", "move it away"], true),
            ("busy", "StorageBusy", &["busy.zip", "another charon"], false),
            ("unreachable", "RegistryUnavailable", &[&nobody], false),
        ],
    );
    assert_eq!(fs::read_to_string(volume.join("letters.zip")).unwrap(), "dear");
    drop((small, sealed));
}

/// Writes a payload as docker-charon does: images of nothing but a config, which lies at `path`.
fn payload_by_hand(file: &Path, names: &[&str], path: &str) {
    let config = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"; // of {}
    let mut entries = vec![("blobs/config".to_owned(), json!({}))];
    let mut manifests = json!({});
    for (index, name) in names.iter().enumerate() {
        let manifest = json!({
            "schemaVersion": 2, "config": { "digest": config, "size": 2 }, "layers": [], "annotations": { "for": name },
        });
        manifests[name] = json!(format!("manifests/{index}"));
        entries.push((format!("manifests/{index}"), manifest));
    }
    let descriptor = json!({ "manifests_paths": manifests, "blobs_paths": { config: { "zip_path": path } } });
    entries.push(("payload_descriptor.json".to_owned(), descriptor));
    let mut zip = zip::ZipWriter::new(File::create(file).unwrap());
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, content) in entries {
        zip.start_file(name, stored).unwrap();
        zip.write_all(content.to_string().as_bytes()).unwrap();
    }
    zip.finish().unwrap();
}

#[test]
fn every_import_that_cannot_be_says_why_and_what_can_be_is_imported() {
    let world = World::new("table-imports");
    let volume = world.claim("inbox", "pv-8");
    keep_modes(&volume);
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::start(5109, folder.path(), None);
    registry.image("app:1", "I am one", folder.path());
    registry.image("app:2", "I am two", folder.path());
    image_without_a_shell(&registry, "other:1", folder.path());
    let at = |name: &str| volume.join(name).to_str().unwrap().to_owned();
    let make = |images: &str, base: &[&str], name: &str| {
        charon(&[&["make-payload", images, "-r", &registry.host, "-i", "-f", &at(name)], base].concat());
    };
    make("app:1", &[], "whole.zip");
    make("other:1,app:2", &["--already-transferred", "app:1"], "part.zip");
    let whole = fs::read(at("whole.zip")).unwrap();
    fs::write(at("truncated.zip"), &whole[..whole.len() / 2]).unwrap();
    fs::write(at("letters.zip"), "dear").unwrap();
    fs::write(at("unreadable.zip"), &whole).unwrap();
    set_mode(&volume.join("unreadable.zip"), 0o600);
    for (name, path) in [("absolute", "/etc/passwd"), ("up", "../../etc/passwd"), ("nothing", "blobs/none")] {
        payload_by_hand(&volume.join(format!("{name}.zip")), &["evil:1"], path);
    }
    let both = ["one.example/x/app:1", "two.example/x/app:1"];
    payload_by_hand(&volume.join("two-names.zip"), &both, "blobs/config");
    let forbidding = forbidding(5110);
    let wrong = format!("sha256:{}", "0".repeat(64));
    let from = |name: &str| import(name, "inbox", &format!("{name}.zip"), FAR, &[]);
    let manifests = [
        import("unexpected", "inbox", "whole.zip", FAR, &[("expectedDigest", json!(wrong))]),
        import("forbidden", "inbox", "whole.zip", &forbidding, &[]),
        import("claimless", "nowhere", "whole.zip", FAR, &[]),
        import("strict", "inbox", "part.zip", FAR, &[("strict", json!(true))]),
        from("part"),
        from("two-names"),
        from("truncated"),
        from("letters"),
        from("unreadable"),
        from("absolute"),
        from("up"),
        from("nothing"),
    ];
    world.apply(&manifests.join("\n---\n"));
    let outside = |path: &'static str| [path, "which the zip has not"];
    tells(
        &world,
        "pimport",
        &[
            ("unexpected", "DigestMismatch", &[&wrong, "nothing was pushed"], true),
            ("forbidden", "AccessDenied", &[&forbidding], true),
            ("claimless", "StorageNotFound", &["nowhere"], false),
            ("strict", "MissingBase", &["nothing was pushed", "app:1"], true),
            ("part", "MissingBase", &["1 of 2 images", "app:1"], true),
            ("two-names", "InvalidSpec", &[both[0], both[1], "x/app:1", "another naming"], true),
            ("truncated", "SourceIncomplete", &["copy"], false),
            ("letters", "PayloadCorrupt", &["no zip"], true),
            (
                "unreadable",
                "StorageAccessDenied",
                &["unreadable.zip", "0:65532 with mode 600", "65532:65532"],
                true,
            ),
            ("absolute", "PayloadCorrupt", &outside("/etc/passwd"), true),
            ("up", "PayloadCorrupt", &outside("../../etc/passwd"), true),
            ("nothing", "PayloadCorrupt", &outside("blobs/none"), true),
        ],
    );
    let catalog = run("crane", &["catalog", "--insecure", FAR], None);
    let pushed: Vec<_> = catalog.lines().filter(|repository| repository.starts_with("inbox/")).collect();
    assert_eq!(pushed, ["inbox/part/other"]);
    let tags = run("crane", &["ls", "--insecure", &format!("{FAR}/inbox/part/other")], None);
    assert_eq!(tags, "1");
    world.until_condition("pimport", "part", "Imported", "False", "PartiallyImported");
    world.until_condition("pimport", "strict", "Imported", "False", "MissingBase");
    assert_eq!(world.get("pimport", "strict")["status"]["result"], Value::Null);
    let result = world.get("pimport", "part")["status"]["result"].clone();
    assert_eq!((&result["images"], &result["imagesFailed"]), (&json!(1), &json!(1)), "{result}");
    // Nothing is left beside what is only read.
    let left = fs::read_dir(&volume).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    // The bills were left by the builds.
    let is_theirs = |name: &String| [".zip", ".zip.bill.json"].iter().any(|ending| name.ends_with(ending));
    let left: Vec<_> = left.filter(|name| !is_theirs(name)).collect();
    assert!(left.is_empty(), "{left:?}");

    // The copy comes to its end.
    fs::write(at("truncated.zip"), &whole).unwrap();
    world.until_condition("pimport", "truncated", "Ready", "True", "Succeeded");
}

#[test]
fn an_import_that_its_registry_or_a_secret_keeps_from_pushing_says_which() {
    let world = World::new("table-access");
    let volume = world.claim("access", "pv-11");
    let folder = tempfile::tempdir().unwrap();
    let source = Registry::start(5114, folder.path(), None);
    source.image("app:1", "I am one", folder.path());
    let whole = volume.join("whole.zip");
    charon(&["make-payload", "app:1", "-r", &source.host, "-i", "-f", whole.to_str().unwrap()]);

    let closed = Registry::start(5115, folder.path(), Some(HTPASSWD));
    let nobody = format!("{NODE}:5199");
    world.pull_secret("mistaken", &closed.host, "guessed");
    world.kubectl(&["create", "secret", "generic", "keyless", "--from-literal=password=x"]);
    let to = |name: &str, registry: &str, field: &str, secret: &str| {
        import(name, "access", "whole.zip", registry, &[(field, json!({ "name": secret }))])
    };
    let manifests = [
        import("unreachable", "access", "whole.zip", &nobody, &[]),
        to("mistaken", &closed.host, "registry/secretRef", "mistaken"),
        to("secretless", FAR, "registry/secretRef", "no-password"),
        to("keyless", FAR, "registry/secretRef", "keyless"),
        to("uncertified", FAR, "registry/certSecretRef", "corp-ca"),
    ];
    world.apply(&manifests.join("\n---\n"));
    tells(
        &world,
        "pimport",
        &[
            ("mistaken", "AuthenticationFailed", &[&closed.host], false),
            ("uncertified", "SecretNotFound", &["\"corp-ca\"", FAR, "certSecretRef"], false),
            ("secretless", "SecretNotFound", &["\"no-password\""], false),
            ("keyless", "SecretNotFound", &[".dockerconfigjson"], false),
            ("unreachable", "RegistryUnavailable", &[&nobody], false),
        ],
    );
    assert!(!world.get("pimport", "mistaken").to_string().contains("guessed"));
    let catalog = run("crane", &["catalog", "--insecure", FAR], None);
    assert!(!catalog.contains("access/"), "{catalog}");

    // Whoever waits goes on when the Secret is there.
    let authority =
        fs::read_dir("/usr/share/ca-certificates/mozilla").unwrap().next().unwrap().unwrap().path();
    let authority = format!("--from-file=ca.crt={}", authority.display());
    world.kubectl(&["create", "secret", "generic", "corp-ca", &authority]);
    world.until_condition("pimport", "uncertified", "Ready", "True", "Succeeded");
}
