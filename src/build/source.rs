//! Where the bytes of a blob come from: a repository of an image that has it, or what its manifest names where no
//! repository does.

use std::ops::Range;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, stream};

use super::missing::is_about_image;
use super::plan::{BlobPlan, Origin};
use crate::registry::{Foreign, ForeignBlob, RegistryError};

/// The bytes of a blob on their way.
type Body = BoxStream<'static, Result<Bytes, RegistryError>>;

/// The bytes `range` of a blob. `foreign` is there where layers may be had from elsewhere.
pub(super) fn blob_range(blob: &BlobPlan, range: Range<u64>, foreign: Option<&Foreign>) -> Body {
    from_first(blob, range, foreign, |Origin { registry, repository }, blob, range| {
        registry.blob_range(repository, &blob.digest, blob.size, range).boxed()
    })
}

/// The same with several requests at once, for whoever needs the bytes in order.
pub(super) fn blob_ahead(blob: &BlobPlan, range: Range<u64>, foreign: Option<&Foreign>) -> Body {
    from_first(blob, range, foreign, |Origin { registry, repository }, blob, range| {
        registry.blob_ahead(repository, &blob.digest, blob.size, range)
    })
}

/// The bytes from the first origin that gives any.
fn from_first(
    blob: &BlobPlan,
    range: Range<u64>,
    foreign: Option<&Foreign>,
    open: fn(&Origin, &BlobPlan, Range<u64>) -> Body,
) -> Body {
    let (blob, foreign) = (blob.clone(), foreign.filter(|_| !blob.urls.is_empty()).cloned());
    let first = async move {
        let mut refused = None;
        for origin in blob.origins() {
            let mut body = open(origin, &blob, range.clone());
            match body.next().await {
                Some(Err(error)) if is_about_image(error.reason()) => refused = Some(error),
                first => return stream::iter(first).chain(body).boxed(),
            }
        }
        let Some(foreign) = foreign else {
            return stream::iter(refused.map(Err)).boxed();
        };
        let elsewhere = ForeignBlob {
            host: blob.origin.registry.host().clone(),
            repository: blob.origin.repository,
            digest: blob.digest,
            size: blob.size,
            urls: blob.urls,
        };
        foreign.blob(elsewhere, range.start).boxed()
    };
    stream::once(first).flatten().boxed()
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::http::{StatusCode, Uri};
    use futures::TryStreamExt;

    use super::*;
    use crate::digest::Digest;
    use crate::registry::{Access, Registry};

    const LAYER: &[u8] = b"had from elsewhere";

    /// The registry has only what is not foreign; `/layer` has the rest.
    async fn answer(uri: Uri) -> Result<&'static [u8], StatusCode> {
        match uri.path() {
            "/layer" => Ok(LAYER),
            path if path.starts_with("/v2/own/blobs/") => Ok(LAYER),
            _ => Err(StatusCode::NOT_FOUND),
        }
    }

    /// A registry that has only what is not foreign, and where it is.
    async fn registry() -> Registry {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        tokio::spawn(async { axum::serve(listener, Router::new().fallback(answer)).await });
        let access = Access { insecure: true, ..Access::default() };
        Registry::new(host.parse().unwrap(), access).unwrap()
    }

    fn blob(registry: &Registry, repository: &str, urls: &[&str]) -> BlobPlan {
        BlobPlan {
            digest: Digest::sha256(LAYER),
            size: LAYER.len() as u64,
            origin: Origin { registry: registry.clone(), repository: repository.into() },
            others: Vec::new(),
            urls: urls.iter().map(|url| (*url).to_owned()).collect(),
        }
    }

    async fn read(blob: BlobPlan, foreign: Option<&Foreign>, from: u64) -> Result<Vec<u8>, RegistryError> {
        let chunks = blob_range(&blob, from..blob.size, foreign);
        Ok(chunks.try_collect::<Vec<Bytes>>().await?.concat())
    }

    #[tokio::test]
    async fn a_layer_that_its_registry_does_not_have_comes_from_where_the_manifest_says_if_that_is_wanted() {
        let registry = registry().await;
        let foreign = Foreign::on_loopback().unwrap();
        let url = format!("http://{}/layer", registry.host());
        let windows = || blob(&registry, "windows", &[&url]);
        assert_eq!(read(windows(), Some(&foreign), 0).await.unwrap(), LAYER);
        assert_eq!(read(windows(), Some(&foreign), 4).await.unwrap(), &LAYER[4..]);
        let own = blob(&registry, "own", &["http://127.0.0.1:1/"]);
        assert_eq!(read(own, Some(&foreign), 0).await.unwrap(), LAYER);
        assert!(read(windows(), None, 0).await.unwrap_err().is_not_found());
        assert!(read(blob(&registry, "windows", &[]), Some(&foreign), 0).await.unwrap_err().is_not_found());
    }

    #[tokio::test]
    async fn a_blob_that_one_registry_does_not_have_comes_from_another() {
        let (one, other) = (registry().await, registry().await);
        let mut shared = blob(&one, "lost", &[]);
        for repository in ["lost", "own"] {
            shared.others.push(Origin { registry: other.clone(), repository: repository.into() });
        }
        assert_eq!(read(shared.clone(), None, 4).await.unwrap(), &LAYER[4..]);
        let ahead = blob_ahead(&shared, 0..shared.size, None).try_collect::<Vec<Bytes>>();
        assert_eq!(ahead.await.unwrap().concat(), LAYER);
    }
}
