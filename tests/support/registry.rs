//! Real registries, each on a port of its own for as long as a test lasts.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, LazyLock, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::image::digest;
use crate::program::path_of;

/// Proves each of the sentences with each registry.
macro_rules! with_each_registry {
    ($($name:ident),+ $(,)?) => {
        mod with_distribution_3 {
            $(#[test] fn $name() { super::$name(crate::registry::Software::Distribution3); })+
        }
        mod with_docker_registry_2 {
            $(#[test] fn $name() { super::$name(crate::registry::Software::Distribution2); })+
        }
    };
    ($($name:ident),+ $(,)?; and olareg) => {
        with_each_registry!($($name),+);
        mod with_olareg {
            $(#[test] fn $name() { super::$name(crate::registry::Software::Olareg); })+
        }
    };
}

/// What the tests themselves do over the network runs here.
pub(crate) static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().expect("a runtime starts"));

/// The tests' own requests are in plain HTTP; reading the certificates of the system would take long.
static CLIENT: LazyLock<Client> =
    LazyLock::new(|| Client::builder().tls_certs_only([]).build().expect("a client without TLS"));

/// The registries that are tested with: their answers differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Software {
    /// distribution v3.
    Distribution3,
    /// docker-registry, distribution 2.8, as Debian has it.
    Distribution2,
    /// olareg, which lists referrers by itself. It keeps its content in a form of its own, and its log to itself.
    #[allow(dead_code)] // not every test binary has a use for it
    Olareg,
}

/// A registry that is running.
pub(crate) struct Registry {
    software: Software,
    process: Child,
    address: String,
    folder: Arc<TempDir>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Registry {
    /// An empty registry that anybody may use.
    pub(crate) fn start(software: Software) -> Self {
        let folder = Arc::new(tempfile::tempdir().expect("a folder for the registry"));
        Self::serve(software, folder, &[])
    }

    /// Another entrance to the same content, with settings as distribution reads them from its environment.
    pub(crate) fn entrance(&self, settings: &[(&str, &str)]) -> Self {
        Self::serve(self.software, self.folder.clone(), settings)
    }

    fn serve(software: Software, folder: Arc<TempDir>, settings: &[(&str, &str)]) -> Self {
        let file = tempfile::NamedTempFile::new_in(folder.path()).expect("a file of settings");
        let text = format!(
            "version: 0.1\nlog: {{level: info}}\nhttp: {{addr: '127.0.0.1:0'}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\n",
            folder.path().display()
        );
        fs::write(file.path(), text).expect("settings can be written");
        let program = match software {
            Software::Distribution3 => "registry",
            Software::Distribution2 => "docker-registry",
            Software::Olareg => return Self::serve_olareg(folder),
        };
        let mut process = Command::new(path_of(program))
            .arg("serve")
            .arg(file.path())
            .env_clear()
            .env("OTEL_TRACES_EXPORTER", "none")
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run {program}: {error}"));
        let requests = Arc::<Mutex<Vec<String>>>::default();
        if let Some(log) = process.stdout.take() {
            let requests = requests.clone();
            thread::spawn(move || collect(log, &requests));
        }
        let log = process.stderr.take().expect("it is a pipe");
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            let mut said = String::new();
            let mut lines = BufReader::new(log).lines().map_while(Result::ok);
            for line in lines.by_ref() {
                if let Some((_, rest)) = line.split_once("listening on 127.0.0.1:") {
                    let port: String = rest.chars().take_while(char::is_ascii_digit).collect();
                    let _ = sender.send(Ok(format!("127.0.0.1:{port}")));
                    break;
                }
                said += &line;
                said += "\n";
            }
            // A pipe that nobody reads from would stop it; nobody waits for this any more if it is serving.
            let _ = sender.send(Err(said));
            lines.for_each(drop);
        });
        let said = receiver.recv().unwrap_or_else(|error| Err(error.to_string()));
        let address = said.unwrap_or_else(|said| {
            let _ = process.kill();
            panic!("{program} does not serve: {said}")
        });
        Self { software, process, address, folder, requests }
    }

    /// It does not tell which port it got: it is told one that was free a moment ago, until it gets it.
    fn serve_olareg(folder: Arc<TempDir>) -> Self {
        loop {
            let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
            let address = free.expect("a port is free");
            let mut process = Command::new(path_of("olareg"))
                .args(["serve", "--addr", "127.0.0.1", "--port", &address.port().to_string(), "--dir"])
                .arg(folder.path())
                .env_clear()
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap_or_else(|error| panic!("cannot run olareg: {error}"));
            while process.try_wait().expect("a child can be asked").is_none() {
                if TcpStream::connect(address).is_ok() {
                    let (software, address) = (Software::Olareg, address.to_string());
                    return Self { software, process, address, folder, requests: Arc::default() };
                }
                thread::sleep(Duration::from_millis(5));
            }
        }
    }

    /// `127.0.0.1:port`.
    pub(crate) fn host(&self) -> &str {
        &self.address
    }

    /// An image's name with this registry's host.
    pub(crate) fn name(&self, image: &str) -> String {
        format!("{}/{image}", self.address)
    }

    /// Stores a blob.
    pub(crate) fn push_blob(&self, repository: &str, bytes: &[u8]) {
        let begun = self.send(Method::POST, &format!("{repository}/blobs/uploads/"), |request| request);
        assert_eq!(begun.status(), StatusCode::ACCEPTED);
        let location = begun.headers().get("location").and_then(|location| location.to_str().ok());
        let location = location.expect("an upload has a location");
        let mut url = url::Url::parse(&format!("http://{}/", self.address))
            .and_then(|base| base.join(location))
            .expect("a location is a URL");
        url.query_pairs_mut().append_pair("digest", &digest(bytes));
        let request = CLIENT.put(url).body(bytes.to_vec());
        let stored = RUNTIME.block_on(request.send()).expect("the registry answers");
        assert_eq!(stored.status(), StatusCode::CREATED);
    }

    /// Stores a manifest under a tag or its digest.
    pub(crate) fn push_manifest(&self, repository: &str, tag: &str, media_type: &str, bytes: &[u8]) {
        let stored = self.send(Method::PUT, &format!("{repository}/manifests/{tag}"), |request| {
            request.header("content-type", media_type).body(bytes.to_vec())
        });
        assert_eq!(stored.status(), StatusCode::CREATED, "{}", String::from_utf8_lossy(bytes));
    }

    /// A manifest's media type and bytes.
    pub(crate) fn manifest(&self, repository: &str, tag_or_digest: &str) -> Option<(String, Vec<u8>)> {
        let accepted = crate::image::Types::ALL.map(|types| [types.manifest(), types.index()].join(", "));
        let answer = self.send(Method::GET, &format!("{repository}/manifests/{tag_or_digest}"), |request| {
            request.header("accept", accepted.join(", "))
        });
        if answer.status() == StatusCode::NOT_FOUND {
            return None;
        }
        assert_eq!(answer.status(), StatusCode::OK);
        let media_type = answer.headers().get("content-type").and_then(|text| text.to_str().ok());
        let media_type = media_type.unwrap_or_default().to_owned();
        Some((media_type, RUNTIME.block_on(answer.bytes()).expect("a body").to_vec()))
    }

    /// Whether a repository has a blob.
    pub(crate) fn has_blob(&self, repository: &str, digest: &str) -> bool {
        let answer = self.send(Method::HEAD, &format!("{repository}/blobs/{digest}"), |request| request);
        match answer.status() {
            StatusCode::OK => true,
            StatusCode::NOT_FOUND => false,
            other => panic!("{repository}@{digest}: {other}"),
        }
    }

    /// Whether any repository ever had content of this digest.
    pub(crate) fn stores(&self, digest: &str) -> bool {
        self.blob_folder(digest).join("data").exists()
    }

    fn blob_folder(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        self.folder.path().join("docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex)
    }

    /// Forgets the bytes of a blob.
    pub(crate) fn lose(&self, digest: &str) {
        fs::remove_dir_all(self.blob_folder(digest)).expect("it was stored");
    }

    /// Alters a byte of a blob.
    pub(crate) fn damage(&self, digest: &str) {
        let file = self.blob_folder(digest).join("data");
        let mut bytes = fs::read(&file).expect("it was stored");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(file, bytes).expect("it can be written");
    }

    /// Whether anything was ever stored, an upload that was begun aside.
    pub(crate) fn is_empty(&self) -> bool {
        !self.folder.path().join("docker/registry/v2/blobs").exists()
    }

    /// How many uploads to a repository were begun, have bytes, and are neither committed nor cancelled.
    pub(crate) fn open_uploads(&self, repository: &str) -> usize {
        let uploads = format!("docker/registry/v2/repositories/{repository}/_uploads");
        let Ok(entries) = fs::read_dir(self.folder.path().join(uploads)) else { return 0 };
        entries.filter(|entry| entry.as_ref().is_ok_and(|entry| entry.path().join("data").exists())).count()
    }

    /// The tags of a repository.
    pub(crate) fn tags(&self, repository: &str) -> Vec<String> {
        let tags = format!("docker/registry/v2/repositories/{repository}/_manifests/tags");
        let tags: PathBuf = self.folder.path().join(tags);
        let Ok(entries) = fs::read_dir(tags) else { return Vec::new() };
        let names = entries.map(|entry| entry.expect("a folder can be read").file_name());
        let mut names: Vec<String> = names.map(|name| name.to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// The requests that were answered, `METHOD target status`, in the order in which the answers ended.
    pub(crate) fn requests(&self) -> Vec<String> {
        assert_ne!(self.software, Software::Olareg, "it keeps its log to itself");
        // A request is logged after it was answered: once this one is in the log, all before it are.
        let mark = format!("mark-{}", fastrand::u64(..));
        self.send(Method::GET, &format!("{mark}/tags/list"), |request| request);
        loop {
            let requests = self.requests.lock().expect("nobody panicked").clone();
            match requests.iter().position(|request| request.contains(&mark)) {
                Some(end) => return requests[..end].to_vec(),
                None => thread::yield_now(),
            }
        }
    }

    fn send(&self, method: Method, path: &str, with: impl Fn(RequestBuilder) -> RequestBuilder) -> Response {
        let request = with(CLIENT.request(method, format!("http://{}/v2/{path}", self.address)));
        RUNTIME.block_on(request.send()).expect("the registry answers")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have died by itself, which the test has noticed.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Reads a log in the form that Apache made common: `host - user [time] "METHOD target HTTP/1.1" status …`.
fn collect(log: impl Read, requests: &Mutex<Vec<String>>) {
    for line in BufReader::new(log).lines().map_while(Result::ok) {
        let mut parts = line.split('"').skip(1);
        let (Some(request), Some(rest)) = (parts.next(), parts.next()) else { continue };
        let request = request.trim_end_matches(" HTTP/1.1");
        let status = rest.split_whitespace().next().unwrap_or_default();
        requests.lock().expect("nobody panicked").push(format!("{request} {status}"));
    }
}
