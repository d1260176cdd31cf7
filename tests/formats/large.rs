//! Payloads beyond what a zip could hold before zip64, for readers that are not ours.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::thread;

use bytes::Bytes;
use charon::digest::Digest;
use charon::payload::{Contents, ImagePlan, LayoutEntry, ManifestPlan, PayloadWriter};
use charon::reference::{Host, Reference};
use futures::StreamExt;
use futures::stream;
use serde_json::json;
use tempfile::TempDir;
use tokio::io::AsyncWrite;

use crate::program::{Program, charon, tool};
use crate::registry::RUNTIME;

/// 4 GiB and 100 MiB of zeros, and their digest.
const ZEROS: u64 = (4 << 30) + (100 << 20);
const ZEROS_DIGEST: &str = "sha256:28d8f4e080ae3eab01aeacb29bf952050a280fe00e1312e8a85c4f2fc5be7fab";
/// Zeros come in pieces of this length.
const PIECE: usize = 1 << 20;

/// A payload file, with what is in it.
struct Large {
    _folder: TempDir,
    path: PathBuf,
    entries: usize,
    bytes: u64,
}

/// A file with holes in place of zeros.
struct Sparse(File);

impl AsyncWrite for Sparse {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let file = &mut self.get_mut().0;
        let is_hole = bytes.len() >= 4096
            && bytes.iter().step_by(4096).all(|byte| *byte == 0)
            && bytes == vec![0; bytes.len()];
        if is_hole {
            file.seek(SeekFrom::Current(i64::try_from(bytes.len()).unwrap_or(i64::MAX)))?;
        } else {
            file.write_all(bytes)?;
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// An image with these blobs; the first is its config.
fn image(name: &str, blobs: &[(Digest, u64)]) -> ImagePlan {
    let described = |(digest, size): &(Digest, u64)| json!({"digest": digest.as_str(), "size": size});
    let layers: Vec<_> = blobs[1..].iter().map(described).collect();
    let manifest = json!({"schemaVersion": 2, "config": described(&blobs[0]), "layers": layers});
    let bytes = Bytes::from(manifest.to_string());
    let media_type = "application/vnd.docker.distribution.manifest.v2+json".to_owned();
    let digest = Digest::sha256(&bytes);
    ImagePlan {
        far_name: None,
        reference: Reference::parse(name, &Host::docker_hub()).unwrap(),
        digest: digest.clone(),
        media_type: media_type.clone(),
        size: bytes.len() as u64,
        platforms: Vec::new(),
        omitted: Vec::new(),
        manifests: vec![ManifestPlan { digest, media_type, bytes }],
        referrers: Vec::new(),
    }
}

impl Large {
    fn write(
        images: &[ImagePlan],
        blobs: &[(Digest, u64)],
        content: impl Fn(usize) -> Option<Bytes>,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("payload.zip");
        let contents = Contents::new(images, blobs, Vec::new()).unwrap();
        let file = Sparse(File::create(&path).unwrap());
        RUNTIME.block_on(async {
            let mut writer = PayloadWriter::begin(&contents, file).await.unwrap();
            let zeros = Bytes::from(vec![0; PIECE]);
            for (index, (_, size)) in blobs.iter().enumerate() {
                let piece = content(index);
                let pieces = if piece.is_some() { 1 } else { usize::try_from(*size).unwrap() / PIECE };
                let piece = piece.unwrap_or_else(|| zeros.clone());
                let body = stream::repeat(piece).take(pieces).map(Ok::<_, io::Error>);
                writer.blob(body, |_| ()).await.unwrap();
            }
            writer.finish().await.unwrap();
        });
        let layout = contents.layout();
        let bytes = layout.entries().iter().map(LayoutEntry::size).sum();
        let entries = layout.entries().len();
        assert_eq!(path.metadata().unwrap().len(), layout.total_size());
        Self { _folder: folder, path, entries, bytes }
    }

    /// A blob of over 4 GiB, and one behind it, whose offset is beyond 4 GiB too.
    fn by_size() -> Self {
        let last = Bytes::from_static(b"behind it");
        let blobs = [
            (Digest::sha256(b"{}"), 2),
            (ZEROS_DIGEST.parse().unwrap(), ZEROS),
            (Digest::sha256(&last), last.len() as u64),
        ];
        let content = [Some(Bytes::from_static(b"{}")), None, Some(last)];
        Self::write(&[image("large:1", &blobs)], &blobs, |index| content[index].clone())
    }

    /// Over 65,535 entries.
    fn by_number() -> Self {
        let content = |index: usize| Bytes::from(format!("{index:05}"));
        let blobs: Vec<(Digest, u64)> =
            (0..66_000).map(|index| (Digest::sha256(&content(index)), 5)).collect();
        // A manifest may not be larger than 4 MiB.
        let images: Vec<ImagePlan> = blobs
            .chunks(22_000)
            .zip(["one:1", "two:1", "three:1"])
            .map(|(blobs, name)| image(name, blobs))
            .collect();
        Self::write(&images, &blobs, |index| Some(content(index)))
    }

    /// Each reader reads every byte of every entry and checks it.
    fn assert_accepted(&self, verified: &str) {
        let count = format!("{} {}\n", self.entries, self.bytes);
        let on = |program: Program| program.arguments([&self.path]).run().succeeded().text();
        thread::scope(|scope| {
            scope.spawn(|| {
                let told = on(tool("unzip", ["-t"]));
                assert!(told.contains("No errors detected in compressed data"), "{told}");
                assert_eq!(told.lines().filter(|line| line.trim_end().ends_with("OK")).count(), self.entries);
            });
            scope.spawn(|| {
                let python = "import sys, zipfile; zip = zipfile.ZipFile(sys.argv[1]); assert zip.testzip() is None; \
                              print(len(zip.infolist()), sum(entry.file_size for entry in zip.infolist()))";
                assert_eq!(on(tool("python3", ["-c", python])), count);
                let java = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/formats/Zip.java");
                assert_eq!(on(tool("java", [&java])), count);
                let told = on(tool("7z", ["t", "-bd"]));
                for line in [
                    "Everything is Ok".to_owned(),
                    format!("Files: {}", self.entries),
                    format!("Size:       {}", self.bytes),
                ] {
                    assert!(told.contains(&line), "{line}: {told}");
                }
                let told = on(charon(["verify"]));
                assert!(told.contains(&format!(" is whole: {verified}, payload digest ")), "{told}");
            });
        });
    }
}

#[test]
fn pythons_zipfile_and_javas_and_unzip_and_7z_and_verify_accept_an_entry_of_over_4_gib() {
    Large::by_size().assert_accepted("1 image, 3 blobs");
}

#[test]
fn pythons_zipfile_and_javas_and_unzip_and_7z_and_verify_accept_over_65535_entries() {
    let large = Large::by_number();
    assert!(large.entries > 0xffff);
    large.assert_accepted("3 images, 66000 blobs");
}

#[test]
fn inspect_reads_no_blob() {
    let large = Large::by_size();
    // The shell's count of bytes read includes those of the programs that it waited for (proc(5), /proc/pid/io).
    let inspect = format!("{} inspect {}", env!("CARGO_BIN_EXE_charon"), large.path.display());
    let told = tool("sh", ["-c", &format!("{inspect} && exec cat /proc/$$/io")]).run().succeeded().text();
    let read = told.lines().find_map(|line| line.strip_prefix("rchar: ")).expect("the kernel counts");
    assert!(told.contains("large:1"), "{told}");
    assert!(read.parse::<u64>().unwrap() < 4 << 20, "{read} bytes were read");
}
