use super::scripted::{Server, reply};
use super::*;
use crate::proxy::Proxy;
use crate::reason::Reason;

#[tokio::test]
async fn a_refusal_names_what_was_asked_what_came_back_and_what_to_do() {
    let long = format!("<{}", "no html ".repeat(10));
    for (status, body, reason, text) in [
        (
            404,
            r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#,
            Reason::ImageNotFound,
            "HOST answered 404 Not Found (MANIFEST_UNKNOWN: manifest unknown); \
             check the name, the tag or digest, and the registry",
        ),
        (
            403,
            r#"{"errors":[{"code":"DENIED","message":"line\none\u001b[31m"}]}"#,
            Reason::AccessDenied,
            "HOST answered 403 Forbidden (DENIED: line one [31m); \
             check that the account may pull from this repository",
        ),
        (
            429,
            "slow down",
            Reason::RateLimited,
            "HOST answered 429 Too Many Requests (slow down); wait, or use credentials that have a higher limit",
        ),
        (502, long.as_str(), Reason::RegistryUnavailable, "HOST answered 502 Bad Gateway"),
        (
            400,
            "Client sent an HTTP request to an HTTPS server.",
            Reason::RegistryUnavailable,
            "HOST answered 400 Bad Request (Client sent an HTTP request to an HTTPS server.); \
             it speaks TLS: leave out --insecure or insecure: true",
        ),
    ] {
        let body = body.to_owned();
        let server = Server::start(move |_, _| reply(status, &[], body.clone())).await;
        let error = client(&server, NO_PATIENCE, None).manifest("a/b", "1.0").await.unwrap_err();
        assert_eq!(told(&server, &error), format!("cannot read HOST/a/b:1.0: {text}"));
        assert_eq!(error.reason(), reason);
    }
}

#[tokio::test]
async fn a_refused_push_says_what_the_account_or_the_registry_lacks() {
    for (status, body, text) in [
        (403, "", "HOST answered 403 Forbidden; check that the account may push to this repository"),
        (
            404,
            r#"{"errors":[{"code":"NAME_UNKNOWN","message":"project x not found"}]}"#,
            "HOST answered 404 Not Found (NAME_UNKNOWN: project x not found); \
             create the repository or project first, or use an account that may create it",
        ),
        (
            412,
            r#"{"errors":[{"code":"PRECONDITION","message":"tag is immutable"}]}"#,
            "HOST answered 412 Precondition Failed (PRECONDITION: tag is immutable); \
             check that the registry takes pushes and that the tag may be changed",
        ),
    ] {
        let server = Server::start(move |_, _| reply(status, &[], body)).await;
        let put = anonymous(&server).put_manifest("x", "1", "application/json", "{}".into()).await;
        let error = put.unwrap_err();
        assert_eq!(told(&server, &error), format!("cannot push HOST/x:1: {text}"));
        let reason = if status == 404 { Reason::RepositoryNotFound } else { Reason::AccessDenied };
        assert_eq!(error.reason(), reason);
    }
}

#[tokio::test]
async fn an_error_body_is_quoted_in_part_only() {
    let server = Server::start(|_, _| reply(418, &[], "tea ".repeat(1000))).await;
    let error = anonymous(&server).manifest("x", "1").await.unwrap_err();
    assert!(error.to_string().len() < 500, "{error}");
    let server = Server::start(|_, _| reply(418, &[], "x".repeat(65 * 1024))).await;
    let error = anonymous(&server).manifest("x", "1").await.unwrap_err();
    assert_eq!(told(&server, &error), "cannot read HOST/x:1: HOST answered 418 I'm a teapot");
}

#[tokio::test]
async fn a_server_of_plain_http_is_told_to_those_who_ask_with_tls() {
    let server = Server::start(|_, _| reply(200, &[], "")).await;
    let registry = with_patience(server.host(), Access::default(), EAGER);
    let error = registry.manifest("x", "1").await.unwrap_err();
    assert_eq!(
        told(&server, &error),
        "cannot read HOST/x:1: HOST does not speak TLS; if it is meant to, use --insecure or insecure: true"
    );
    assert_eq!(error.reason(), Reason::RegistryUnavailable);
}

#[tokio::test]
async fn a_registry_that_is_not_there_is_told_by_its_name() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    drop(listener);
    let access = Access { insecure: true, ..Access::default() };
    let registry = with_patience(host.parse().unwrap(), access, NO_PATIENCE);
    let error = registry.manifest("x", "1").await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "cannot read {host}/x:1: cannot connect to {host}: Connection refused (os error 111); \
             check the host, the port and the network"
        )
    );
    assert_eq!(error.reason(), Reason::RegistryUnavailable);
}

#[tokio::test]
async fn a_proxy_that_is_not_there_is_told_without_its_password_and_with_the_way_around() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let dead = listener.local_addr().unwrap().to_string();
    drop(listener);
    let password = SecretString::from("obolus");
    let proxy = Proxy::new(&format!("http://{dead}"), Some("charon"), Some(&password), None).unwrap();
    let access = Access { insecure: true, proxy: Some(proxy), ..Access::default() };
    let registry = with_patience("a.example".parse().unwrap(), access, NO_PATIENCE);
    let error = registry.manifest("x", "1").await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "cannot read a.example/x:1: cannot connect to a.example by the proxy http://{dead}: \
             Connection refused (os error 111); check the proxy and its credentials, or name the host in noProxy if it \
             is to be reached without"
        )
    );
}

#[tokio::test]
async fn a_registry_that_says_nothing_is_not_waited_for_without_end() {
    // The system accepts the connection; no one ever answers.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let access = Access { insecure: true, ..Access::default() };
    let patience = Patience { idle: Duration::from_millis(20), ..NO_PATIENCE };
    let registry = with_patience(host.parse().unwrap(), access, patience);
    let error = registry.manifest("x", "1").await.unwrap_err();
    assert_eq!(error.to_string(), format!("cannot read {host}/x:1: {host} went silent"));
    assert_eq!(error.reason(), Reason::RegistryUnavailable);
}

#[test]
fn certificates_that_cannot_be_read_are_refused_at_once() {
    let text = Some(b"nonsense".to_vec());
    for (access, expected) in [
        (
            Access { ca_pem: text.clone(), ..Access::default() },
            "cannot set up a client for a.b: the certificate authority cannot be read: \
             there is no PEM certificate in it",
        ),
        (
            Access { identity_pem: text, ..Access::default() },
            "cannot set up a client for a.b: the client certificate and its key cannot be read: \
             unexpected error: private key or certificate not found",
        ),
    ] {
        let error = Registry::new("a.b".parse().unwrap(), access).unwrap_err();
        assert_eq!(error.to_string(), expected);
        assert_eq!(error.reason(), Reason::InvalidSpec);
    }
}

#[tokio::test]
async fn no_query_of_a_url_is_told() {
    let nowhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let location = format!("http://{}/blob?signature=secret", nowhere.local_addr().unwrap());
    drop(nowhere);
    let server = Server::start(move |_, _| reply(307, &[("location", &location)], "")).await;
    let error = client(&server, NO_PATIENCE, None).manifest("x", "1").await.unwrap_err();
    let mut told = format!("{error} {error:?}");
    let mut source = std::error::Error::source(&error);
    while let Some(inner) = source {
        told = format!("{told} {inner} {inner:?}");
        source = inner.source();
    }
    assert!(!told.contains("secret"), "{told}");
}

#[test]
fn what_is_no_repository_is_never_put_into_a_url() {
    let registry = Registry::new("a.b".parse().unwrap(), Access::default()).unwrap();
    for name in ["", "../x", "x/../y", "x?y", "X", "a//b"] {
        assert!(registry.url(name, &["manifests", "1"]).is_err(), "{name:?}");
    }
    let url = registry.url("a/b", &["manifests", "../x?y"]).unwrap();
    assert_eq!(url.as_str(), "https://a.b/v2/a/b/manifests/..%2Fx%3Fy");
}

#[test]
fn a_location_on_plain_http_of_the_registry_itself_is_taken_for_https() {
    let registry = Registry::new("a.b:8443".parse().unwrap(), Access::default()).unwrap();
    let url = registry.url("x", &["blobs", "uploads", ""]).unwrap();
    let asked = crate::registry::Asked::reading(registry.host(), "x", "1");
    for (location, expected) in [
        ("http://a.b/u?s=1", "https://a.b:8443/u?s=1"),
        ("http://a.b:8443/u", "https://a.b:8443/u"),
        ("http://c.d/u", "http://c.d/u"),
        ("https://user:word@c.d/u#f", "https://c.d/u"),
        ("/u?s=1", "https://a.b:8443/u?s=1"),
        ("u", "https://a.b:8443/v2/x/blobs/uploads/u"),
    ] {
        let headers = [(reqwest::header::LOCATION, location.parse().unwrap())].into_iter().collect();
        assert_eq!(registry.location(&asked, &url, &headers).unwrap().as_str(), expected);
    }
    let headers = [(reqwest::header::LOCATION, "file:///etc/passwd".parse().unwrap())].into_iter().collect();
    assert!(registry.location(&asked, &url, &headers).is_err());
}
