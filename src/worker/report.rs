//! The report beside a payload: which run made it, and of what.
//!
//! It outlives the status. A worker that finds its own run in it, and the payload that it tells of, has
//! nothing left to do: a cluster that was restored from a backup does not build everything again.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::contract::{CONTRACT_VERSION, PayloadSummary};
use crate::build::missing_failure;
use crate::digest::Digest;
use crate::payload::{Bill, BillImage, FilePayload, MissingImage, PayloadError};
use crate::reason::Failure;
use crate::storage::{beside, write_beside};

/// A report is never longer: it has a line for each image of a bill, which has a limit, too.
const REPORT_LIMIT: u64 = 16 << 20;

/// What a build leaves beside its payload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    version: u32,
    run_id: String,
    payload: PayloadSummary,
    images: Vec<ReportedImage>,
}

/// What became of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ReportedImage {
    name: String,
    #[serde(rename = "as", default, skip_serializing_if = "Option::is_none")]
    far_name: Option<String>,
    reference: String,
    digest: Option<Digest>,
    outcome: ImageOutcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum ImageOutcome {
    /// The payload holds it.
    Carried,
    /// It was declared to be at the far side as a whole.
    AlreadyTransferred,
    /// It could not be had, and the payload was made without it.
    Missing,
}

/// A payload in a few numbers.
pub(super) fn summary(bill: &Bill, digest: Option<&Digest>, size: u64) -> PayloadSummary {
    PayloadSummary {
        digest: digest.cloned(),
        size_bytes: size,
        format_version: bill.format_version,
        images: super::run::count(bill.images.len()),
        blobs: super::run::count(bill.blobs().count()),
        blobs_reused: super::run::count(bill.required.len()),
    }
}

/// The payload at `path`, if its report says that run `run_id` made it, and it is that payload still:
/// bill, size and directory are read, its blobs are not. With it come the images that it is without.
pub(super) fn already_present(path: &Path, run_id: &str) -> Option<(PayloadSummary, Vec<Failure>)> {
    let report = Report::read(&Report::path(path)).ok()?;
    if report.version != CONTRACT_VERSION || report.run_id != run_id {
        return None;
    }
    let payload = FilePayload::open(File::open(path).ok()?).ok()?;
    let found = summary(payload.bill(), payload.digest(), payload.size());
    let missing = payload.bill().missing.iter().map(missing_failure).collect();
    (found == report.payload).then_some((found, missing))
}

impl Report {
    /// Where the report of the payload at `path` lies.
    pub(super) fn path(path: &Path) -> PathBuf {
        beside(path, ".report.json")
    }

    /// The report of run `run_id`, which made the payload at `path`.
    pub(super) fn of(path: &Path, run_id: &str) -> Result<Self, PayloadError> {
        let file = File::open(path);
        let file = file.map_err(|source| PayloadError::Io { doing: "reading the payload", source })?;
        let payload = FilePayload::open(file)?;
        let image = |image: &BillImage| ReportedImage {
            name: image.name.clone(),
            far_name: image.far_name.clone(),
            reference: image.reference.clone(),
            digest: image.digest.clone(),
            outcome: if image.carried { ImageOutcome::Carried } else { ImageOutcome::AlreadyTransferred },
        };
        let missing = |image: &MissingImage| ReportedImage {
            name: image.name.clone(),
            far_name: None,
            reference: image.reference.clone(),
            digest: None,
            outcome: ImageOutcome::Missing,
        };
        let images = payload.bill().images.iter();
        Ok(Self {
            version: CONTRACT_VERSION,
            run_id: run_id.to_owned(),
            payload: summary(payload.bill(), payload.digest(), payload.size()),
            images: images.map(image).chain(payload.bill().missing.iter().map(missing)).collect(),
        })
    }

    /// Writes the report beside the payload at `path`: it is there as a whole or not at all.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        write_beside(path, ".report", &self.to_bytes()?)
    }

    fn read(path: &Path) -> io::Result<Self> {
        let mut bytes = Vec::new();
        File::open(path)?.take(REPORT_LIMIT).read_to_end(&mut bytes)?;
        Ok(serde_json::from_slice(&bytes)?)
    }

    /// JSON with a line for each image, so that people can search it by line.
    fn to_bytes(&self) -> serde_json::Result<Vec<u8>> {
        let head = Self { images: Vec::new(), ..self.clone() };
        let head = serde_json::to_string(&head)?;
        let images = self.images.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
        // The list of images is the last field, and empty.
        let head = head.trim_end_matches("]}");
        Ok(format!("{head}\n{}\n]}}\n", images.join(",\n")).into_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(name: &str, outcome: ImageOutcome) -> ReportedImage {
        ReportedImage {
            name: name.into(),
            far_name: None,
            reference: format!("docker.io/library/{name}"),
            digest: Some(Digest::sha256(name.as_bytes())),
            outcome,
        }
    }

    fn report() -> Report {
        Report {
            version: CONTRACT_VERSION,
            run_id: "run".into(),
            payload: PayloadSummary {
                digest: Some(Digest::sha256(b"bill")),
                size_bytes: 9,
                format_version: 1,
                images: 2,
                blobs: 1,
                blobs_reused: 0,
            },
            images: vec![image("a:1", ImageOutcome::Carried), image("b:1", ImageOutcome::AlreadyTransferred)],
        }
    }

    #[test]
    fn a_report_is_json_with_a_line_for_each_image_and_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.zip");
        report().write(&path).unwrap();
        let text = std::fs::read_to_string(folder.path().join("app.zip.report.json")).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].contains(r#""runId":"run""#), "{text}");
        assert!(lines[1].starts_with(r#"{"name":"a:1""#) && lines[1].contains("Carried"), "{text}");
        assert!(lines[2].contains("b:1") && lines[2].contains("AlreadyTransferred"), "{text}");
        assert_eq!(Report::read(&Report::path(&path)).unwrap(), report());
        let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap()).collect();
        assert_eq!(names.len(), 1, "nothing but the report: {names:?}");
    }

    #[test]
    fn a_report_that_cannot_be_written_leaves_the_old_one_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.zip");
        report().write(&path).unwrap();
        // What is to be renamed cannot be, since a folder is in its way.
        std::fs::create_dir(beside(&path, ".report.partial")).unwrap();
        report().write(&path).unwrap_err();
        assert_eq!(Report::read(&Report::path(&path)).unwrap(), report());
    }

    #[test]
    fn without_a_report_or_without_the_payload_nothing_is_present() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.zip");
        assert_eq!(already_present(&path, "run"), None);
        report().write(&path).unwrap();
        assert_eq!(already_present(&path, "run"), None);
        std::fs::write(&path, "no payload").unwrap();
        assert_eq!(already_present(&path, "run"), None);
    }
}
