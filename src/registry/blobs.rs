//! Blobs on their way down, as streams: no blob is ever held.

use std::ops::Range;
use std::pin::Pin;
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use futures::{Stream, StreamExt as _, stream};
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderMap, HeaderValue, RANGE, TRANSFER_ENCODING};
use reqwest::{Method, StatusCode};
use tokio::time::Instant;
use url::Url;

use super::auth::Scopes;
use super::client::{Call, Registry, Reply, authority, silent};
use super::error::{self, Asked, RegistryError};
use super::gate::Place;
use super::retry::{Patience, Retry};
use crate::digest::Digest;

/// So often a registry is asked for another link where its storage refuses the one that it gave.
const LINKS_REFUSED_LIMIT: u32 = 2;

impl Registry {
    /// Whether the repository has the blob.
    pub async fn has_blob(&self, repository: &str, digest: &Digest) -> Result<bool, RegistryError> {
        let call = self.blob_call(Method::HEAD, repository, digest)?;
        let reply = self.send(&call, &mut self.retry()).await?;
        match reply.status() {
            status if status.is_success() => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
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
            next: range.start.min(size),
            end: range.end.min(size),
            ranges_work: true,
            links_refused: 0,
            gained: 0,
            retry: self.retry(),
            source: None,
        };
        stream::try_unfold(reader, |mut reader| async move {
            Ok(reader.chunk().await?.map(|chunk| (chunk, reader)))
        })
    }

    fn blob_call(&self, method: Method, repository: &str, digest: &Digest) -> Result<Call, RegistryError> {
        let url = self.url(repository, &["blobs", digest.as_str()])?;
        let asked = Asked::reading_blob(self.host(), repository, digest);
        Ok(Call::new(method, url, Scopes::pull(&self.remote(repository)), asked))
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
    /// So many links that the registry gave were refused in a row.
    links_refused: u32,
    /// So many bytes came since the last success.
    gained: u64,
    retry: Retry,
    source: Option<Source>,
}

struct Source {
    /// Given back with the body.
    _place: Option<Place>,
    call: Call,
    url: Url,
    body: Pin<Box<dyn Stream<Item = reqwest::Result<Bytes>> + Send>>,
    /// Bytes to pass over: the registry began anew.
    skip: u64,
    /// Whether the answer goes on to the blob's end.
    to_end: bool,
    /// Whether the answer's end is told apart from a connection that was cut.
    tells_its_end: bool,
    has_given: bool,
    /// For so long the last bytes that make no success yet were waited for.
    waited: Duration,
}

impl Reader {
    async fn chunk(&mut self) -> Result<Option<Bytes>, RegistryError> {
        loop {
            let Some(source) = &mut self.source else {
                if self.next >= self.end && self.size > 0 {
                    return Ok(None);
                }
                self.source = Some(self.open().await?);
                continue;
            };
            // The consumer may have paused: what it did is no failure of the registry's.
            self.retry.begin();
            let patience = *self.registry.patience();
            let begun = Instant::now();
            let next = tokio::time::timeout(patience.idle, source.body.next()).await;
            // What drips is cut where it would be if nothing came.
            source.waited += begun.elapsed();
            let error = match next {
                Ok(Some(Ok(chunk))) => {
                    self.gained += chunk.len() as u64;
                    let has_stopped = source.waited >= patience.idle && self.gained < patience.trickle;
                    if has_stopped && self.next + (chunk.len() as u64) < self.end {
                        trickling(&source.call.asked, &source.url, &patience)
                    } else if let Some(chunk) = self.take(chunk)? {
                        return Ok(Some(chunk));
                    } else {
                        continue;
                    }
                }
                // A registry may give less of a range than was asked for (RFC 9110, section 15.3.7), and an answer whose
                // length was not told may have been cut.
                Ok(None)
                    if self.next < self.end
                        && !(source.to_end && source.tells_its_end)
                        && source.has_given =>
                {
                    self.source = None;
                    continue;
                }
                Ok(None) if self.next < self.end || source.skip > 0 => {
                    let found = self.next - source.skip.min(self.next);
                    return Err(self.wrong_size(&format!("{found} bytes")));
                }
                Ok(None) => return Ok(None),
                // Cut behind the last byte: the hash tells whether it is all.
                _ if self.next == self.end => return Ok(None),
                Ok(Some(Err(error))) => error::unreachable(&source.call.asked, &source.url, error),
                Err(_) => silent(&source.call.asked, &source.url),
            };
            self.source = None;
            self.retry.after(error).await?;
        }
    }

    /// What of a chunk is given on.
    fn take(&mut self, mut chunk: Bytes) -> Result<Option<Bytes>, RegistryError> {
        let Some(source) = &mut self.source else { return Ok(None) };
        let skipped = usize::try_from(source.skip).map_or(chunk.len(), |skip| skip.min(chunk.len()));
        source.skip -= skipped as u64;
        chunk.advance(skipped);
        if chunk.is_empty() {
            return Ok(None);
        }
        let left = self.end - self.next;
        if chunk.len() as u64 > left {
            // A registry that began anew goes on past a range's end; past the blob's end none may go.
            let reaches = self.next + chunk.len() as u64;
            if reaches > self.size || !source.to_end {
                return Err(self.wrong_size("more"));
            }
            chunk.truncate(usize::try_from(left).unwrap_or(chunk.len()));
            self.source = None;
        } else {
            source.has_given = true;
        }
        self.next += chunk.len() as u64;
        self.links_refused = 0;
        // One that gives a few bytes a try is not waited for without end.
        if self.gained >= self.registry.patience().trickle {
            self.gained = 0;
            if let Some(source) = &mut self.source {
                source.waited = Duration::ZERO;
            }
            self.retry.succeeded();
        }
        Ok((!chunk.is_empty()).then_some(chunk))
    }

    async fn open(&mut self) -> Result<Source, RegistryError> {
        loop {
            let mut call = self.registry.blob_call(Method::GET, &self.repository, &self.digest)?;
            let is_part = self.ranges_work && (self.next > 0 || self.end < self.size);
            if is_part {
                let range = format!("bytes={}-{}", self.next, self.end - 1);
                let range =
                    HeaderValue::try_from(range).unwrap_or_else(|_| HeaderValue::from_static("bytes=0-"));
                call = call.header(RANGE, range);
            }
            let reply = self.registry.send(&call, &mut self.retry).await?;
            match reply.status() {
                StatusCode::OK => {
                    if is_part {
                        self.registry.take_note_of_lack_of_ranges();
                    }
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
                // A signed link that ended before it was used: the registry gives another.
                StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN
                    if !reply.is_own && self.links_refused < LINKS_REFUSED_LIMIT =>
                {
                    self.links_refused += 1;
                }
                _ => return Err(self.registry.refused(&call, reply).await),
            }
        }
    }

    fn wrong_size(&self, found: &str) -> RegistryError {
        let asked = Asked::reading_blob(self.registry.host(), &self.repository, &self.digest);
        asked.mismatch(format!("the manifest says {} bytes, the registry sent {found}", self.size))
    }
}

fn source(call: Call, mut reply: Reply, skip: u64, to_end: bool) -> Source {
    let headers = reply.response.headers();
    Source {
        tells_its_end: headers.contains_key(CONTENT_LENGTH) || headers.contains_key(TRANSFER_ENCODING),
        // The stream of a body is without the rest of its answer.
        _place: reply.response.extensions_mut().remove(),
        call,
        url: reply.url,
        body: Box::pin(reply.response.bytes_stream()),
        skip,
        to_end,
        has_given: false,
        waited: Duration::ZERO,
    }
}

fn trickling(asked: &Asked, url: &Url, patience: &Patience) -> RegistryError {
    let Patience { trickle, idle, .. } = patience;
    asked.unreachable(format!("{} sent less than {trickle} bytes in {} s", authority(url), idle.as_secs()))
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
