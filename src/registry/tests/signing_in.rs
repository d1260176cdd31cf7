use std::sync::atomic::{AtomicUsize, Ordering};

use futures::TryStreamExt as _;

use super::scripted::{Server, reply};
use super::*;
use crate::reason::Reason;

const MANIFEST: &str = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json"}"#;
/// `user:secret`
const BASIC: &str = "Basic dXNlcjpzZWNyZXQ=";

/// A registry that wants tokens from its own `/token`, numbered by request, and takes those that `takes` likes.
async fn with_tokens(life: u64, takes: impl Fn(&str) -> bool + Send + Sync + 'static) -> Server {
    Server::start(move |seen, nth| {
        if seen.target.starts_with("/token") {
            return reply(200, &[], format!(r#"{{"token":"t{nth}","expires_in":{life}}}"#));
        }
        match seen.header("authorization").and_then(|value| value.strip_prefix("Bearer ")) {
            Some(token) if takes(token) => {
                reply(if seen.method == "POST" { 201 } else { 200 }, &[], MANIFEST)
            }
            _ => {
                let realm = format!("http://{}/token", seen.header("host").unwrap());
                let challenge =
                    format!(r#"Bearer realm="{realm}",service="the registry",scope="repository:x:pull""#);
                let body = r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
                reply(401, &[("www-authenticate", &challenge)], body)
            }
        }
    })
    .await
}

fn tokens_asked(server: &Server) -> Vec<String> {
    server.lines().into_iter().filter(|line| line.contains("/token")).collect()
}

#[tokio::test]
async fn a_token_is_asked_for_once_for_each_scope() {
    let server = with_tokens(300, |_| true).await;
    let registry = client(&server, EAGER, Some(user("user", "secret")));
    registry.manifest("x", "1").await.unwrap();
    registry.manifest("x", "2").await.unwrap();
    registry.put_manifest("x", "2", "application/json", MANIFEST.into()).await.unwrap();
    registry.mount_blob("x", &digest_of(b""), "a/b").await.unwrap();
    assert_eq!(
        tokens_asked(&server),
        [
            "GET /token?service=the+registry&scope=repository%3Ax%3Apull",
            "GET /token?service=the+registry&scope=repository%3Ax%3Apull%2Cpush",
            "GET /token?service=the+registry&scope=repository%3Ax%3Apull%2Cpush&scope=repository%3Aa%2Fb%3Apull",
        ]
    );
    for seen in server.seen() {
        let is_for_tokens = seen.target.starts_with("/token");
        let sent = seen.header("authorization").unwrap_or_default();
        assert_eq!(sent == BASIC, is_for_tokens, "{}", seen.line());
    }
    assert_eq!(
        server.seen()[3].header("authorization"),
        Some("Bearer t0"),
        "the second pull signs in at once"
    );
}

#[tokio::test]
async fn many_requests_at_once_ask_for_one_token() {
    let server = with_tokens(300, |_| true).await;
    let registry = anonymous(&server);
    let tags = ["1", "2", "3", "4", "5", "6"];
    futures::future::try_join_all(tags.iter().map(|tag| registry.manifest("x", tag))).await.unwrap();
    assert_eq!(tokens_asked(&server).len(), 1);
    assert!(server.seen().iter().all(|seen| seen.header("authorization") != Some(BASIC)));
}

#[tokio::test]
async fn a_token_that_is_long_in_coming_keeps_only_those_waiting_that_need_it() {
    let is_served = std::sync::Arc::new(tokio::sync::Notify::new());
    let server = Server::start(move |seen, _| {
        let realm = format!(r#"Bearer realm="http://{}/token""#, seen.header("host").unwrap());
        match seen.header("authorization") {
            _ if seen.target.starts_with("/token") && seen.target.contains("slow") => {
                let is_served = is_served.clone();
                let token = async move {
                    is_served.notified().await;
                    Ok::<_, std::convert::Infallible>(r#"{"token":"a"}"#)
                };
                axum::http::Response::new(axum::body::Body::from_stream(futures::stream::once(token)))
            }
            _ if seen.target.starts_with("/token") => reply(200, &[], r#"{"token":"a"}"#),
            Some("Bearer a") => {
                is_served.notify_one();
                reply(200, &[], MANIFEST)
            }
            _ => reply(401, &[("www-authenticate", &realm)], ""),
        }
    })
    .await;
    let registry = client(&server, NO_PATIENCE, None);
    let (slow, fast) = tokio::join!(registry.manifest("slow", "1"), async {
        while tokens_asked(&server).is_empty() {
            tokio::task::yield_now().await;
        }
        registry.manifest("fast", "1").await
    });
    fast.unwrap();
    slow.unwrap();
}

#[tokio::test]
async fn a_token_that_is_about_to_end_is_not_used_again() {
    let server = with_tokens(1, |_| true).await;
    let registry = anonymous(&server);
    registry.manifest("x", "1").await.unwrap();
    registry.manifest("x", "2").await.unwrap();
    assert_eq!(tokens_asked(&server).len(), 2);
    assert_eq!(server.lines().iter().filter(|line| line.contains("manifests/2")).count(), 1);
}

#[tokio::test]
async fn a_token_that_is_refused_in_mid_run_is_replaced_by_one_new_token() {
    let uses = AtomicUsize::new(0);
    // The first is good for one request, the second for one too, the others for none.
    let takes = move |token: &str| {
        let uses = uses.fetch_add(1, Ordering::Relaxed);
        (token == "t0" && uses == 0) || (token == "t1" && uses == 2)
    };
    let server = with_tokens(300, takes).await;
    let registry = anonymous(&server);
    registry.manifest("x", "1").await.unwrap();
    registry.manifest("x", "2").await.unwrap();
    assert_eq!(tokens_asked(&server).len(), 2);
    let error = registry.manifest("x", "3").await.unwrap_err();
    assert_eq!(error.reason(), Reason::AuthenticationFailed);
    assert_eq!(tokens_asked(&server).len(), 3, "one new token, and no more");
}

#[tokio::test]
async fn a_401_without_credentials_says_that_the_image_may_not_exist() {
    let server = with_tokens(300, |_| false).await;
    let error = anonymous(&server).manifest("x", "1").await.unwrap_err();
    assert_eq!(
        told(&server, &error),
        "cannot read HOST/x:1: HOST answered 401 Unauthorized (UNAUTHORIZED: authentication required); \
         the image does not exist, or credentials for this registry are needed"
    );
}

#[tokio::test]
async fn an_account_whose_token_is_refused_has_signed_in_and_has_no_access() {
    let server = with_tokens(300, |_| false).await;
    let registry = client(&server, EAGER, Some(user("user", "secret")));
    let error = registry.manifest("x", "1").await.unwrap_err();
    assert_eq!(
        told(&server, &error),
        "cannot read HOST/x:1: HOST answered 401 Unauthorized (UNAUTHORIZED: authentication required); \
         the image does not exist, or the account may not pull it"
    );
    assert_eq!(error.reason(), Reason::AccessDenied);
    let error = registry.tag_digest("x", "2").await.unwrap_err();
    assert_eq!(error.reason(), Reason::AccessDenied);
    let error = registry.check_push("x").await.unwrap_err();
    assert!(error.to_string().ends_with("check that the account may push to this repository"), "{error}");
    assert_eq!(error.reason(), Reason::AccessDenied);
}

#[tokio::test]
async fn basic_credentials_are_sent_when_they_are_asked_for_and_at_once_from_then_on() {
    let server = Server::start(|seen, _| match seen.header("authorization") {
        Some(BASIC) => reply(200, &[], MANIFEST),
        _ => reply(401, &[("www-authenticate", r#"Basic realm="registry""#)], ""),
    })
    .await;
    let registry = client(&server, EAGER, Some(user("user", "secret")));
    registry.manifest("x", "1").await.unwrap();
    registry.manifest("x", "2").await.unwrap();
    assert_eq!(server.lines(), ["GET /v2/x/manifests/1", "GET /v2/x/manifests/1", "GET /v2/x/manifests/2"]);
    assert_eq!(server.seen()[0].header("authorization"), None);

    let registry = client(&server, EAGER, Some(user("user", "wrong")));
    let error = registry.manifest("x", "3").await.unwrap_err();
    assert_eq!(error.reason(), Reason::AuthenticationFailed);
    assert_eq!(server.lines().len(), 5, "a wrong password is sent once: more can lock an account");
    registry.manifest("x", "3").await.unwrap_err();
    assert_eq!(server.lines().len(), 6, "and not twice for a later request either");
}

#[tokio::test]
async fn a_repository_without_a_login_may_be_open_beside_one_that_asks_for_a_user() {
    let server = Server::start(|seen, _| match seen.header("authorization") {
        None if seen.target.starts_with("/v2/mine/") => {
            reply(401, &[("www-authenticate", r#"Basic realm="registry""#)], "")
        }
        _ => reply(200, &[], MANIFEST),
    })
    .await;
    let below = vec![("mine".to_owned(), user("user", "secret"))];
    let credentials = Logins { below, ..Logins::default() };
    let access = Access { insecure: true, credentials, ..Access::default() };
    let registry = with_patience(server.host(), access, EAGER);
    registry.manifest("mine/app", "1").await.unwrap();
    registry.manifest("open/app", "1").await.unwrap();
    assert_eq!(server.seen().last().unwrap().header("authorization"), None);
}

#[tokio::test]
async fn a_token_may_be_called_access_token_and_its_service_may_need_a_second_try() {
    let server = Server::start(|seen, nth| {
        let realm = format!(r#"Bearer realm="http://{}/token""#, seen.header("host").unwrap());
        match (seen.target.starts_with("/token"), seen.header("authorization")) {
            (true, _) if nth == 0 => reply(503, &[], ""),
            (true, _) => reply(200, &[], r#"{"access_token":"a"}"#),
            (false, Some("Bearer a")) => reply(200, &[], MANIFEST),
            _ => reply(401, &[("WWW-Authenticate", &realm)], ""),
        }
    })
    .await;
    anonymous(&server).manifest("x", "1").await.unwrap();
    assert_eq!(tokens_asked(&server).len(), 2);
}

#[tokio::test]
async fn a_token_is_taken_however_its_service_writes_it() {
    for (answer, is_kept) in [
        (r#"{"token":"","access_token":"a","expires_in":300}"#, true),
        (r#"{"token":null,"access_token":"a","expires_in":"300"}"#, true),
        (r#"{"token":"a","access_token":"","expires_in":299.5}"#, true),
        (r#"{"token":"a","expires_in":"1"}"#, false),
        // What says nothing lives for a minute.
        (r#"{"token":"a","expires_in":null}"#, true),
        (r#"{"token":"a","expires_in":"soon"}"#, true),
        (r#"{"token":"a","expires_in":-1}"#, true),
        (r#"{"token":"a","expires_in":1e300}"#, true),
    ] {
        let server = Server::start(move |seen, _| {
            let realm = format!(r#"Bearer realm="http://{}/token""#, seen.header("host").unwrap());
            match seen.header("authorization") {
                _ if seen.target.starts_with("/token") => reply(200, &[], answer),
                Some("Bearer a") => reply(200, &[], MANIFEST),
                _ => reply(401, &[("WWW-Authenticate", &realm)], ""),
            }
        })
        .await;
        let registry = anonymous(&server);
        registry.manifest("x", "1").await.unwrap();
        registry.manifest("x", "2").await.unwrap();
        assert_eq!(tokens_asked(&server).len(), if is_kept { 1 } else { 2 }, "{answer}");
    }
}

#[tokio::test]
async fn words_that_a_registry_wants_in_the_scope_are_passed_on() {
    let server = Server::start(|seen, _| {
        let challenge =
            format!(r#"Bearer realm="http://{}/token",scope="aws""#, seen.header("host").unwrap());
        match seen.header("authorization") {
            _ if seen.target.starts_with("/token") => reply(200, &[], r#"{"token":"a"}"#),
            Some("Bearer a") => reply(200, &[], MANIFEST),
            _ => reply(401, &[("www-authenticate", &challenge)], ""),
        }
    })
    .await;
    anonymous(&server).manifest("x", "1").await.unwrap();
    assert_eq!(tokens_asked(&server), ["GET /token?scope=repository%3Ax%3Apull&scope=aws"]);
}

#[tokio::test]
async fn a_token_service_gets_its_own_login_and_the_registry_none_of_it() {
    let server = with_tokens(300, |_| true).await;
    for (service, expected) in [("127.0.0.1", BASIC), ("other.example", "Basic YTpi")] {
        let mut credentials = Logins::from(Some(user("a", "b")));
        credentials.at_token_services.push((service.to_owned(), user("user", "secret")));
        let access = Access { insecure: true, credentials, ..Access::default() };
        let registry = with_patience(server.host(), access, EAGER);
        registry.manifest("x", "1").await.unwrap();
        let seen = server.seen();
        let to_service = seen.iter().rfind(|seen| seen.target.starts_with("/token")).unwrap();
        assert_eq!(to_service.header("authorization"), Some(expected));
        let to_registry = seen.iter().filter(|seen| !seen.target.starts_with("/token"));
        let sent: Vec<_> = to_registry.filter_map(|seen| seen.header("authorization")).collect();
        assert!(sent.iter().all(|sent| sent.starts_with("Bearer ")), "{sent:?}");
    }
}

#[tokio::test]
async fn no_credential_follows_a_redirect_to_another_host_nor_back() {
    let registry_host = std::sync::Arc::new(std::sync::OnceLock::<String>::new());
    let back = registry_host.clone();
    let stranger = Server::start(move |seen, _| match seen.target.as_str() {
        "/back" => reply(307, &[("location", back.get().unwrap())], ""),
        _ => reply(200, &[], "blob"),
    })
    .await;
    let (there, and_back) = (stranger.url("/blob?signature=1"), stranger.url("/back"));
    let server = Server::start(move |seen, _| {
        if seen.target == "/secret" {
            return reply(200, &[], "blob");
        }
        match seen.header("authorization") {
            None => reply(401, &[("www-authenticate", "Basic")], ""),
            Some(_) if seen.target.contains("/back/") => reply(307, &[("location", &and_back)], ""),
            Some(_) => reply(307, &[("location", &there)], ""),
        }
    })
    .await;
    registry_host.set(server.url("/secret")).unwrap();
    let registry = client(&server, EAGER, Some(user("user", "secret")));
    let digest = digest_of(b"blob");
    for repository in ["x", "back"] {
        let content: Vec<_> = registry.blob(repository, &digest, 4).try_collect().await.unwrap();
        assert_eq!(content.concat(), b"blob");
    }
    assert_eq!(stranger.lines(), ["GET /blob?signature=1", "GET /back"]);
    assert!(stranger.seen().iter().all(|seen| seen.header("authorization").is_none()));
    let at_home: Vec<_> = server.seen().into_iter().filter(|seen| seen.target == "/secret").collect();
    assert_eq!(at_home.len(), 1);
    assert_eq!(at_home[0].header("authorization"), None);
}

#[tokio::test]
async fn no_credential_follows_an_upload_to_another_host() {
    let stranger = Server::start(|_, _| reply(201, &[], "")).await;
    let upload = stranger.url("/upload?state=1");
    let server = Server::start(move |seen, _| match seen.header("authorization") {
        None => reply(401, &[("www-authenticate", "Basic")], ""),
        Some(_) => reply(202, &[("location", &upload)], ""),
    })
    .await;
    let registry = client(&server, EAGER, Some(user("user", "secret")));
    let digest = digest_of(b"blob");
    let body = || futures::stream::iter([Ok(bytes::Bytes::from_static(b"blob"))]);
    registry.push_blob("x", &digest, 4, body).await.unwrap();
    assert!(!registry.mount_blob("x", &digest, "y").await.unwrap());
    assert_eq!(
        stranger.lines(),
        [
            format!("PUT /upload?state=1&digest={}", digest.as_str().replace(':', "%3A")),
            "DELETE /upload?state=1".to_owned()
        ]
    );
    assert!(stranger.seen().iter().all(|seen| seen.header("authorization").is_none()));
}
