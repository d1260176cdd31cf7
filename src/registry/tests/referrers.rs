use axum::body::Body;
use axum::http::Response;
use bytes::Bytes;

use super::scripted::{Seen, Server, reply};
use super::*;
use crate::reason::Reason;
use crate::registry::Manifest;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn subject() -> Digest {
    digest_of(b"the ferryman")
}

/// An index of manifests that are called so, each by what its content would be.
fn index(names: &[&str]) -> String {
    let listed = names
        .iter()
        .map(|name| format!(r#"{{"mediaType":"m","digest":"{}","size":1}}"#, digest_of(name.as_bytes())));
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{}]}}"#,
        listed.collect::<Vec<_>>().join(",")
    )
}

fn sorted(names: &[&str]) -> Vec<Digest> {
    let mut digests: Vec<Digest> = names.iter().map(|name| digest_of(name.as_bytes())).collect();
    digests.sort();
    digests
}

fn fallback_tag() -> String {
    format!("/v2/x/manifests/sha256-{}", subject().hex())
}

fn is_api(seen: &Seen) -> bool {
    seen.target.starts_with("/v2/x/referrers/")
}

/// Answers a request for the fallback tag with an index of these.
fn fallback(seen: &Seen, names: &[&str]) -> Response<Body> {
    if seen.target != fallback_tag() {
        return reply(404, &[], "");
    }
    let index = index(names);
    reply(
        200,
        &[("content-type", INDEX), ("docker-content-digest", digest_of(index.as_bytes()).as_str())],
        index,
    )
}

#[tokio::test]
async fn a_list_is_read_from_page_to_page_and_sorted() {
    let server = Server::start(|seen, nth| {
        let link = format!("</v2/x/referrers/{}?last=1>; rel=\"next\"", subject());
        match (is_api(seen), nth) {
            (true, 0) => reply(
                200,
                &[
                    ("content-type", "application/vnd.oci.image.index.v1+json; charset=utf-8"),
                    ("link", &link),
                ],
                index(&["a", "b"]),
            ),
            (true, 1) if seen.target.ends_with("?last=1") => {
                reply(200, &[("content-type", INDEX)], index(&["c", "a"]))
            }
            _ => reply(500, &[], ""),
        }
    })
    .await;
    let found = client(&server, NO_PATIENCE, None).referrers("x", &subject()).await.unwrap();
    assert_eq!(found, sorted(&["a", "b", "c"]));
    assert_eq!(server.seen().len(), 2, "no fallback tag is asked for");
    assert_eq!(server.seen()[0].header("accept"), Some(INDEX));
}

#[tokio::test]
async fn a_list_that_never_ends_or_goes_on_elsewhere_is_an_error() {
    let endless = Server::start(|seen, nth| {
        let link = format!("<{}?n={nth}>; rel=next", seen.target.split('?').next().unwrap());
        reply(200, &[("content-type", INDEX), ("link", &link)], index(&["a"]))
    })
    .await;
    let error = client(&endless, NO_PATIENCE, None).referrers("x", &subject()).await.unwrap_err();
    assert!(error.to_string().contains("more than 100 pages"), "{error}");

    let elsewhere = Server::start(|_, _| {
        reply(
            200,
            &[("content-type", INDEX), ("link", "<http://127.0.0.2:1/v2/>; rel=\"next\"")],
            index(&["a"]),
        )
    })
    .await;
    let error = client(&elsewhere, NO_PATIENCE, None).referrers("x", &subject()).await.unwrap_err();
    assert!(error.to_string().contains("goes on at another host"), "{error}");
}

#[tokio::test]
async fn what_is_no_list_is_none_and_the_fallback_tag_is_asked_for_by_head_first() {
    // GHCR sends on to a web page, others answer with one, or with what is no index.
    let web = Server::start(|_, _| reply(200, &[("content-type", INDEX)], index(&["trap"]))).await;
    let page = web.url("/login");
    let answers: [(u16, &str, &str, String); 9] = [
        (404, "content-type", "text/plain", "404 page not found".to_owned()),
        (303, "location", &page, String::new()),
        (307, "location", &page, String::new()),
        (200, "content-type", "text/html", "<html>".to_owned()),
        (200, "content-type", "application/json", index(&["trap"])),
        (200, "content-type", INDEX, "no index".to_owned()),
        (400, "content-type", "text/plain", String::new()),
        (405, "content-type", "text/plain", String::new()),
        (501, "content-type", "text/plain", String::new()),
    ];
    for (status, header, value, body) in answers {
        let (header, value) = (header.to_owned(), value.to_owned());
        let server = Server::start(move |seen, _| {
            let headers = [(header.as_str(), value.as_str())];
            if is_api(seen) { reply(status, &headers, body.clone()) } else { fallback(seen, &["b", "a"]) }
        })
        .await;
        let found = client(&server, NO_PATIENCE, None).referrers("x", &subject()).await.unwrap();
        assert_eq!(found, sorted(&["a", "b"]), "{status}");
        let tag = fallback_tag();
        assert_eq!(server.lines()[1..], [format!("HEAD {tag}"), format!("GET {tag}")], "{status}");
    }
    assert!(web.seen().is_empty(), "no redirect was followed off the host");
}

#[tokio::test]
async fn a_repository_that_has_no_list_is_asked_for_one_once() {
    for status in [404, 303] {
        let server = Server::start(move |seen, _| {
            let status = if is_api(seen) { status } else { 404 };
            reply(status, &[("location", "https://example.com/")], "")
        })
        .await;
        let registry = client(&server, NO_PATIENCE, None);
        for name in ["a", "b", "c"] {
            assert_eq!(registry.referrers("x", &digest_of(name.as_bytes())).await.unwrap(), []);
        }
        let (asked, heads): (Vec<_>, Vec<_>) =
            server.lines().into_iter().partition(|line| line.starts_with("GET"));
        assert_eq!((asked.len(), heads.len()), (1, 3), "{status}");
        // There may be another registry behind the host for another repository.
        assert_eq!(registry.referrers("y", &subject()).await.unwrap(), []);
        assert!(server.lines().contains(&format!("GET /v2/y/referrers/{}", subject())), "{status}");
    }
}

#[tokio::test]
async fn gitlab_which_takes_the_tag_for_the_digest_has_no_index_there() {
    let server = Server::start(|seen, _| {
        if is_api(seen) {
            return reply(404, &[], "");
        }
        reply(200, &[("content-type", INDEX), ("docker-content-digest", subject().as_str())], "")
    })
    .await;
    assert_eq!(client(&server, NO_PATIENCE, None).referrers("x", &subject()).await.unwrap(), []);
    assert_eq!(server.lines()[1..], [format!("HEAD {}", fallback_tag())]);
}

#[tokio::test]
async fn unavailable_is_not_none() {
    for (status, reason) in [
        (500, Reason::RegistryUnavailable),
        (503, Reason::RegistryUnavailable),
        (429, Reason::RateLimited),
        (401, Reason::AuthenticationFailed),
        (403, Reason::AccessDenied),
    ] {
        // Whether it is the list or the fallback tag that cannot be had.
        for fails_api in [true, false] {
            let server = Server::start(move |seen, _| {
                reply(if is_api(seen) && !fails_api { 404 } else { status }, &[], "")
            })
            .await;
            let error = client(&server, NO_PATIENCE, None).referrers("x", &subject()).await.unwrap_err();
            assert_eq!(error.reason(), reason, "{status} {fails_api}");
        }
    }
}

fn referrer(name: &str) -> Manifest {
    let bytes = Bytes::from(format!(
        r#"{{"artifactType":"t/{name}","annotations":{{"name":"{name}"}},"subject":{{"digest":"{}"}}}}"#,
        subject()
    ));
    Manifest { digest: digest_of(&bytes), bytes, media_type: "m/m".into() }
}

#[tokio::test]
async fn the_fallback_index_keeps_what_is_in_it_and_is_read_again() {
    // What another writer puts there in between is found when it is read again.
    let server = Server::start(|seen, nth| match (seen.method.as_str(), nth) {
        ("PUT", _) => reply(201, &[], ""),
        (_, 0) => fallback(seen, &["old"]),
        (_, 1) => fallback(seen, &["old", "rival"]),
        _ => {
            let ours = referrer("ours").digest;
            let index = index(&["old", "rival"]).replace(
                "\"manifests\":[",
                &format!(r#""manifests":[{{"mediaType":"m/m","digest":"{ours}","size":1}},"#),
            );
            reply(
                200,
                &[("content-type", INDEX), ("docker-content-digest", digest_of(index.as_bytes()).as_str())],
                index,
            )
        }
    })
    .await;
    anonymous(&server).add_to_fallback("x", &subject(), &[referrer("ours")]).await.unwrap();
    let puts: Vec<Seen> = server.seen().into_iter().filter(|seen| seen.method == "PUT").collect();
    assert_eq!(puts.len(), 2);
    for (put, before) in puts.iter().zip([vec!["old"], vec!["old", "rival"]]) {
        assert_eq!((put.target.as_str(), put.header("content-type")), (fallback_tag().as_str(), Some(INDEX)));
        let index: serde_json::Value = serde_json::from_slice(put.body.as_ref().unwrap()).unwrap();
        let listed: Vec<String> = index["manifests"]
            .as_array()
            .unwrap()
            .iter()
            .map(|listed| listed["digest"].as_str().unwrap().to_owned())
            .collect();
        let before = before.iter().map(|name| digest_of(name.as_bytes()).to_string());
        assert_eq!(listed, before.chain([referrer("ours").digest.to_string()]).collect::<Vec<_>>());
        let ours = index["manifests"].as_array().unwrap().last().unwrap();
        assert_eq!(
            (ours["artifactType"].as_str(), ours["annotations"]["name"].as_str()),
            (Some("t/ours"), Some("ours"))
        );
    }
}

#[tokio::test]
async fn an_index_that_never_takes_what_is_put_into_it_is_given_up() {
    let server =
        Server::start(|seen, _| if seen.method == "PUT" { reply(201, &[], "") } else { reply(404, &[], "") })
            .await;
    let error = anonymous(&server).add_to_fallback("x", &subject(), &[referrer("ours")]).await.unwrap_err();
    assert!(error.to_string().contains("gives another one back"), "{error}");
}

/// A tag that exists, and means `body`.
async fn with_tag(media_type: &'static str, body: String) -> Server {
    let tagged = std::sync::Mutex::new(body);
    Server::start(move |seen, _| {
        let mut tagged = tagged.lock().unwrap();
        if seen.target != fallback_tag() {
            return reply(404, &[], "");
        }
        if seen.method == "PUT" {
            *tagged = String::from_utf8(seen.body.clone().unwrap().to_vec()).unwrap();
            return reply(201, &[], "");
        }
        let digest = digest_of(tagged.as_bytes());
        let headers = [("content-type", media_type), ("docker-content-digest", digest.as_str())];
        reply(200, &headers, tagged.clone())
    })
    .await
}

fn puts(server: &Server) -> Vec<serde_json::Value> {
    let puts = server.seen().into_iter().filter(|seen| seen.method == "PUT");
    puts.map(|seen| serde_json::from_slice(&seen.body.unwrap()).unwrap()).collect()
}

#[tokio::test]
async fn what_is_no_index_under_the_fallback_tag_is_never_overwritten() {
    let image = "application/vnd.oci.image.manifest.v1+json";
    for (media_type, body) in [
        (image, r#"{"schemaVersion":2,"layers":[]}"#),
        (
            "application/vnd.docker.distribution.manifest.list.v2+json",
            r#"{"schemaVersion":2,"manifests":[]}"#,
        ),
        (INDEX, r#"{"schemaVersion":2,"manifests":"none"}"#),
    ] {
        let server = with_tag(media_type, body.to_owned()).await;
        let registry = anonymous(&server);
        let error = registry.add_to_fallback("x", &subject(), &[referrer("ours")]).await.unwrap_err();
        assert_eq!(
            told(&server, &error),
            format!(
                "cannot push HOST/x:sha256-{}: the tag means what is no index of referrers ({media_type}), which is not \
                 overwritten: remove the tag, or else; build the payload without referrers (--no-referrers, referrers: false)",
                subject().hex()
            )
        );
        assert_eq!(error.reason(), Reason::UnsupportedImage);
        assert_eq!(puts(&server).len(), 0, "{media_type}");
    }
}

#[tokio::test]
async fn what_is_not_known_in_an_index_of_referrers_stays_and_hides_nothing() {
    let strange = r#"{"digest":"blake9:00","size":1,"x":{"y":[1,2]}}"#;
    let before = index(&["old"]).replace("\"manifests\":[", &format!("\"manifests\":[{strange},7,"));
    let server = with_tag(INDEX, before).await;
    let registry = anonymous(&server);
    assert_eq!(registry.referrers("x", &subject()).await.unwrap(), sorted(&["old"]));
    registry.add_to_fallback("x", &subject(), &[referrer("ours")]).await.unwrap();
    let puts = puts(&server);
    assert_eq!(puts.len(), 1);
    let manifests = puts[0]["manifests"].as_array().unwrap();
    assert_eq!(manifests.len(), 4);
    assert_eq!(manifests[0], serde_json::from_str::<serde_json::Value>(strange).unwrap());
    assert_eq!(manifests[1], 7);

    let listed = index(&["a", "b"]).replace("\"manifests\":[", &format!("\"manifests\":[{strange},"));
    let server = Server::start(move |_, _| reply(200, &[("content-type", INDEX)], listed.clone())).await;
    let found = client(&server, NO_PATIENCE, None).referrers("x", &subject()).await.unwrap();
    assert_eq!(found, sorted(&["a", "b"]), "the registry's own list");
}

#[tokio::test]
async fn an_index_of_referrers_without_any_is_filled() {
    for none in [r#","manifests":null"#, ""] {
        let server = with_tag(INDEX, format!(r#"{{"schemaVersion":2{none}}}"#)).await;
        anonymous(&server).add_to_fallback("x", &subject(), &[referrer("ours")]).await.unwrap();
        let puts = puts(&server);
        assert_eq!(puts.len(), 1, "{none}");
        assert_eq!(puts[0]["manifests"].as_array().unwrap().len(), 1);
    }
}

#[tokio::test]
async fn gitlab_which_takes_the_tag_for_the_digest_is_told_at_once_that_it_keeps_no_referrers() {
    let server = Server::start(|_, _| {
        reply(200, &[("content-type", INDEX), ("docker-content-digest", subject().as_str())], "")
    })
    .await;
    let error = anonymous(&server).add_to_fallback("x", &subject(), &[referrer("ours")]).await.unwrap_err();
    assert_eq!(
        told(&server, &error),
        format!(
            "cannot push HOST/x:sha256-{}: the registry does not list referrers, and takes the tag that would list them for the \
             manifest itself; build the payload without referrers (--no-referrers, referrers: false)",
            subject().hex()
        )
    );
    assert_eq!(error.reason(), Reason::UnsupportedImage);
    assert_eq!(server.lines(), [format!("HEAD {}", fallback_tag())]);
}

#[test]
fn the_link_to_the_next_page_is_found_among_others_and_may_have_commas() {
    use super::super::referrers::next_link;
    for (link, expected) in [
        ("</a?b=1,2>; rel=\"next\"", Some("/a?b=1,2")),
        ("</p,q>; rel=prev, </n,m>;x=y; REL=Next", Some("/n,m")),
        ("</p>; rel=prev", None),
        ("next", None),
        ("</a", None),
    ] {
        assert_eq!(next_link(link), expected, "{link}");
    }
}

#[tokio::test]
async fn a_registry_says_in_its_answer_whether_it_lists_what_was_pushed() {
    for (headers, expected) in [(vec![("oci-subject", subject().to_string())], true), (vec![], false)] {
        let server = Server::start(move |_, _| {
            let headers: Vec<(&str, &str)> =
                headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            reply(201, &headers, "")
        })
        .await;
        assert_eq!(anonymous(&server).put_referrer("x", &referrer("a")).await.unwrap(), expected);
    }
}
