//! One upload: in one request, or in pieces; going on where it broke.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, RANGE};
use reqwest::{Body, Method, StatusCode};
use url::Url;

use super::auth::Scopes;
use super::client::{Call, Registry, Reply};
use super::error::{Asked, RegistryError};
use super::feed::{Feed, Source};
use super::gate::Place;
use super::retry::{Retry, Stage, Watch};
use super::uploads::Begun;
use crate::digest::Digest;
use crate::reference::Host;

/// So much of what passes once is held until the registry has it: no less than ECR takes.
pub(super) const PASSING_PIECE: u64 = 8 << 20;
/// No more of it is held: where larger pieces are wanted, it goes in one request.
const LARGEST_HELD: u64 = 64 << 20;
/// The first size that is tried where one request was too large. Proxies are known that take 100 MB.
const FIRST_PIECE: u64 = 64 << 20;
/// A piece is never smaller.
const SMALLEST_PIECE: u64 = 64 << 10;
/// ECR refuses smaller pieces, and does not say so beforehand.
const ECR_SMALLEST_PIECE: u64 = 5 << 20;
/// So often an upload that the registry forgot is begun anew without having come further.
const FORGOTTEN_LIMIT: u32 = 3;

/// What a registry was found to take in one request: uploads begin with it. 0: anything.
#[derive(Default)]
pub(super) struct LargestPiece(AtomicU64);

impl LargestPiece {
    fn get(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|piece| *piece > 0)
    }

    fn learn(&self, piece: u64) {
        self.0.store(piece, Ordering::Relaxed);
    }
}

/// A blob on its way up.
pub(super) struct Upload<'a> {
    registry: &'a Registry,
    repository: &'a str,
    digest: &'a Digest,
    size: u64,
    feed: Feed,
    /// Makes repeatable content anew.
    open: &'a (dyn Fn() -> Option<Source> + Sync),
    begin: Call,
    retry: Retry,
    /// So much goes into one request; none: everything.
    pub(super) piece: Option<u64>,
    smallest_piece: u64,
    /// Whether it may go in pieces at all.
    takes_pieces: bool,
    /// Larger pieces broke.
    is_reduced: bool,
    /// So many bytes the registry has.
    at: u64,
    /// So many it had at most: to come so far again, after it forgot them, is no progress.
    furthest: u64,
    /// So many requests broke while bytes were sent, since it came further.
    cuts: u32,
    /// So often it was begun anew since it came further.
    restarts: u32,
    /// So often the registry knew nothing of the upload any more, since it came further.
    forgotten: u32,
    /// All bytes were sent: the registry may have the blob although it could not say so.
    was_sent: bool,
}

/// What one request brings.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// All bytes, and the digest.
    Whole,
    /// Some bytes.
    Piece(Range<u64>),
    /// The digest alone: the bytes are there.
    Close,
}

/// How an upload that was begun goes on.
enum Next {
    /// With a further request.
    GoOn,
    /// From the start.
    BeginAnew,
    /// The blob is there.
    Done,
}

impl<'a> Upload<'a> {
    pub(super) fn new(
        registry: &'a Registry,
        repository: &'a str,
        digest: &'a Digest,
        size: u64,
        feed: Feed,
        open: &'a (dyn Fn() -> Option<Source> + Sync),
    ) -> Result<Self, RegistryError> {
        let asked = Asked::pushing_blob(registry.host(), repository, digest);
        let begin = registry.upload_call(repository, Scopes::push(&registry.remote(repository)), asked)?;
        Ok(Self {
            registry,
            repository,
            digest,
            size,
            feed,
            open,
            begin,
            retry: registry.retry(),
            piece: None,
            smallest_piece: floor(registry.host()),
            takes_pieces: true,
            is_reduced: false,
            at: 0,
            furthest: 0,
            cuts: 0,
            restarts: 0,
            forgotten: 0,
            was_sent: false,
        })
    }

    /// Uploads the blob.
    pub(super) async fn run(mut self) -> Result<(), RegistryError> {
        let result = self.upload().await;
        self.feed.close();
        result
    }

    async fn upload(&mut self) -> Result<(), RegistryError> {
        if self.size == 0 {
            // No connection asks for the bytes of an empty body, and its end may still be an error.
            self.feed.drain((self.open)()).await;
            self.check_feed()?;
        }
        loop {
            let Some((mut url, mut begun)) = self.begin().await? else { return Ok(()) };
            let end = loop {
                match self.step(&mut url).await {
                    Ok(Next::GoOn) => begun.moved(url.clone()),
                    end => break end,
                }
            };
            match end {
                Ok(Next::Done) => {
                    begun.committed();
                    return Ok(());
                }
                Ok(_) => {
                    self.restarts += 1;
                    begun.give_up().await;
                }
                Err(error) => {
                    begun.moved(url);
                    begun.give_up().await;
                    return Err(error);
                }
            }
        }
    }

    /// Begins the upload: none, if the registry says at once that it has the blob.
    async fn begin(&mut self) -> Result<Option<(Url, Begun)>, RegistryError> {
        if self.feed.first() > 0 {
            return Err(self.begin.asked.protocol(format!(
                "{} forgot an upload that has come to byte {} of a stream, which cannot be sent again",
                self.registry.host(),
                self.feed.first()
            )));
        }
        self.at = 0;
        let reply = self.registry.send(&self.begin, &mut self.retry).await?;
        match reply.status() {
            StatusCode::ACCEPTED => {}
            // Some registries have the blob already and say so at once.
            StatusCode::CREATED => return Ok(None),
            _ => return Err(self.registry.refused(&self.begin, reply).await),
        }
        let headers = reply.response.headers();
        let url = self.registry.location(&self.begin.asked, &reply.url, headers)?;
        let told =
            headers.get("oci-chunk-min-length").and_then(|text| text.to_str().ok()?.trim().parse().ok());
        self.smallest_piece = self.smallest_piece.max(told.unwrap_or(0));
        if self.feed.passes_once() && self.smallest_piece.min(self.size) > LARGEST_HELD {
            // It cannot be sent again then.
            self.takes_pieces = false;
            self.feed.keep_nothing();
        }
        let largest = self.registry.largest_piece().get().filter(|largest| *largest < self.size);
        let piece = [self.piece, largest].into_iter().flatten().min();
        self.piece = piece.filter(|_| self.takes_pieces).map(|piece| piece.max(self.smallest_piece));
        let begun = Begun::new(self.registry, &self.begin, url.clone());
        Ok(Some((url, begun)))
    }

    /// Sends one request, and finds out what comes after it.
    async fn step(&mut self, url: &mut Url) -> Result<Next, RegistryError> {
        let step = match self.piece {
            None if self.at == 0 => Step::Whole,
            _ if self.at == self.size => Step::Close,
            piece => {
                let length = piece.unwrap_or(u64::MAX).min(self.size - self.at);
                Step::Piece(self.at..self.at + length)
            }
        };
        let watch = Arc::new(Watch::new());
        let place = self.registry.place().await;
        self.retry.begin();
        let result = self.send(&step, url, place, &watch).await;
        self.check_feed()?;
        let has_sent = watch.stage() != Stage::Waiting;
        if has_sent {
            // The bytes of a large blob take longer to send than patience for a failure lasts.
            self.retry.begin();
        }
        self.was_sent |= match &step {
            Step::Whole | Step::Close => matches!(watch.stage(), Stage::Sent(_)) || self.at == self.size,
            Step::Piece(_) => false,
        };
        let (error, status) = match (result, &step) {
            (Ok(reply), Step::Whole | Step::Close) if reply.status().is_success() => return Ok(Next::Done),
            (Ok(reply), Step::Piece(range)) if reply.status().is_success() => {
                if self.took(range, &reply, url) {
                    return Ok(Next::GoOn);
                }
                drop(reply);
                return self.ask_what_it_took(url).await;
            }
            (Ok(reply), _) => {
                let (status, call) = (reply.status(), self.call(Method::PUT, url.clone()));
                (self.registry.refused(&call, reply).await, Some(status))
            }
            (Err(error), _) => (error, None),
        };
        let length = match &step {
            Step::Whole => self.size,
            Step::Piece(range) => range.end - range.start,
            Step::Close => 0,
        };
        match status {
            Some(StatusCode::PAYLOAD_TOO_LARGE) => {
                let Some(smaller) = self.smaller(length) else { return Err(error) };
                tracing::debug!(%error, smaller, "sending smaller pieces");
                self.piece = Some(smaller);
                self.registry.largest_piece().learn(smaller);
            }
            Some(StatusCode::NOT_FOUND | StatusCode::RANGE_NOT_SATISFIABLE) => {
                self.forgotten += 1;
                if self.forgotten > FORGOTTEN_LIMIT {
                    return Err(error);
                }
                // The registry may have taken more than it had said when the connection broke.
                if status == Some(StatusCode::NOT_FOUND) || self.forgotten > 1 {
                    return Ok(Next::BeginAnew);
                }
            }
            // Pieces are not taken at all: it goes in one request, and what passes cannot go a second time.
            Some(StatusCode::BAD_REQUEST | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED)
                if self.takes_pieces && matches!(&step, Step::Piece(range) if range.start == 0) =>
            {
                self.takes_pieces = false;
                self.feed.keep_nothing();
                return Ok(Next::BeginAnew);
            }
            _ => {
                self.cuts += u32::from(has_sent && error.is_cut());
                self.retry.after(error).await?;
                if self.cuts > 1
                    && let Some(smaller) = self.smaller(length)
                {
                    self.piece = Some(smaller);
                    self.is_reduced = true;
                }
            }
        }
        self.ask(url).await
    }

    fn check_feed(&self) -> Result<(), RegistryError> {
        match self.feed.failure() {
            Some(source) => Err(RegistryError::Body { asked: self.begin.asked.clone(), source }),
            None => Ok(()),
        }
    }

    fn call(&self, method: Method, url: Url) -> Call {
        Call::new(method, url, self.begin.scopes.clone(), self.begin.asked.clone())
    }

    async fn send(
        &self,
        step: &Step,
        url: &Url,
        place: Place,
        watch: &Arc<Watch>,
    ) -> Result<Reply, RegistryError> {
        let (method, range) = match step {
            Step::Whole => (Method::PUT, 0..self.size),
            Step::Piece(range) => (Method::PATCH, range.clone()),
            Step::Close => (Method::PUT, self.size..self.size),
        };
        let mut url = url.clone();
        if method == Method::PUT {
            url.query_pairs_mut().append_pair("digest", self.digest.as_str());
        }
        let mut call = self
            .call(method, url)
            .header(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"))
            .header(CONTENT_LENGTH, HeaderValue::from(range.end - range.start));
        if let Step::Piece(range) = step
            && let Ok(text) = HeaderValue::try_from(format!("{}-{}", range.start, range.end - 1))
        {
            // Without a unit, as the distribution specification has it.
            call = call.header(CONTENT_RANGE, text);
        }
        if range.is_empty() {
            return self.registry.attempt(&call, place, || Some(Body::from(""))).await;
        }
        call.watch = Some(watch.clone());
        let body =
            || Some(Body::wrap_stream(self.feed.piece(range.start, range.end, watch.clone(), &self.open)));
        self.registry.attempt(&call, place, body).await
    }

    /// The registry has a piece, or as much of it as it says: whether it has any.
    fn took(&mut self, range: &Range<u64>, reply: &Reply, url: &mut Url) -> bool {
        let told = received(reply.response.headers());
        self.follow(reply, url);
        if told.is_some_and(|told| told <= range.start) {
            return false;
        }
        if self.came_to(told.filter(|told| range.contains(told)).unwrap_or(range.end)) {
            self.cuts = 0;
        }
        if let Some(piece) = self.piece.filter(|_| self.is_reduced) {
            self.registry.largest_piece().learn(piece);
        }
        true
    }

    /// The registry took a piece, and says that it has none of it, or counts in a way of its own.
    async fn ask_what_it_took(&mut self, url: &mut Url) -> Result<Next, RegistryError> {
        self.forgotten += 1;
        if self.forgotten > FORGOTTEN_LIMIT {
            let problem = format!("{} takes pieces, and has none of them", self.registry.host());
            return Err(self.begin.asked.protocol(problem));
        }
        let before = self.at;
        let next = self.ask(url).await?;
        if self.at > before {
            // It has.
            self.forgotten = self.forgotten.saturating_sub(1);
        }
        Ok(next)
    }

    /// The registry has so many bytes: whether that is a success. What it has once more is one a few times.
    fn came_to(&mut self, at: u64) -> bool {
        if at > self.furthest {
            (self.furthest, self.restarts, self.forgotten) = (at, 0, 0);
        }
        let is_success = at > self.at && self.restarts <= FORGOTTEN_LIMIT;
        self.at = at;
        self.feed.release(at);
        if is_success {
            self.retry.succeeded();
        }
        is_success
    }

    /// An upload goes on at the newest Location only.
    fn follow(&self, reply: &Reply, url: &mut Url) {
        if let Ok(newest) = self.registry.location(&self.begin.asked, &reply.url, reply.response.headers()) {
            *url = newest;
        }
    }

    /// Asks the registry how far it got.
    async fn ask(&mut self, url: &mut Url) -> Result<Next, RegistryError> {
        let call = self.call(Method::GET, url.clone());
        let reply = self.registry.send(&call, &mut self.retry).await?;
        let knows = reply.status().is_success();
        let told = received(reply.response.headers()).filter(|told| knows && *told <= self.size);
        let newest = self.registry.location(&self.begin.asked, &reply.url, reply.response.headers());
        drop(reply);
        if !knows
            && self.was_sent
            && self.registry.has_blob(self.repository, self.digest).await.unwrap_or(false)
        {
            // It was taken; only the answer was lost.
            return Ok(Next::Done);
        }
        let Some(told) = told else {
            return Ok(Next::BeginAnew);
        };
        if told < self.feed.first() {
            // It lost what it had said it has; the stream cannot go back.
            return Ok(Next::BeginAnew);
        }
        if let Ok(newest) = newest {
            *url = newest;
        }
        self.came_to(told);
        Ok(Next::GoOn)
    }

    /// A smaller piece than `length`, if the registry takes one.
    fn smaller(&self, length: u64) -> Option<u64> {
        let half = (length / 2).min(FIRST_PIECE).max(self.smallest_piece);
        (self.takes_pieces && half < length).then_some(half)
    }
}

/// The smallest piece that a host takes.
fn floor(host: &Host) -> u64 {
    let host = host.as_str();
    // ECR: of an account, the same by IPv6, and the public one by either.
    let is_private = host.contains(".dkr.ecr.") && host.contains(".amazonaws.com");
    let is_dual_stack = host.contains(".dkr-ecr.") && host.ends_with(".on.aws");
    let is_public = matches!(host, "public.ecr.aws" | "ecr-public.aws.com");
    if is_private || is_dual_stack || is_public { ECR_SMALLEST_PIECE } else { SMALLEST_PIECE }
}

/// How many bytes of an upload have arrived: `0-99` are 100, and `0-0` is none, as registries have it.
fn received(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(RANGE)?.to_str().ok()?.trim();
    let (first, last) = text.strip_prefix("bytes=").unwrap_or(text).split_once('-')?;
    let last: u64 = last.trim().parse().ok()?;
    (first.trim() == "0").then(|| if last == 0 { 0 } else { last.saturating_add(1) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ecr_is_known_by_all_of_its_names() {
        let floor = |host: &str| floor(&host.parse().unwrap());
        for host in [
            "123456789012.dkr.ecr.eu-central-1.amazonaws.com",
            "123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn",
            "123456789012.dkr-ecr.eu-central-1.on.aws",
            "public.ecr.aws",
            "ecr-public.aws.com",
        ] {
            assert_eq!(floor(host), 5 << 20, "{host}");
        }
        for host in ["registry.example", "dkr.ecr.example", "lambda.on.aws", "127.0.0.1:5000"] {
            assert_eq!(floor(host), 64 << 10, "{host}");
        }
    }
}
