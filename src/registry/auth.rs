//! Signing in: anonymous, basic, and the bearer tokens of the distribution's token specification.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_auth::ChallengeRef;
use reqwest::StatusCode;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};
use tokio::time::Instant;
use url::Url;

use super::access::{Credentials, Logins};
use super::client::{Call, Registry, Reply, SMALL_BODY, authority};
use super::error::{RegistryError, plain};

/// A token that says nothing of its life lives so long (token specification, `expires_in`).
const TOKEN_LIFE: Duration = Duration::from_mins(1);
/// No token is trusted to live longer.
const LONGEST_TOKEN_LIFE: Duration = Duration::from_hours(24);
/// A token is left so long before it ends.
const TOKEN_MARGIN: Duration = Duration::from_secs(10);

/// What a request needs to be allowed, as the token specification writes it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Scopes(Vec<String>);

impl Scopes {
    pub(super) fn pull(repository: &str) -> Self {
        Self(vec![format!("repository:{repository}:pull")])
    }

    pub(super) fn push(repository: &str) -> Self {
        Self(vec![format!("repository:{repository}:pull,push")])
    }

    pub(super) fn mount(repository: &str, from: &str) -> Self {
        Self(vec![format!("repository:{repository}:pull,push"), format!("repository:{from}:pull")])
    }

    /// The repository that is asked.
    fn repository(&self) -> &str {
        let first = self.0.first().and_then(|scope| scope.strip_prefix("repository:")?.rsplit_once(':'));
        first.map_or("", |(repository, _)| repository)
    }
}

/// How the registry wants to be signed in to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer { realm: Url, service: Option<String>, further_scope: Option<String> },
}

impl Challenge {
    /// What a registry asks for one repository it does not ask for the next.
    fn for_another_repository(mut self) -> Self {
        if let Self::Bearer { further_scope, .. } = &mut self {
            further_scope.take_if(|scope| scope.contains("repository:"));
        }
        self
    }
}

/// What is known of a host's ways, and the tokens that it gave.
pub(super) struct Auth {
    logins: Logins,
    /// What the host asked for last.
    latest: Mutex<Option<Challenge>>,
    by_scopes: Mutex<HashMap<Scopes, Arc<AsyncMutex<Known>>>>,
}

/// What is known of how to be allowed something. Locked while a token is asked for, so that many requests at once ask for
/// one.
#[derive(Default)]
struct Known {
    challenge: Option<Challenge>,
    token: Option<Token>,
}

struct Token {
    header: HeaderValue,
    ends: Instant,
}

impl Auth {
    pub(super) fn new(logins: Logins) -> Self {
        Self { logins, latest: Mutex::default(), by_scopes: Mutex::default() }
    }

    fn latest(&self) -> MutexGuard<'_, Option<Challenge>> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn known(&self, scopes: &Scopes) -> OwnedMutexGuard<Known> {
        let known = {
            let mut by_scopes = self.by_scopes.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(by_scopes.entry(scopes.clone()).or_default())
        };
        known.lock_owned().await
    }

    pub(super) fn has_credentials(&self, repository: &str) -> bool {
        self.logins.of(repository).is_some() || !self.logins.at_token_services.is_empty()
    }

    /// What the call's repository is opened with.
    fn credentials(&self, call: &Call) -> Option<&Credentials> {
        self.logins.of(call.scopes.repository())
    }

    /// What a token service gives tokens for.
    fn credentials_at(&self, realm: &Url, call: &Call) -> Option<&Credentials> {
        let own = realm.host_str().and_then(|host| self.logins.at_token_service(host));
        own.or_else(|| self.credentials(call))
    }

    fn signs_in(&self, call: &Call) -> bool {
        self.has_credentials(call.scopes.repository())
    }

    /// What to send at once: nothing before the registry has asked for something.
    pub(super) async fn authorization(
        &self,
        registry: &Registry,
        call: &Call,
    ) -> Result<Option<HeaderValue>, RegistryError> {
        let mut known = self.known(&call.scopes).await;
        if let Some(token) = known.token.as_ref().filter(|token| token.ends > Instant::now()) {
            return Ok(Some(token.header.clone()));
        }
        let latest = || self.latest().clone().map(Challenge::for_another_repository);
        let Some(challenge) = known.challenge.clone().or_else(latest) else {
            return Ok(None);
        };
        // What another repository was opened with: this one may be open to all.
        if challenge == Challenge::Basic
            && !matches!(self.credentials(call), Some(Credentials::Password { .. }))
        {
            return Ok(None);
        }
        self.answer(registry, call, challenge, &mut known).await.map(Some)
    }

    /// What to send after a 401: the answer to its challenge, by a new token if one was used.
    pub(super) async fn renew(
        &self,
        registry: &Registry,
        call: &Call,
        challenges: Vec<HeaderValue>,
        used: Option<&HeaderValue>,
        refused: RegistryError,
    ) -> Result<HeaderValue, RegistryError> {
        let mut known = self.known(&call.scopes).await;
        // Another request was faster, and what it got is not what was refused.
        let is_newer = |token: &&Token| used != Some(&token.header) && token.ends > Instant::now();
        if let Some(token) = known.token.as_ref().filter(is_newer) {
            return Ok(token.header.clone());
        }
        *known = Known::default();
        let Some(challenge) = choose(registry, call, &challenges)? else {
            return Err(self.failed(call, &refused));
        };
        if challenge == Challenge::Basic && (self.credentials(call).is_none() || used.is_some()) {
            return Err(self.failed(call, &refused));
        }
        *self.latest() = Some(challenge.clone());
        self.answer(registry, call, challenge, &mut known).await
    }

    /// The error where what signing in had just given is refused, too.
    pub(super) fn denied(&self, call: &Call, given: &HeaderValue, refused: &RegistryError) -> RegistryError {
        // Whoever got a token for an account has signed in: what it does not open is not the account's. Docker Hub and
        // others give one, and refuse it, for what does not exist.
        match refused {
            RegistryError::Refused { answer, .. }
                if self.signs_in(call) && given.as_bytes().starts_with(b"Bearer ") =>
            {
                RegistryError::Denied { asked: call.asked.clone(), problem: answer.to_string() }
            }
            _ => self.failed(call, refused),
        }
    }

    /// The error for a request that is refused whatever is sent.
    pub(super) fn failed(&self, call: &Call, refused: &RegistryError) -> RegistryError {
        let answer = match refused {
            RegistryError::Refused { answer, .. } => answer.to_string(),
            other => other.to_string(),
        };
        let advice = if self.signs_in(call) {
            "check the credentials for this registry and what they allow"
        } else {
            // Docker Hub and others answer so to those whom they do not know.
            "the image does not exist, or credentials for this registry are needed"
        };
        RegistryError::Authentication { asked: call.asked.clone(), problem: answer, advice }
    }

    async fn answer(
        &self,
        registry: &Registry,
        call: &Call,
        challenge: Challenge,
        known: &mut Known,
    ) -> Result<HeaderValue, RegistryError> {
        match &challenge {
            Challenge::Basic => match self.credentials(call) {
                Some(Credentials::Password { username, password }) => Ok(basic(username, password)),
                _ => Err(RegistryError::Authentication {
                    asked: call.asked.clone(),
                    problem: format!("{} asks for a user and a password", registry.host()),
                    advice: "give credentials for this registry",
                }),
            },
            Challenge::Bearer { realm, service, further_scope } => {
                let token =
                    self.token(registry, call, realm, service.as_deref(), further_scope.as_deref()).await?;
                let header = token.header.clone();
                *known = Known { challenge: Some(challenge), token: Some(token) };
                Ok(header)
            }
        }
    }

    async fn token(
        &self,
        registry: &Registry,
        call: &Call,
        realm: &Url,
        service: Option<&str>,
        further_scope: Option<&str>,
    ) -> Result<Token, RegistryError> {
        let further = further_scope.filter(|scope| !scope.is_empty());
        let scopes: Vec<&str> = call.scopes.0.iter().map(String::as_str).chain(further).collect();
        let mut url = realm.clone();
        let client = registry.client(realm);
        let credentials = self.credentials_at(realm, call);
        let request = if let Some(Credentials::IdentityToken(token)) = credentials {
            // The token service takes it by OAuth 2 alone (RFC 6749, section 6).
            let mut form = url::form_urlencoded::Serializer::new(String::new());
            form.append_pair("grant_type", "refresh_token").append_pair("client_id", "charon");
            form.append_pair("refresh_token", token.expose_secret());
            form.append_pair("service", service.unwrap_or_default()).append_pair("scope", &scopes.join(" "));
            let request = client.post(url.clone()).body(form.finish());
            request.header(CONTENT_TYPE, "application/x-www-form-urlencoded")
        } else {
            let mut query = url.query_pairs_mut();
            query.extend_pairs(service.map(|service| ("service", service)));
            query.extend_pairs(scopes.iter().map(|scope| ("scope", scope)));
            drop(query);
            let request = client.get(url.clone());
            match credentials {
                Some(Credentials::Password { username, password }) => {
                    request.header(AUTHORIZATION, basic(username, password))
                }
                _ => request,
            }
        };
        let asked_at = Instant::now();
        // No redirect is followed here: the credential is for this service alone.
        let response = registry.exchange(call, &url, request).await?;
        let status = response.status();
        if !status.is_success() {
            let refused = registry.refused(call, Reply { response, url, is_own: false }).await;
            let is_about_credentials = matches!(
                status,
                StatusCode::UNAUTHORIZED
                    | StatusCode::FORBIDDEN
                    | StatusCode::BAD_REQUEST
                    | StatusCode::NOT_FOUND
            );
            return Err(if is_about_credentials { self.failed(call, &refused) } else { refused });
        }
        let body = registry.capped(response, SMALL_BODY).await.map_err(|error| error.of(call, &url))?;
        let unusable = || {
            let service = authority(&url);
            call.asked.protocol(format!("the token service {service} answered without a usable token"))
        };
        let answer: TokenAnswer = serde_json::from_slice(&body).map_err(|_| unusable())?;
        let texts = [answer.token, answer.access_token].into_iter().flatten();
        let text = texts.into_iter().find(|text| !text.is_empty()).ok_or_else(unusable)?;
        let mut header = HeaderValue::try_from(format!("Bearer {text}")).map_err(|_| unusable())?;
        header.set_sensitive(true);
        let life = answer.expires_in.as_ref().and_then(seconds).unwrap_or(TOKEN_LIFE);
        let life = life.min(LONGEST_TOKEN_LIFE).saturating_sub(TOKEN_MARGIN);
        Ok(Token { header, ends: asked_at + life })
    }
}

/// The challenge that is answered: a token where one can be had.
fn choose(
    registry: &Registry,
    call: &Call,
    headers: &[HeaderValue],
) -> Result<Option<Challenge>, RegistryError> {
    let texts: Vec<&str> = headers.iter().filter_map(|value| value.to_str().ok()).collect();
    let challenges: Vec<ChallengeRef<'_>> =
        texts.iter().filter_map(|text| http_auth::parse_challenges(text).ok()).flatten().collect();
    let of = |scheme: &str| challenges.iter().find(|found| found.scheme.eq_ignore_ascii_case(scheme));
    if let Some(found) = of("Bearer") {
        return bearer(registry, call, found).map(Some);
    }
    Ok(of("Basic").map(|_| Challenge::Basic))
}

fn bearer(
    registry: &Registry,
    call: &Call,
    challenge: &ChallengeRef<'_>,
) -> Result<Challenge, RegistryError> {
    let parameter = |name: &str| {
        let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.to_unescaped())
    };
    let refused = |problem: String| RegistryError::Authentication {
        asked: call.asked.clone(),
        problem,
        advice: "check the registry's token settings",
    };
    let text = parameter("realm").unwrap_or_default();
    let realm =
        Url::parse(&text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    let realm = realm
        .ok_or_else(|| refused(format!("{} names no token service that can be asked", registry.host())))?;
    if registry.is_https() && realm.scheme() != "https" {
        return Err(refused(format!(
            "{} names the token service {} on plain HTTP, which no credential is sent to",
            registry.host(),
            authority(&realm)
        )));
    }
    Ok(Challenge::Bearer {
        realm,
        service: parameter("service"),
        further_scope: parameter("scope").map(|text| further_scope(&text, &call.scopes)),
    })
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<Value>,
}

/// A number of seconds, as token services write it: `300`, `299.5`, `"300"`. None if it is none.
fn seconds(value: &Value) -> Option<Duration> {
    let seconds = value.as_f64().or_else(|| value.as_str()?.trim().parse().ok())?;
    Duration::try_from_secs_f64(seconds).ok().filter(|life| !life.is_zero())
}

/// What the challenge wants beyond the request's own scopes; some registries have words of their own here.
fn further_scope(text: &str, own: &Scopes) -> String {
    let name = |scope: &str| scope.rsplit_once(':').map(|(name, _)| name.to_owned());
    let mut further = String::new();
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let is_own =
            own.0.iter().any(|scope| scope == word || (name(scope).is_some() && name(scope) == name(word)));
        if !is_own {
            let separator = if further.is_empty() { "" } else { " " };
            let _ = write!(further, "{separator}{}", plain(word));
        }
    }
    further
}

fn basic(username: &str, password: &SecretString) -> HeaderValue {
    let pair = format!("{username}:{}", password.expose_secret());
    // Base64 is always fit for a header.
    let mut header = HeaderValue::try_from(format!("Basic {}", STANDARD.encode(pair)))
        .unwrap_or_else(|_| HeaderValue::from_static("Basic"));
    header.set_sensitive(true);
    header
}

#[cfg(test)]
mod tests {
    use reqwest::Method;

    use super::super::access::Access;
    use super::super::error::Asked;
    use super::*;

    fn chosen(insecure: bool, header: &'static str) -> Result<Option<Challenge>, RegistryError> {
        let access = Access { insecure, ..Access::default() };
        let registry = Registry::new("a.b".parse().unwrap(), access).unwrap();
        let url = registry.url("x", &["manifests", "1"]).unwrap();
        let asked = Asked::reading(registry.host(), "x", "1");
        let call = Call::new(Method::GET, url, Scopes::pull("x"), asked);
        choose(&registry, &call, &[HeaderValue::from_static(header)])
    }

    #[test]
    fn a_token_service_on_plain_http_is_refused_where_the_registry_has_tls() {
        let header = r#"Bearer realm="http://c.d/token""#;
        let error = chosen(false, header).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot read a.b/x:1: a.b names the token service c.d on plain HTTP, which no credential is sent to; \
             check the registry's token settings"
        );
        assert!(chosen(true, header).is_ok());
        assert!(chosen(false, r#"Bearer realm="https://c.d/token""#).is_ok());
        for header in ["Bearer", r#"Bearer realm="file:///x""#, r#"Bearer realm="token""#] {
            assert!(chosen(true, header).is_err(), "{header}");
        }
    }

    #[test]
    fn a_token_is_preferred_to_a_password() {
        let both = r#"Basic realm="x", Bearer realm="https://c.d/token",service="s""#;
        assert!(matches!(chosen(false, both), Ok(Some(Challenge::Bearer { .. }))));
        assert!(matches!(chosen(false, "basic realm=x"), Ok(Some(Challenge::Basic))));
        assert!(matches!(chosen(false, "Negotiate"), Ok(None)));
    }
}
