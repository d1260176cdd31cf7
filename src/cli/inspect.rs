use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::{CliError, output};
use crate::digest::Digest;
use crate::payload::{Bill, BillImage, FilePayload};
use crate::storage::open_source;

/// Tell what is in a payload
///
/// Reads the bill and the directory, not the blobs: see verify.
#[derive(Debug, Args)]
pub(super) struct Inspect {
    /// The payload
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What is told as JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Inspection<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<&'a Digest>,
    size: u64,
    docker_charon: bool,
    complete_layout: bool,
    bill: &'a Bill,
}

impl Inspect {
    pub(super) fn run(&self) -> Result<(), CliError> {
        let file = open_source(&self.file).map_err(|error| CliError::Failed(error.to_string()))?;
        let payload = FilePayload::open(file).map_err(|error| CliError::of_file(&self.file, &error))?;
        let bill = payload.bill();
        let inspection = Inspection {
            digest: payload.digest(),
            size: payload.size(),
            docker_charon: payload.digest().is_none() || bill.files.len() > 2,
            complete_layout: payload.digest().is_some() && bill.required.is_empty(),
            bill,
        };
        if self.json {
            let json = serde_json::to_string_pretty(&inspection);
            return output::line(&json.map_err(|error| CliError::Failed(error.to_string()))?);
        }
        output::line(&inspection.to_text())
    }
}

impl Inspection<'_> {
    fn to_text(&self) -> String {
        let yes_or_no = |yes| if yes { "yes" } else { "no" };
        let blobs = self.bill.blobs().count();
        let mut lines = vec![
            format!(
                "payload digest     {}",
                self.digest.map_or("none, docker-charon made it", Digest::as_str)
            ),
            format!("size               {} bytes", self.size),
            format!("blobs              {blobs}"),
            format!("docker-charon      {}", yes_or_no(self.docker_charon)),
            format!("complete layout    {}", yes_or_no(self.complete_layout)),
            String::new(),
        ];
        let width = self.bill.images.iter().map(|image| image.name.len()).max().unwrap_or(0).max(5);
        lines.push(format!("{:width$}  {:71}  KIND", "IMAGE", "DIGEST"));
        for image in &self.bill.images {
            let digest = image.digest.as_ref().map_or("-", Digest::as_str);
            lines.push(format!("{:width$}  {digest:71}  {}", image.name, kind(image)));
        }
        if !self.bill.required.is_empty() {
            lines.push(String::new());
            lines.push("Not carried, the far side must have them:".to_owned());
            for required in &self.bill.required {
                let sources: Vec<&str> = required.sources.iter().map(|source| source.name.as_str()).collect();
                lines.push(format!(
                    "{}  {} bytes, of {}",
                    required.digest,
                    required.size,
                    sources.join(", ")
                ));
            }
        }
        lines.join("\n")
    }
}

fn kind(image: &BillImage) -> String {
    match (image.carried, image.manifests.len()) {
        (false, _) => "only named, the far side has it".to_owned(),
        (true, 1) => "one manifest".to_owned(),
        (true, count) => format!("index, {count} manifests"),
    }
}
