use std::path::PathBuf;

use clap::Args;
use indexmap::IndexMap;
use indicatif::DecimalBytes;
use serde::Serialize;

use super::{CliError, open, open_payload, output};
use crate::build::Amount;
use crate::digest::Digest;
use crate::payload::{Bill, BillImage};
use crate::platform;

/// Tell what is in a payload
///
/// Reads the bill and the directory, not the blobs: see verify.
// The docstrings are the help that people read at a terminal.
#[allow(clippy::doc_markdown)]
#[derive(Debug, Args)]
pub(super) struct Inspect {
    /// The payload: a file, or an object such as s3://BUCKET/KEY
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
    pub(super) async fn run(&self) -> Result<(), CliError> {
        let payload = open_payload(&self.file, open(&self.file).await?).await?;
        let bill = payload.bill();
        let inspection = Inspection {
            digest: payload.digest(),
            size: payload.size(),
            docker_charon: payload.digest().is_none() || bill.has_descriptor(),
            complete_layout: payload.digest().is_some() && !is_subset(bill) && !leaves_to_far_side(bill),
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
        let (blobs, blobs_size) = amount(self.bill.blobs().map(|blob| blob.size).collect());
        let docker_charon = match (self.docker_charon, self.digest) {
            (true, None) => "made it".to_owned(),
            (true, Some(_)) if self.bill.images.iter().any(|image| !image.referrers.is_empty()) => {
                "can push its images, too, without their referrers".to_owned()
            }
            (true, Some(_)) => "can push it, too".to_owned(),
            (false, _) => match self.bill.obstacle() {
                Some(obstacle) => format!("cannot push it: {obstacle}"),
                None => "cannot push it".to_owned(),
            },
        };
        let layout = match (self.complete_layout, self.digest) {
            (true, _) => "complete, once it is unpacked".to_owned(),
            (false, None) => "no".to_owned(),
            (false, Some(_)) => format!("not complete, since {}", why_incomplete(self.bill)),
        };
        let mut lines = vec![
            format!("payload digest    {}", self.digest.map_or("none", Digest::as_str)),
            format!("size              {} ({} bytes)", DecimalBytes(self.size), self.size),
            format!("carries           {blobs}, {blobs_size}"),
            format!("docker-charon     {docker_charon}"),
            format!("OCI image layout  {layout}"),
            String::new(),
        ];
        let names = self.bill.images.iter().map(|image| image.name.as_str());
        let width = output::width("IMAGE", names);
        lines.push(format!("{:width$}  {:71}  KIND", "IMAGE", "DIGEST"));
        for image in &self.bill.images {
            let digest = image.digest.as_ref().map_or("-", Digest::as_str);
            let own = image.far_name.as_ref().map(|name| format!(", arrives as {name}")).unwrap_or_default();
            lines.push(format!("{:width$}  {digest:71}  {}{own}", image.name, kind(image)));
        }
        lines.extend(self.required());
        let missing = self.bill.missing.iter();
        let missing = missing.map(|missing| (missing.name.as_str(), missing.reason.as_str()));
        lines.extend(output::not_to_be_had(missing));
        lines.join("\n")
    }

    /// What the far side must have, by the images that brought it there.
    fn required(&self) -> Vec<String> {
        let mut by_sources: IndexMap<Vec<&str>, Vec<u64>> = IndexMap::new();
        for required in &self.bill.required {
            let sources = required.sources.iter().map(|source| source.name.as_str()).collect();
            by_sources.entry(sources).or_default().push(required.size);
        }
        if by_sources.is_empty() {
            return Vec::new();
        }
        let rows: Vec<(String, String)> = by_sources
            .into_iter()
            .map(|(sources, sizes)| {
                let (blobs, size) = amount(sizes.into_iter().collect());
                // docker-charon does not tell the sizes of what it leaves out.
                let size = if self.digest.is_some() { format!(", {size}") } else { String::new() };
                (sources.join(" or "), format!("{blobs}{size}"))
            })
            .collect();
        let width = output::width("LEFT OUT, AS OF", rows.iter().map(|(sources, _)| sources.as_str()));
        let mut lines = vec![String::new(), format!("{:width$}  THE FAR SIDE MUST HAVE", "LEFT OUT, AS OF")];
        lines.extend(rows.iter().map(|(sources, amount)| format!("{sources:width$}  {amount}")));
        lines
    }
}

/// Whether indexes name images that were left out.
fn is_subset(bill: &Bill) -> bool {
    bill.images.iter().any(|image| !image.omitted.is_empty())
}

fn why_incomplete(bill: &Bill) -> &'static str {
    match (is_subset(bill), leaves_to_far_side(bill)) {
        (true, false) => "images of other platforms are left out",
        (true, true) => "images of other platforms are left out, and the far side must have the rest",
        (false, _) => "the far side must have the rest",
    }
}

/// Whether the far side must have blobs, or whole images.
fn leaves_to_far_side(bill: &Bill) -> bool {
    !bill.required.is_empty() || bill.images.iter().any(|image| !image.carried)
}

/// How many blobs, and how large they are together.
fn amount(Amount { blobs, bytes }: Amount) -> (String, DecimalBytes) {
    (output::count(blobs, "blob"), DecimalBytes(bytes))
}

fn kind(image: &BillImage) -> String {
    let of = match image.platforms.as_slice() {
        [] => String::new(),
        platforms if image.omitted.is_empty() => format!(" of {}", platform::list(platforms)),
        platforms => format!(" of {}, {} left out", platform::list(platforms), image.omitted.len()),
    };
    let kind = match (image.carried, image.manifests.len()) {
        (false, _) => "only named, the far side has it".to_owned(),
        (true, 1) => format!("one manifest{of}"),
        (true, count) => format!("index, {count} manifests{of}"),
    };
    match image.referrers.len() {
        0 => kind,
        count => format!("{kind}, {}", output::count(count, "referrer")),
    }
}
