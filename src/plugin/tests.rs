//! Both ends of a transfer, with a connection between them that can be cut.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, DuplexStream, ReadHalf, WriteHalf, split};

use super::far::{FarError, serve};
use super::near::{Expected, Incoming, NearError, Placed, is_same, put};
use super::wire::{Prefix, Pulse, Request, VERSION, Wire, Wish};
use crate::digest::Digest;
use crate::payload::{Contents, FilePayload, ImagePlan, ManifestPlan, PayloadWriter};
use crate::progress::Progress;
use crate::read_at::LocalFile;
use crate::reference::{Host, Reference};

/// A payload with one layer of `size` bytes of noise.
async fn payload(size: usize) -> Vec<u8> {
    let noise: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(size).collect();
    let layer = Digest::sha256(&noise);
    let media_type = "application/vnd.oci.image.manifest.v1+json".to_owned();
    let bytes = Bytes::from(format!(
        r#"{{"schemaVersion":2,"config":{{"digest":"{layer}","size":{size}}},"layers":[]}}"#
    ));
    let digest = Digest::sha256(&bytes);
    let manifest =
        ManifestPlan { digest: digest.clone(), media_type: media_type.clone(), bytes: bytes.clone() };
    let image = ImagePlan {
        reference: Reference::parse("app:1", &Host::docker_hub()).unwrap(),
        far_name: None,
        digest,
        media_type,
        size: bytes.len() as u64,
        platforms: Vec::new(),
        omitted: Vec::new(),
        manifests: vec![manifest],
        referrers: Vec::new(),
    };
    let contents = Contents::new(&[image], &[(layer, size as u64)], Vec::new()).unwrap();
    let mut writer = PayloadWriter::begin(&contents, Vec::new()).await.unwrap();
    let body = futures::stream::iter([Ok::<_, io::Error>(Bytes::from(noise))]);
    writer.blob(body, |_| ()).await.unwrap();
    writer.finish().await.unwrap()
}

const SIZE: usize = 3_000_000;

/// A volume and a folder of the user's.
struct Sides {
    volume: tempfile::TempDir,
    folder: tempfile::TempDir,
}

impl Sides {
    fn new() -> Self {
        Self { volume: tempfile::tempdir().unwrap(), folder: tempfile::tempdir().unwrap() }
    }

    fn far(&self, name: &str) -> PathBuf {
        self.volume.path().join(name)
    }

    fn near(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A connection that breaks after so many bytes in the one and in the other direction.
    fn connect(&self, to_far: u64, to_near: u64) -> Line {
        let (near, near_relay) = tokio::io::duplex(64 << 10);
        let (far_relay, far) = tokio::io::duplex(64 << 10);
        let folder = self.volume.path().to_owned();
        tokio::spawn(async move {
            let (input, output) = split(far);
            // What it fails with is told by the program that has it for an end.
            serve(input, output, &folder).await
        });
        tokio::spawn(async move {
            let ((near_in, near_out), (far_in, far_out)) = (split(near_relay), split(far_relay));
            tokio::select! {
                () = relay(near_in, far_out, to_far) => {}
                () = relay(far_in, near_out, to_near) => {}
            }
        });
        let (input, output) = split(near);
        Wire::new(input, output, Pulse::new())
    }

    async fn get(&self, expected: Expected, to_near: u64) -> (Result<Digest, NearError>, u64) {
        let progress = Progress::default();
        let mut incoming = Incoming::open(self.near("app.zip"), expected).await.unwrap();
        let got = incoming.get(&mut self.connect(u64::MAX, to_near), "out/app.zip", &progress).await;
        if got.is_ok() {
            incoming.finish().await.unwrap();
        }
        (got, progress.snapshot().bytes_done)
    }

    async fn put(&self, path: &str, replace: bool, to_far: u64) -> (Result<Placed, NearError>, u64) {
        let progress = Progress::default();
        let source = LocalFile::new(Arc::new(fs::File::open(self.near("app.zip")).unwrap())).unwrap();
        let mut wire = self.connect(to_far, u64::MAX);
        (put(&mut wire, &source, path, replace, &progress).await, progress.snapshot().bytes_done)
    }

    /// What the far end says when it is asked for `request`, and how it ends.
    async fn ask(&self, request: &Request) -> String {
        let mut input = serde_json::to_vec(request).unwrap();
        input.push(b'\n');
        serve(input.as_slice(), tokio::io::sink(), self.volume.path()).await.unwrap_err().to_string()
    }
}

type Line = Wire<ReadHalf<DuplexStream>, WriteHalf<DuplexStream>>;

async fn relay(from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, limit: u64) {
    let _ = tokio::io::copy(&mut from.take(limit), &mut to).await;
}

fn expected(payload: &Path) -> Expected {
    let payload = FilePayload::open(fs::File::open(payload).unwrap()).unwrap();
    Expected { size: payload.size(), digest: payload.digest().cloned(), file_digest: None }
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn what_was_got_before_the_connection_broke_is_not_fetched_again() {
    let sides = Sides::new();
    let bytes = payload(SIZE).await;
    fs::create_dir(sides.far("out")).unwrap();
    fs::write(sides.far("out/app.zip"), &bytes).unwrap();
    let expected = expected(&sides.far("out/app.zip"));

    let (lost, first) = sides.get(expected.clone(), 2_000_000).await;
    assert!(matches!(lost, Err(NearError::Lost(_))), "{lost:?}");
    assert_eq!(names(sides.folder.path()), ["app.zip.partial"]);
    assert!(first > 1_000_000, "{first}");
    let (got, second) = sides.get(expected, u64::MAX).await;
    assert_eq!(got.unwrap(), Digest::sha256(&bytes));
    assert_eq!(first + second, bytes.len() as u64);
    assert_eq!(names(sides.folder.path()), ["app.zip"]);
    assert!(fs::read(sides.near("app.zip")).unwrap() == bytes);

    let here = |bytes: &[u8]| Prefix { bytes: bytes.len() as u64, sha256: Digest::sha256(bytes) };
    let mut altered = bytes.clone();
    altered[1_000_000] ^= 1;
    for (bytes, same) in [(&bytes, true), (&altered, false)] {
        let mut wire = sides.connect(u64::MAX, u64::MAX);
        assert_eq!(is_same(&mut wire, "out/app.zip", &here(bytes)).await.unwrap(), same);
    }
}

#[tokio::test]
async fn what_lies_in_a_partial_file_and_is_something_else_is_thrown_away_on_both_sides() {
    let sides = Sides::new();
    let bytes = payload(SIZE).await;
    let mut altered = bytes[..1_000_000].to_vec();
    altered[500_000] ^= 1;
    let longer = [&bytes[..], b"more"].concat();
    for left in [&altered, &longer] {
        let sides = Sides::new();
        fs::create_dir(sides.far("out")).unwrap();
        fs::write(sides.far("out/app.zip"), &bytes).unwrap();
        fs::write(sides.near("app.zip.partial"), left).unwrap();
        let (got, fetched) = sides.get(expected(&sides.far("out/app.zip")), u64::MAX).await;
        assert_eq!((got.unwrap(), fetched), (Digest::sha256(&bytes), bytes.len() as u64));
    }
    for left in [&altered, &longer] {
        fs::write(sides.near("app.zip"), &bytes).unwrap();
        fs::write(sides.far("app.zip.partial"), left).unwrap();
        let (placed, sent) = sides.put("app.zip", false, u64::MAX).await;
        assert_eq!(placed.unwrap(), Placed::Sent(Digest::sha256(&bytes)));
        assert_eq!(sent, bytes.len() as u64);
        assert!(fs::read(sides.far("app.zip")).unwrap() == bytes);
        fs::remove_file(sides.far("app.zip")).unwrap();
    }
}

#[tokio::test]
async fn another_payload_than_the_status_tells_of_is_refused_before_a_byte_moves() {
    let sides = Sides::new();
    fs::create_dir(sides.far("out")).unwrap();
    fs::write(sides.far("out/app.zip"), payload(SIZE).await).unwrap();
    let told = expected(&sides.far("out/app.zip"));
    fs::write(sides.far("out/app.zip"), payload(SIZE).await).unwrap();
    let (refused, fetched) = sides.get(told.clone(), u64::MAX).await;
    let message = refused.unwrap_err().to_string();
    assert!(message.contains(told.digest.unwrap().as_str()) && message.contains("spec.trigger"), "{message}");
    assert_eq!(fetched, 0);
}

#[tokio::test]
async fn a_file_whose_sum_is_not_the_one_of_the_build_is_thrown_away() {
    let sides = Sides::new();
    fs::create_dir(sides.far("out")).unwrap();
    fs::write(sides.far("out/app.zip"), payload(SIZE).await).unwrap();
    let told =
        Expected { file_digest: Some(Digest::sha256(b"another")), ..expected(&sides.far("out/app.zip")) };
    let (refused, _) = sides.get(told, u64::MAX).await;
    assert!(refused.unwrap_err().to_string().contains("thrown away"));
    assert!(names(sides.folder.path()).is_empty(), "{:?}", names(sides.folder.path()));
}

#[tokio::test]
async fn what_is_put_has_its_name_only_when_it_is_whole_and_goes_on_where_it_broke_off() {
    let sides = Sides::new();
    let bytes = payload(SIZE).await;
    fs::write(sides.near("app.zip"), &bytes).unwrap();
    let (lost, _) = sides.put("in/app.zip", false, 2_000_000).await;
    assert!(matches!(lost, Err(NearError::Lost(_))), "{lost:?}");
    assert_eq!(names(&sides.far("in")), ["app.zip.partial"]);
    let (placed, sent) = sides.put("in/app.zip", false, u64::MAX).await;
    assert_eq!(placed.unwrap(), Placed::Sent(Digest::sha256(&bytes)));
    assert!((500_000..1_500_000).contains(&sent), "{sent}");
    assert_eq!(names(&sides.far("in")), ["app.zip"]);
    assert!(fs::read(sides.far("in/app.zip")).unwrap() == bytes);

    let (again, sent) = sides.put("in/app.zip", false, u64::MAX).await;
    assert_eq!((again.unwrap(), sent), (Placed::AlreadyThere(Digest::sha256(&bytes)), 0));
}

#[tokio::test]
async fn another_payload_gives_way_only_if_it_is_told_to_and_what_is_no_payload_never() {
    let sides = Sides::new();
    let (old, new) = (payload(SIZE).await, payload(SIZE).await);
    fs::write(sides.far("app.zip"), &old).unwrap();
    fs::write(sides.near("app.zip"), &new).unwrap();
    let (refused, sent) = sides.put("app.zip", false, u64::MAX).await;
    let message = refused.unwrap_err().to_string();
    assert!(message.contains("--replace") && sent == 0, "{message}");
    assert!(fs::read(sides.far("app.zip")).unwrap() == old);
    let (replaced, _) = sides.put("app.zip", true, u64::MAX).await;
    assert_eq!(replaced.unwrap(), Placed::Sent(Digest::sha256(&new)));
    assert!(fs::read(sides.far("app.zip")).unwrap() == new);

    fs::write(sides.far("app.zip"), "a letter").unwrap();
    for replace in [false, true] {
        let wish = Wish::Put { size: new.len() as u64, replace };
        let message = sides.ask(&Request { version: VERSION, path: "app.zip".into(), wish }).await;
        assert!(message.contains("is no payload of charon's"), "{message}");
    }
    assert_eq!(fs::read(sides.far("app.zip")).unwrap(), b"a letter");
    assert_eq!(names(sides.volume.path()), ["app.zip"]);
}

#[tokio::test]
async fn the_far_end_says_what_it_cannot_do_and_what_to_do_instead() {
    let sides = Sides::new();
    fs::write(sides.far("letter"), "to the far side").unwrap();
    fs::write(sides.far("old.zip"), payload(100).await).unwrap();
    let get = || Wish::Get(Prefix { bytes: 0, sha256: Digest::sha256(b"") });
    let mut said = String::new();
    for (version, path, wish) in [
        (VERSION + 1, "app.zip", get()),
        (VERSION, "../secret", get()),
        (VERSION, "app.zip", get()),
        (VERSION, "letter", get()),
        (VERSION, "old.zip", Wish::Put { size: 9, replace: false }),
    ] {
        let asked = sides.ask(&Request { version, path: path.into(), wish }).await;
        said += &format!("{path}: {asked}\n").replace(sides.volume.path().to_str().unwrap(), "/payload");
    }
    insta::assert_snapshot!(said);
    let wish = Wish::Put { size: 1 << 60, replace: false };
    let said = sides.ask(&Request { version: VERSION, path: "big.zip".into(), wish }).await;
    assert!(said.contains("has no room for the payload: it has 1152921504606846976 bytes"), "{said}");
    assert_eq!(names(sides.volume.path()), ["letter", "old.zip"]);
}

#[tokio::test]
async fn an_empty_line_is_no_message_and_what_is_not_understood_is_told() {
    let mut wire = Wire::new(b"\n\n{\"from\":7}\n[]\n".as_slice(), tokio::io::sink(), Pulse::new());
    let start: super::wire::Start = wire.hear().await.unwrap();
    assert_eq!(start.from, 7);
    let error = wire.hear::<super::wire::Start>().await.unwrap_err();
    assert!(error.to_string().contains("are both of one version?"), "{error}");
    let endless = vec![b'x'; 1 << 20];
    let mut wire = Wire::new(endless.as_slice(), tokio::io::sink(), Pulse::new());
    let error = wire.hear::<super::wire::Start>().await.unwrap_err();
    assert!(error.to_string().contains("a message without an end"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_far_end_that_nobody_speaks_to_any_more_ends() {
    let (near, far) = tokio::io::duplex(64);
    let (input, output) = split(far);
    let ended = serve(input, output, Path::new("/nonexistent")).await;
    assert!(matches!(ended, Err(FarError::Silent)), "{ended:?}");
    drop(near);
}
