//! What went wrong with a registry: what was asked, of whom, what came back, and what to do about it.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::LazyLock;
use std::time::Duration;

use hyper_util::client::proxy::matcher::Matcher;
use reqwest::StatusCode;
use serde::Deserialize;
use url::Url;

use super::client::authority;
use crate::digest::Digest;
use crate::proxy::{Proxy, shown};
use crate::reason::Reason;
use crate::reference::Host;

/// Texts from a registry are cut here, in characters.
const TEXT_LIMIT: usize = 300;

/// Why a registry did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// No client can be made from what was given: a certificate, a key.
    #[error("cannot set up a client for {host}: {problem}")]
    Setup {
        /// The registry.
        host: Host,
        /// What is wrong.
        problem: String,
        /// What the library said.
        #[source]
        source: Option<Box<dyn Error + Send + Sync>>,
    },
    /// The host, or one that it redirected to, did not answer, or its answer was cut.
    #[error("cannot {asked}: {problem}{}{}", hint(.advice), after(*.tries))]
    Unreachable {
        /// What was asked.
        asked: Asked,
        /// The host and what happened.
        problem: String,
        /// What to do.
        advice: &'static str,
        /// Whether another try may pass.
        transient: bool,
        /// How often it was tried.
        tries: u32,
        /// What the library said.
        #[source]
        source: Option<Box<dyn Error + Send + Sync>>,
    },
    /// The registry answered, and refused.
    #[error("cannot {asked}: {answer}{}{}", hint(.advice), after(*.tries))]
    Refused {
        /// What was asked.
        asked: Asked,
        /// What came back.
        answer: Box<Answer>,
        /// What to do.
        advice: &'static str,
        /// How often it was tried.
        tries: u32,
    },
    /// Signing in failed, or is needed and there is nothing to sign in with.
    #[error("cannot {asked}: {problem}{}", hint(.advice))]
    Authentication {
        /// What was asked.
        asked: Asked,
        /// Who refused, and how.
        problem: String,
        /// What to do.
        advice: &'static str,
    },
    /// Signing in went well, and what it opens is not enough.
    #[error("cannot {asked}: {problem}; {}", .asked.what_denial_means())]
    Denied {
        /// What was asked.
        asked: Asked,
        /// Who refused, and how.
        problem: String,
    },
    /// The content is not what its digest or size promised.
    #[error("cannot {asked}: {problem}; push the image there anew, or see to the mirror or proxy before it")]
    DigestMismatch {
        /// What was asked.
        asked: Asked,
        /// Promised and found.
        problem: String,
    },
    /// A manifest of a kind or a size that is not carried.
    #[error("cannot {asked}: {problem}; {advice}")]
    Unsupported {
        /// What was asked.
        asked: Asked,
        /// What is wrong with it.
        problem: String,
        /// What to do.
        advice: &'static str,
    },
    /// The registry does not keep to the protocol.
    #[error("cannot {asked}: {problem}; check the registry and any proxy before it")]
    Protocol {
        /// What was asked.
        asked: Asked,
        /// What it did.
        problem: String,
    },
    /// The body that was to be pushed failed; nothing was committed.
    #[error("cannot {asked}: {source}")]
    Body {
        /// What was asked.
        asked: Asked,
        /// What the body's stream said.
        source: io::Error,
    },
}

impl RegistryError {
    /// The reason to put into conditions and exit codes.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Setup { .. } => Reason::InvalidSpec,
            Self::Unreachable { .. } | Self::Protocol { .. } => Reason::RegistryUnavailable,
            Self::Refused { asked, answer, .. } => refusal(asked, answer),
            Self::Authentication { .. } => Reason::AuthenticationFailed,
            Self::Denied { .. } => Reason::AccessDenied,
            Self::DigestMismatch { .. } => Reason::DigestMismatch,
            Self::Unsupported { .. } => Reason::UnsupportedImage,
            // The caller's own error tells more; without looking at it, only wrong content can be told.
            Self::Body { source, .. } if source.kind() == io::ErrorKind::InvalidData => {
                Reason::DigestMismatch
            }
            Self::Body { .. } => Reason::WorkerFailed,
        }
    }

    /// The error of the body that was to be pushed, where that was what failed.
    #[must_use]
    pub fn body_error(&self) -> Option<&io::Error> {
        match self {
            Self::Body { source, .. } => Some(source),
            _ => None,
        }
    }

    /// Whether a manifest was refused because the registry lacks a blob or a manifest that it names.
    #[must_use]
    pub fn is_blob_unknown(&self) -> bool {
        self.refused_manifest_with(&["MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN", "MANIFEST_UNKNOWN"])
    }

    /// Whether a manifest was refused because the registry finds fault with it.
    #[must_use]
    pub fn is_manifest_invalid(&self) -> bool {
        self.refused_manifest_with(&["MANIFEST_INVALID", "MANIFEST_UNVERIFIED"])
    }

    /// Whether a manifest was refused for what it says by a registry that calls that a fault of its own: distribution
    /// answers 500, and names the blob, where it does not like the `urls` of a layer.
    #[must_use]
    pub fn is_manifest_unacceptable(&self) -> bool {
        matches!(self, Self::Refused { asked, answer, .. } if asked.pushes && answer.is_about_manifest())
    }

    /// Whether the registry has no such repository, manifest or blob.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { answer, .. } if answer.status == StatusCode::NOT_FOUND)
    }

    /// Whether it may not be read by this account. Some registries answer so for what is not there.
    #[must_use]
    pub fn is_hidden(&self) -> bool {
        match self {
            Self::Denied { .. } => true,
            Self::Refused { answer, .. } => answer.status == StatusCode::FORBIDDEN,
            _ => false,
        }
    }

    fn refused_manifest_with(&self, codes: &[&str]) -> bool {
        match self {
            Self::Refused { asked, answer, .. } => {
                asked.pushes
                    && answer.status.is_client_error()
                    && answer.codes.iter().any(|code| codes.contains(&code.as_str()))
            }
            _ => false,
        }
    }

    /// Whether another try may pass.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { transient, .. } => *transient,
            Self::Refused { answer, .. } => is_transient(answer.status) && !answer.is_about_manifest(),
            _ => false,
        }
    }

    /// Whether an exchange broke off under way: in the connection, or in a proxy that lost patience.
    pub(super) fn is_cut(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused { answer, .. } => matches!(answer.status.as_u16(), 408 | 502 | 504),
            _ => false,
        }
    }

    /// How long the registry asked to be left alone.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { answer, .. } => answer.retry_after,
            _ => None,
        }
    }

    /// The same error, which was met so many times.
    pub(super) fn after(mut self, count: u32) -> Self {
        if let Self::Unreachable { tries, .. } | Self::Refused { tries, .. } = &mut self {
            *tries = count;
        }
        self
    }
}

/// Statuses that pass by themselves: overload, restarts, timeouts, rate limits.
pub(super) fn is_transient(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
}

fn refusal(asked: &Asked, answer: &Answer) -> Reason {
    let has = |code: &str| answer.codes.iter().any(|found| found == code);
    match answer.status.as_u16() {
        401 => Reason::AuthenticationFailed,
        429 => Reason::RateLimited,
        403 => Reason::AccessDenied,
        _ if has("DENIED") => Reason::AccessDenied,
        // Nothing is looked for when pushing: it is the repository that a person has to create.
        404 if asked.pushes => Reason::RepositoryNotFound,
        404 => Reason::ImageNotFound,
        // Read-only registries, immutable tags.
        405 | 409 | 412 => Reason::AccessDenied,
        400 if has("DIGEST_INVALID") || has("SIZE_INVALID") => Reason::DigestMismatch,
        500 if asked.pushes && answer.is_about_manifest() => Reason::UnsupportedImage,
        400..=499 if has("MANIFEST_INVALID") || has("MANIFEST_BLOB_UNKNOWN") || has("BLOB_UNKNOWN") => {
            Reason::UnsupportedImage
        }
        400..=499 if has("NAME_INVALID") || has("TAG_INVALID") => Reason::InvalidSpec,
        _ => Reason::RegistryUnavailable,
    }
}

/// What to do about a refusal, where that can be said.
pub(super) fn advice(asked: &Asked, answer: &Answer) -> &'static str {
    match refusal(asked, answer) {
        Reason::ImageNotFound => "check the name, the tag or digest, and the registry",
        Reason::RateLimited => "wait, or use credentials that have a higher limit",
        Reason::RepositoryNotFound => {
            "create the repository or project first, or use an account that may create it"
        }
        Reason::AccessDenied if answer.status == StatusCode::FORBIDDEN && asked.pushes => {
            "check that the account may push to this repository"
        }
        Reason::AccessDenied if answer.status == StatusCode::FORBIDDEN => {
            "check that the account may pull from this repository"
        }
        Reason::AccessDenied if asked.pushes => {
            "check that the registry takes pushes and that the tag may be changed"
        }
        _ if answer.status == StatusCode::BAD_REQUEST
            && answer.text.as_ref().is_some_and(|text| text.contains("HTTP request to an HTTPS server")) =>
        {
            "it speaks TLS: leave out --insecure or insecure: true"
        }
        _ if answer.status == StatusCode::PAYLOAD_TOO_LARGE => {
            "raise the request size limit of the registry or of the proxy before it"
        }
        _ => "",
    }
}

/// What was asked of a registry.
#[derive(Clone, Debug)]
pub struct Asked {
    doing: &'static str,
    object: String,
    pub(super) pushes: bool,
}

impl Asked {
    pub(super) fn reading(host: &Host, repository: &str, tag_or_digest: &str) -> Self {
        Self { doing: "read", object: name(host, repository, tag_or_digest), pushes: false }
    }

    pub(super) fn reading_blob(host: &Host, repository: &str, digest: &Digest) -> Self {
        Self { doing: "read blob", object: format!("{host}/{repository}@{digest}"), pushes: false }
    }

    pub(super) fn fetching_foreign_layers() -> Self {
        Self { doing: "fetch", object: "layers from outside of registries".to_owned(), pushes: false }
    }

    pub(super) fn listing_referrers(host: &Host, repository: &str, subject: &Digest) -> Self {
        Self { doing: "list what refers to", object: format!("{host}/{repository}@{subject}"), pushes: false }
    }

    /// What to do, or to think, where an account has no access.
    fn what_denial_means(&self) -> &'static str {
        if self.pushes {
            "check that the account may push to this repository"
        } else {
            "the image does not exist, or the account may not pull it"
        }
    }

    pub(super) fn pushing_to(host: &Host, repository: &str) -> Self {
        Self { doing: "push to", object: format!("{host}/{repository}"), pushes: true }
    }

    pub(super) fn pushing(host: &Host, repository: &str, tag_or_digest: &str) -> Self {
        Self { doing: "push", object: name(host, repository, tag_or_digest), pushes: true }
    }

    pub(super) fn pushing_blob(host: &Host, repository: &str, digest: &Digest) -> Self {
        Self { doing: "push blob", object: format!("{host}/{repository}@{digest}"), pushes: true }
    }
}

/// What became of it, where no status tells.
impl Asked {
    /// The registry does not keep to the protocol.
    pub(super) fn protocol(&self, problem: impl Into<String>) -> RegistryError {
        RegistryError::Protocol { asked: self.clone(), problem: problem.into() }
    }

    /// It is of a kind or a size that is not carried.
    pub(super) fn unsupported(&self, problem: impl Into<String>) -> RegistryError {
        self.unsupported_but(problem, "leave the image out, or push it anew where it comes from")
    }

    /// The same where there is something better to do than to go without the image.
    pub(super) fn unsupported_but(&self, problem: impl Into<String>, advice: &'static str) -> RegistryError {
        RegistryError::Unsupported { asked: self.clone(), problem: problem.into(), advice }
    }

    /// It is not what its digest or size promised.
    pub(super) fn mismatch(&self, problem: impl Into<String>) -> RegistryError {
        RegistryError::DigestMismatch { asked: self.clone(), problem: problem.into() }
    }

    /// Nothing came, or too little: another try may pass.
    pub(super) fn unreachable(&self, problem: impl Into<String>) -> RegistryError {
        RegistryError::Unreachable {
            asked: self.clone(),
            problem: problem.into(),
            advice: "",
            transient: true,
            tries: 1,
            source: None,
        }
    }
}

fn name(host: &Host, repository: &str, tag_or_digest: &str) -> String {
    let separator = if tag_or_digest.contains(':') { '@' } else { ':' };
    plain(&format!("{host}/{repository}{separator}{tag_or_digest}"))
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.doing, self.object)
    }
}

/// A registry's refusal: the status, and its own words where it had any.
#[derive(Clone, Debug)]
pub struct Answer {
    pub(super) from: String,
    pub(super) status: StatusCode,
    pub(super) codes: Vec<String>,
    pub(super) text: Option<String>,
    pub(super) retry_after: Option<Duration>,
}

impl Answer {
    /// Whether it is a 500 that another try would not change, since it says what is wrong with a manifest.
    fn is_about_manifest(&self) -> bool {
        self.status == StatusCode::INTERNAL_SERVER_ERROR
            && self.codes.iter().any(|code| code.starts_with("MANIFEST_"))
    }

    /// Reads an error body as the distribution specification describes it; any other is only quoted.
    pub(super) fn new(from: String, status: StatusCode, retry_after: Option<Duration>, body: &[u8]) -> Self {
        let errors = serde_json::from_slice::<ErrorBody>(body).map(|body| body.errors).unwrap_or_default();
        let codes: Vec<String> = errors.iter().take(20).map(|error| plain(&error.code)).collect();
        let text = errors.first().map(|error| plain(&error.message)).filter(|text| !text.is_empty());
        Self { from, status, codes, text: text.or_else(|| quotable(body)), retry_after }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} answered {}", self.from, self.status.as_u16())?;
        if let Some(words) = self.status.canonical_reason() {
            write!(f, " {words}")?;
        }
        match (self.codes.first(), &self.text) {
            (Some(code), Some(text)) => write!(f, " ({code}: {text})"),
            (Some(code), None) => write!(f, " ({code})"),
            (None, Some(text)) => write!(f, " ({text})"),
            (None, None) => Ok(()),
        }?;
        match self.retry_after.filter(|pause| !pause.is_zero()) {
            Some(pause) => write!(f, " and asks for a pause of {} s", pause.as_secs()),
            None => Ok(()),
        }
    }
}

#[derive(Deserialize)]
struct ErrorBody {
    errors: Vec<ErrorItem>,
}

#[derive(Deserialize)]
struct ErrorItem {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// The body as a message, if it is text for people: proxies answer with whole HTML pages.
fn quotable(body: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?.trim();
    let is_words = !text.is_empty() && !text.starts_with(['<', '{', '[']);
    is_words.then(|| plain(text))
}

/// A registry may quote the request that it refuses, and in JSON: what follows `Basic` and `Bearer` is a secret, up to
/// what cannot be part of one.
fn without_secrets(text: &str) -> String {
    let ends = |c: char| {
        c.is_whitespace() || matches!(c, '"' | '\'' | '\\' | ',' | ';' | ')' | ']' | '}' | '>' | '<')
    };
    let (mut told, mut rest) = (String::new(), text);
    while let Some(start) = rest.find(char::is_alphanumeric) {
        let (before, word) = rest.split_at(start);
        let (word, after) = word.split_at(word.find(|c: char| !c.is_alphanumeric()).unwrap_or(word.len()));
        told += before;
        told += word;
        rest = after;
        if (word.eq_ignore_ascii_case("basic") || word.eq_ignore_ascii_case("bearer"))
            && let Some(start) = rest.find(char::is_alphanumeric)
            // `basic/ferry` is a repository.
            && rest[..start].contains(char::is_whitespace)
        {
            let (before, secret) = rest.split_at(start);
            told += before;
            told.push('…');
            rest = &secret[secret.find(ends).unwrap_or(secret.len())..];
        }
    }
    told + rest
}

/// Foreign text for a message of ours: one line, bounded, no control characters.
pub(super) fn plain(text: &str) -> String {
    let text = &without_secrets(text);
    let mut plain: String = text
        .chars()
        .take(TEXT_LIMIT)
        .map(|c| if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') { ' ' } else { c })
        .collect();
    if text.chars().nth(TEXT_LIMIT).is_some() {
        plain.push('…');
    }
    plain.trim().to_owned()
}

fn hint(advice: &str) -> String {
    if advice.is_empty() { String::new() } else { format!("; {advice}") }
}

fn after(count: u32) -> String {
    if count > 1 { format!(" (tried {count} times)") } else { String::new() }
}

/// What a failed exchange was, in words, and whether another try may pass.
pub(super) fn unreachable(asked: &Asked, url: &Url, error: reqwest::Error) -> RegistryError {
    unreachable_by(None, asked, url, error)
}

/// The same of an exchange by a proxy of its own.
pub(super) fn unreachable_by(
    own: Option<&Proxy>,
    asked: &Asked,
    url: &Url,
    error: reqwest::Error,
) -> RegistryError {
    let host = authority(url);
    let words = plain(&root_cause(&error));
    let (problem, advice, transient) = if words.contains("invalid peer certificate") {
        (
            format!("the certificate of {host} is not trusted: {words}"),
            "give the certificate authority that signed it, by --ca-file, SSL_CERT_FILE, REQUESTS_CA_BUNDLE or certSecretRef",
            false,
        )
    } else if CERTIFICATE_ALERTS.iter().any(|alert| words.contains(alert)) {
        (
            format!("{host} wants a client certificate that it trusts: {words}"),
            "give one with its key, by --cert-file and --key-file or by certSecretRef",
            false,
        )
    } else if url.scheme() == "https" && words.contains("InvalidContentType") {
        // What a server of plain HTTP answers is no TLS message.
        (format!("{host} does not speak TLS"), "if it is meant to, use --insecure or insecure: true", false)
    } else if let Some((proxy, advice)) = proxy(own, url).filter(|_| error.is_connect()) {
        (format!("cannot connect to {host} by the proxy {proxy}: {words}"), advice, true)
    } else if error.is_connect() {
        (format!("cannot connect to {host}: {words}"), "check the host, the port and the network", true)
    } else {
        (format!("the exchange with {host} broke off: {words}"), "", true)
    };
    RegistryError::Unreachable {
        asked: asked.clone(),
        problem,
        advice,
        transient,
        tries: 1,
        // A URL may carry signatures in its query.
        source: Some(Box::new(error.without_url())),
    }
}

/// The proxy for a URL, without the credentials for it, and what to do about it: its own, or else the one that the
/// environment names.
fn proxy(own: Option<&Proxy>, url: &Url) -> Option<(String, &'static str)> {
    static PROXIES: LazyLock<Matcher> = LazyLock::new(Matcher::from_system);
    let (proxy, advice) = if let Some(own) = own {
        let advice =
            "check the proxy and its credentials, or name the host in noProxy if it is to be reached without";
        (own.leads_to(url)?, advice)
    } else {
        let advice = "check the proxy, or name the host in NO_PROXY if it is to be reached without";
        (shown(&PROXIES.intercept(&url.as_str().parse().ok()?)?)?, advice)
    };
    Some((plain(&proxy), advice))
}

/// What a server says of a client's certificate; rustls has these TLS alerts in words only.
const CERTIFICATE_ALERTS: [&str; 6] = [
    "BadCertificate",
    "CertificateExpired",
    "CertificateRequired",
    "CertificateRevoked",
    "CertificateUnknown",
    "UnknownCA",
];

/// The innermost error: the outer ones say no more than that there was one.
pub(super) fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_registry_quotes_of_a_request_is_told_without_its_secrets() {
        for (text, told) in [
            ("Basic dXNlcjpzZWNyZXQ= is wrong", "Basic … is wrong"),
            (r#"{"Authorization":"Basic dXNlcjpzZWNyZXQ="}"#, r#"{"Authorization":"Basic …"}"#),
            (r#"{\"authorization\": \"bearer a.b-c_d~e/f==\"}"#, r#"{\"authorization\": \"bearer …\"}"#),
            ("Authorization:Basic\tdXNl, next", "Authorization:Basic …, next"),
            ("[BEARER  a:b+c]", "[BEARER  …]"),
            ("Basic", "Basic"),
            ("basic/ferry:1 and bearer", "basic/ferry:1 and bearer"),
            ("die Fähre, basic", "die Fähre, basic"),
        ] {
            assert_eq!(plain(text), told);
        }
    }
}
