//! What an import would do, told before it does anything.

use std::collections::HashSet;
use std::sync::Arc;

use futures::StreamExt;

use super::deliver::{ASKED_AT_ONCE, Delivery, wanting};
use super::target::Target;
use super::{Counts, Fate, ImportError, ImportRequest, Opened};
use crate::digest::Digest;
use crate::payload::Bill;
use crate::progress::Progress;
use crate::reason::Reason;

/// A payload as it would be pushed.
#[derive(Clone, Debug)]
pub struct ImportPlan {
    /// The payload digest; docker-charon's payloads have none.
    pub digest: Option<Digest>,
    /// The payload's size in bytes.
    pub size: u64,
    /// What would become of each image, in payload order.
    pub images: Vec<PlannedImage>,
    /// What would be moved.
    pub counts: Counts,
}

/// What would become of an image.
#[derive(Clone, Debug)]
pub struct PlannedImage {
    /// Its name, as whoever built the payload wrote it.
    pub name: String,
    /// Its name at the far side, `repository:tag`.
    pub target: String,
    /// What would be done about it.
    pub fate: Fate,
}

/// Plans an import. The registry is asked what it has, and no upload is opened: whether it may be pushed to is not known.
pub async fn dry_run(request: ImportRequest, progress: &Arc<Progress>) -> Result<ImportPlan, ImportError> {
    let mut opened = Opened::new(request, progress).await?;
    opened.check().await?;
    let Opened { digest, size, bill, mut targets, delivery, .. } = opened;
    let counts = count(&bill, &mut targets, &delivery).await;
    let images = targets.iter().map(|target| PlannedImage {
        name: target.name.clone(),
        target: target.far_name(),
        fate: target.fate(),
    });
    Ok(ImportPlan { digest, size, images: images.collect(), counts })
}

/// What would be moved, by what the registry says that it has.
async fn count(bill: &Bill, targets: &mut [Target], delivery: &Delivery) -> Counts {
    let carried = bill.entries.iter().map(|entry| (&entry.digest, entry.size));
    let required = bill.required.iter().map(|blob| (&blob.digest, blob.size));
    let blobs: Vec<(&Digest, u64)> = carried.chain(required).collect();
    let asked = blobs.iter().flat_map(|(digest, size)| {
        wanting(targets, digest).into_iter().map(move |repository| (*digest, *size, repository))
    });
    let asked: Vec<(&Digest, u64, String)> = asked.collect();
    let told = futures::stream::iter(asked).map(async |(digest, size, repository)| {
        let found = delivery.has(&repository, digest).await;
        (digest, size, repository, found)
    });
    let told: Vec<_> = told.buffered(ASKED_AT_ONCE).collect().await;
    let (mut counts, mut pushed) = (Counts::default(), HashSet::new());
    for (digest, size, repository, found) in told {
        match found {
            Ok(true) => counts.blobs_present += 1,
            // Once it is in one repository, the others get it from there.
            Ok(false) if delivery.holder(digest).is_some() || !pushed.insert(digest) => {
                counts.blobs_mounted += 1;
            }
            Ok(false) => {
                counts.blobs_pushed += 1;
                counts.bytes_pushed += size;
            }
            Err(error) => {
                let (reason, why): (Reason, String) = (error.reason(), error.to_string());
                delivery.fail(targets, digest, vec![(repository, (reason, why))]);
            }
        }
    }
    counts
}
