//! A service that gives tokens for a registry (distribution's token authentication specification).

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::Request;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::program::tool;
use crate::registry::RUNTIME;

/// So long after its end a token still opens distribution's registries, in seconds.
const LEEWAY: u64 = 60;

/// What the service changes for tokens of `charon`.
pub(crate) const IDENTITY_TOKEN: &str = "whom Charon knows";

/// A service that is running.
///
/// `charon` may do everything, `reader` may read everything, and anybody may read what is under `open/`: `guest` no more.
pub(crate) struct TokenService {
    address: String,
    desk: Arc<Desk>,
    task: JoinHandle<()>,
}

/// What someone asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) user: Option<String>,
    pub(crate) scopes: Vec<String>,
}

struct Desk {
    folder: TempDir,
    password: String,
    /// For so many seconds a token opens the registry, whatever it is said to.
    life: u64,
    asked: Mutex<Vec<Asked>>,
    tokens: Mutex<Vec<String>>,
}

impl TokenService {
    /// Users sign in with `password`; a token is good for `life` seconds.
    pub(crate) fn start(password: &str, life: u64) -> Self {
        let folder = tempfile::tempdir().expect("a folder for the key");
        let request =
            ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=ferryman", "-days", "2"];
        let request = tool("openssl", request).in_folder(folder.path());
        request.arguments(["-keyout", "key.pem", "-out", "certificate.pem"]).run().succeeded();
        let (asked, tokens) = (Mutex::default(), Mutex::default());
        let desk = Arc::new(Desk { folder, password: password.to_owned(), life, asked, tokens });
        let listener = RUNTIME.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port is free");
        let address = listener.local_addr().expect("it is bound").to_string();
        let clerk = desk.clone();
        let app = axum::Router::new().fallback(move |request: Request| {
            let clerk = clerk.clone();
            async move { clerk.answer(request).await }
        });
        let task = RUNTIME.spawn(async move { axum::serve(listener, app).await.expect("it serves") });
        Self { address, desk, task }
    }

    /// `127.0.0.1:port`.
    pub(crate) fn host(&self) -> &str {
        &self.address
    }

    pub(crate) fn realm(&self) -> String {
        format!("http://{}/token", self.address)
    }

    pub(crate) fn certificate(&self) -> PathBuf {
        self.desk.folder.path().join("certificate.pem")
    }

    /// What was asked for so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.desk.asked.lock().expect("nobody panicked").clone()
    }

    /// The tokens that were given.
    pub(crate) fn tokens(&self) -> Vec<String> {
        self.desk.tokens.lock().expect("nobody panicked").clone()
    }
}

impl Drop for TokenService {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Desk {
    async fn answer(&self, request: Request) -> Response {
        let (head, body) = request.into_parts();
        let form = axum::body::to_bytes(body, 1 << 20).await.unwrap_or_default();
        let form: HashMap<String, String> = url::form_urlencoded::parse(&form).into_owned().collect();
        let by_form = |name: &str| form.get(name).map(String::as_str);
        let user = if head.method == Method::POST {
            // RFC 6749, section 6.
            let is_known = by_form("grant_type") == Some("refresh_token")
                && by_form("refresh_token") == Some(IDENTITY_TOKEN)
                && by_form("service") == Some("ferry");
            is_known.then(|| Some("charon".to_owned())).ok_or(())
        } else {
            self.user(&head.headers)
        };
        let Ok(user) = user else {
            let error = json!({"errors": [{"code": "UNAUTHORIZED", "message": "no such user or password"}]});
            return (StatusCode::UNAUTHORIZED, Json(error)).into_response();
        };
        let query = url::form_urlencoded::parse(head.uri.query().unwrap_or_default().as_bytes());
        let query = query.filter(|(key, _)| key == "scope").map(|(_, scope)| scope.into_owned());
        let in_form = by_form("scope").into_iter().flat_map(|scopes| scopes.split(' ')).map(str::to_owned);
        let scopes: Vec<String> = query.chain(in_form).collect();
        let token = self.token(user.as_deref(), &scopes);
        self.asked.lock().expect("nobody panicked").push(Asked { user, scopes });
        self.tokens.lock().expect("nobody panicked").push(token.clone());
        let name = if head.method == Method::POST { "access_token" } else { "token" };
        Json(json!({name: token, "expires_in": 3600})).into_response()
    }

    /// Who asks, or none if nobody says so.
    fn user(&self, headers: &HeaderMap) -> Result<Option<String>, ()> {
        let Some(header) = headers.get("authorization") else { return Ok(None) };
        let encoded = header.to_str().ok().and_then(|text| text.strip_prefix("Basic ")).ok_or(())?;
        let pair = STANDARD.decode(encoded).ok().and_then(|pair| String::from_utf8(pair).ok()).ok_or(())?;
        let (user, password) = pair.split_once(':').ok_or(())?;
        let is_known = ["charon", "reader", "guest"].contains(&user) && password == self.password;
        is_known.then(|| Some(user.to_owned())).ok_or(())
    }

    /// A token for as much of the scopes as the user may do.
    fn token(&self, user: Option<&str>, scopes: &[String]) -> String {
        let access: Vec<Value> = scopes
            .iter()
            .filter_map(|scope| {
                let mut parts = scope.splitn(3, ':');
                let (kind, name, actions) = (parts.next()?, parts.next()?, parts.next()?);
                let may = |action: &&str| match user {
                    Some("charon") => true,
                    Some("reader") => *action == "pull",
                    _ => *action == "pull" && name.starts_with("open/"),
                };
                let actions: Vec<&str> = actions.split(',').filter(may).collect();
                Some(json!({"type": kind, "name": name, "actions": actions}))
            })
            .collect();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970").as_secs();
        let claims = json!({
            "iss": "ferryman", "sub": user.unwrap_or_default(), "aud": "ferry", "access": access,
            "iat": now, "nbf": now - LEEWAY, "exp": now + self.life - LEEWAY, "jti": fastrand::u64(..).to_string(),
        });
        let certificate =
            fs::read_to_string(self.folder.path().join("certificate.pem")).expect("it is there");
        let certificate: String = certificate.lines().filter(|line| !line.starts_with("-----")).collect();
        let header = json!({"typ": "JWT", "alg": "RS256", "x5c": [certificate]});
        let encoded = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
        let signed = format!("{}.{}", encoded(&header), encoded(&claims));
        let sign = tool("openssl", ["dgst", "-sha256", "-sign", "key.pem"]).in_folder(self.folder.path());
        let signature = sign.fed(signed.clone()).run().succeeded().stdout;
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}
