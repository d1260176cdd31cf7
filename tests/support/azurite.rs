//! The emulator that Microsoft gives for Azure Blob Storage, azurite, for as long as a test lasts.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use crate::program::{path_of, tool};

pub(crate) const ACCOUNT: &str = "ferry";
/// The account's key, in base64.
pub(crate) const KEY: &str = "YW4gb2JvbCBhIHNvdWw=";

/// A server with one container, `transfer`.
pub(crate) struct Azurite {
    process: Child,
    address: String,
}

/// Makes a container: a request that is signed by the account's key.
const CREATE: &str = r#"import base64, email.utils, hashlib, hmac, http.client, ssl, sys
url, account, key, name = sys.argv[1:]
date, version, path = email.utils.formatdate(usegmt=True), "2021-08-06", f"/{account}/{name}"
text = "PUT" + "\n" * 12 + f"x-ms-date:{date}\nx-ms-version:{version}\n/{account}{path}\nrestype:container"
signature = base64.b64encode(hmac.digest(base64.b64decode(key), text.encode(), hashlib.sha256)).decode()
headers = {"x-ms-date": date, "x-ms-version": version, "Authorization": f"SharedKey {account}:{signature}"}
scheme, host = url.split("://")
secure = lambda host: http.client.HTTPSConnection(host, context=ssl._create_unverified_context())
connection = {"http": http.client.HTTPConnection, "https": secure}[scheme](host)
connection.request("PUT", f"{path}?restype=container", headers=headers)
answer = connection.getresponse()
assert answer.status == 201, answer.read()"#;

impl Azurite {
    pub(crate) fn start() -> Self {
        Self::with(&[])
    }

    /// The same by TLS; it takes bearer tokens, too, whoever made them.
    pub(crate) fn with_tokens(certificate: &Path, key: &Path) -> Self {
        let [oauth, basic, cert] = ["--oauth", "basic", "--cert"].map(OsStr::new);
        Self::with(&[oauth, basic, cert, certificate.as_os_str(), OsStr::new("--key"), key.as_os_str()])
    }

    fn with(options: &[&OsStr]) -> Self {
        let mut process = Command::new(path_of("azurite-blob"))
            .args([
                "--blobHost",
                "127.0.0.1",
                "--blobPort",
                "0",
                "--inMemoryPersistence",
                "--disableTelemetry",
            ])
            .args(options)
            .env_clear()
            .env("AZURITE_ACCOUNTS", format!("{ACCOUNT}:{KEY}"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("azurite runs");
        let said = process.stdout.take().expect("it is a pipe");
        let mut said = BufReader::new(said).lines().map_while(Result::ok);
        let listening = said.find_map(|line| Some(line.split_once("listens on ")?.1.to_owned()));
        // A pipe that nobody reads from would stop it.
        thread::spawn(move || said.for_each(drop));
        let url = listening.expect("azurite listens");
        tool("python3", ["-c", CREATE, &url, ACCOUNT, KEY, "transfer"]).run().succeeded();
        let address = url.split_once("://").expect("it is a URL").1.to_owned();
        Self { process, address }
    }

    /// `127.0.0.1:port`.
    pub(crate) fn host(&self) -> &str {
        &self.address
    }
}

impl Drop for Azurite {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
