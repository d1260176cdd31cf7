//! A server that answers as a test tells it to, and remembers what it was asked.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request, Response};
use bytes::Bytes;
use futures::stream;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::reference::Host;

/// A request, as it arrived.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) method: String,
    /// Path and query.
    pub(super) target: String,
    pub(super) headers: HeaderMap,
    /// The body, if all of it arrived.
    pub(super) body: Option<Bytes>,
}

impl Seen {
    pub(super) fn line(&self) -> String {
        format!("{} {}", self.method, self.target)
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// Serves on a loopback address until it is dropped.
pub(super) struct Server {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: JoinHandle<()>,
}

impl Server {
    /// `answer` is given each request and how many with the same method and path came before it.
    pub(super) async fn start<F>(answer: F) -> Self
    where
        F: Fn(&Seen, usize) -> Response<Body> + Send + Sync + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::<Seen>::new()));
        let (log, answer) = (seen.clone(), Arc::new(answer));
        let app = axum::Router::new().fallback(move |request: Request<Body>| {
            let (log, answer) = (log.clone(), answer.clone());
            async move {
                let (head, body) = request.into_parts();
                let target = head.uri.path_and_query().map_or("/", |target| target.as_str()).to_owned();
                let method = head.method.to_string();
                let mut request = Seen { method, target, headers: head.headers, body: None };
                let (place, nth) = {
                    let mut log = log.lock().unwrap();
                    let path = |seen: &Seen| seen.target.split('?').next().map(str::to_owned);
                    let is_like =
                        |seen: &&Seen| seen.method == request.method && path(seen) == path(&request);
                    let nth = log.iter().filter(is_like).count();
                    log.push(request.clone());
                    (log.len() - 1, nth)
                };
                request.body = to_bytes(body, usize::MAX).await.ok();
                log.lock().unwrap()[place].body = request.body.clone();
                answer(&request, nth)
            }
        });
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { address, seen, task }
    }

    pub(super) fn host(&self) -> Host {
        self.address.to_string().parse().unwrap()
    }

    pub(super) fn url(&self, target: &str) -> String {
        format!("http://{}{target}", self.address)
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// `METHOD target` of all requests, in the order in which they arrived.
    pub(super) fn lines(&self) -> Vec<String> {
        self.seen().iter().map(Seen::line).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A status, headers, and a body.
pub(super) fn reply(status: u16, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Response<Body> {
    with_body(status, headers, Body::from(body.into()))
}

/// An answer with a body of a length that is not told.
pub(super) fn chunked(status: u16, headers: &[(&str, &str)], body: &'static [u8]) -> Response<Body> {
    let items = body.chunks(7).map(|chunk| Ok::<_, io::Error>(Bytes::from_static(chunk)));
    with_body(status, headers, Body::from_stream(stream::iter(items)))
}

/// An answer that promises `length` bytes, of which `part` arrives before the connection breaks.
pub(super) fn cut(
    status: u16,
    headers: &[(&str, &str)],
    length: usize,
    part: &'static [u8],
) -> Response<Body> {
    let items = stream::unfold(0, move |step| async move {
        match step {
            0 => Some((Ok(Bytes::from_static(part)), 1)),
            1 => {
                // What was written is on its way before the connection goes.
                for _ in 0..20 {
                    tokio::task::yield_now().await;
                }
                Some((Err(io::Error::other("the script cuts here")), 2))
            }
            _ => None,
        }
    });
    let length = length.to_string();
    let headers: Vec<_> = headers.iter().copied().chain([("content-length", length.as_str())]).collect();
    with_body(status, &headers, Body::from_stream(items))
}

/// An answer that promises `length` bytes and gives one of them every 20 ms.
pub(super) fn dripping(status: u16, headers: &[(&str, &str)], length: usize) -> Response<Body> {
    let items = stream::unfold(0, move |given| async move {
        tokio::time::sleep(Duration::from_millis(20)).await;
        (given < length).then(|| (Ok::<_, io::Error>(Bytes::from_static(b".")), given + 1))
    });
    let length = length.to_string();
    let headers: Vec<_> = headers.iter().copied().chain([("content-length", length.as_str())]).collect();
    with_body(status, &headers, Body::from_stream(items))
}

fn with_body(status: u16, headers: &[(&str, &str)], body: Body) -> Response<Body> {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(body).unwrap()
}
