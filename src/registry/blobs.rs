//! Blobs, up and down, as streams: no blob is ever held.

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, RANGE};
use reqwest::{Body, Method, StatusCode};
use url::Url;

use super::auth::Scopes;
use super::client::{Call, Registry, Reply, Retry, Watch, authority, silent};
use super::error::{self, Asked, RegistryError};
use crate::digest::Digest;

impl Registry {
    /// Whether the repository has the blob.
    pub async fn has_blob(&self, repository: &str, digest: &Digest) -> Result<bool, RegistryError> {
        let call = self.blob_call(Method::HEAD, repository, digest)?;
        let reply = self.send(&call, &mut self.retry()).await?;
        match reply.status() {
            status if status.is_success() => Ok(true),
            StatusCode::NOT_FOUND if reply.is_own => Ok(false),
            // The registry has it and sent us on; its storage's link may be good for GET alone.
            _ if !reply.is_own => Ok(true),
            _ => Err(self.refused(&call, reply).await),
        }
    }

    /// The size that the repository tells of a blob, or none where it does not have it or does not tell.
    pub async fn blob_size(&self, repository: &str, digest: &Digest) -> Result<Option<u64>, RegistryError> {
        let call = self.blob_call(Method::HEAD, repository, digest)?;
        let reply = self.send(&call, &mut self.retry()).await?;
        match reply.status() {
            StatusCode::OK => Ok(content_length(reply.response.headers())),
            StatusCode::NOT_FOUND => Ok(None),
            _ if !reply.is_own => Ok(None),
            _ => Err(self.refused(&call, reply).await),
        }
    }

    /// The blob's bytes, `size` of them, as the registry sends them: the caller hashes.
    ///
    /// A cut connection is taken up again where it stopped. A blob that is longer or shorter ends the stream with
    /// [`RegistryError::DigestMismatch`].
    pub fn blob(
        &self,
        repository: &str,
        digest: &Digest,
        size: u64,
    ) -> impl Stream<Item = Result<Bytes, RegistryError>> + Send + use<> {
        self.blob_range(repository, digest, size, 0..size)
    }

    /// The bytes `range` of a blob of `size` bytes, as [`Registry::blob`] gives all of them.
    pub fn blob_range(
        &self,
        repository: &str,
        digest: &Digest,
        size: u64,
        range: Range<u64>,
    ) -> impl Stream<Item = Result<Bytes, RegistryError>> + Send + use<> {
        let reader = Reader {
            registry: self.clone(),
            repository: repository.to_owned(),
            digest: digest.clone(),
            size,
            next: range.start,
            end: range.end.min(size),
            ranges_work: true,
            retry: self.retry(),
            source: None,
        };
        stream::try_unfold(reader, |mut reader| async move {
            Ok(reader.chunk().await?.map(|chunk| (chunk, reader)))
        })
    }

    /// Asks the registry to take a blob from another of its repositories: whether it did.
    pub async fn mount_blob(
        &self,
        repository: &str,
        digest: &Digest,
        from_repository: &str,
    ) -> Result<bool, RegistryError> {
        let mut url = self.url(repository, &["blobs", "uploads", ""])?;
        url.query_pairs_mut().append_pair("mount", digest.as_str()).append_pair("from", from_repository);
        let asked = Asked::pushing_blob(self.host(), repository, digest);
        let call = Call::new(Method::POST, url, Scopes::mount(repository, from_repository), asked)
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
                    self.cancel(&call, upload).await;
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
            Scopes::push(repository),
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
            let upload = self.location(&begin.asked, &reply.url, reply.response.headers())?;
            let error = match self.put_blob(&begin, &upload, digest, size, &body).await {
                Ok(()) => {
                    retry.succeeded();
                    return Ok(());
                }
                Err(error) => error,
            };
            self.cancel(&begin, upload).await;
            retry.after(error).await?;
        }
    }

    async fn put_blob<F, S>(
        &self,
        begin: &Call,
        upload: &Url,
        digest: &Digest,
        size: u64,
        body: &F,
    ) -> Result<(), RegistryError>
    where
        F: Fn() -> S,
        S: Stream<Item = io::Result<Bytes>> + Send + 'static,
    {
        let mut url = upload.clone();
        url.query_pairs_mut().append_pair("digest", digest.as_str());
        let watch = Arc::new(Watch::new());
        let failure = Arc::new(Mutex::new(None));
        let mut call = Call::new(Method::PUT, url, begin.scopes.clone(), begin.asked.clone())
            .header(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"))
            .header(CONTENT_LENGTH, HeaderValue::from(size));
        call.watch = Some(watch.clone());
        let result = self
            .attempt(&call, || Some(Body::wrap_stream(exactly(body(), size, watch.clone(), failure.clone()))))
            .await;
        let failure = failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(source) = failure {
            return Err(RegistryError::Body { asked: begin.asked.clone(), source });
        }
        let reply = result?;
        if reply.status().is_success() { Ok(()) } else { Err(self.refused(&call, reply).await) }
    }

    /// Ends an upload that will not be committed. Registries sweep what is left, so a failure is of no account.
    async fn cancel(&self, begin: &Call, upload: Url) {
        let call = Call::new(Method::DELETE, upload, begin.scopes.clone(), begin.asked.clone());
        let limit = self.patience().connect;
        if let Ok(Err(error)) = tokio::time::timeout(limit, self.attempt(&call, || None)).await {
            tracing::debug!(%error, "an upload was left behind");
        }
    }

    fn blob_call(&self, method: Method, repository: &str, digest: &Digest) -> Result<Call, RegistryError> {
        let url = self.url(repository, &["blobs", digest.as_str()])?;
        let asked = Asked::reading_blob(self.host(), repository, digest);
        Ok(Call::new(method, url, Scopes::pull(repository), asked))
    }
}

/// A blob, or a part of one, on its way down.
struct Reader {
    registry: Registry,
    repository: String,
    digest: Digest,
    size: u64,
    /// The offset of the byte that is given next.
    next: u64,
    /// One past the last byte that is given.
    end: u64,
    ranges_work: bool,
    retry: Retry,
    source: Option<Source>,
}

struct Source {
    call: Call,
    url: Url,
    body: Pin<Box<dyn Stream<Item = reqwest::Result<Bytes>> + Send>>,
    /// Bytes to pass over: the registry began anew.
    skip: u64,
    /// Whether the answer goes on to the blob's end.
    to_end: bool,
}

impl Reader {
    async fn chunk(&mut self) -> Result<Option<Bytes>, RegistryError> {
        loop {
            let Some(source) = &mut self.source else {
                if self.next == self.end && self.end > 0 {
                    return Ok(None);
                }
                self.source = Some(self.open().await?);
                continue;
            };
            let idle = self.registry.patience().idle;
            let error = match tokio::time::timeout(idle, source.body.next()).await {
                Ok(Some(Ok(chunk))) => {
                    if let Some(chunk) = self.take(chunk)? {
                        return Ok(Some(chunk));
                    }
                    continue;
                }
                Ok(None) if self.next < self.end || source.skip > 0 => {
                    let found = self.next - source.skip.min(self.next);
                    return Err(self.wrong_size(&format!("{found} bytes")));
                }
                Ok(None) => return Ok(None),
                // Cut behind the last byte: the hash tells whether it is all.
                _ if self.next == self.end => return Ok(None),
                Ok(Some(Err(error))) => {
                    let url = &source.url;
                    error::unreachable(&source.call.asked, &authority(url), url.scheme() == "https", error)
                }
                Err(_) => silent(&source.call.asked, &source.url, idle),
            };
            self.source = None;
            self.retry.after(error).await?;
        }
    }

    /// What of a chunk is given on.
    fn take(&mut self, mut chunk: Bytes) -> Result<Option<Bytes>, RegistryError> {
        let Some(source) = &mut self.source else { return Ok(None) };
        self.retry.succeeded();
        let length = chunk.len() as u64;
        let skipped = source.skip.min(length);
        source.skip -= skipped;
        // No more than the chunk's length, which is a usize.
        let _ = chunk.split_to(usize::try_from(skipped).unwrap_or(chunk.len()));
        let left = self.end - self.next;
        if chunk.len() as u64 > left {
            if self.end == self.size || source.to_end && self.next + chunk.len() as u64 > self.size {
                return Err(self.wrong_size("more"));
            }
            chunk.truncate(usize::try_from(left).unwrap_or(chunk.len()));
            self.source = None;
        }
        self.next += chunk.len() as u64;
        Ok((!chunk.is_empty()).then_some(chunk))
    }

    async fn open(&mut self) -> Result<Source, RegistryError> {
        loop {
            let mut call = self.registry.blob_call(Method::GET, &self.repository, &self.digest)?;
            let is_part = self.ranges_work && self.end > 0 && (self.next > 0 || self.end < self.size);
            if is_part {
                let range = format!("bytes={}-{}", self.next, self.end - 1);
                let range =
                    HeaderValue::try_from(range).unwrap_or_else(|_| HeaderValue::from_static("bytes=0-"));
                call = call.header(RANGE, range);
            }
            let reply = self.registry.send(&call, &mut self.retry).await?;
            match reply.status() {
                StatusCode::OK => {
                    if let Some(length) = content_length(reply.response.headers())
                        && length != self.size
                    {
                        return Err(self.wrong_size(&format!("{length} bytes")));
                    }
                    return Ok(source(call, reply, self.next, true));
                }
                StatusCode::PARTIAL_CONTENT if is_part => {
                    let (start, total) = content_range(reply.response.headers()).unwrap_or((u64::MAX, None));
                    if let Some(total) = total.filter(|total| *total != self.size) {
                        return Err(self.wrong_size(&format!("{total} bytes")));
                    }
                    if start == self.next {
                        return Ok(source(call, reply, 0, false));
                    }
                    self.ranges_work = false;
                }
                StatusCode::RANGE_NOT_SATISFIABLE if is_part => self.ranges_work = false,
                _ => return Err(self.registry.refused(&call, reply).await),
            }
        }
    }

    fn wrong_size(&self, found: &str) -> RegistryError {
        RegistryError::DigestMismatch {
            asked: Asked::reading_blob(self.registry.host(), &self.repository, &self.digest),
            problem: format!("the manifest says {} bytes, the registry sent {found}", self.size),
        }
    }
}

fn source(call: Call, reply: Reply, skip: u64, to_end: bool) -> Source {
    Source { call, url: reply.url, body: Box::pin(reply.response.bytes_stream()), skip, to_end }
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

/// The first byte and, where told, the whole's size (RFC 9110, section 14.4).
fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?.trim();
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.trim().parse().ok()?, total.trim().parse().ok()))
}

/// `body`, held to `size` bytes; its error is put into `failure`, and the connection is cut.
fn exactly<S>(
    body: S,
    size: u64,
    watch: Arc<Watch>,
    failure: Arc<Mutex<Option<io::Error>>>,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static
where
    S: Stream<Item = io::Result<Bytes>> + Send + 'static,
{
    let start = (Box::pin(body), 0_u64, None::<Bytes>);
    let items = stream::try_unfold(start, move |(mut body, mut seen, mut held)| {
        let watch = watch.clone();
        async move {
            loop {
                watch.moved(false);
                match body.next().await.transpose()? {
                    Some(chunk) if chunk.is_empty() => {}
                    Some(chunk) => {
                        seen += chunk.len() as u64;
                        if seen > size {
                            return Err(wrong_length(size, "more"));
                        }
                        if let Some(ready) = held.replace(chunk) {
                            return Ok(Some((ready, (body, seen, held))));
                        }
                    }
                    None if seen < size => return Err(wrong_length(size, &seen.to_string())),
                    None => {
                        watch.moved(true);
                        return Ok(held.take().map(|last| (last, (body, seen, None))));
                    }
                }
            }
        }
    });
    items.map(move |item| {
        item.map_err(|error| {
            let told = io::Error::new(error.kind(), error.to_string());
            *failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(error);
            told
        })
    })
}

fn wrong_length(size: u64, found: &str) -> io::Error {
    let problem = format!("the content to push should have {size} bytes and has {found}");
    io::Error::new(io::ErrorKind::InvalidData, problem)
}
