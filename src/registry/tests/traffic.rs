//! How many requests are under way at once.

use std::convert::Infallible;
use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::{Body, to_bytes};
use axum::http::{Method, Request, Response};
use bytes::Bytes;
use futures::future::{BoxFuture, join_all};
use futures::{FutureExt as _, StreamExt as _, TryFutureExt as _, TryStreamExt as _, stream};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use super::*;

/// More than two pieces of what is read ahead.
const SIZE: usize = 5 << 20;

fn content() -> Bytes {
    vec![7; SIZE].into()
}

/// Requests that are under way, and the most that ever were.
#[derive(Clone, Default)]
struct Counter(Arc<(AtomicUsize, AtomicUsize)>);

struct UnderWay(Counter);

impl Counter {
    fn enter(&self) -> UnderWay {
        let now = self.0.0.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.1.fetch_max(now, Ordering::SeqCst);
        UnderWay(self.clone())
    }

    fn most(&self) -> usize {
        self.0.1.swap(0, Ordering::SeqCst)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.0.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// All others have their turn: who may ask meanwhile does.
async fn others() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

async fn answer(request: Request<Body>, under_way: UnderWay, knows_ranges: bool) -> Response<Body> {
    let (head, body) = request.into_parts();
    to_bytes(body, usize::MAX).await.unwrap();
    others().await;
    let response = Response::builder();
    let path = head.uri.path().to_owned();
    match head.method {
        Method::POST => response.status(202).header("location", "/v2/x/blobs/uploads/1"),
        Method::DELETE => response.status(204),
        Method::PUT => response.status(201),
        Method::GET if path.contains("/blobs/") => {
            let content = content();
            let range = head.headers.get("range").filter(|_| knows_ranges);
            let range = range.map(|range| {
                let (start, end) = range.to_str().unwrap()["bytes=".len()..].split_once('-').unwrap();
                (start.parse::<usize>().unwrap(), end.parse::<usize>().unwrap())
            });
            let (start, end) = range.unwrap_or((0, SIZE - 1));
            let last = content.slice(end..=end);
            let first = content.slice(start..end);
            let response = response.status(if range.is_some() { 206 } else { 200 });
            let response = response.header("content-range", format!("bytes {start}-{end}/{SIZE}"));
            let body = stream::once(async { first }).chain(stream::once(async move {
                others().await;
                // Who has all of the answer may ask for the next thing.
                drop(under_way);
                last
            }));
            return response.body(Body::from_stream(body.map(Ok::<_, Infallible>))).unwrap();
        }
        Method::GET => {
            drop(under_way);
            return response.body(Body::from("{}")).unwrap();
        }
        _ => response.header("docker-content-digest", digest_of(b"{}").as_str()),
    }
    .body(Body::empty())
    .unwrap()
}

/// A registry that has all and takes all.
async fn counting(knows_ranges: bool) -> (Host, Counter, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string().parse().unwrap();
    let counter = Counter::default();
    let counts = counter.clone();
    let app = axum::Router::new().fallback(move |request| answer(request, counts.enter(), knows_ranges));
    let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    (host, counter, AbortOnDropHandle::new(task))
}

fn registry(host: &Host, at_once: Option<usize>) -> Registry {
    let access = Access { insecure: true, ..Access::default() };
    let traffic = Traffic::with_patience(EAGER, Duration::from_secs(30));
    let traffic = match at_once {
        Some(at_once) => traffic.at_once(NonZeroUsize::new(at_once).unwrap()),
        None => traffic,
    };
    Registry::with_traffic(host.clone(), access, &traffic).unwrap()
}

async fn in_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), work).await.expect("nothing waits for itself")
}

/// All that a registry is asked for, several times at once.
async fn everything(registry: &Registry) {
    let (digest, manifest) = (&digest_of(&content()), &digest_of(b"{}"));
    let body = || stream::iter([Ok::<_, io::Error>(content())]);
    let work = (0..4).flat_map(|_| -> [BoxFuture<'_, Result<(), RegistryError>>; 7] {
        [
            registry.has_blob("x", digest).map_ok(drop).boxed(),
            registry.manifest_digest("x", "1").map_ok(drop).boxed(),
            registry.manifest("x", manifest.as_str()).map_ok(drop).boxed(),
            registry.check_push("x").boxed(),
            registry.mount_blob("x", digest, "y").map_ok(drop).boxed(),
            registry.push_blob("x", digest, SIZE as u64, body).boxed(),
            registry
                .blob_ahead("x", digest, SIZE as u64, 0..SIZE as u64)
                .try_for_each(async |_| Ok(()))
                .boxed(),
        ]
    });
    for result in in_time(join_all(work)).await {
        result.unwrap();
    }
}

#[tokio::test]
async fn no_more_requests_are_under_way_than_are_wanted() {
    let (host, counter, _server) = counting(true).await;
    for at_once in [1, 2, 3] {
        everything(&registry(&host, Some(at_once))).await;
        assert_eq!(counter.most(), at_once);
    }
    everything(&registry(&host, None)).await;
    assert!(counter.most() > 8);
}

#[tokio::test]
async fn what_is_read_where_it_is_written_at_the_same_time_waits_for_no_other_that_does() {
    let (host, counter, _server) = counting(true).await;
    let digest = &digest_of(&content());
    // One that reads and one that writes are two.
    for (at_once, most) in [(1, 2), (2, 2), (3, 3)] {
        let registry = registry(&host, Some(at_once));
        let copies = (0..4).map(async |_| {
            let registry = registry.for_copying().await;
            let body = || registry.blob("y", digest, SIZE as u64).map_err(io::Error::other);
            registry.push_blob("x", digest, SIZE as u64, body).await
        });
        let heads = (0..4).map(async |_| registry.has_blob("x", digest).await);
        let (copied, found) = in_time(async { tokio::join!(join_all(copies), join_all(heads)) }).await;
        assert!(
            copied.into_iter().all(|copied| copied.is_ok()) && found.into_iter().all(|found| found.unwrap())
        );
        assert!(counter.most() <= most, "{at_once}");
    }
}

#[tokio::test]
async fn what_is_read_ahead_and_not_yet_wanted_keeps_nobody_waiting() {
    for knows_ranges in [true, false] {
        let (host, counter, _server) = counting(knows_ranges).await;
        for at_once in [1, 2, 4] {
            let registry = registry(&host, Some(at_once));
            let digest = &digest_of(&content());
            let begun = (0..5).map(async |_| {
                let mut body = registry.blob_ahead("x", digest, SIZE as u64, 0..SIZE as u64);
                (body.next().await, body)
            });
            // The last one is read first.
            for (first, rest) in in_time(join_all(begun)).await.into_iter().rev() {
                let chunks = stream::iter(first).chain(rest).try_collect::<Vec<Bytes>>();
                assert!(in_time(chunks).await.unwrap().concat() == content());
            }
            // A body that is given up is known to be by the server when it writes on.
            assert!(!knows_ranges || counter.most() <= at_once);
        }
    }
}
