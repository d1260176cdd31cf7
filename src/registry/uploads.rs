//! Blobs on their way up: mounted, or streamed in one piece.

use std::io;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use reqwest::{Body, Method, StatusCode};
use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use url::Url;

use super::auth::Scopes;
use super::client::{Call, Registry};
use super::error::{Asked, RegistryError};
use super::retry::{Retry, Stage, Watch};
use crate::digest::Digest;

/// The uploads of this process that are neither committed nor cancelled.
static OPEN: LazyLock<TaskTracker> = LazyLock::new(TaskTracker::new);
/// A process that is to end waits no longer for registries to forget its uploads.
const SETTLING: Duration = Duration::from_secs(10);

/// Waits until the uploads that were given up are cancelled: a process that ends before leaves them
/// in the registry.
pub async fn settle_uploads() {
    OPEN.close();
    // Whether all were cancelled or time was up: there is nothing more that can be done.
    let _ = tokio::time::timeout(SETTLING, OPEN.wait()).await;
    OPEN.reopen();
}

impl Registry {
    /// Asks the registry to take a blob from another of its repositories: whether it did.
    pub async fn mount_blob(
        &self,
        repository: &str,
        digest: &Digest,
        from_repository: &str,
    ) -> Result<bool, RegistryError> {
        let mut url = self.url(repository, &["blobs", "uploads", ""])?;
        url.query_pairs_mut()
            .append_pair("mount", digest.as_str())
            .append_pair("from", &self.remote(from_repository));
        let asked = Asked::pushing_blob(self.host(), repository, digest);
        let call = Call::new(
            Method::POST,
            url,
            Scopes::mount(&self.remote(repository), &self.remote(from_repository)),
            asked,
        )
        .header(CONTENT_LENGTH, HeaderValue::from_static("0"));
        let reply = match self.send(&call, &mut self.retry()).await {
            // No token for both repositories: an upload needs only the one.
            Err(RegistryError::Authentication { .. }) => return Ok(false),
            result => result?,
        };
        match reply.status() {
            StatusCode::CREATED => Ok(true),
            StatusCode::ACCEPTED => {
                // An upload was begun instead. It is not used: whether the caller has the bytes at hand is its affair.
                if let Ok(upload) = self.location(&call.asked, &reply.url, reply.response.headers()) {
                    self.cancel(cancelling(&call, upload)).await;
                }
                Ok(false)
            }
            status if status.is_client_error() => Ok(false),
            _ => Err(self.refused(&call, reply).await),
        }
    }

    /// Uploads a blob of exactly `size` bytes; `body` makes a fresh stream of them for each try.
    ///
    /// If the body fails, nothing is committed, nothing is tried again, and the error has the body's as its source
    /// ([`RegistryError::body_error`]). The last bytes are held back until the body has ended well, so that it may
    /// fail even after its last byte: when the hash turns out wrong.
    pub async fn push_blob<F, S>(
        &self,
        repository: &str,
        digest: &Digest,
        size: u64,
        body: F,
    ) -> Result<(), RegistryError>
    where
        F: Fn() -> S,
        S: Stream<Item = io::Result<Bytes>> + Send + 'static,
    {
        let asked = Asked::pushing_blob(self.host(), repository, digest);
        let begin = Call::new(
            Method::POST,
            self.url(repository, &["blobs", "uploads", ""])?,
            Scopes::push(&self.remote(repository)),
            asked,
        )
        .header(CONTENT_LENGTH, HeaderValue::from_static("0"));
        let mut retry = self.retry();
        loop {
            retry.begin();
            let reply = match self.attempt(&begin, || None).await {
                Ok(reply) if reply.status() == StatusCode::ACCEPTED => reply,
                // Some registries have the blob already and say so at once.
                Ok(reply) if reply.status() == StatusCode::CREATED => return Ok(()),
                Ok(reply) => return Err(self.refused(&begin, reply).await),
                Err(error) => {
                    retry.after(error).await?;
                    continue;
                }
            };
            let url = self.location(&begin.asked, &reply.url, reply.response.headers())?;
            self.note_success();
            let cancel = Some(cancelling(&begin, url.clone()));
            let upload = Upload { registry: self, cancel, open: OPEN.token() };
            match self.put_blob(&begin, url, digest, size, &mut retry, &body).await {
                Ok(()) => {
                    upload.committed();
                    return Ok(());
                }
                Err(error) => {
                    upload.give_up().await;
                    retry.after(error).await?;
                }
            }
        }
    }

    async fn put_blob<F, S>(
        &self,
        begin: &Call,
        mut url: Url,
        digest: &Digest,
        size: u64,
        retry: &mut Retry,
        body: &F,
    ) -> Result<(), RegistryError>
    where
        F: Fn() -> S,
        S: Stream<Item = io::Result<Bytes>> + Send + 'static,
    {
        url.query_pairs_mut().append_pair("digest", digest.as_str());
        let watch = Arc::new(Watch::new());
        let failure = Failure::default();
        let mut call = Call::new(Method::PUT, url, begin.scopes.clone(), begin.asked.clone())
            .header(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"))
            .header(CONTENT_LENGTH, HeaderValue::from(size));
        call.watch = Some(watch.clone());
        let stream = || exactly(body(), size, watch.clone(), failure.clone());
        let result = if size == 0 {
            // No connection asks for the bytes of an empty body, and its end may still be an error.
            let _ = stream().collect::<Vec<_>>().await;
            match failed(&failure) {
                Some(source) => return Err(RegistryError::Body { asked: begin.asked.clone(), source }),
                None => self.attempt(&call, || Some(Body::from(Bytes::new()))).await,
            }
        } else {
            self.attempt(&call, || Some(Body::wrap_stream(stream()))).await
        };
        if let Some(source) = failed(&failure) {
            return Err(RegistryError::Body { asked: begin.asked.clone(), source });
        }
        if watch.stage() != Stage::Waiting {
            // The bytes of a large blob take longer to send than patience for a failure lasts.
            retry.begin();
        }
        let reply = result?;
        if reply.status().is_success() { Ok(()) } else { Err(self.refused(&call, reply).await) }
    }

    /// Ends an upload that will not be committed. Registries sweep what is left, so a failure is of no account.
    async fn cancel(&self, call: Call) {
        let limit = self.patience().connect;
        match tokio::time::timeout(limit, self.try_to_cancel(call)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "an upload was left behind"),
            Err(_) => tracing::debug!("an upload was left behind: the registry went silent"),
        }
    }

    async fn try_to_cancel(&self, mut call: Call) -> Result<(), RegistryError> {
        let mut tries = 3;
        loop {
            let reply = self.attempt(&call, || None).await?;
            tries -= 1;
            if reply.status().is_success() || reply.status() == StatusCode::NOT_FOUND {
                return Ok(());
            }
            if tries == 0 {
                return Err(self.refused(&call, reply).await);
            }
            // The distribution registry wants the address that fits the bytes it has (tried: 416 for the first one,
            // once any arrived), which it tells to who asks for the upload's progress.
            let progress = Call::new(Method::GET, call.url.clone(), call.scopes.clone(), call.asked.clone());
            let reply = self.attempt(&progress, || None).await?;
            call.url = self.location(&call.asked, &reply.url, reply.response.headers())?;
        }
    }
}

fn cancelling(begin: &Call, url: Url) -> Call {
    Call::new(Method::DELETE, url, begin.scopes.clone(), begin.asked.clone())
}

/// An upload that was begun. Whoever stops waiting for it leaves none behind.
struct Upload<'a> {
    registry: &'a Registry,
    cancel: Option<Call>,
    /// Until this and its clones are dropped the upload is open.
    open: TaskTrackerToken,
}

impl Upload<'_> {
    fn committed(mut self) {
        self.cancel = None;
    }

    async fn give_up(mut self) {
        if let Some(call) = self.cancel.take() {
            self.registry.cancel(call).await;
        }
    }
}

impl Drop for Upload<'_> {
    fn drop(&mut self) {
        if let (Some(call), Ok(runtime)) = (self.cancel.take(), Handle::try_current()) {
            let (registry, open) = (self.registry.clone(), self.open.clone());
            runtime.spawn(async move {
                registry.cancel(call).await;
                drop(open);
            });
        }
    }
}

type Failure = Arc<Mutex<Option<io::Error>>>;

fn failed(failure: &Failure) -> Option<io::Error> {
    failure.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// `body`, held to `size` bytes; its error is put into `failure`, and the connection is cut.
fn exactly<S>(
    body: S,
    size: u64,
    watch: Arc<Watch>,
    failure: Failure,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static
where
    S: Stream<Item = io::Result<Bytes>> + Send + 'static,
{
    let start = (Box::pin(body), 0_u64, None::<Bytes>);
    let items = stream::try_unfold(start, move |(mut body, mut seen, mut held)| {
        let watch = watch.clone();
        async move {
            loop {
                watch.set(Stage::Reading);
                match body.next().await.transpose()? {
                    Some(chunk) if chunk.is_empty() => {}
                    Some(chunk) => {
                        seen += chunk.len() as u64;
                        if seen > size {
                            return Err(wrong_length(size, "more"));
                        }
                        if let Some(ready) = held.replace(chunk) {
                            watch.set(Stage::Sending(Instant::now()));
                            return Ok(Some((ready, (body, seen, held))));
                        }
                    }
                    None if seen < size => return Err(wrong_length(size, &seen.to_string())),
                    None => {
                        watch.set(Stage::Sent(Instant::now()));
                        return Ok(held.take().map(|last| (last, (body, seen, None))));
                    }
                }
            }
        }
    });
    items.map(move |item| {
        item.map_err(|error| {
            let told = io::Error::new(error.kind(), error.to_string());
            *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            told
        })
    })
}

fn wrong_length(size: u64, found: &str) -> io::Error {
    let problem = format!("the content to push should have {size} bytes and has {found}");
    io::Error::new(io::ErrorKind::InvalidData, problem)
}
