use bytes::Bytes;
use futures::TryStreamExt as _;

use super::scripted::{Server, chunked, cut, dripping, reply};
use super::*;
use crate::reason::Reason;
use crate::registry::Manifest;

const CONTENT: &[u8] = b"the ferryman takes one coin a soul";
const SIZE: u64 = 34;
const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
/// What to do about wrong content.
const WRONG: &str = "push the image there anew, or see to the mirror or proxy before it";

async fn read(registry: &Registry, size: u64) -> Result<Vec<u8>, RegistryError> {
    let chunks: Vec<Bytes> = registry.blob("x", &digest_of(CONTENT), size).try_collect().await?;
    Ok(chunks.concat())
}

fn ranges(server: &Server) -> Vec<Option<String>> {
    server.seen().iter().map(|seen| seen.header("range").map(str::to_owned)).collect()
}

#[tokio::test]
async fn a_blob_is_read_as_it_is_sent_and_without_compression() {
    let server = Server::start(|_, _| reply(200, &[], CONTENT)).await;
    assert_eq!(read(&anonymous(&server), SIZE).await.unwrap(), CONTENT);
    let seen = &server.seen()[0];
    assert_eq!(seen.line(), format!("GET /v2/x/blobs/{}", digest_of(CONTENT)));
    assert_eq!(seen.header("accept-encoding"), Some("identity"));
    assert_eq!(seen.header("user-agent"), Some(concat!("charon/", env!("CARGO_PKG_VERSION"))));
    assert_eq!(seen.header("range"), None);
}

#[tokio::test]
async fn a_blob_that_was_cut_goes_on_where_it_stopped() {
    let server = Server::start(|seen, _| match seen.header("range") {
        None => cut(200, &[], 34, &CONTENT[..10]),
        Some("bytes=10-33") => cut(206, &[("content-range", "bytes 10-33/34")], 24, &CONTENT[10..21]),
        Some("bytes=21-33") => reply(206, &[("content-range", "bytes 21-33/34")], &CONTENT[21..]),
        Some(_) => reply(416, &[], ""),
    })
    .await;
    assert_eq!(read(&anonymous(&server), SIZE).await.unwrap(), CONTENT);
    assert_eq!(ranges(&server), [None, Some("bytes=10-33".to_owned()), Some("bytes=21-33".to_owned())]);
}

#[tokio::test]
async fn a_registry_without_ranges_is_read_past_what_was_given() {
    for status in [200, 206, 416] {
        let server = Server::start(move |seen, nth| match (nth, seen.header("range"), status) {
            (0, ..) => cut(200, &[], 34, &CONTENT[..10]),
            (_, Some(_), 206) => reply(206, &[("content-range", "bytes 0-33/34")], CONTENT),
            (_, Some(_), 416) => reply(416, &[], ""),
            _ => reply(200, &[], CONTENT),
        })
        .await;
        assert_eq!(read(&anonymous(&server), SIZE).await.unwrap(), CONTENT, "{status}");
    }
}

#[tokio::test]
async fn a_registry_that_gives_less_than_the_range_is_asked_for_the_rest() {
    let server = Server::start(|seen, _| match seen.header("range") {
        Some("bytes=4-11") => reply(206, &[("content-range", "bytes 4-8/34")], &CONTENT[4..9]),
        Some("bytes=9-11") => reply(206, &[("content-range", "bytes 9-11/34")], &CONTENT[9..12]),
        _ => reply(500, &[], ""),
    })
    .await;
    let registry = client(&server, NO_PATIENCE, None);
    let part: Vec<Bytes> =
        registry.blob_range("x", &digest_of(CONTENT), SIZE, 4..12).try_collect().await.unwrap();
    assert_eq!(part.concat(), &CONTENT[4..12]);
}

#[tokio::test]
async fn a_range_ends_where_it_should_even_if_the_whole_blob_is_sent() {
    let server = Server::start(|_, _| chunked(200, &[], CONTENT)).await;
    let digest = digest_of(CONTENT);
    let part: Vec<Bytes> =
        anonymous(&server).blob_range("x", &digest, SIZE, 4..12).try_collect().await.unwrap();
    assert_eq!(part.concat(), &CONTENT[4..12]);
}

#[tokio::test]
async fn a_blob_that_is_cut_again_and_again_is_given_up() {
    let server = Server::start(|_, _| cut(200, &[], 34, b"")).await;
    let error = read(&client(&server, NO_PATIENCE, None), SIZE).await.unwrap_err();
    assert_eq!(error.reason(), Reason::RegistryUnavailable);
    assert_eq!(server.lines().len(), 1);
    // Without a new byte nothing counts as a success, and the tries add up.
    let patience = Patience { once_moving: Duration::from_millis(300), ..EAGER };
    let error = read(&client(&server, patience, None), SIZE).await.unwrap_err();
    assert!(error.to_string().contains("(tried "), "{error}");
}

#[tokio::test]
async fn a_longer_or_shorter_blob_is_a_digest_mismatch_that_names_both_sizes() {
    let longer = Server::start(|_, _| reply(200, &[], CONTENT)).await;
    let unmeasured = Server::start(|_, _| chunked(200, &[], CONTENT)).await;
    for (server, size, text) in [
        (&longer, 30, "the manifest says 30 bytes, the registry sent 34 bytes"),
        (&longer, 40, "the manifest says 40 bytes, the registry sent 34 bytes"),
        (&unmeasured, 30, "the manifest says 30 bytes, the registry sent more"),
        (&unmeasured, 40, "the manifest says 40 bytes, the registry sent 34 bytes"),
    ] {
        let error = read(&anonymous(server), size).await.unwrap_err();
        assert_eq!(error.reason(), Reason::DigestMismatch);
        let expected = format!("cannot read blob HOST/x@{}: {text}; {WRONG}", digest_of(CONTENT));
        assert_eq!(told(server, &error), expected);
    }
    assert_eq!(longer.lines().len(), 2, "what is wrong for good is not asked for again");
}

#[tokio::test]
async fn an_empty_blob_is_never_asked_for_by_range() {
    let server = Server::start(|_, _| reply(200, &[], "")).await;
    assert_eq!(read(&anonymous(&server), 0).await.unwrap(), b"");
    assert_eq!(ranges(&server), [None]);
    // Of a blob that is not empty, an empty part is not asked for at all.
    for range in [0..0, 5..5, 34..34, 40..50] {
        let part = anonymous(&server).blob_range("x", &digest_of(CONTENT), SIZE, range);
        assert_eq!(part.try_collect::<Vec<_>>().await.unwrap().concat(), b"");
    }
    assert_eq!(ranges(&server).len(), 1);
}

#[tokio::test]
async fn what_may_pass_is_tried_again() {
    for status in [408, 429, 500, 502, 503, 504] {
        let server = Server::start(move |_, nth| match nth {
            0 | 1 => reply(status, &[("retry-after", "0")], ""),
            _ => reply(200, &[], CONTENT),
        })
        .await;
        assert_eq!(read(&anonymous(&server), SIZE).await.unwrap(), CONTENT);
        assert_eq!(server.lines().len(), 3);
    }
}

#[tokio::test]
async fn a_registry_that_wants_to_be_left_alone_for_longer_than_patience_lasts_is_not_waited_for() {
    let server = Server::start(|_, _| reply(429, &[("retry-after", "60")], "")).await;
    let registry = anonymous(&server);
    assert_eq!(registry.rest(), None);
    let error = read(&registry, SIZE).await.unwrap_err();
    assert_eq!(error.reason(), Reason::RateLimited);
    let text = format!(
        "cannot read blob HOST/x@{}: HOST answered 429 Too Many Requests and asks for a pause of 60 s; \
         wait, or use credentials that have a higher limit",
        digest_of(CONTENT)
    );
    assert_eq!(told(&server, &error), text);
    assert_eq!(server.lines().len(), 1);
    assert!(registry.rest().unwrap() > Duration::from_secs(30));
}

#[tokio::test]
async fn a_registry_that_was_of_use_is_waited_for_longer() {
    let server = Server::start(|seen, nth| match (seen.target.contains("manifests"), nth % 2) {
        (true, _) => reply(200, &[], "{}"),
        (false, 0) => reply(503, &[], ""),
        (false, _) => reply(200, &[], CONTENT),
    })
    .await;
    let patience = Patience { before_anything_moved: Duration::ZERO, ..EAGER };
    let registry = client(&server, patience, None);
    registry.manifest("x", "1").await.unwrap();
    assert_eq!(read(&registry, SIZE).await.unwrap(), CONTENT);
    assert_eq!(
        read(&client(&server, patience, None), SIZE).await.unwrap_err().reason(),
        Reason::RegistryUnavailable
    );
}

#[tokio::test]
async fn more_than_five_redirects_are_not_followed() {
    let server = Server::start(|seen, nth| {
        let next = format!("{}?{nth}", seen.target.split('?').next().unwrap());
        reply(307, &[("location", &next)], "")
    })
    .await;
    let error = read(&anonymous(&server), SIZE).await.unwrap_err();
    assert_eq!(
        told(&server, &error),
        format!(
            "cannot read blob HOST/x@{}: HOST redirected more than 5 times; check the registry and any proxy before it",
            digest_of(CONTENT)
        )
    );
    assert_eq!(server.lines().len(), 6);
}

#[tokio::test]
async fn presence_and_size_of_a_blob_are_asked_with_head() {
    let server = Server::start(|seen, _| {
        if seen.target.contains("/x/") { reply(200, &[], CONTENT) } else { reply(404, &[], "") }
    })
    .await;
    let registry = anonymous(&server);
    let digest = digest_of(CONTENT);
    assert!(registry.has_blob("x", &digest).await.unwrap());
    assert!(!registry.has_blob("y", &digest).await.unwrap());
    assert_eq!(registry.blob_size("x", &digest).await.unwrap(), Some(SIZE));
    assert_eq!(registry.blob_size("y", &digest).await.unwrap(), None);
    assert!(server.seen().iter().all(|seen| seen.method == "HEAD"));
}

#[tokio::test]
async fn a_manifest_is_checked_against_the_digest_that_it_was_asked_for_by() {
    let body = format!(r#"{{"schemaVersion":2,"mediaType":"{OCI}"}}"#);
    let sent = body.clone();
    let server = Server::start(move |_, _| reply(200, &[], sent.clone())).await;
    let registry = anonymous(&server);
    let right = digest_of(body.as_bytes());
    let manifest = registry.manifest("x", right.as_str()).await.unwrap();
    let expected = Manifest { bytes: body.clone().into(), digest: right.clone(), media_type: OCI.to_owned() };
    assert_eq!(manifest, expected);
    assert_eq!(registry.manifest("x", "tag").await.unwrap(), expected);

    let long: Digest = format!("sha512:{}", "0".repeat(128)).parse().unwrap();
    let mut hasher = long.hasher();
    hasher.update(body.as_bytes());
    let by_sha512 = hasher.finish();
    assert_eq!(registry.manifest("x", by_sha512.as_str()).await.unwrap().digest, by_sha512);

    let wrong = digest_of(b"another");
    let error = registry.manifest("x", wrong.as_str()).await.unwrap_err();
    assert_eq!(error.reason(), Reason::DigestMismatch);
    let expected = format!(
        "cannot read HOST/x@{wrong}: the registry sent {} bytes whose digest is {right}; {WRONG}",
        body.len()
    );
    assert_eq!(told(&server, &error), expected);
}

#[tokio::test]
async fn a_media_type_is_the_senders_or_the_bodys_or_told_by_the_fields() {
    let index = "application/vnd.oci.image.index.v1+json";
    let docker = "application/vnd.docker.distribution.manifest.v2+json";
    for (content_type, body, expected) in [
        ("application/vnd.oci.image.index.v1+json; charset=utf-8", r#"{"schemaVersion":2}"#, index),
        ("application/json", r#"{"mediaType":"application/vnd.oci.image.index.v1+json"}"#, index),
        ("text/plain; charset=utf-8", r#"{"schemaVersion":2,"manifests":[]}"#, index),
        ("application/octet-stream", r#"{"schemaVersion":2,"layers":[]}"#, OCI),
        ("", r#"{"config":{"mediaType":"application/vnd.docker.container.image.v1+json"}}"#, docker),
    ] {
        let server = Server::start(move |_, _| reply(200, &[("content-type", content_type)], body)).await;
        let manifest = anonymous(&server).manifest("x", "1").await.unwrap();
        assert_eq!(manifest.media_type, expected, "{content_type:?} {body}");
    }
}

#[tokio::test]
async fn schema_1_and_what_is_too_long_or_no_manifest_are_unsupported() {
    let schema_1 = "it is a manifest of schema 1, which Docker gave up in 2017";
    for (content_type, body, expected) in [
        ("application/vnd.docker.distribution.manifest.v1+prettyjws", "{}".to_owned(), schema_1),
        ("application/json", r#"{"schemaVersion":1}"#.to_owned(), schema_1),
        ("", "<html>".to_owned(), "what was sent is no manifest"),
        (OCI, format!("{{{}}}", " ".repeat(4 << 20)), "the manifest is longer than 4194304 bytes"),
    ] {
        let server =
            Server::start(move |_, _| reply(200, &[("content-type", content_type)], body.clone())).await;
        let error = anonymous(&server).manifest("x", "1").await.unwrap_err();
        assert_eq!(error.reason(), Reason::UnsupportedImage);
        assert_eq!(
            told(&server, &error),
            format!(
                "cannot read HOST/x:1: {expected}; leave the image out, or push it anew where it comes from"
            )
        );
    }
}

#[tokio::test]
async fn a_manifest_that_was_cut_is_asked_for_again() {
    let server = Server::start(|_, nth| match nth {
        0 => cut(200, &[], 100, b"{"),
        _ => reply(200, &[], "{}"),
    })
    .await;
    assert_eq!(anonymous(&server).manifest("x", "1").await.unwrap().bytes, "{}");
}

#[tokio::test]
async fn a_tags_digest_is_in_a_header_or_found_by_reading() {
    let digest = digest_of(b"{}");
    let told = digest_of(b"told");
    let header = told.to_string();
    let server = Server::start(move |seen, _| match seen.target.rsplit('/').next().unwrap() {
        "told" if seen.method == "HEAD" => reply(200, &[("docker-content-digest", &header)], ""),
        "read" => reply(200, &[], "{}"),
        "denied" => reply(403, &[], ""),
        _ => reply(404, &[], ""),
    })
    .await;
    let registry = anonymous(&server);
    assert_eq!(registry.manifest_digest("x", "told").await.unwrap(), Some(told));
    assert_eq!(registry.manifest_digest("x", "read").await.unwrap(), Some(digest));
    assert_eq!(registry.manifest_digest("x", "absent").await.unwrap(), None);
    let error = registry.manifest_digest("x", "denied").await.unwrap_err();
    assert_eq!(error.reason(), Reason::AccessDenied);
}

#[tokio::test]
async fn a_blob_that_only_drips_is_read_on_elsewhere_and_not_without_end() {
    let patience = Patience {
        before_anything_moved: Duration::from_millis(500),
        once_moving: Duration::from_millis(500),
        idle: Duration::from_millis(100),
        trickle: 1000,
        ..EAGER
    };
    let content = vec![b'.'; 10_000];
    let (digest, whole) = (digest_of(&content), content.clone());
    let server = Server::start(move |seen, nth| match seen.header("range") {
        None => dripping(200, &[], 10_000),
        Some(range) => {
            let start: usize = range["bytes=".len()..].split('-').next().unwrap().parse().unwrap();
            let range = format!("bytes {start}-9999/10000");
            let headers = [("content-range", range.as_str())];
            let ends = seen.target.contains("/ends/") && nth == 1;
            if ends {
                reply(206, &headers, whole[start..].to_vec())
            } else {
                dripping(206, &headers, 10_000 - start)
            }
        }
    })
    .await;
    let registry = client(&server, patience, None);
    let read = async |repository| {
        let chunks: Vec<Bytes> = registry.blob(repository, &digest, 10_000).try_collect().await?;
        Ok::<_, RegistryError>(chunks.concat())
    };
    assert!(read("ends").await.unwrap() == content);
    let error = read("x").await.unwrap_err();
    assert!(error.to_string().contains(" sent less than 1000 bytes in "), "{error}");
    assert_eq!(error.reason(), Reason::RegistryUnavailable);
}
