//! Written and read again, by Charon's readers and by one that is not ours.

use std::io::{Cursor, Read, Write};

use bytes::Bytes;
use futures::StreamExt;

use super::*;
use crate::digest::Digest;
use crate::reason::Reason;
use crate::reference::{Host, Reference};

const DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";

struct Sample {
    contents: Contents,
    blobs: Vec<Vec<u8>>,
}

fn sample(media_type: &str) -> Sample {
    let blobs: Vec<Vec<u8>> = vec![b"{\"config\":1}".to_vec(), vec![7; 300_000], Vec::new()];
    let named: Vec<String> = blobs
        .iter()
        .map(|blob| format!(r#"{{"digest":"{}","size":{}}}"#, Digest::sha256(blob), blob.len()))
        .collect();
    let far = br"far".as_slice();
    let json = format!(
        r#"{{"schemaVersion":2,"config":{},"layers":[{},{},{{"digest":"{}","size":3}}]}}"#,
        named[0],
        named[1],
        named[2],
        Digest::sha256(far)
    );
    let bytes = Bytes::from(json);
    let digest = Digest::sha256(&bytes);
    let manifest =
        ManifestPlan { digest: digest.clone(), media_type: media_type.into(), bytes: bytes.clone() };
    let image = ImagePlan {
        reference: Reference::parse("app:1", &Host::docker_hub()).unwrap(),
        far_name: None,
        digest,
        media_type: media_type.into(),
        size: bytes.len() as u64,
        platforms: Vec::new(),
        omitted: Vec::new(),
        manifests: vec![manifest],
        referrers: Vec::new(),
    };
    let required = Required {
        digest: Digest::sha256(far),
        size: 3,
        sources: vec![RequiredSource {
            name: "base:1".into(),
            reference: "docker.io/library/base:1".into(),
            far_name: None,
        }],
    };
    let blob_sizes: Vec<_> = blobs.iter().map(|blob| (Digest::sha256(blob), blob.len() as u64)).collect();
    Sample { contents: Contents::new(&[image], &blob_sizes, vec![required]).unwrap(), blobs }
}

async fn write(sample: &Sample) -> Vec<u8> {
    let mut writer = PayloadWriter::begin(&sample.contents, Vec::new()).await.unwrap();
    for blob in &sample.blobs {
        let (digest, _) = writer.next_blob().unwrap();
        assert!(digest.matches(blob));
        let body = futures::stream::iter(
            blob.chunks(1000).map(|part| Ok::<_, String>(Bytes::copy_from_slice(part))),
        );
        writer.blob(body, |_| ()).await.unwrap();
    }
    assert!(writer.next_blob().is_none());
    writer.finish().await.unwrap()
}

fn open(bytes: &[u8]) -> Result<FilePayload, PayloadError> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    FilePayload::open(file)
}

async fn read(bytes: &[u8]) -> Result<Vec<u8>, PayloadError> {
    let mut payload = StreamPayload::open(Cursor::new(bytes)).await?;
    let (sender, mut receiver) = tokio::sync::mpsc::channel(100);
    for _ in payload.bill().blobs().cloned().collect::<Vec<_>>() {
        payload.next_blob(Some(sender.clone())).await?;
    }
    payload.finish().await?;
    drop(sender);
    let mut all = Vec::new();
    while let Some(part) = receiver.recv().await {
        all.extend(part.unwrap());
    }
    Ok(all)
}

#[tokio::test]
async fn what_was_written_is_read_again_by_position_and_in_sequence() {
    let sample = sample(DOCKER);
    let bytes = write(&sample).await;
    assert_eq!(bytes.len() as u64, sample.contents.layout().total_size());
    let payload = open(&bytes).unwrap();
    assert_eq!(payload.digest(), Some(sample.contents.digest()));
    assert_eq!(payload.bill(), sample.contents.bill());
    for blob in &sample.blobs {
        let parts: Vec<_> = payload.blob(&Digest::sha256(blob)).collect().await;
        assert_eq!(parts.into_iter().map(Result::unwrap).collect::<Vec<_>>().concat(), *blob);
    }
    let root = payload.bill().images[0].digest.as_ref().unwrap();
    assert!(root.matches(&payload.manifest(root).unwrap()));
    assert_eq!(read(&bytes).await.unwrap(), sample.blobs.concat());
}

#[tokio::test]
async fn another_programs_zip_reader_finds_every_entry_whole() {
    let bytes = write(&sample(DOCKER)).await;
    let mut archive = zip::ZipArchive::new(Cursor::new(&bytes)).unwrap();
    let names: Vec<String> = archive.file_names().map(|name| name.unwrap().into_owned()).collect();
    assert_eq!(names[..3], ["charon.json", "oci-layout", "index.json"]);
    assert_eq!(names.last().unwrap(), "payload_descriptor.json");
    for index in 0..archive.len() {
        // The reader checks the CRC at the end.
        std::io::copy(&mut archive.by_index(index).unwrap(), &mut std::io::sink()).unwrap();
    }
    let mut descriptor = String::new();
    archive.by_name("payload_descriptor.json").unwrap().read_to_string(&mut descriptor).unwrap();
    assert!(descriptor.contains(r#""app:1":"blobs/sha256/"#), "{descriptor}");
    assert!(descriptor.contains(r#"{"repository":"base"}"#), "{descriptor}");
}

#[tokio::test]
async fn the_descriptor_of_docker_charon_is_left_out_where_it_could_not_push() {
    let bytes = write(&sample("application/vnd.oci.image.manifest.v1+json")).await;
    let archive = zip::ZipArchive::new(Cursor::new(&bytes)).unwrap();
    assert!(archive.file_names().all(|name| name.unwrap() != "payload_descriptor.json"));
    open(&bytes).unwrap();
    read(&bytes).await.unwrap();
}

#[tokio::test]
async fn the_same_images_give_the_same_bytes() {
    assert_eq!(write(&sample(DOCKER)).await, write(&sample(DOCKER)).await);
}

#[tokio::test]
async fn a_payload_cut_anywhere_is_incomplete_and_never_whole() {
    let bytes = write(&sample(DOCKER)).await;
    for length in (0..3000).chain([bytes.len() / 2, bytes.len() - 1]) {
        let from_file = open(&bytes[..length]).unwrap_err();
        assert_eq!(from_file.reason(), Reason::SourceIncomplete, "{length}: {from_file}");
        let from_stream = read(&bytes[..length]).await.unwrap_err();
        assert_eq!(from_stream.reason(), Reason::SourceIncomplete, "{length}: {from_stream}");
    }
}

#[tokio::test]
async fn a_byte_altered_anywhere_is_found() {
    let sample = sample(DOCKER);
    let bytes = write(&sample).await;
    let blob = sample.contents.layout().entries().iter().find(|entry| entry.size() == 300_000).unwrap();
    let inside = blob.data_offset() + 10..blob.data_offset() + blob.size() - 10;
    for at in (0..bytes.len())
        .filter(|at| !inside.contains(&(*at as u64)))
        .step_by(3)
        .chain([usize::try_from(blob.data_offset()).unwrap() + 1000])
    {
        let mut altered = bytes.clone();
        altered[at] ^= 0x40;
        assert!(read(&altered).await.is_err(), "stream, byte {at}");
    }
    let mut altered = bytes.clone();
    altered[usize::try_from(blob.data_offset()).unwrap() + 1000] ^= 1;
    let payload = open(&altered).unwrap();
    let parts: Vec<_> = payload.blob(&Digest::sha256(&sample.blobs[1])).collect().await;
    assert!(parts.last().unwrap().as_ref().is_err_and(|error| error.to_string().contains("corrupt")));
    let mut directory = bytes.clone();
    let last = directory.len() - 30;
    directory[last] ^= 1;
    assert_eq!(open(&directory).unwrap_err().reason(), Reason::PayloadCorrupt);
}

#[tokio::test]
async fn what_stands_behind_a_payload_is_refused() {
    let mut bytes = write(&sample(DOCKER)).await;
    bytes.push(0);
    assert_eq!(open(&bytes).unwrap_err().reason(), Reason::PayloadCorrupt);
    assert_eq!(read(&bytes).await.unwrap_err().reason(), Reason::PayloadCorrupt);
}

#[tokio::test]
async fn what_is_no_payload_is_told_from_a_copy_in_progress() {
    let zip = {
        let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
        zip.start_file("some/other/file/with/a/long/name.txt", zip::write::SimpleFileOptions::default())
            .unwrap();
        zip.finish().unwrap().into_inner()
    };
    for bytes in [b"hello, this is a text".to_vec(), b"<html>".to_vec(), zip] {
        assert_eq!(open(&bytes).unwrap_err().reason(), Reason::PayloadCorrupt);
        assert_eq!(read(&bytes).await.unwrap_err().reason(), Reason::PayloadCorrupt);
    }
    for bytes in [vec![], vec![0; 5000]] {
        assert_eq!(open(&bytes).unwrap_err().reason(), Reason::SourceIncomplete);
    }
}

#[tokio::test]
async fn a_blob_that_is_not_what_was_asked_for_never_ends_up_in_a_payload() {
    let sample = sample(DOCKER);
    for (body, expected) in [
        (b"{\"config\":2}".to_vec(), "have the digest"),
        (b"{\"config\":1".to_vec(), "has 11 bytes"),
        (b"{\"config\":1}}".to_vec(), "has 13 bytes"),
    ] {
        let mut writer = PayloadWriter::begin(&sample.contents, Vec::new()).await.unwrap();
        let body = futures::stream::iter([Ok::<_, String>(Bytes::from(body))]);
        let error = writer.blob(body, |_| ()).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn an_index_whose_child_is_not_in_the_payload_is_refused() {
    let child = Bytes::from_static(br#"{"layers":[]}"#);
    let child_digest = Digest::sha256(&child);
    let json = format!(r#"{{"manifests":[{{"digest":"{child_digest}","size":{}}}]}}"#, child.len());
    let (index, index_digest) = (Bytes::from(json.clone()), Digest::sha256(json.as_bytes()));
    let plan = |digest: &Digest, bytes: &Bytes| ManifestPlan {
        digest: digest.clone(),
        media_type: "m".into(),
        bytes: bytes.clone(),
    };
    let bill_of = |manifests| {
        let image = ImagePlan {
            reference: Reference::parse("app:1", &Host::docker_hub()).unwrap(),
            far_name: None,
            digest: index_digest.clone(),
            media_type: "m".into(),
            size: index.len() as u64,
            platforms: Vec::new(),
            omitted: Vec::new(),
            manifests,
            referrers: Vec::new(),
        };
        Contents::new(&[image], &[], Vec::new()).unwrap().bill().clone()
    };
    let read = |digest: &Digest| Ok(if *digest == child_digest { child.clone() } else { index.clone() });
    let whole = bill_of(vec![plan(&child_digest, &child), plan(&index_digest, &index)]);
    whole.check_manifests(read).unwrap();
    let error = bill_of(vec![plan(&index_digest, &index)]).check_manifests(read).unwrap_err();
    assert!(error.to_string().contains(&format!("needs the manifest {child_digest}")), "{error}");
}

#[test]
fn a_bill_with_zeros_in_it_is_still_being_copied() {
    let mut bytes = futures::executor::block_on(write(&sample(DOCKER)));
    bytes[200..400].fill(0);
    assert_eq!(open(&bytes).unwrap_err().reason(), Reason::SourceIncomplete);
}

/// Divides what it takes into parts, and keeps the sums at the end of each.
#[derive(Default)]
struct InParts {
    part_size: u64,
    bytes: Vec<u8>,
    sums: Vec<Sums>,
}

impl Sink for InParts {
    async fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn part_size(&self) -> Option<u64> {
        Some(self.part_size)
    }

    async fn part(&mut self, sums: Sums) -> std::io::Result<()> {
        assert_eq!(self.bytes.len() as u64 % self.part_size, 0);
        self.sums.push(sums);
        Ok(())
    }

    async fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

async fn write_rest(sample: &Sample, mut writer: PayloadWriter<'_, InParts>) -> InParts {
    while let Some((digest, _)) = writer.next_blob() {
        let blob = sample.blobs.iter().find(|blob| digest.matches(blob)).unwrap();
        let have = usize::try_from(writer.have()).unwrap();
        let body = futures::stream::iter([Ok::<_, std::io::Error>(Bytes::from(blob[have..].to_vec()))]);
        writer.blob(body, |_| ()).await.unwrap();
    }
    writer.finish().await.unwrap()
}

#[tokio::test]
async fn a_writer_goes_on_at_the_end_of_any_part_and_gives_the_same_bytes() {
    for sample in [sample(DOCKER), sample("application/vnd.oci.image.manifest.v1+json")] {
        let whole = write(&sample).await;
        for part_size in [97, 1000, 65_536, whole.len() as u64] {
            let parts = || InParts { part_size, ..InParts::default() };
            let first = PayloadWriter::begin(&sample.contents, parts()).await.unwrap();
            let first = write_rest(&sample, first).await;
            assert!(first.bytes == whole);
            assert_eq!(first.sums.len() as u64, whole.len() as u64 / part_size);
            let step = first.sums.len().div_ceil(100);
            for (index, sums) in first.sums.iter().enumerate().step_by(step) {
                let from = (index as u64 + 1) * part_size;
                let json = serde_json::to_string(sums).unwrap();
                let sums = serde_json::from_str(&json).unwrap();
                let rest = PayloadWriter::go_on(&sample.contents, parts(), from, &sums).await.unwrap();
                let rest = write_rest(&sample, rest).await;
                assert!(rest.bytes == whole[usize::try_from(from).unwrap()..], "{part_size} {from}");
                assert_eq!(rest.sums, first.sums[index + 1..], "{part_size} {from}");
            }
        }
    }
}

#[tokio::test]
async fn a_writer_goes_on_wherever_in_a_blobs_header_a_part_ended() {
    let sample = sample(DOCKER);
    let whole = write(&sample).await;
    let entries = sample.contents.layout().entries();
    let blobs = sample.contents.bill().entries.iter().zip(&entries[3..]);
    for (entry, place) in blobs.filter(|(entry, _)| entry.kind == super::EntryKind::Blob) {
        let header = place.data_offset() - framing::local_header_len(place.name(), entry.size);
        for from in header..=place.data_offset() {
            let parts = || InParts { part_size: from, ..InParts::default() };
            let first = PayloadWriter::begin(&sample.contents, parts()).await.unwrap();
            let sums = write_rest(&sample, first).await.sums.swap_remove(0);
            let rest = PayloadWriter::go_on(&sample.contents, parts(), from, &sums).await;
            let rest = write_rest(&sample, rest.unwrap_or_else(|error| panic!("{from}: {error}"))).await;
            assert!(rest.bytes == whole[usize::try_from(from).unwrap()..], "{from}");
        }
    }
}

#[tokio::test]
async fn sums_of_another_payload_or_another_place_are_refused() {
    let sample = sample(DOCKER);
    let parts = || InParts { part_size: 200_000, ..InParts::default() };
    let first = PayloadWriter::begin(&sample.contents, parts()).await.unwrap();
    let first = write_rest(&sample, first).await;
    let none = Sums::default();
    for (from, sums) in
        [(200_000, &none), (1_000_000, &first.sums[0]), (10, &first.sums[0]), (100_000, &none)]
    {
        let refused = PayloadWriter::go_on(&sample.contents, parts(), from, sums).await;
        assert!(refused.is_err(), "{from} {sums:?}");
    }
}

#[tokio::test]
async fn the_beginning_is_all_in_front_of_the_first_blob() {
    let sample = sample(DOCKER);
    let beginning = sample.contents.beginning();
    assert!(write(&sample).await.starts_with(&beginning));
    let remains = Remains::of(std::sync::Arc::new(beginning)).unwrap();
    assert_eq!(&remains.digest, sample.contents.digest());
    assert_eq!(remains.manifests.len(), 1);
}
