use indicatif::DecimalBytes;

use super::{CliError, output};
use crate::build::{Amount, BuildPlan};
use crate::digest::Digest;
use crate::import::{Fate, ImportPlan};
use crate::reason::Failure;

/// Prints what a build would do. A payload that has no room is a failure.
pub(super) fn tell_build(plan: BuildPlan) -> Result<(), CliError> {
    let mut lines = head(Some(&plan.digest), plan.size);
    lines.push(format!(
        "carries           {}, {}",
        output::count(plan.images, "image"),
        amount(plan.carried)
    ));
    if plan.there.bytes > 0 {
        lines.push(format!("there already     {}, from an earlier attempt", amount(plan.there)));
    }
    lines.push(format!("to fetch          {}", bytes(plan.to_fetch())));
    if plan.left_out.blobs > 0 {
        lines.push(format!("left out          {}, which the far side has", amount(plan.left_out)));
    }
    let reads = plan.manifests.iter().map(|(host, count)| format!("{count} of {host}")).collect::<Vec<_>>();
    let reads = if reads.is_empty() { "none".to_owned() } else { reads.join(", ") };
    lines.push(format!("manifests read    {reads}"));
    if let Some(room) = plan.room {
        lines.push(format!("room              {}", bytes(room)));
    }
    let missing = plan.missing.iter().map(|missing| (missing.item.as_str(), missing.reason.as_str()));
    lines.extend(output::not_to_be_had(missing));
    output::line(&lines.join("\n"))?;
    plan.check_room().map_err(|error| CliError::Failed(error.to_string()))
}

/// Prints what an import would do. What would not be whole is a failure, as it would be then.
pub(super) fn tell_import(plan: &ImportPlan, strict: bool) -> Result<(), CliError> {
    let mut lines = head(plan.digest.as_ref(), plan.size);
    let counts = plan.counts;
    lines.push(format!(
        "to push           {}, {}",
        output::count(counts.blobs_pushed as usize, "blob"),
        bytes(counts.bytes_pushed)
    ));
    lines.push(format!("to mount          {}", output::count(counts.blobs_mounted as usize, "blob")));
    lines.push(format!("there already     {}", output::count(counts.blobs_present as usize, "blob")));
    lines.push(String::new());
    let names = output::width("IMAGE", plan.images.iter().map(|image| image.name.as_str()));
    let targets = output::width("ARRIVES AS", plan.images.iter().map(|image| image.target.as_str()));
    lines.push(format!("{:names$}  {:targets$}  WHAT HAPPENS", "IMAGE", "ARRIVES AS"));
    let mut failures: Vec<&Failure> = Vec::new();
    for image in &plan.images {
        let fate = match &image.fate {
            Fate::Present => "nothing, it is there",
            Fate::Push => "it is pushed",
            Fate::AbsentBase(failure) => {
                failures.extend(Some(failure).filter(|_| strict));
                "nothing, though it is not there: MissingBase"
            }
            Fate::Failed(failure) => {
                failures.push(failure);
                failure.reason.as_str()
            }
        };
        lines.push(format!("{:names$}  {:targets$}  {fate}", image.name, image.target));
    }
    output::line(&lines.join("\n"))?;
    if failures.is_empty() { Ok(()) } else { Err(CliError::of_failures(failures)) }
}

fn head(digest: Option<&Digest>, size: u64) -> Vec<String> {
    vec![
        format!("payload digest    {}", digest.map_or("none", Digest::as_str)),
        format!("size              {}", bytes(size)),
    ]
}

fn amount(amount: Amount) -> String {
    format!("{}, {}", output::count(amount.blobs, "blob"), bytes(amount.bytes))
}

/// For people, and exactly.
fn bytes(bytes: u64) -> String {
    format!("{} ({bytes} bytes)", DecimalBytes(bytes))
}
