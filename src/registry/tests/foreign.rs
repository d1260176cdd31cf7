//! Layers from outside of registries.

use std::net::{IpAddr, TcpListener};
use std::time::Duration;

use axum::body::Body;
use axum::http::Response;
use bytes::Bytes;
use futures::TryStreamExt as _;

use super::scripted::{Server, chunked, cut, reply};
use super::{EAGER, Patience, RegistryError, Traffic};
use crate::digest::Digest;
use crate::reason::Reason;
use crate::registry::foreign::{Foreign, ForeignBlob, PUBLIC_HTTPS, Rule, is_public};

const CONTENT: &[u8] = b"not to be distributed";

/// As [`PUBLIC_HTTPS`], but plain HTTP to this machine: there is no other network where tests run.
const LOOPBACK: Rule =
    Rule { is_scheme: |scheme| scheme == "http", is_address: |address| address.is_loopback() };

fn blob(urls: &[&str]) -> ForeignBlob {
    ForeignBlob {
        host: "registry.example".parse().unwrap(),
        repository: "windows".into(),
        digest: Digest::sha256(CONTENT),
        size: CONTENT.len() as u64,
        urls: urls.iter().map(|url| (*url).to_owned()).collect(),
    }
}

/// It ends a short while after nothing comes any more.
const SHORT: Patience = Patience {
    before_anything_moved: Duration::from_millis(300),
    once_moving: Duration::from_millis(300),
    first_pause: Duration::from_millis(10),
    longest_pause: Duration::from_millis(10),
    ..EAGER
};

async fn read(rule: Rule, urls: &[&str], from: u64) -> Result<Vec<u8>, RegistryError> {
    read_with(EAGER, rule, urls, from).await
}

async fn read_with(
    patience: Patience,
    rule: Rule,
    urls: &[&str],
    from: u64,
) -> Result<Vec<u8>, RegistryError> {
    let traffic = Traffic::with_patience(patience, Duration::from_secs(30));
    let foreign = Foreign::with_rule(rule, &traffic).unwrap();
    let chunks: Vec<Bytes> = foreign.blob(blob(urls), from).try_collect().await?;
    Ok(chunks.concat())
}

fn answer(status: u16, content: &'static [u8]) -> Response<Body> {
    reply(status, &[], content)
}

fn redirect(to: &str) -> Response<Body> {
    reply(302, &[("location", to)], "")
}

#[test]
fn only_addresses_of_the_public_internet_are_asked() {
    for public in
        ["1.1.1.1", "100.128.0.1", "172.32.0.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"]
    {
        assert!(is_public(public.parse().unwrap()), "{public}");
    }
    for other in [
        "0.0.0.0",
        "10.0.0.1",
        "100.64.0.1",
        "127.0.0.1",
        "169.254.169.254",
        "172.16.0.1",
        "192.0.0.8",
        "192.168.1.1",
        "198.18.0.1",
        "203.0.113.1",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",
        "::ffff:10.0.0.1",
        "64:ff9b::a00:1",
        "64:ff9b:1::1",
        "2001::1",
        "2001:db8::1",
        "2002:a00:1::",
        "fc00::1",
        "fe80::1",
        "fec0::1",
        "ff02::1",
    ] {
        assert!(!is_public(other.parse().unwrap()), "{other}");
    }
}

#[tokio::test]
async fn a_layer_comes_from_the_first_url_that_gives_it_and_nobody_is_told_a_credential() {
    let server = Server::start(|seen, _| match seen.target.as_str() {
        "/lost" => answer(404, b""),
        "/moved" => redirect("/layer?token=1"),
        _ => answer(200, CONTENT),
    })
    .await;
    let moved = server.url("/moved").replace("http://", "http://user:secret@");
    let urls = ["gopher://a.example/", &server.url("/lost"), &moved, &server.url("/never")];
    assert_eq!(read(LOOPBACK, &urls, 0).await.unwrap(), CONTENT);
    assert_eq!(server.lines(), ["GET /lost", "GET /moved", "GET /layer?token=1"]);
    assert!(server.seen().iter().all(|seen| seen.header("authorization").is_none()));
}

#[tokio::test]
async fn a_layer_is_taken_up_where_it_was_left_whether_or_not_the_server_knows_parts() {
    let server = Server::start(|seen, _| match (seen.target.as_str(), seen.header("range")) {
        ("/parts", Some("bytes=4-")) => answer(206, &CONTENT[4..]),
        ("/all", Some("bytes=4-")) => answer(200, CONTENT),
        _ => answer(500, b""),
    })
    .await;
    for path in ["/parts", "/all"] {
        assert_eq!(read(LOOPBACK, &[&server.url(path)], 4).await.unwrap(), &CONTENT[4..], "{path}");
    }
}

#[tokio::test]
async fn a_layer_whose_length_was_not_told_is_read_on_where_it_ends_too_soon() {
    let server = Server::start(|seen, _| match seen.header("range") {
        None => chunked(200, &[], &CONTENT[..4]),
        Some("bytes=4-") => answer(206, &CONTENT[4..]),
        _ => answer(500, b""),
    })
    .await;
    assert_eq!(read(LOOPBACK, &[&server.url("/")], 0).await.unwrap(), CONTENT);
}

#[tokio::test]
async fn what_is_not_the_size_that_the_manifest_says_is_refused() {
    let server = Server::start(|seen, _| match seen.target.as_str() {
        "/short" => answer(200, &CONTENT[1..]),
        "/unmeasured" => chunked(200, &[], &CONTENT[1..]),
        _ => answer(200, b"this is longer than what the manifest says"),
    })
    .await;
    for path in ["/short", "/unmeasured", "/long"] {
        let error = read(LOOPBACK, &[&server.url(path)], 0).await.unwrap_err();
        assert_eq!(error.reason(), Reason::DigestMismatch, "{error}");
    }
}

#[tokio::test]
async fn plain_http_and_addresses_that_are_not_public_are_never_asked_nor_are_names_of_them() {
    let server = Server::start(|_, _| answer(200, CONTENT)).await;
    let port = server.host().as_str().rsplit_once(':').unwrap().1.to_owned();
    let https = Rule { is_scheme: |_| true, ..PUBLIC_HTTPS };
    for (rule, url, told) in [
        (PUBLIC_HTTPS, server.url("/"), "since it is not named by https"),
        (https, server.url("/"), "it has the address 127.0.0.1"),
        (https, format!("http://2130706433:{port}/"), "it has the address 127.0.0.1"),
        (https, format!("http://[::ffff:127.0.0.1]:{port}/"), "it has the address ::ffff:127.0.0.1"),
        (https, format!("http://localhost:{port}/"), "which is not of the public internet"),
        (https, "file:///etc/passwd".to_owned(), "one of its urls names no host"),
        (https, "not a url".to_owned(), "cannot be read as one"),
    ] {
        let error = read(rule, &[&url], 0).await.unwrap_err();
        assert_eq!(error.reason(), Reason::UnsupportedImage, "{url}");
        assert!(error.to_string().contains(told), "{url}: {error}");
    }
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn a_redirect_leads_nowhere_that_may_not_be_asked() {
    // 127.0.0.1 may be asked here, and no other address.
    let only = Rule { is_address: |address| address == IpAddr::from([127, 0, 0, 1]), ..LOOPBACK };
    let server = Server::start(|seen, _| match seen.target.as_str() {
        "/metadata" => redirect("http://169.254.169.254/latest"),
        "/other" => redirect("ftp://127.0.0.1/"),
        _ => redirect("/round"),
    })
    .await;
    for (path, told) in [
        ("/metadata", "it has the address 169.254.169.254"),
        ("/other", "since it is not named by https"),
        ("/round", "redirected more than 5 times"),
    ] {
        let error = read(only, &[&server.url(path)], 0).await.unwrap_err();
        assert!(error.to_string().contains(told), "{path}: {error}");
    }
}

#[tokio::test]
async fn a_server_that_is_down_may_be_up_again() {
    for status in [408, 429, 500, 502, 503, 504] {
        let server = Server::start(move |_, nth| match nth {
            0 => reply(status, &[("retry-after", "0")], ""),
            1 => answer(status, b""),
            _ => answer(200, CONTENT),
        })
        .await;
        assert_eq!(read(LOOPBACK, &[&server.url("/")], 0).await.unwrap(), CONTENT, "{status}");
        assert_eq!(server.lines().len(), 3, "{status}");
    }
}

#[tokio::test]
async fn a_server_that_stays_down_is_given_up_and_what_was_answered_for_good_is_not_asked_again() {
    let server = Server::start(|seen, _| match seen.target.as_str() {
        "/down" => answer(503, b""),
        _ => answer(404, b""),
    })
    .await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let dead = format!("http://{}/", listener.local_addr().unwrap());
    drop(listener);
    let (down, lost) = (server.url("/down"), server.url("/lost"));
    for urls in [[&lost, &down], [&down, &lost], [&lost, &dead]] {
        let asked = server.lines().iter().filter(|line| *line == "GET /lost").count();
        let error = read_with(SHORT, LOOPBACK, &urls.map(String::as_str), 0).await.unwrap_err();
        assert_eq!(error.reason(), Reason::RegistryUnavailable, "{error}");
        assert!(error.to_string().contains("(tried "), "{error}");
        let lost = server.lines().iter().filter(|line| *line == "GET /lost").count();
        assert_eq!(lost, asked + 1);
    }
}

#[tokio::test]
async fn what_every_server_answers_for_good_is_told_at_once() {
    let server = Server::start(|seen, _| match seen.target.as_str() {
        "/hidden" => answer(403, b""),
        "/unknown" => answer(501, b""),
        _ => answer(404, b""),
    })
    .await;
    let (hidden, lost, unknown) = (server.url("/hidden"), server.url("/lost"), server.url("/unknown"));
    let error = read(LOOPBACK, &[&hidden, &unknown, &lost], 0).await.unwrap_err();
    assert_eq!(error.reason(), Reason::UnsupportedImage, "{error}");
    assert_eq!(server.lines(), ["GET /hidden", "GET /unknown", "GET /lost"]);
}

#[tokio::test]
async fn a_server_that_wants_to_be_left_alone_is_and_keeps_no_other_waiting() {
    let server = Server::start(|seen, nth| match (seen.target.as_str(), nth) {
        ("/resting", _) => reply(429, &[("retry-after", "60")], ""),
        ("/busy", 0) => answer(503, b""),
        _ => answer(200, CONTENT),
    })
    .await;
    let (resting, busy) = (server.url("/resting"), server.url("/busy"));
    assert_eq!(read(LOOPBACK, &[&resting, &busy], 0).await.unwrap(), CONTENT);
    assert_eq!(server.lines(), ["GET /resting", "GET /busy", "GET /busy"]);
    // The pause is longer than anybody waits.
    let error = read(LOOPBACK, &[&resting], 0).await.unwrap_err();
    assert_eq!(error.reason(), Reason::RateLimited, "{error}");
    assert!(error.to_string().ends_with("and asks for a pause of 60 s"), "{error}");
    assert_eq!(server.lines().len(), 4);
}

#[tokio::test]
async fn a_layer_that_is_cut_is_read_on_from_another_url_or_from_the_same() {
    let server = Server::start(|seen, _| match (seen.target.as_str(), seen.header("range")) {
        ("/layer", None) => cut(200, &[], CONTENT.len(), &CONTENT[..4]),
        ("/layer" | "/other", Some("bytes=4-")) => answer(206, &CONTENT[4..]),
        _ => answer(503, b""),
    })
    .await;
    let (layer, other, down) = (server.url("/layer"), server.url("/other"), server.url("/down"));
    assert_eq!(read(LOOPBACK, &[&layer, &other], 0).await.unwrap(), CONTENT);
    assert_eq!(read(LOOPBACK, &[&layer, &down], 0).await.unwrap(), CONTENT);
    assert_eq!(server.lines(), ["GET /layer", "GET /other", "GET /layer", "GET /down", "GET /layer"]);
}

#[tokio::test]
async fn a_layer_that_is_cut_at_the_same_byte_again_and_again_is_given_up() {
    let server = Server::start(|_, _| cut(200, &[], CONTENT.len(), &CONTENT[..4])).await;
    let error = read_with(SHORT, LOOPBACK, &[&server.url("/")], 0).await.unwrap_err();
    assert_eq!(error.reason(), Reason::RegistryUnavailable, "{error}");
    assert!(error.to_string().contains("(tried "), "{error}");
}
