//! Servers with TLS that want to know who comes.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use super::*;

fn openssl(folder: &Path, words: &[&str]) -> Command {
    let mut command = Command::new("openssl");
    command
        .args(words)
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn certificate(folder: &Path, name: &str) {
    let (subject, key, out) = (format!("/CN={name}"), format!("{name}.key"), format!("{name}.crt"));
    let mut words = vec!["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"];
    words.extend([
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-subj",
        &subject,
        "-keyout",
        &key,
        "-out",
        &out,
    ]);
    if name != "authority" {
        words.extend(["-CA", "authority.crt", "-CAkey", "authority.key"]);
        words.extend(["-addext", "basicConstraints=critical,CA:FALSE"]);
    }
    let made = openssl(folder, &words).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// Serves the files of a folder, which are whole answers, and tells whose certificates it was shown.
struct Secure {
    process: Child,
    host: Host,
    shown: Arc<Mutex<String>>,
}

impl Secure {
    fn start(keys: &Path, folder: &Path) -> Self {
        let at = |name: &str| keys.join(name).to_str().unwrap().to_owned();
        let (certificate, key, authority) = (at("server.crt"), at("server.key"), at("authority.crt"));
        let words = ["s_server", "-accept", "127.0.0.1:0", "-HTTP", "-verify", "1"];
        let files = ["-cert", &certificate, "-key", &key, "-CAfile", &authority];
        let mut process = openssl(folder, &[&words[..], &files].concat()).spawn().unwrap();
        let mut said = BufReader::new(process.stdout.take().unwrap()).lines().map_while(Result::ok);
        let port = said.find_map(|line| Some(line.strip_prefix("ACCEPT ")?.rsplit_once(':')?.1.to_owned()));
        let (host, shown) =
            (format!("127.0.0.1:{}", port.unwrap()).parse().unwrap(), Arc::<Mutex<String>>::default());
        let (log, words) = (shown.clone(), BufReader::new(process.stderr.take().unwrap()));
        std::thread::spawn(move || {
            for line in words.lines().map_while(Result::ok) {
                log.lock().unwrap().push_str(&format!("{line}\n"));
            }
        });
        std::thread::spawn(move || said.for_each(drop));
        Self { process, host, shown }
    }

    fn was_shown_the_client(&self) -> bool {
        self.shown.lock().unwrap().contains("CN=client") || self.shown.lock().unwrap().contains("CN = client")
    }
}

impl Drop for Secure {
    fn drop(&mut self) {
        let _ = self.process.kill().and_then(|()| self.process.wait());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_is_for_the_registry_and_not_for_where_it_leads() {
    let (keys, near, far) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for name in ["authority", "server", "client"] {
        certificate(keys.path(), name);
    }
    let storage = Secure::start(keys.path(), far.path());
    let registry = Secure::start(keys.path(), near.path());
    let manifest = "HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\n{}";
    let leads = format!(
        "HTTP/1.0 307 Temporary Redirect\r\nlocation: https://{}/v2/x/manifests/1\r\n\r\n",
        storage.host
    );
    for (folder, answer) in [(&near, leads.as_str()), (&far, manifest)] {
        fs::create_dir_all(folder.path().join("v2/x/manifests")).unwrap();
        fs::write(folder.path().join("v2/x/manifests/1"), answer).unwrap();
    }
    let read = |name: &str| fs::read(keys.path().join(name)).unwrap();
    let access = Access {
        ca_pem: Some(read("authority.crt")),
        identity_pem: Some([read("client.crt"), read("client.key")].concat()),
        ..Access::default()
    };
    let fetch = async |host: &Host| {
        let registry = with_patience(host.clone(), access.clone(), NO_PATIENCE);
        registry.manifest("x", "1").await.unwrap().bytes
    };
    assert_eq!(fetch(&registry.host).await, "{}");
    assert!(registry.was_shown_the_client());
    assert!(!storage.was_shown_the_client());
    // It would have told.
    assert_eq!(fetch(&storage.host).await, "{}");
    assert!(storage.was_shown_the_client());
}
