//! Layers that may not be distributed: had from where their manifest says, if a person wants that.
//!
//! A manifest is anybody's word. What it names is asked for by HTTPS alone, without any credential, by no proxy, and
//! never at an address that is not of the public internet: names are looked up and judged once, and the connection
//! goes to the address that was judged, also after each redirect.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use futures::{Stream, StreamExt as _, stream};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{ACCEPT_ENCODING, CONTENT_LENGTH, LOCATION, RANGE};
use reqwest::{Client, ClientBuilder, Response, StatusCode};
use tokio::time::Instant;
use url::{Host as UrlHost, Url};

use super::access::Access;
use super::client::{REDIRECTS, Registry, authority, silent};
use super::error::{Answer, Asked, RegistryError, is_transient, plain, root_cause, unreachable};
use super::retry::{Retry, Traffic, retry_after};
use crate::digest::Digest;
use crate::reference::Host;

/// Fetches layers from outside of registries.
#[derive(Clone, Debug)]
pub struct Foreign {
    client: Client,
    rule: Rule,
    /// Stands for all servers outside of registries where patience is counted, and is never asked for anything: so they
    /// have the pauses and the time for waiting that a registry has.
    outside: Registry,
}

/// Where may be asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule {
    pub(super) is_scheme: fn(&str) -> bool,
    pub(super) is_address: fn(IpAddr) -> bool,
}

/// Outside of tests there is no other.
pub(super) const PUBLIC_HTTPS: Rule = Rule { is_scheme: |scheme| scheme == "https", is_address: is_public };

/// What a layer is, and where it may be had.
#[derive(Clone, Debug)]
pub struct ForeignBlob {
    /// The registry that named it, and does not have it.
    pub host: Host,
    /// The repository there.
    pub repository: String,
    /// The layer's digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Where its manifest says that it may be had, in the order of preference.
    pub urls: Vec<String>,
}

/// A host has an address that is not asked.
#[derive(Debug, thiserror::Error)]
#[error("it has the address {0}, which is not of the public internet")]
struct NotPublic(IpAddr);

impl Foreign {
    /// One that treats servers as a registry of the same run is treated. Nothing is sent before something is asked for.
    pub fn beside(registry: &Registry) -> Result<Self, RegistryError> {
        Self::with_rule(PUBLIC_HTTPS, registry.traffic())
    }

    pub(super) fn with_rule(rule: Rule, traffic: &Traffic) -> Result<Self, RegistryError> {
        let patience = traffic.patience();
        let client = ClientBuilder::new()
            .user_agent(concat!("charon/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .no_proxy()
            .http1_only()
            .connect_timeout(patience.connect)
            .read_timeout(patience.idle)
            .dns_resolver(Arc::new(Judging(rule.is_address)))
            .build()
            .map_err(|error| {
                let problem = format!("the certificates make no TLS client: {}", plain(&root_cause(&error)));
                Asked::fetching_foreign_layers()
                    .unsupported_but(problem, "check SSL_CERT_FILE and SSL_CERT_DIR")
            })?;
        // Its name is never told. What is never asked needs no certificates, which an image FROM scratch does not have.
        let access = Access { insecure: true, ..Access::default() };
        let outside = Registry::with_traffic(Host::docker_hub(), access, traffic)?;
        Ok(Self { client, rule, outside })
    }

    /// One that asks this machine by plain HTTP, and nobody else.
    #[cfg(test)]
    pub(crate) fn on_loopback() -> Result<Self, RegistryError> {
        let rule = Rule { is_scheme: |scheme| scheme == "http", is_address: |address| address.is_loopback() };
        Self::with_rule(rule, &Traffic::default())
    }

    /// The bytes of a layer from offset `from` on, from the first of its URLs that gives them: the caller hashes.
    ///
    /// Where one fails or is cut the others are asked, and after a pause those that failed in passing once more. What
    /// is longer or shorter than its manifest says ends the stream with an error.
    pub fn blob(
        &self,
        blob: ForeignBlob,
        from: u64,
    ) -> impl Stream<Item = Result<Bytes, RegistryError>> + Send + use<> {
        let reader = Reader {
            to_ask: (0..blob.urls.len()).collect(),
            failed: Vec::new(),
            foreign: self.clone(),
            blob,
            next: from,
            gained: 0,
            retry: self.outside.retry(),
            source: None,
        };
        stream::try_unfold(reader, |mut reader| async move {
            Ok(reader.chunk().await?.map(|chunk| (chunk, reader)))
        })
    }
}

struct Reader {
    foreign: Foreign,
    blob: ForeignBlob,
    /// The offset of the byte that is given next.
    next: u64,
    /// Which of the URLs are yet to be asked before there is a pause: the first is asked now. None that answered for
    /// good comes back.
    to_ask: BTreeSet<usize>,
    /// Those that failed in passing since.
    failed: Vec<Failed>,
    /// So many bytes came since the last success.
    gained: u64,
    retry: Retry,
    source: Option<Source>,
}

struct Source {
    url: Url,
    body: Pin<Box<dyn Stream<Item = reqwest::Result<Bytes>> + Send>>,
    /// The offset of the first byte that it was to give.
    from: u64,
    /// Bytes to pass over: the server began at the beginning.
    skip: u64,
}

/// A URL that failed in passing.
struct Failed {
    url: usize,
    at: Instant,
    error: RegistryError,
}

impl Failed {
    /// For how long its server still wants to be left alone.
    fn rest(&self, now: Instant) -> Duration {
        self.error.retry_after().unwrap_or_default().saturating_sub(now - self.at)
    }
}

impl Reader {
    async fn chunk(&mut self) -> Result<Option<Bytes>, RegistryError> {
        loop {
            if self.next >= self.blob.size {
                return Ok(None);
            }
            // The consumer may have paused: what it did is no failure of the server's.
            self.retry.begin();
            let asked = self.asked();
            let Some(source) = &mut self.source else {
                match self.open().await {
                    Ok(source) => self.source = Some(source),
                    Err(error) => self.after(error).await?,
                }
                continue;
            };
            let error = match source.body.next().await {
                Some(Ok(mut chunk)) => {
                    let skipped =
                        usize::try_from(source.skip).map_or(chunk.len(), |skip| skip.min(chunk.len()));
                    chunk.advance(skipped);
                    source.skip -= skipped as u64;
                    if chunk.len() as u64 > self.blob.size - self.next {
                        return Err(self.wrong_size("more"));
                    }
                    if !chunk.is_empty() {
                        self.take_note(chunk.len() as u64);
                        return Ok(Some(chunk));
                    }
                    continue;
                }
                Some(Err(error)) => unreachable(&asked, &source.url, error),
                // Where no length was told, a cut looks like the end.
                None if self.next > source.from || source.skip > 0 => {
                    let from = authority(&source.url);
                    asked.unreachable(format!("{from} ended at byte {} of {}", self.next, self.blob.size))
                }
                None => self.wrong_size(&format!("{} bytes", self.next)),
            };
            self.source = None;
            self.after(error).await?;
        }
    }

    fn take_note(&mut self, came: u64) {
        self.next += came;
        self.gained += came;
        // One that gives a few bytes a try is not waited for without end.
        if self.gained >= self.foreign.outside.patience().trickle {
            self.gained = 0;
            self.retry.succeeded();
        }
    }

    /// The next URL is tried, if there is one, or after a pause one that failed in passing.
    async fn after(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        let Some(url) = self.to_ask.pop_first() else { return Err(error) };
        if error.is_transient() {
            self.failed.push(Failed { url, at: Instant::now(), error });
        } else if self.to_ask.is_empty() && self.failed.is_empty() {
            return Err(error);
        }
        if self.to_ask.is_empty() { self.pause().await } else { Ok(()) }
    }

    /// Waits until one of those that failed may be asked again.
    async fn pause(&mut self) -> Result<(), RegistryError> {
        // One that wants to be left alone for long does not keep the others waiting.
        let now = Instant::now();
        let failed = self.failed.iter().enumerate();
        let Some((soonest, _)) = failed.min_by_key(|(_, failed)| failed.rest(now)) else { return Ok(()) };
        let Failed { url, error, .. } = self.failed.remove(soonest);
        self.retry.after(error).await?;
        self.to_ask.insert(url);
        let now = Instant::now();
        self.failed.retain(|failed| {
            let rests = !failed.rest(now).is_zero();
            if !rests {
                self.to_ask.insert(failed.url);
            }
            rests
        });
        Ok(())
    }

    /// Asks the URL, and where it leads.
    async fn open(&mut self) -> Result<Source, RegistryError> {
        let text = self.to_ask.first().and_then(|url| self.blob.urls.get(*url));
        let text = text.map(String::as_str).unwrap_or_default();
        let mut url = Url::parse(text).map_err(|_| self.refused("one of its urls cannot be read as one"))?;
        let idle = self.foreign.outside.patience().idle;
        for _ in 0..=REDIRECTS {
            self.judge(&mut url)?;
            let mut request = self.foreign.client.get(url.clone()).header(ACCEPT_ENCODING, "identity");
            if self.next > 0 {
                request = request.header(RANGE, format!("bytes={}-", self.next));
            }
            let sent = tokio::time::timeout(idle, request.send()).await;
            let response = match sent {
                Ok(Ok(response)) => response,
                Ok(Err(error)) => return Err(self.unanswered(&url, error)),
                Err(_) => return Err(silent(&self.asked(), &url)),
            };
            match response.status() {
                StatusCode::OK | StatusCode::PARTIAL_CONTENT => return self.source(url, response),
                status if status.is_redirection() => {
                    let location = response.headers().get(LOCATION).and_then(|text| text.to_str().ok());
                    let next = location.and_then(|location| url.join(location).ok());
                    url = next
                        .ok_or_else(|| self.refused(&format!("{} redirects to nowhere", authority(&url))))?;
                }
                status if status.is_server_error() || is_transient(status) => {
                    return Err(self.failing(&url, &response));
                }
                status => {
                    return Err(self.refused(&format!("{} answered {status}", authority(&url))));
                }
            }
        }
        Err(self.refused(&format!("{} redirected more than {REDIRECTS} times", authority(&url))))
    }

    /// That a URL may be asked at all. What it says of users is not sent.
    fn judge(&self, url: &mut Url) -> Result<(), RegistryError> {
        if !(self.foreign.rule.is_scheme)(url.scheme()) {
            let problem = format!("{} is not asked, since it is not named by https", authority(url));
            return Err(self.refused(&problem));
        }
        let literal = match url.host() {
            Some(UrlHost::Ipv4(address)) => Some(IpAddr::V4(address)),
            Some(UrlHost::Ipv6(address)) => Some(IpAddr::V6(address)),
            Some(UrlHost::Domain(_)) => None,
            None => return Err(self.refused("one of its urls names no host")),
        };
        if let Some(address) = literal.filter(|address| !(self.foreign.rule.is_address)(*address)) {
            return Err(self.refused(&format!("{} is not asked: {}", authority(url), NotPublic(address))));
        }
        let _ = url.set_username("").and_then(|()| url.set_password(None));
        Ok(())
    }

    fn source(&self, url: Url, response: Response) -> Result<Source, RegistryError> {
        // Who was asked for a part and sends all begins at the beginning.
        let is_part = response.status() == StatusCode::PARTIAL_CONTENT;
        if is_part && self.next == 0 {
            return Err(self.refused(&format!("{} sent a part that nobody asked for", authority(&url))));
        }
        let skip = if is_part { 0 } else { self.next };
        let length = response.headers().get(CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.trim().parse::<u64>().ok());
        if let Some(length) = length.filter(|length| *length != self.blob.size - self.next + skip) {
            return Err(self.wrong_size(&format!("{length} bytes")));
        }
        Ok(Source { url, body: Box::pin(response.bytes_stream()), from: self.next, skip })
    }

    fn unanswered(&self, url: &Url, error: reqwest::Error) -> RegistryError {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        while let Some(found) = cause {
            if let Some(not_public) = found.downcast_ref::<NotPublic>() {
                return self.refused(&format!("{} is not asked: {not_public}", authority(url)));
            }
            cause = found.source();
        }
        unreachable(&self.asked(), url, error)
    }

    fn asked(&self) -> Asked {
        Asked::reading_blob(&self.blob.host, &self.blob.repository, &self.blob.digest)
    }

    fn refused(&self, problem: &str) -> RegistryError {
        let problem = format!("the registry does not have it, and {problem}");
        self.asked().unsupported(plain(&problem))
    }

    /// The server says that it cannot, and perhaps for how long. Its words are not read.
    fn failing(&self, url: &Url, response: &Response) -> RegistryError {
        let retry_after = retry_after(response.headers());
        let answer = Box::new(Answer::new(authority(url), response.status(), retry_after, &[]));
        RegistryError::Refused { asked: self.asked(), answer, advice: "", tries: 1 }
    }

    fn wrong_size(&self, found: &str) -> RegistryError {
        let size = self.blob.size;
        let problem = format!("the manifest says {size} bytes, its url gave {found}");
        self.asked().mismatch(problem)
    }
}

/// Looks names up, and gives none of a name that has an address which is not asked.
#[derive(Clone, Copy, Debug)]
struct Judging(fn(IpAddr) -> bool);

impl Resolve for Judging {
    fn resolve(&self, name: Name) -> Resolving {
        let Self(is_address) = *self;
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            match found.iter().map(SocketAddr::ip).find(|address| !is_address(*address)) {
                Some(address) => Err(NotPublic(address).into()),
                None => Ok(Box::new(found.into_iter()) as Addrs),
            }
        })
    }
}

/// Whether an address is of the public internet (the registries of IANA for special purposes, RFC 6890).
pub(super) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let is_special = matches!(
        (a, b, c),
        // This network, shared address space, protocol assignments, 6to4 relays, benchmarks, and above multicast.
        (0 | 240.., _, _) | (100, 64..=127, _) | (192, 0, 0) | (192, 88, 99) | (198, 18 | 19, _)
    );
    !(is_special
        || address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_documentation())
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    let embedded = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match segments {
        [0, 0, 0, 0, 0, 0xffff, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x2002, high, low, ..] => embedded(high, low),
        // Protocol assignments with Teredo, documentation.
        [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => false,
        // Global unicast is 2000::/3, and nothing else.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}
