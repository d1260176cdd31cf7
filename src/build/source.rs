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
    or_elsewhere(own, blob, range, foreign)
}

/// The same with several requests at once, for whoever needs the bytes in order.
pub(super) fn blob_ahead(
    blob: &BlobPlan,
    range: Range<u64>,
    registry: &Registry,
    foreign: Option<&Foreign>,
) -> BoxStream<'static, Result<Bytes, RegistryError>> {
    let own = registry.blob_ahead(&blob.repository, &blob.digest, blob.size, range.clone());
    or_elsewhere(own, blob, range, foreign)
}

fn or_elsewhere(
    own: BoxStream<'static, Result<Bytes, RegistryError>>,
    blob: &BlobPlan,
    range: Range<u64>,
    foreign: Option<&Foreign>,
) -> BoxStream<'static, Result<Bytes, RegistryError>> {
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
            Some(Err(error)) if error.is_not_found() => foreign.blob(elsewhere, range.start).boxed(),
            first => stream::iter(first).chain(own).boxed(),
        };
    stream::once(first_of(own)).flatten().boxed()
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::http::{StatusCode, Uri};
    use futures::TryStreamExt;

    use super::*;
    use crate::digest::Digest;
    use crate::registry::Access;

    const LAYER: &[u8] = b"had from elsewhere";

    /// The registry has only what is not foreign; `/layer` has the rest.
    async fn answer(uri: Uri) -> Result<&'static [u8], StatusCode> {
        match uri.path() {
            "/layer" => Ok(LAYER),
            path if path.starts_with("/v2/own/blobs/") => Ok(LAYER),
            _ => Err(StatusCode::NOT_FOUND),
        }
    }

    #[tokio::test]
    async fn a_layer_that_its_registry_does_not_have_comes_from_where_the_manifest_says_if_that_is_wanted() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        tokio::spawn(async { axum::serve(listener, Router::new().fallback(answer)).await });
        let access = Access { insecure: true, ..Access::default() };
        let registry = Registry::new(host.parse().unwrap(), access).unwrap();
        let foreign = Foreign::on_loopback().unwrap();
        let read = async |repository: &str, urls: &[&str], foreign: Option<&Foreign>, from: u64| {
            let blob = BlobPlan {
                digest: Digest::sha256(LAYER),
                size: LAYER.len() as u64,
                host: host.parse().unwrap(),
                repository: repository.into(),
                urls: urls.iter().map(|url| (*url).to_owned()).collect(),
            };
            let chunks = blob_range(&blob, from..blob.size, &registry, foreign);
            Ok::<_, RegistryError>(chunks.try_collect::<Vec<Bytes>>().await?.concat())
        };
        let url = format!("http://{host}/layer");
        assert_eq!(read("windows", &[&url], Some(&foreign), 0).await.unwrap(), LAYER);
        assert_eq!(read("windows", &[&url], Some(&foreign), 4).await.unwrap(), &LAYER[4..]);
        assert_eq!(read("own", &["http://127.0.0.1:1/"], Some(&foreign), 0).await.unwrap(), LAYER);
        assert!(read("windows", &[&url], None, 0).await.unwrap_err().is_not_found());
        assert!(read("windows", &[], Some(&foreign), 0).await.unwrap_err().is_not_found());
    }
}
