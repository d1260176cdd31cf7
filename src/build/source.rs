//! Where the bytes of a blob come from: its registry, or what its manifest names where that does not have it.

use std::ops::Range;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, stream};

use super::plan::BlobPlan;
use crate::registry::{Foreign, ForeignBlob, Registry, RegistryError};

/// The bytes `range` of a blob. `foreign` is there where layers may be had from elsewhere.
pub(super) fn blob_range(
    blob: &BlobPlan,
    range: Range<u64>,
    registry: &Registry,
    foreign: Option<&Foreign>,
) -> BoxStream<'static, Result<Bytes, RegistryError>> {
    let own = registry.blob_range(&blob.repository, &blob.digest, blob.size, range.clone()).boxed();
    let Some(foreign) = foreign.filter(|_| !blob.urls.is_empty()).cloned() else {
        return own;
    };
    let elsewhere = ForeignBlob {
        host: blob.host.clone(),
        repository: blob.repository.clone(),
        digest: blob.digest.clone(),
        size: blob.size,
        urls: blob.urls.clone(),
    };
    let first_of =
        async move |mut own: BoxStream<'static, Result<Bytes, RegistryError>>| match own.next().await {
            Some(Err(error)) if error.is_not_found() => foreign.blob_range(elsewhere, range).boxed(),
            first => stream::iter(first).chain(own).boxed(),
        };
    stream::once(first_of(own)).flatten().boxed()
}
