//! Where the two programs play: the registries, the payloads, and what is seen of a run.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, File};
use std::path::Path;

use tempfile::TempDir;

use crate::content::{self, Payload};
use crate::image::{Image, Layer, Types};
use crate::program::{Program, charon, path_of, tool};
use crate::proxy::Proxy;
use crate::registry::{Registry, Software};
use crate::table::{Row, Stdin, Stdout};

/// The password of the user `charon` of a locked registry.
pub(crate) const PASSWORD: &str = "obolus";
/// What htpasswd -B writes for that user and password.
const HTPASSWD: &str = "charon:$2b$04$CharonCharonCharonChaels1wujjqRGQNrLZ3ONuulcPyAbL19Se\n";

/// One of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    DockerCharon,
    Charon,
}

impl Who {
    pub(crate) const BOTH: [Self; 2] = [Self::DockerCharon, Self::Charon];

    pub(crate) fn program(self, arguments: &[&str]) -> Program {
        match self {
            Self::DockerCharon => tool("docker-charon", arguments),
            Self::Charon => charon(arguments),
        }
    }

    fn command(self) -> String {
        match self {
            Self::DockerCharon => path_of("docker-charon").to_string_lossy().into_owned(),
            Self::Charon => env!("CARGO_BIN_EXE_charon").to_owned(),
        }
    }

    /// Has a payload made in a file.
    pub(crate) fn makes(self, source: &Registry, arguments: &[&str], file: &Path) {
        let made = self.program(&["make-payload", "-i", "-r", source.host()]).arguments(arguments);
        made.arguments([Path::new("-f"), file]).run().succeeded();
    }

    /// Has a payload pushed from a file.
    pub(crate) fn pushes(self, file: &Path, target: &Registry) -> Program {
        self.program(&["push-payload", "-i", "-r", target.host(), "-f"]).arguments([file])
    }
}

/// What the images of the stage are made of.
pub(crate) fn images() -> BTreeMap<&'static str, Image> {
    let layers = ["one", "two"].map(|name| Layer::new(name, 4000));
    let base = Image::new(Types::Docker, &layers);
    let top = Image::new(Types::Docker, &[&layers[..], &[Layer::new("top", 500)]].concat());
    let other = Image::new(Types::Docker, &[Layer::new("other", 1000)]);
    let oci = Image::new(Types::Oci, &[Layer::new("oci", 1000)]);
    let platforms =
        ["amd64", "arm64"].map(|name| Image::for_platform(Types::Docker, name, &[Layer::new(name, 1000)]));
    let list = Image::index(Types::Docker, &platforms);
    BTreeMap::from([
        ("base:1", base),
        ("top:1", top),
        ("top:latest", other.clone()),
        ("team/other:1", other),
        ("oci:1", oci),
        ("list:1", list),
    ])
}

pub(crate) struct Stage {
    pub(crate) software: Software,
    pub(crate) source: Registry,
    /// Other entrances to it: one that speaks TLS, one that does not, both for the user `charon` alone.
    locked: Registry,
    plain: Registry,
    images: BTreeMap<&'static str, Image>,
    /// Payloads that docker-charon made, in its folder.
    payloads: TempDir,
    keys: Keys,
}

/// What makes registries locked: a file of passwords, a certificate, and that of its authority.
struct Keys(TempDir);

/// What is seen of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// The exit status; none where the run was ended.
    status: Option<i32>,
    stdout: Written,
    /// `new.zip`, or `old.zip` if it is another now.
    file: Written,
    /// What else it left in its folder, which is its home, too.
    left: BTreeSet<String>,
    /// The images that the target has afterwards.
    registry: Option<BTreeMap<String, String>>,
    /// Whom a proxy was asked for.
    asked: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Written {
    Nothing,
    Text(String),
    Payload(Payload),
    /// What no reader takes for a payload, by its first bytes: those of a zip, or others.
    Broken(bool),
}

impl Written {
    fn of(bytes: &[u8]) -> Self {
        match (bytes, Payload::read(bytes)) {
            ([], _) => Self::Nothing,
            (_, Ok(payload)) => Self::Payload(payload),
            (_, Err(_)) => match std::str::from_utf8(bytes) {
                Ok(text) if text.contains("Usage:") => Self::Text("its help".to_owned()),
                Ok(text) if text.contains("COMPREPLY") => Self::Text("a script".to_owned()),
                Ok(text) if !text.contains("PK\x03\x04") => Self::Text(text.to_owned()),
                _ => Self::Broken(bytes.starts_with(b"PK\x03\x04")),
            },
        }
    }
}

impl Stage {
    pub(crate) fn new(software: Software) -> Self {
        let (source, images, payloads) = (Registry::start(software), images(), tempfile::tempdir().unwrap());
        for (name, image) in &images {
            image.push(&source, name);
        }
        let keys = Keys::new();
        let (locked, plain) = (keys.locked(&source), keys.plain(&source));
        let stage = Self { software, source, locked, plain, images, payloads, keys };
        for (file, arguments) in [
            ("two.zip", &["top:1,team/other:1"][..]),
            ("top.zip", &["top:1", "-a", "base:1"]),
            ("with-base.zip", &["team/other:1,base:1,top:1", "-a", "base:1"]),
        ] {
            Who::DockerCharon.makes(&stage.source, arguments, &stage.payload(file));
        }
        let two = fs::read(stage.payload("two.zip")).unwrap();
        fs::write(stage.payload("truncated.zip"), &two[..two.len() / 2]).unwrap();
        fs::write(stage.payload("no.zip"), "a letter").unwrap();
        let netrc = format!("machine 127.0.0.1 login charon password {PASSWORD}\n");
        fs::write(stage.payload("netrc"), netrc).unwrap();
        stage
    }

    fn payload(&self, file: &str) -> std::path::PathBuf {
        self.payloads.path().join(file)
    }

    /// Runs a row of the table.
    pub(crate) fn run(&self, row: &Row, who: Who) -> Outcome {
        let folder = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(self.payloads.path()).unwrap() {
            let entry = entry.unwrap();
            fs::hard_link(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
        fs::write(folder.path().join("old.zip"), "something old").unwrap();
        let before = files(folder.path());
        let target = row.is_push().then(|| self.target(row));
        let is_asked_for = |entrance| row.words().any(|word| word.contains(entrance));
        let locked =
            target.as_ref().filter(|_| is_asked_for("LOCKED")).map(|target| self.keys.locked(target));
        let plain = target.as_ref().filter(|_| is_asked_for("PLAIN")).map(|target| self.keys.plain(target));
        let words: Vec<String> = row
            .words()
            .map(|word| {
                let word = word.replace("SOURCE", self.source.host()).replace("PASSWORD", PASSWORD);
                let word = word.replace("DIGEST", &self.images["top:1"].digest);
                let word = word.replace("LOCKED", locked.as_ref().unwrap_or(&self.locked).host());
                let word = word.replace("PLAIN", plain.as_ref().unwrap_or(&self.plain).host());
                word.replace("TARGET", target.as_ref().map_or("TARGET", Registry::host))
            })
            .collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut program = if row.has_terminal() {
            // script gives its command a terminal, for all of its streams.
            let command = format!("{} {}", who.command(), words.join(" "));
            tool("script", ["--quiet", "--return", "--command", command.as_str(), "/dev/null"])
                .variable("SHELL", path_of("sh"))
        } else {
            who.program(&words)
        };
        program = program.in_folder(folder.path()).variable("HOME", folder.path());
        let authority = self.keys.file("authority.pem");
        if !row.variables.iter().any(|(_, value)| *value == "AUTHORITY") {
            // One word changes, and no variable.
            program = program.variable("REQUESTS_CA_BUNDLE", &authority);
        }
        for (name, value) in &row.variables {
            let value = value.replace("PASSWORD", PASSWORD).replace("AUTHORITY", &authority);
            program = program.variable(name, value);
        }
        program = match row.stdin {
            Stdin::Nothing | Stdin::Terminal => program,
            Stdin::Pipe(file) => program.fed(fs::read(self.payload(file)).unwrap()),
            Stdin::File(file) => program.reading(File::open(self.payload(file)).unwrap()),
        };
        if row.stdout == Stdout::File {
            program = program.writing(File::create(folder.path().join("new.zip")).unwrap());
        }
        if row.has_proxy {
            let proxy = Proxy::start();
            let running = program.variable("HTTPS_PROXY", proxy.url()).start();
            let asked = Some(proxy.host_asked_for());
            running.terminate();
            running.end();
            return Outcome {
                status: None,
                stdout: Written::Nothing,
                file: Written::Nothing,
                left: BTreeSet::new(),
                registry: None,
                asked,
            };
        }
        let ended = program.run();
        let file = |name| {
            let bytes = fs::read(folder.path().join(name)).ok().filter(|bytes| bytes != b"something old");
            bytes.map(|bytes| (name, bytes))
        };
        let file = file("new.zip").or_else(|| file("old.zip"));
        let mut left: BTreeSet<String> = files(folder.path()).difference(&before).cloned().collect();
        left.remove("new.zip");
        if let Some((name, _)) = file.as_ref().filter(|_| who == Who::Charon && row.stdout != Stdout::File) {
            // The documentation tells of it once, and not in each row.
            let bill = format!("{name}.bill.json");
            assert!(left.remove(&bill), "{bill} is not beside the payload, but {left:?}");
        }
        let stdout = if !row.has_terminal() {
            let text = String::from_utf8(ended.stdout);
            let home = folder.path().to_string_lossy();
            text.map_or_else(
                |error| Written::of(error.as_bytes()),
                |text| Written::of(text.replace(home.as_ref(), "HOME").as_bytes()),
            )
        } else if ended.stdout.windows(4).any(|bytes| bytes == b"PK\x03\x04") {
            Written::Broken(true)
        } else {
            // Standard error is on the terminal, too.
            Written::Nothing
        };
        Outcome {
            status: ended.status,
            stdout,
            file: file.map_or(Written::Nothing, |(_, bytes)| Written::of(&bytes)),
            left,
            registry: target.as_ref().map(content::images),
            asked: None,
        }
    }

    /// A registry to push into.
    fn target(&self, row: &Row) -> Registry {
        let target = Registry::start(self.software);
        for name in &row.far {
            self.images[name].push(&target, name);
        }
        target
    }
}

/// All files of a folder and of those in it.
fn files(folder: &Path) -> BTreeSet<String> {
    let mut files = BTreeSet::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.file_type().unwrap().is_dir() {
            files.extend(self::files(&entry.path()).into_iter().map(|file| format!("{name}/{file}")));
        } else {
            files.insert(name);
        }
    }
    files
}

impl Keys {
    fn new() -> Self {
        let keys = Self(tempfile::tempdir().unwrap());
        fs::write(keys.file("htpasswd"), HTPASSWD).unwrap();
        fs::write(keys.file("settings"), "[req]\ndistinguished_name = name\n[name]\n").unwrap();
        let certify = |arguments: &str| {
            let request =
                "req -config settings -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
            let request = tool("openssl", request.split(' ')).arguments(arguments.split(' '));
            request.in_folder(keys.0.path()).run().succeeded();
        };
        certify(
            "-subj /CN=styx -addext basicConstraints=critical,CA:TRUE -keyout authority.key -out authority.pem",
        );
        certify(
            "-subj /CN=ferry -addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=CA:FALSE \
             -CA authority.pem -CAkey authority.key -keyout ferry.key -out ferry.pem",
        );
        keys
    }

    fn file(&self, name: &str) -> String {
        self.0.path().join(name).to_string_lossy().into_owned()
    }

    fn plain(&self, registry: &Registry) -> Registry {
        registry.entrance(&[
            ("REGISTRY_AUTH", "htpasswd"),
            ("REGISTRY_AUTH_HTPASSWD_REALM", "ferry"),
            ("REGISTRY_AUTH_HTPASSWD_PATH", &self.file("htpasswd")),
        ])
    }

    fn locked(&self, registry: &Registry) -> Registry {
        registry.entrance(&[
            ("REGISTRY_AUTH", "htpasswd"),
            ("REGISTRY_AUTH_HTPASSWD_REALM", "ferry"),
            ("REGISTRY_AUTH_HTPASSWD_PATH", &self.file("htpasswd")),
            ("REGISTRY_HTTP_TLS_CERTIFICATE", &self.file("ferry.pem")),
            ("REGISTRY_HTTP_TLS_KEY", &self.file("ferry.key")),
        ])
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = |text: &str| text.lines().map(|line| format!("`{line}`")).collect::<Vec<_>>().join(", ");
        let mut parts = Vec::new();
        if let Some(asked) = &self.asked {
            parts.push(format!("asks `{asked}`"));
        }
        match &self.stdout {
            Written::Nothing => {}
            Written::Text(text) if ["its help", "a script"].contains(&text.as_str()) => {
                parts.push(text.clone());
            }
            Written::Text(text) => parts.push(format!("prints {}", lines(text))),
            Written::Payload(payload) => parts.push(format!("standard output: {payload}")),
            Written::Broken(true) => parts.push("standard output: bytes of a zip".to_owned()),
            Written::Broken(false) => {
                parts.push("standard output: text and bytes of a zip, mixed".to_owned());
            }
        }
        match &self.file {
            Written::Nothing => {}
            Written::Payload(payload) => parts.push(format!("file: {payload}")),
            Written::Text(_) | Written::Broken(_) => parts.push("file: a zip without content".to_owned()),
        }
        if !self.left.is_empty() {
            let left: Vec<String> = self.left.iter().map(|file| format!("`{file}`")).collect();
            parts.push(format!("leaves {}", left.join(", ")));
        }
        if let Some(images) = &self.registry {
            let images: Vec<String> = images.keys().map(|name| format!("`{name}`")).collect();
            let images = if images.is_empty() { "nothing".to_owned() } else { images.join(", ") };
            parts.push(format!("registry: {images}"));
        }
        if parts.is_empty() {
            parts.push("nothing written".to_owned());
        }
        match self.status {
            Some(status) => write!(f, "{status}; {}", parts.join("; ")),
            None => f.write_str(&parts.join("; ")),
        }
    }
}
