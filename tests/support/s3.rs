//! A real S3 server, versitygw, over a folder, for as long as a test lasts.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::gate::wait_until;
use crate::program::{Program, path_of};

/// A server with one bucket, `transfer`.
pub(crate) struct S3 {
    process: Child,
    address: String,
    folder: TempDir,
}

pub(crate) const ACCESS: &str = "ferryman";
pub(crate) const SECRET: &str = "an-obol-a-soul";

impl S3 {
    pub(crate) fn start() -> Self {
        Self::serve(&[])
    }

    /// A server that speaks TLS, with the certificate and the key in these files.
    pub(crate) fn with_certificate(certificate: &Path, key: &Path) -> Self {
        Self::serve(&["--cert", &certificate.to_string_lossy(), "--key", &key.to_string_lossy()])
    }

    fn serve(options: &[&str]) -> Self {
        // versitygw keeps what it knows of objects in extended attributes, which a file system in memory may lack.
        let folder = tempfile::Builder::new().prefix("s3-").tempdir_in(env!("CARGO_TARGET_TMPDIR"));
        let folder = folder.expect("a folder for the server");
        for name in ["data/transfer", "iam"] {
            fs::create_dir_all(folder.path().join(name)).expect("a folder can be made");
        }
        // It does not tell the port that it found free.
        let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
        let address = port.expect("a port is free").to_string();
        let process = Command::new(path_of("versitygw"))
            .args(["--port", &address, "--quiet", "--iam-dir"])
            .arg(folder.path().join("iam"))
            .args(options)
            .arg("posix")
            .arg(folder.path().join("data"))
            .env_clear()
            .envs([("ROOT_ACCESS_KEY", ACCESS), ("ROOT_SECRET_KEY", SECRET)])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("versitygw runs");
        let server = Self { process, address, folder };
        wait_until("versitygw serves", || TcpStream::connect(&server.address).is_ok());
        server
    }

    /// `127.0.0.1:port`.
    pub(crate) fn host(&self) -> &str {
        &self.address
    }

    /// A program that may use the server.
    pub(crate) fn lets(&self, program: Program) -> Program {
        lets_at(program, &format!("http://{}", self.address))
    }

    /// The file that an object of the bucket is.
    pub(crate) fn file(&self, key: &str) -> PathBuf {
        self.folder.path().join("data/transfer").join(key)
    }

    /// The keys in the bucket.
    pub(crate) fn keys(&self) -> Vec<String> {
        let entries = fs::read_dir(self.file("")).expect("the bucket can be read");
        let files = entries.map(|entry| entry.expect("the bucket can be read"));
        let names = files.map(|file| file.file_name().to_string_lossy().into_owned());
        let mut names: Vec<String> = names.filter(|name| !name.starts_with(".sgwtmp")).collect();
        names.sort();
        names
    }

    /// How many uploads were begun, and are neither complete nor given up.
    pub(crate) fn open_uploads(&self) -> usize {
        let Ok(objects) = fs::read_dir(self.file(".sgwtmp/multipart")) else { return 0 };
        let uploads = objects.filter_map(|object| fs::read_dir(object.ok()?.path()).ok());
        uploads
            .map(|uploads| {
                uploads.filter(|upload| upload.as_ref().is_ok_and(|upload| upload.path().is_dir())).count()
            })
            .sum()
    }
}

/// A program that may use a server which is reached at `endpoint`.
pub(crate) fn lets_at(program: Program, endpoint: &str) -> Program {
    program
        .variable("AWS_ENDPOINT_URL", endpoint)
        .variable("AWS_ACCESS_KEY_ID", ACCESS)
        .variable("AWS_SECRET_ACCESS_KEY", SECRET)
}

impl Drop for S3 {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
