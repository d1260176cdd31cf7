//! Requests: how a host is reached, what is tried again and for how long, where a redirect may lead.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::header::{
    ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE,
};
use reqwest::{Body, Certificate, Client, ClientBuilder, Identity, Method, Response, StatusCode};
use secrecy::SecretString;
use tokio::time::Instant;
use url::Url;

use super::auth::{Auth, Scopes};
use super::error::{self, Answer, Asked, RegistryError};
use crate::reference::{Host, is_repository};

/// Error bodies and tokens are read up to here.
pub(super) const SMALL_BODY: usize = 64 * 1024;
const REDIRECTS: usize = 5;

/// A user and a password, or what a registry takes for one.
#[derive(Clone)]
pub struct Credentials {
    /// The user.
    pub username: String,
    /// The password or token.
    pub password: SecretString,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

/// How a registry is reached.
#[derive(Clone, Default)]
pub struct Access {
    /// Plain HTTP.
    pub insecure: bool,
    /// What to sign in with; without, the registry is asked anonymously.
    pub credentials: Option<Credentials>,
    /// Certificate authorities in PEM, beside those of the system.
    pub ca_pem: Option<Vec<u8>>,
    /// The client's certificate and its key in PEM.
    pub identity_pem: Option<Vec<u8>>,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access")
            .field("insecure", &self.insecure)
            .field("credentials", &self.credentials)
            .finish_non_exhaustive()
    }
}

/// For how long a registry is waited for.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Tries end so long after the first failure, while this client never had an answer of use.
    pub before_anything_moved: Duration,
    /// Tries end so long after the last success, once something moved.
    pub once_moving: Duration,
    /// The first pause between two tries; each further one is twice as long.
    pub first_pause: Duration,
    /// No pause is longer, unless the registry asks for it.
    pub longest_pause: Duration,
    /// What a registry asks for in `Retry-After` is honoured up to here.
    pub longest_retry_after: Duration,
    /// For a connection to be made.
    pub connect: Duration,
    /// For the next bytes of an exchange, in either direction.
    pub idle: Duration,
    /// For the answer once a whole blob was sent: object stores copy it before they answer.
    pub commit: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            before_anything_moved: Duration::from_secs(30),
            once_moving: Duration::from_secs(15 * 60),
            first_pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(20),
            longest_retry_after: Duration::from_secs(120),
            connect: Duration::from_secs(10),
            idle: Duration::from_secs(60),
            commit: Duration::from_secs(5 * 60),
        }
    }
}

/// A client of one registry. Clones share connections, tokens and what is known of the host.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

struct Inner {
    host: Host,
    base: Url,
    /// For the registry and its token service.
    client: Client,
    /// For the hosts that it sends us on to: the same without the client's certificate.
    stranger: Client,
    patience: Patience,
    auth: Auth,
    has_moved: AtomicBool,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Registry").field(&self.inner.host.as_str()).finish()
    }
}

impl Registry {
    /// A client of `host`. Nothing is sent before something is asked for.
    pub fn new(host: Host, access: Access) -> Result<Self, RegistryError> {
        Self::with_patience(host, access, Patience::default())
    }

    /// A client of `host` that waits as `patience` says.
    pub fn with_patience(host: Host, access: Access, patience: Patience) -> Result<Self, RegistryError> {
        let scheme = if access.insecure { "http" } else { "https" };
        let base = Url::parse(&format!("{scheme}://{}/v2/", host.api_host()))
            .map_err(|error| setup(&host, "its name is no host", error))?;
        let (client, stranger) = clients(&host, &access, &patience)?;
        let auth = Auth::new(access.credentials);
        let has_moved = AtomicBool::new(false);
        Ok(Self { inner: Arc::new(Inner { host, base, client, stranger, patience, auth, has_moved }) })
    }

    /// The host that this is a client of.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.inner.host
    }

    pub(super) fn patience(&self) -> &Patience {
        &self.inner.patience
    }

    /// The URL of something in a repository.
    pub(super) fn url(&self, repository: &str, rest: &[&str]) -> Result<Url, RegistryError> {
        let refused = || RegistryError::Setup {
            host: self.inner.host.clone(),
            problem: format!("{:?} is no repository", error::plain(repository)),
            source: None,
        };
        if !is_repository(repository) {
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
        Retry { registry: self.clone(), tries: 0, failing_since: None }
    }

    /// Asks until there is an answer that another try would not change, or patience ends.
    pub(super) async fn send(&self, call: &Call, retry: &mut Retry) -> Result<Reply, RegistryError> {
        loop {
            retry.begin();
            match self.attempt(call, || call.bytes.clone().map(Body::from)).await {
                Ok(reply) => {
                    if reply.status().is_success() || reply.status() == StatusCode::NOT_FOUND {
                        retry.succeeded();
                    }
                    return Ok(reply);
                }
                Err(error) => retry.after(error).await?,
            }
        }
    }

    /// Asks once, signing in where that is asked for. A status that may pass is an error, any other is an answer.
    pub(super) async fn attempt<B>(&self, call: &Call, body: B) -> Result<Reply, RegistryError>
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
                return Err(auth.failed(call, &self.refused(call, reply).await));
            }
        }
        if error::is_transient(reply.status()) {
            return Err(self.refused(call, reply).await);
        }
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
            is_own = is_own && url.origin() == self.inner.base.origin();
            let client = if is_own { &self.inner.client } else { &self.inner.stranger };
            let mut request = client.request(call.method.clone(), url.clone()).headers(call.headers.clone());
            if let Some(authorization) = authorization.filter(|_| is_own) {
                request = request.header(AUTHORIZATION, authorization.clone());
            }
            if let Some(body) = body() {
                request = request.body(body);
            }
            let response = self.exchange(call, &url, request).await?;
            match self.redirect(call, &url, &response)? {
                Some(next) => url = next,
                None => return Ok(Reply { response, url, is_own }),
            }
        }
        Err(RegistryError::Protocol {
            asked: call.asked.clone(),
            problem: format!("{} redirected more than {REDIRECTS} times", self.inner.host),
        })
    }

    fn redirect(&self, call: &Call, url: &Url, response: &Response) -> Result<Option<Url>, RegistryError> {
        let status = response.status().as_u16();
        let is_read = call.method == Method::GET || call.method == Method::HEAD;
        let leads_on = matches!(status, 307 | 308) || (is_read && matches!(status, 301 | 302 | 303));
        if !leads_on || !response.headers().contains_key(LOCATION) {
            return Ok(None);
        }
        self.location(&call.asked, url, response.headers()).map(Some)
    }

    /// Where a `Location` leads, seen from `url`.
    pub(super) fn location(
        &self,
        asked: &Asked,
        url: &Url,
        headers: &HeaderMap,
    ) -> Result<Url, RegistryError> {
        let unusable = || RegistryError::Protocol {
            asked: asked.clone(),
            problem: format!("{} sent no usable Location", authority(url)),
        };
        let location = headers.get(LOCATION).and_then(|value| value.to_str().ok()).ok_or_else(unusable)?;
        let mut next = url.join(location).map_err(|_| unusable())?;
        if !matches!(next.scheme(), "http" | "https") || !next.has_host() {
            return Err(unusable());
        }
        let base = &self.inner.base;
        if base.scheme() == "https" && next.scheme() == "http" && next.host() == base.host() {
            // A registry behind a proxy that ends TLS often does not know that it is reached by https.
            next = Url::parse(&next.as_str().replacen("http", "https", 1)).map_err(|_| unusable())?;
            next.set_port(base.port()).map_err(|()| unusable())?;
        }
        // What a URL says of users is a credential of someone's; a fragment is not sent.
        let _ = next.set_username("").and_then(|()| next.set_password(None));
        next.set_fragment(None);
        Ok(next)
    }

    /// One request and the head of its answer. Waits as long as bytes move.
    pub(super) async fn exchange(
        &self,
        call: &Call,
        url: &Url,
        request: reqwest::RequestBuilder,
    ) -> Result<Response, RegistryError> {
        let start = Instant::now();
        let mut answer = std::pin::pin!(request.send());
        loop {
            let (from, limit) = match &call.watch {
                Some(watch) => watch.wait(self.patience()),
                None => (start, self.patience().idle),
            };
            let deadline = from.max(start) + limit;
            match tokio::time::timeout_at(deadline, &mut answer).await {
                Ok(result) => {
                    return result.map_err(|error| {
                        error::unreachable(&call.asked, &authority(url), url.scheme() == "https", error)
                    });
                }
                Err(_) if call.watch.as_ref().is_some_and(|watch| watch.has_moved_since(from)) => {}
                Err(_) => return Err(silent(&call.asked, url, limit)),
            }
        }
    }

    /// The client for the token service, which may ask for the client's certificate too.
    pub(super) fn client(&self) -> &Client {
        &self.inner.client
    }

    pub(super) fn is_https(&self) -> bool {
        self.inner.base.scheme() == "https"
    }

    /// A small body, or as much of it as is read of one.
    pub(super) async fn capped(&self, mut response: Response, cap: usize) -> Result<Bytes, CappedError> {
        let mut body = BytesMut::new();
        loop {
            match tokio::time::timeout(self.patience().idle, response.chunk()).await {
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
        let answer = Answer::new(from, status, retry_after, &body);
        let advice = error::advice(&call.asked, &answer);
        RegistryError::Refused { asked: call.asked.clone(), answer, advice, tries: 1 }
    }

    pub(super) fn broken(&self, call: &Call, url: &Url, error: CappedError) -> RegistryError {
        match error {
            CappedError::Cut(error) => {
                error::unreachable(&call.asked, &authority(url), url.scheme() == "https", error)
            }
            CappedError::Silent => silent(&call.asked, url, self.patience().idle),
            CappedError::TooLong => RegistryError::Protocol {
                asked: call.asked.clone(),
                problem: format!("the answer of {} is too long", authority(url)),
            },
        }
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
    pub(super) asked: Asked,
}

impl Call {
    pub(super) fn new(method: Method, url: Url, scopes: Scopes, asked: Asked) -> Self {
        Self { method, url, scopes, headers: HeaderMap::new(), bytes: None, watch: None, asked }
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

/// When a streamed body last moved.
pub(super) struct Watch(Mutex<(Instant, bool)>);

impl Watch {
    pub(super) fn new() -> Self {
        Self(Mutex::new((Instant::now(), false)))
    }

    /// The connection took bytes; `last` of all.
    pub(super) fn moved(&self, last: bool) {
        *self.lock() = (Instant::now(), last);
    }

    fn wait(&self, patience: &Patience) -> (Instant, Duration) {
        let (at, is_sent) = *self.lock();
        (at, if is_sent { patience.commit } else { patience.idle })
    }

    fn has_moved_since(&self, time: Instant) -> bool {
        self.lock().0 > time
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, (Instant, bool)> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The tries of one operation.
pub(super) struct Retry {
    registry: Registry,
    tries: u32,
    failing_since: Option<Instant>,
}

impl Retry {
    /// A try begins.
    pub(super) fn begin(&mut self) {
        self.failing_since.get_or_insert_with(Instant::now);
    }

    /// Something of use came back.
    pub(super) fn succeeded(&mut self) {
        self.tries = 0;
        self.failing_since = None;
        self.registry.inner.has_moved.store(true, Ordering::Relaxed);
    }

    /// Waits before the next try, or gives the error back if there is to be none.
    pub(super) async fn after(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        self.tries += 1;
        if !error.is_transient() {
            return Err(error);
        }
        let patience = &self.registry.inner.patience;
        let has_moved = self.registry.inner.has_moved.load(Ordering::Relaxed);
        let limit = if has_moved { patience.once_moving } else { patience.before_anything_moved };
        let pause = pause(patience, self.tries, error.retry_after());
        let since = *self.failing_since.get_or_insert_with(Instant::now);
        if since.elapsed() + pause >= limit {
            return Err(error.after(self.tries));
        }
        tracing::debug!(%error, tries = self.tries, ?pause, "trying again");
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

/// Twice as long after each try, less a random part up to a half so that many do not come back at once.
fn pause(patience: &Patience, tries: u32, retry_after: Option<Duration>) -> Duration {
    let doubled = patience.first_pause.saturating_mul(1 << tries.saturating_sub(1).min(16));
    let backoff = doubled.min(patience.longest_pause).mul_f64(0.5 + fastrand::f64() / 2.0);
    match retry_after {
        Some(asked) => asked.min(patience.longest_retry_after).max(backoff),
        None => backoff,
    }
}

/// RFC 9110, section 10.2.3: seconds or a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?;
    Some(date.timestamp().duration_since(jiff::Timestamp::now()).try_into().unwrap_or_default())
}

/// `host[:port]`, as messages name it.
pub(super) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

pub(super) fn silent(asked: &Asked, url: &Url, limit: Duration) -> RegistryError {
    RegistryError::Unreachable {
        asked: asked.clone(),
        problem: format!("{} sent nothing for {} s", authority(url), limit.as_secs()),
        advice: "",
        transient: true,
        tries: 1,
        source: None,
    }
}

fn setup(
    host: &Host,
    problem: &str,
    error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> RegistryError {
    let source = error.into();
    let problem = format!("{problem}: {source}");
    RegistryError::Setup { host: host.clone(), problem, source: Some(source) }
}

/// A client for the registry, and one for the hosts that it redirects to.
fn clients(host: &Host, access: &Access, patience: &Patience) -> Result<(Client, Client), RegistryError> {
    let authorities = match &access.ca_pem {
        Some(pem) => Certificate::from_pem_bundle(pem)
            .map_err(|error| setup(host, "the certificate authority is no PEM certificate", error))?,
        None => Vec::new(),
    };
    let Some(pem) = &access.identity_pem else {
        let client = client(host, access, patience, &authorities, None)?;
        return Ok((client.clone(), client));
    };
    let identity = Identity::from_pem(pem)
        .map_err(|error| setup(host, "the client certificate and key are no PEM of both", error))?;
    Ok((
        client(host, access, patience, &authorities, Some(identity))?,
        client(host, access, patience, &authorities, None)?,
    ))
}

fn client(
    host: &Host,
    access: &Access,
    patience: &Patience,
    authorities: &[Certificate],
    identity: Option<Identity>,
) -> Result<Client, RegistryError> {
    let start = || {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let builder = ClientBuilder::new()
            .user_agent(concat!("charon/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers)
            .redirect(reqwest::redirect::Policy::none())
            // Retries are counted here, by `Retry`.
            .retry(reqwest::retry::never())
            // Several blobs move at once: each on a connection of its own, none behind another's window.
            .http1_only()
            .connect_timeout(patience.connect);
        match identity.clone() {
            Some(identity) => builder.identity(identity),
            None => builder,
        }
    };
    let with_system = start().tls_certs_merge(authorities.iter().cloned()).build();
    // An image FROM scratch has no root certificates, and then this fails. Plain HTTP and a private authority need none.
    let result = match with_system {
        Err(_) if access.insecure || !authorities.is_empty() => {
            start().tls_certs_only(authorities.iter().cloned()).build()
        }
        result => result,
    };
    result.map_err(|error| setup(host, "its certificates cannot be checked", error))
}
