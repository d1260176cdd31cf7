//! Requests: how a host is reached, what is tried again and for how long, where a redirect may lead.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, WWW_AUTHENTICATE};
use reqwest::{Body, Client, Method, Response, StatusCode};
use tokio::time::Instant;
use url::Url;

use super::access::{Access, clients, setup};
use super::auth::{Auth, Scopes};
use super::error::{self, Answer, Asked, RegistryError};
use super::gate::{Gate, Place};
use super::retry::{Pacer, Patience, Retry, Traffic, Watch, retry_after};
use super::upload::LargestPiece;
use crate::proxy::Proxy;
use crate::reference::{Endpoint, Host, is_repository};

/// Error bodies and tokens are read up to here.
pub(super) const SMALL_BODY: usize = 64 * 1024;
pub(super) const REDIRECTS: usize = 5;
/// Of so many reads that a registry still allows people are told.
const FEW_READS: u32 = 10;

/// A client of one registry. Clones share connections, tokens and what is known of the host.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
    gate: Gate,
}

struct Inner {
    host: Host,
    base: Url,
    /// Goes in front of every repository.
    path: Option<String>,
    /// For the registry.
    client: Client,
    /// For the hosts that it sends us on to: the same without the client's certificate.
    stranger: Client,
    traffic: Traffic,
    pacer: Pacer,
    auth: Auth,
    proxy: Option<Proxy>,
    has_moved: AtomicBool,
    /// Whether it was asked for a part of a blob and gave all.
    lacks_ranges: AtomicBool,
    /// The repositories that have no referrers API.
    lacks_referrers: Mutex<HashSet<String>>,
    largest_piece: LargestPiece,
    reads_are_short: AtomicBool,
    /// Until when the registry asked to be left alone, when it was given up for that.
    rests_until: Mutex<Option<Instant>>,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Registry").field(&self.inner.host.as_str()).finish()
    }
}

impl Registry {
    /// A client of `host`. Nothing is sent before something is asked for.
    pub fn new(host: Host, access: Access) -> Result<Self, RegistryError> {
        Self::with_traffic(host, access, &Traffic::default())
    }

    /// A client of `host` in a run that treats registries as `traffic` says.
    pub fn with_traffic(host: Host, access: Access, traffic: &Traffic) -> Result<Self, RegistryError> {
        let scheme = if access.insecure { "http" } else { "https" };
        let contacted = access.endpoint.as_ref().map_or(&host, Endpoint::host);
        let base = Url::parse(&format!("{scheme}://{}/v2/", contacted.api_host()))
            .map_err(|error| setup(&host, "its name is no host", error))?;
        let (client, stranger) = clients(&host, &access, traffic.patience())?;
        let path = access.endpoint.as_ref().and_then(Endpoint::path).map(str::to_owned);
        Ok(Self {
            gate: traffic.gate(),
            inner: Arc::new(Inner {
                host,
                base,
                path,
                client,
                stranger,
                traffic: traffic.clone(),
                pacer: traffic.pacer(),
                auth: Auth::new(access.credentials),
                proxy: access.proxy,
                has_moved: AtomicBool::new(false),
                lacks_ranges: AtomicBool::new(false),
                lacks_referrers: Mutex::default(),
                largest_piece: LargestPiece::default(),
                reads_are_short: AtomicBool::new(false),
                rests_until: Mutex::default(),
            }),
        })
    }

    /// The host that this is a client of.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.inner.host
    }

    /// Whether it signs in with credentials for a repository.
    #[must_use]
    pub fn has_credentials(&self, repository: &str) -> bool {
        self.inner.auth.has_credentials(&self.remote(repository))
    }

    /// How many blobs may move at once between it and us.
    #[must_use]
    pub fn blobs_at_once(&self) -> usize {
        self.inner.traffic.blobs_at_once().get()
    }

    /// The same registry for whoever reads there what is written there at the same time, from one repository to another:
    /// both requests have their places from the beginning.
    pub async fn for_copying(&self) -> Self {
        Self { inner: self.inner.clone(), gate: self.gate.pair().await }
    }

    /// Waits until another request may be under way.
    pub(super) async fn place(&self) -> Place {
        self.gate.place().await
    }

    /// Whether only so many requests may be under way at once.
    #[must_use]
    pub fn is_narrow(&self) -> bool {
        self.gate.is_narrow()
    }

    /// For how long the registry still wants to be left alone, if it was given up because it said so.
    #[must_use]
    pub fn rest(&self) -> Option<Duration> {
        let until = *self.inner.rests_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.map(|until| until.saturating_duration_since(Instant::now()))
    }

    pub(super) fn note_rest(&self, rest: Duration) {
        let until = Instant::now().checked_add(rest);
        *self.inner.rests_until.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }

    pub(super) fn patience(&self) -> &Patience {
        self.inner.traffic.patience()
    }

    pub(super) fn traffic(&self) -> &Traffic {
        &self.inner.traffic
    }

    /// What was learned of the size of requests.
    pub(super) fn largest_piece(&self) -> &LargestPiece {
        &self.inner.largest_piece
    }

    /// What the host that is contacted calls a repository.
    pub(super) fn remote<'a>(&self, repository: &'a str) -> Cow<'a, str> {
        match &self.inner.path {
            Some(path) => format!("{path}/{repository}").into(),
            None => repository.into(),
        }
    }

    /// The URL of something in a repository.
    pub(super) fn url(&self, repository: &str, rest: &[&str]) -> Result<Url, RegistryError> {
        let refused = || RegistryError::Setup {
            host: self.inner.host.clone(),
            problem: format!("{:?} is no repository", error::plain(repository)),
            source: None,
        };
        let repository = self.remote(repository);
        if !is_repository(&repository) {
            return Err(refused());
        }
        let mut url = self.inner.base.clone();
        url.path_segments_mut()
            .map_err(|()| refused())?
            .pop_if_empty()
            .extend(repository.split('/'))
            .extend(rest);
        Ok(url)
    }

    pub(super) fn retry(&self) -> Retry {
        Retry::new(self.clone())
    }

    /// The registry was of use: from now on it is worth a longer wait.
    pub(super) fn note_success(&self) {
        self.inner.has_moved.store(true, Ordering::Relaxed);
    }

    pub(super) fn lacks_ranges(&self) -> bool {
        self.inner.lacks_ranges.load(Ordering::Relaxed)
    }

    pub(super) fn take_note_of_lack_of_ranges(&self) {
        self.inner.lacks_ranges.store(true, Ordering::Relaxed);
    }

    pub(super) fn has_moved(&self) -> bool {
        self.inner.has_moved.load(Ordering::Relaxed)
    }

    /// A repository has no referrers API, by its own word: it is not asked again.
    pub(super) fn note_no_referrers(&self, repository: &str) {
        self.lacking_referrers().insert(repository.to_owned());
    }

    pub(super) fn lacks_referrers(&self, repository: &str) -> bool {
        self.lacking_referrers().contains(repository)
    }

    fn lacking_referrers(&self) -> MutexGuard<'_, HashSet<String>> {
        self.inner.lacks_referrers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a URL is one of the registry itself.
    pub(super) fn is_own(&self, url: &Url) -> bool {
        url.origin() == self.inner.base.origin()
    }

    /// Asks until there is an answer that another try would not change, or patience ends.
    pub(super) async fn send(&self, call: &Call, retry: &mut Retry) -> Result<Reply, RegistryError> {
        loop {
            let place = self.place().await;
            retry.begin();
            match self.attempt(call, place, || call.bytes.clone().map(Body::from)).await {
                Ok(reply) => {
                    if reply.status().is_success() || reply.status() == StatusCode::NOT_FOUND {
                        self.note_success();
                    }
                    return Ok(reply);
                }
                Err(error) => retry.after(error).await?,
            }
        }
    }

    /// Asks once, signing in where that is asked for. A status that may pass is an error, any other is an answer, which
    /// keeps the place until its body was read.
    pub(super) async fn attempt<B>(&self, call: &Call, place: Place, body: B) -> Result<Reply, RegistryError>
    where
        B: Fn() -> Option<Body>,
    {
        let auth = &self.inner.auth;
        let used = auth.authorization(self, call).await?;
        let mut reply = self.follow(call, used.as_ref(), &body).await?;
        if reply.status() == StatusCode::UNAUTHORIZED && reply.is_own {
            let challenges = reply.response.headers().get_all(WWW_AUTHENTICATE).iter().cloned().collect();
            let refused = self.refused(call, reply).await;
            let renewed = auth.renew(self, call, challenges, used.as_ref(), refused).await?;
            reply = self.follow(call, Some(&renewed), &body).await?;
            if reply.status() == StatusCode::UNAUTHORIZED && reply.is_own {
                return Err(auth.denied(call, &renewed, &self.refused(call, reply).await));
            }
        }
        if error::is_transient(reply.status()) {
            return Err(self.refused(call, reply).await);
        }
        reply.response.extensions_mut().insert(place);
        Ok(reply)
    }

    /// Sends to the call's URL and to where it leads; the authorization goes to the registry itself alone.
    async fn follow<B>(
        &self,
        call: &Call,
        authorization: Option<&HeaderValue>,
        body: &B,
    ) -> Result<Reply, RegistryError>
    where
        B: Fn() -> Option<Body>,
    {
        let mut url = call.url.clone();
        let mut is_own = true;
        for _ in 0..=REDIRECTS {
            // Once led astray, a request stays a stranger's, even if it is led back.
            is_own = is_own && self.is_own(&url);
            let client = if is_own { &self.inner.client } else { &self.inner.stranger };
            let mut request = client.request(call.method.clone(), url.clone()).headers(call.headers.clone());
            if let Some(authorization) = authorization.filter(|_| is_own) {
                request = request.header(AUTHORIZATION, authorization.clone());
            }
            if let Some(body) = body() {
                request = request.body(body);
            }
            let response = self.exchange(call, &url, request).await?;
            if is_own {
                self.watch_reads(response.headers());
            }
            match self.redirect(call, &url, &response)? {
                Some(next) => url = next,
                None => return Ok(Reply { response, url, is_own }),
            }
        }
        Err(call.asked.protocol(format!("{} redirected more than {REDIRECTS} times", self.inner.host)))
    }

    /// Docker Hub counts reads of manifests, and says how many are left.
    fn watch_reads(&self, headers: &HeaderMap) {
        let text = headers.get("ratelimit-remaining").and_then(|value| value.to_str().ok());
        // `76;w=21600`: so many in a window of so many seconds.
        let left = text.and_then(|text| text.split(';').next()?.trim().parse::<u32>().ok());
        if let Some(left) = left
            && (left <= FEW_READS) != self.inner.reads_are_short.swap(left <= FEW_READS, Ordering::Relaxed)
            && left <= FEW_READS
        {
            tracing::warn!("{} allows {left} more reads of manifests for now", self.inner.host);
        }
    }

    fn redirect(&self, call: &Call, url: &Url, response: &Response) -> Result<Option<Url>, RegistryError> {
        let status = response.status().as_u16();
        let is_read = call.method == Method::GET || call.method == Method::HEAD;
        let leads_on = matches!(status, 307 | 308) || (is_read && matches!(status, 301..=303));
        if !leads_on || !response.headers().contains_key(LOCATION) {
            return Ok(None);
        }
        let next = self.location(&call.asked, url, response.headers());
        match next {
            Ok(next) if call.stays && !self.is_own(&next) => Ok(None),
            Err(_) if call.stays => Ok(None),
            next => next.map(Some),
        }
    }

    /// Where a `Location` leads, seen from `url`.
    pub(super) fn location(
        &self,
        asked: &Asked,
        url: &Url,
        headers: &HeaderMap,
    ) -> Result<Url, RegistryError> {
        let unusable = || asked.protocol(format!("{} sent no usable Location", authority(url)));
        let location = headers.get(LOCATION).and_then(|value| value.to_str().ok()).ok_or_else(unusable)?;
        self.join(url, location).ok_or_else(unusable)
    }

    /// Where a reference leads, seen from `url`.
    pub(super) fn join(&self, url: &Url, reference: &str) -> Option<Url> {
        let mut next = url.join(reference).ok()?;
        if !matches!(next.scheme(), "http" | "https") || !next.has_host() {
            return None;
        }
        let base = &self.inner.base;
        if base.scheme() == "https" && next.scheme() == "http" && next.host() == base.host() {
            // A registry behind a proxy that ends TLS often does not know that it is reached by https.
            next = Url::parse(&next.as_str().replacen("http", "https", 1)).ok()?;
            next.set_port(base.port()).ok()?;
        }
        // What a URL says of users is a credential of someone's; a fragment is not sent.
        let _ = next.set_username("").and_then(|()| next.set_password(None));
        next.set_fragment(None);
        Some(next)
    }

    /// One request and the head of its answer. Waits as long as bytes move.
    pub(super) async fn exchange(
        &self,
        call: &Call,
        url: &Url,
        request: reqwest::RequestBuilder,
    ) -> Result<Response, RegistryError> {
        if url.origin() == self.inner.base.origin() {
            self.inner.pacer.turn().await;
        }
        let start = Instant::now();
        let patience = self.patience();
        let deadline = || match &call.watch {
            Some(watch) => watch.deadline(start, patience),
            None => start + patience.idle,
        };
        let mut answer = std::pin::pin!(request.send());
        loop {
            match tokio::time::timeout_at(deadline(), &mut answer).await {
                Ok(result) => {
                    let proxy = self.inner.proxy.as_ref();
                    return result.map_err(|error| error::unreachable_by(proxy, &call.asked, url, error));
                }
                Err(_) if deadline() > Instant::now() => {}
                Err(_) => return Err(silent(&call.asked, url)),
            }
        }
    }

    /// The client for a URL: the client's certificate is for the registry itself, also where it gives tokens.
    pub(super) fn client(&self, url: &Url) -> &Client {
        if self.is_own(url) { &self.inner.client } else { &self.inner.stranger }
    }

    pub(super) fn is_https(&self) -> bool {
        self.inner.base.scheme() == "https"
    }

    /// A small body, or as much of it as is read of one. All of it has the time that two silences
    /// may have: a body that only drips is not waited for.
    pub(super) async fn capped(&self, mut response: Response, cap: usize) -> Result<Bytes, CappedError> {
        let mut body = BytesMut::new();
        let end = Instant::now() + 2 * self.patience().idle;
        loop {
            let silence = Instant::now() + self.patience().idle;
            match tokio::time::timeout_at(end.min(silence), response.chunk()).await {
                Ok(Ok(Some(chunk))) if body.len() + chunk.len() > cap => return Err(CappedError::TooLong),
                Ok(Ok(Some(chunk))) => body.extend_from_slice(&chunk),
                Ok(Ok(None)) => return Ok(body.freeze()),
                Ok(Err(error)) => return Err(CappedError::Cut(error)),
                Err(_) => return Err(CappedError::Silent),
            }
        }
    }

    /// The error for an answer that is none of those hoped for.
    pub(super) async fn refused(&self, call: &Call, reply: Reply) -> RegistryError {
        let status = reply.status();
        let retry_after = retry_after(reply.response.headers());
        let from = authority(&reply.url);
        // An error without readable words is still an error.
        let body = self.capped(reply.response, SMALL_BODY).await.unwrap_or_default();
        let answer = Box::new(Answer::new(from, status, retry_after, &body));
        let advice = error::advice(&call.asked, &answer);
        RegistryError::Refused { asked: call.asked.clone(), answer, advice, tries: 1 }
    }
}

/// Why a small body could not be read.
pub(super) enum CappedError {
    /// It has more bytes than are read.
    TooLong,
    /// The connection broke.
    Cut(reqwest::Error),
    /// Nothing came any more.
    Silent,
}

impl CappedError {
    /// The error of a call whose answer comes from `url`.
    pub(super) fn of(self, call: &Call, url: &Url) -> RegistryError {
        match self {
            Self::Cut(error) => error::unreachable(&call.asked, url, error),
            Self::Silent => silent(&call.asked, url),
            Self::TooLong => call.asked.protocol(format!("the answer of {} is too long", authority(url))),
        }
    }
}

/// One thing to ask for.
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) scopes: Scopes,
    pub(super) headers: HeaderMap,
    /// A small body.
    pub(super) bytes: Option<Bytes>,
    /// Watches over a body that is streamed.
    pub(super) watch: Option<Arc<Watch>>,
    /// It is not followed off the host.
    pub(super) stays: bool,
    pub(super) asked: Asked,
}

impl Call {
    pub(super) fn new(method: Method, url: Url, scopes: Scopes, asked: Asked) -> Self {
        Self { method, url, scopes, headers: HeaderMap::new(), bytes: None, watch: None, stays: false, asked }
    }

    pub(super) fn header(mut self, name: reqwest::header::HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }
}

/// An answer's head, and where it came from.
pub(super) struct Reply {
    pub(super) response: Response,
    pub(super) url: Url,
    /// Whether the registry itself answered, not a host that it redirected to.
    pub(super) is_own: bool,
}

impl Reply {
    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
    }
}

/// `host[:port]`, as messages name it.
pub(super) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

pub(super) fn silent(asked: &Asked, url: &Url) -> RegistryError {
    asked.unreachable(format!("{} went silent", authority(url)))
}
