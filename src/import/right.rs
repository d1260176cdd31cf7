//! The right to push, found out before any blob moves.

use std::collections::BTreeSet;

use futures::StreamExt;

use super::ImportError;
use super::deliver::{ASKED_AT_ONCE, Delivery};
use super::target::Target;

/// Begins an upload in each repository that is to be written, and gives it up at once. Where that is refused its images
/// fail; what no registry would take at all ends the import.
pub(super) async fn check(targets: &mut [Target], delivery: &Delivery) -> Result<(), ImportError> {
    let wanted = targets.iter().filter(|target| target.is_wanted());
    let repositories: BTreeSet<String> = wanted.map(|target| target.repository.clone()).collect();
    let asked = futures::stream::iter(repositories).map(async |repository| {
        let refused = delivery.registry().check_push(&repository).await.err();
        refused.map(|error| (repository, error))
    });
    let mut refused = asked.buffer_unordered(ASKED_AT_ONCE).filter_map(std::future::ready).boxed();
    while let Some((repository, error)) = refused.next().await {
        let (reason, why) = (error.reason(), error.to_string());
        let mut theirs =
            targets.iter_mut().filter(|target| target.is_wanted() && target.repository == repository);
        if let Some(first) = theirs.next() {
            first.fail_or(error)?;
        }
        theirs.for_each(|target| target.fail(reason, &why));
    }
    Ok(())
}
