//! The report beside a payload: which run made it, and of what.
//!
//! It outlives the status. A worker that finds its own run in it, and the payload that it tells of, has
//! nothing left to do: a cluster that was restored from a backup does not build everything again.

use serde::{Deserialize, Serialize};

use super::contract::{CONTRACT_VERSION, PayloadSummary};
use super::place::Place;
use crate::build::missing_failure;
use crate::digest::Digest;
use crate::payload::{Bill, BillImage, FilePayload, MissingImage, PayloadError};
use crate::reason::Failure;
use crate::storage::StorageError;

/// A report is never longer: it has a line for each image of a bill, which has a limit, too.
const REPORT_LIMIT: usize = 16 << 20;
/// What is behind the payload's name in the report's.
const SUFFIX: &str = ".report.json";
/// What is behind it in the name of the sum of the whole file.
const SUM_SUFFIX: &str = ".sha256";

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
        file_digest: None,
        size_bytes: size,
        format_version: bill.format_version,
        images: super::run::count(bill.images.len()),
        blobs: super::run::count(bill.blobs().count()),
        blobs_reused: super::run::count(bill.required.len()),
    }
}

/// The payload at `place`, if its report says that run `run_id` made it, and it is that payload still:
/// bill, size and directory are read, its blobs are not. With it come the images that it is without.
pub(super) async fn already_present(place: &Place, run_id: &str) -> Option<(PayloadSummary, Vec<Failure>)> {
    let report = read(place).await?;
    if report.version != CONTRACT_VERSION || report.run_id != run_id {
        return None;
    }
    let payload = open(place).await.ok()?;
    // It is not read as a whole for it; whoever carries the file compares.
    let file_digest = report.payload.file_digest.clone();
    let found = PayloadSummary { file_digest, ..summary(payload.bill(), payload.digest(), payload.size()) };
    let missing = payload.bill().missing.iter().map(missing_failure).collect();
    (found == report.payload).then_some((found, missing))
}

/// The report beside the payload, if there is one.
async fn read(place: &Place) -> Option<Report> {
    serde_json::from_slice(&place.read_beside(SUFFIX, REPORT_LIMIT).await?).ok()
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReportError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Payload(#[from] PayloadError),
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

async fn open(place: &Place) -> Result<FilePayload, ReportError> {
    Ok(FilePayload::open_at(place.open().await?).await?)
}

impl Report {
    /// Leaves the report of run `run_id`, which made the payload at `place`, beside it, and so the sum of the whole
    /// file, where that is known.
    pub(super) async fn leave(
        place: &Place,
        run_id: &str,
        file_digest: Option<Digest>,
    ) -> Result<(), ReportError> {
        let mut report = Self::of(&open(place).await?, run_id);
        if let Some(digest) = &file_digest {
            let sum = format!("{}  {}\n", digest.hex(), place.file_name());
            place.write_beside(SUM_SUFFIX, sum.into()).await?;
        } else if read(place).await.is_some_and(|before| before.payload.file_digest.is_some()) {
            // It is that of another file.
            place.remove_beside(SUM_SUFFIX).await?;
        }
        report.payload.file_digest = file_digest;
        Ok(place.write_beside(SUFFIX, report.to_bytes()?.into()).await?)
    }

    fn of(payload: &FilePayload, run_id: &str) -> Self {
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
        Self {
            version: CONTRACT_VERSION,
            run_id: run_id.to_owned(),
            payload: summary(payload.bill(), payload.digest(), payload.size()),
            images: images.map(image).chain(payload.bill().missing.iter().map(missing)).collect(),
        }
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
                file_digest: None,
                size_bytes: 9,
                format_version: 1,
                images: 2,
                blobs: 1,
                blobs_reused: 0,
            },
            images: vec![image("a:1", ImageOutcome::Carried), image("b:1", ImageOutcome::AlreadyTransferred)],
        }
    }

    fn place(folder: &tempfile::TempDir) -> Place {
        Place::File { path: folder.path().join("app.zip"), shown: "app.zip".into() }
    }

    async fn write(report: &Report, place: &Place) -> Result<(), StorageError> {
        place.write_beside(SUFFIX, report.to_bytes().unwrap().into()).await
    }

    #[tokio::test]
    async fn a_report_is_json_with_a_line_for_each_image_and_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        write(&report(), &place(&folder)).await.unwrap();
        let text = std::fs::read_to_string(folder.path().join("app.zip.report.json")).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].contains(r#""runId":"run""#), "{text}");
        assert!(lines[1].starts_with(r#"{"name":"a:1""#) && lines[1].contains("Carried"), "{text}");
        assert!(lines[2].contains("b:1") && lines[2].contains("AlreadyTransferred"), "{text}");
        assert_eq!(read(&place(&folder)).await.unwrap(), report());
        let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap()).collect();
        assert_eq!(names.len(), 1, "nothing but the report: {names:?}");
    }

    #[tokio::test]
    async fn a_report_that_cannot_be_written_leaves_the_old_one_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        write(&report(), &place(&folder)).await.unwrap();
        // What is to be renamed cannot be, since a folder is in its way.
        std::fs::create_dir(folder.path().join("app.zip.report.partial")).unwrap();
        write(&report(), &place(&folder)).await.unwrap_err();
        assert_eq!(read(&place(&folder)).await.unwrap(), report());
    }

    #[tokio::test]
    async fn without_a_report_or_without_the_payload_nothing_is_present() {
        let folder = tempfile::tempdir().unwrap();
        let place = place(&folder);
        assert_eq!(already_present(&place, "run").await, None);
        write(&report(), &place).await.unwrap();
        assert_eq!(already_present(&place, "run").await, None);
        std::fs::write(folder.path().join("app.zip"), "no payload").unwrap();
        assert_eq!(already_present(&place, "run").await, None);
    }
}
