use std::io;
use std::sync::Arc;

use axum::body::Body;
use axum::http::Response;
use bytes::Bytes;
use futures::{StreamExt as _, stream};

use super::scripted::{Seen, Server, reply};
use super::*;
use crate::reason::Reason;

const CONTENT: &[u8] = b"the ferryman takes one coin a soul";
const SIZE: u64 = 34;

/// Begins uploads, and answers the rest as `answer` says.
async fn taking_uploads(answer: impl Fn(&Seen, usize) -> Response<Body> + Send + Sync + 'static) -> Server {
    Server::start(move |seen, nth| match seen.method.as_str() {
        "POST" => reply(202, &[("location", "/v2/x/blobs/uploads/id?state=a%2Fb")], ""),
        "DELETE" => reply(204, &[], ""),
        _ => answer(seen, nth),
    })
    .await
}

fn whole() -> impl futures::Stream<Item = io::Result<Bytes>> + Send + 'static {
    stream::iter(CONTENT.chunks(10).map(|chunk| Ok(Bytes::from_static(chunk))))
}

fn methods(server: &Server) -> Vec<String> {
    server.seen().into_iter().map(|seen| seen.method).collect()
}

fn commits(server: &Server) -> usize {
    server.seen().iter().filter(|seen| seen.method == "PUT" && seen.body.is_some()).count()
}

#[tokio::test]
async fn a_blob_goes_up_in_one_piece_of_a_known_length() {
    let server = taking_uploads(|_, _| reply(201, &[], "")).await;
    let digest = digest_of(CONTENT);
    anonymous(&server).push_blob("x", &digest, SIZE, whole).await.unwrap();
    let put = format!("PUT /v2/x/blobs/uploads/id?state=a%2Fb&digest=sha256%3A{}", digest.hex());
    assert_eq!(server.lines(), ["POST /v2/x/blobs/uploads/".to_owned(), put]);
    let seen = &server.seen()[1];
    assert_eq!(seen.body.as_deref(), Some(CONTENT));
    assert_eq!(seen.header("content-length"), Some("34"));
    assert_eq!(seen.header("transfer-encoding"), None);
    assert_eq!(seen.header("content-type"), Some("application/octet-stream"));
}

#[tokio::test]
async fn an_upload_that_is_refused_for_good_is_cancelled() {
    let answer = r#"{"errors":[{"code":"DIGEST_INVALID","message":"provided digest did not match"}]}"#;
    let server = taking_uploads(move |_, _| reply(400, &[], answer)).await;
    let digest = digest_of(CONTENT);
    let error = anonymous(&server).push_blob("x", &digest, SIZE, whole).await.unwrap_err();
    assert_eq!(error.reason(), Reason::DigestMismatch);
    assert_eq!(methods(&server), ["POST", "PUT", "DELETE"]);
}

#[tokio::test]
async fn a_body_that_fails_is_cut_cancelled_and_never_committed_nor_tried_again() {
    // In the middle, and when all bytes were given: the hash is known only then.
    for whole_chunks in [2, 4] {
        let server = taking_uploads(|_, _| reply(201, &[], "")).await;
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, "the hash is wrong");
        let body = || whole().take(whole_chunks).chain(stream::iter([Err(wrong())]));
        let digest = digest_of(CONTENT);
        let error = anonymous(&server).push_blob("x", &digest, SIZE, body).await.unwrap_err();
        assert_eq!(told(&server, &error), format!("cannot push blob HOST/x@{digest}: the hash is wrong"));
        let source = std::error::Error::source(&error).unwrap().downcast_ref::<io::Error>().unwrap();
        assert_eq!(source.kind(), io::ErrorKind::InvalidData);
        assert!(error.body_error().is_some());
        assert_eq!(commits(&server), 0);
        let lines = server.lines();
        assert_eq!(lines.iter().filter(|line| line.starts_with("POST")).count(), 1, "{lines:?}");
        let cancelled = "DELETE /v2/x/blobs/uploads/id?state=a%2Fb".to_owned();
        assert!(lines.contains(&cancelled), "{lines:?}");
    }
}

#[tokio::test]
async fn a_body_of_another_length_is_never_committed() {
    for (size, text) in [
        (30, "the content to push should have 30 bytes and has more"),
        (40, "the content to push should have 40 bytes and has 34"),
        (0, "the content to push should have 0 bytes and has more"),
    ] {
        let server = taking_uploads(|_, _| reply(201, &[], "")).await;
        let digest = digest_of(CONTENT);
        let error = anonymous(&server).push_blob("x", &digest, size, whole).await.unwrap_err();
        assert_eq!(error.body_error().unwrap().to_string(), text);
        assert_eq!(commits(&server), 0);
    }
}

#[tokio::test]
async fn an_empty_blob_goes_up_too() {
    let server = taking_uploads(|_, _| reply(201, &[], "")).await;
    anonymous(&server).push_blob("x", &digest_of(b""), 0, stream::empty).await.unwrap();
    assert_eq!(server.seen()[1].header("content-length"), Some("0"));
}

#[tokio::test]
async fn an_upload_that_no_one_waits_for_any_more_is_cancelled() {
    let cancelled = Arc::new(tokio::sync::Notify::new());
    let notify = cancelled.clone();
    let server = Server::start(move |seen, _| match seen.method.as_str() {
        "POST" => reply(202, &[("location", "/upload")], ""),
        "DELETE" => {
            notify.notify_one();
            reply(204, &[], "")
        }
        _ => reply(201, &[], ""),
    })
    .await;
    let (begun, asked) = tokio::sync::oneshot::channel();
    let begun = std::sync::Mutex::new(Some(begun));
    let body = || {
        begun.lock().unwrap().take().unwrap().send(()).unwrap();
        stream::pending()
    };
    let registry = anonymous(&server);
    let digest = digest_of(CONTENT);
    tokio::select! {
        _ = registry.push_blob("x", &digest, SIZE, body) => panic!("nothing was sent"),
        _ = asked => {}
    }
    tokio::time::timeout(EAGER.idle, cancelled.notified()).await.unwrap();
    assert!(server.lines().contains(&"DELETE /upload".to_owned()));
}

#[tokio::test]
async fn an_upload_that_has_bytes_is_cancelled_where_the_registry_says_that_it_is() {
    let server = Server::start(|seen, _| match (seen.method.as_str(), seen.target.as_str()) {
        ("POST", _) => reply(202, &[("location", "/upload?offset=0")], ""),
        ("PUT", _) => reply(400, &[], ""),
        ("GET", _) => reply(204, &[("location", "/upload?offset=34")], ""),
        ("DELETE", "/upload?offset=34") => reply(204, &[], ""),
        _ => reply(416, &[], ""),
    })
    .await;
    anonymous(&server).push_blob("x", &digest_of(CONTENT), SIZE, whole).await.unwrap_err();
    assert_eq!(
        server.lines()[2..],
        ["DELETE /upload?offset=0", "GET /upload?offset=0", "DELETE /upload?offset=34"]
    );
}

#[tokio::test]
async fn a_mount_is_taken_or_refused_and_what_it_began_instead_is_cancelled() {
    for (status, expected, requests) in [
        (201, true, vec!["POST"]),
        (202, false, vec!["POST", "DELETE"]),
        (401, false, vec!["POST"]),
        (403, false, vec!["POST"]),
        (404, false, vec!["POST"]),
        (500, false, vec!["POST"; 3]),
        (501, false, vec!["POST"]),
    ] {
        let server = Server::start(move |seen, _| match seen.method.as_str() {
            "POST" => reply(status, &[("location", "uploads/id")], ""),
            _ => reply(204, &[], ""),
        })
        .await;
        let digest = digest_of(CONTENT);
        assert_eq!(anonymous(&server).mount_blob("x", &digest, "a/b").await.unwrap(), expected);
        assert_eq!(methods(&server), requests, "{status}");
        let post = format!("POST /v2/x/blobs/uploads/?mount=sha256%3A{}&from=a%2Fb", digest.hex());
        assert_eq!(server.lines()[0], post);
        if status == 202 {
            assert_eq!(server.lines()[1], "DELETE /v2/x/blobs/uploads/uploads/id");
        }
    }
}

#[tokio::test]
async fn a_manifest_is_put_as_it_is() {
    let server = Server::start(|_, nth| reply(if nth == 0 { 503 } else { 201 }, &[], "")).await;
    let registry = anonymous(&server);
    registry.put_manifest("a/b", "1", "application/vnd.oci.image.index.v1+json", "{ }".into()).await.unwrap();
    assert_eq!(server.lines(), ["PUT /v2/a/b/manifests/1", "PUT /v2/a/b/manifests/1"]);
    let seen = &server.seen()[1];
    assert_eq!(seen.body.as_deref(), Some(b"{ }".as_slice()));
    assert_eq!(seen.header("content-type"), Some("application/vnd.oci.image.index.v1+json"));
}

#[tokio::test]
async fn a_manifest_refused_for_what_is_missing_is_told_from_one_refused_for_what_it_says() {
    for (code, is_unknown, is_invalid) in [
        ("MANIFEST_BLOB_UNKNOWN", true, false),
        ("BLOB_UNKNOWN", true, false),
        ("MANIFEST_INVALID", false, true),
        ("TAG_INVALID", false, false),
    ] {
        let body = format!(r#"{{"errors":[{{"code":"OTHER"}},{{"code":"{code}","detail":{{}}}}]}}"#);
        let server = Server::start(move |_, _| reply(400, &[], body.clone())).await;
        let put = anonymous(&server).put_manifest("x", "1", "application/json", "{}".into()).await;
        let error = put.unwrap_err();
        assert_eq!(
            (error.is_blob_unknown(), error.is_manifest_invalid()),
            (is_unknown, is_invalid),
            "{code}"
        );
    }
}

#[tokio::test]
async fn blobs_can_be_moved_by_tasks_of_their_own() {
    let server = Server::start(|seen, _| match seen.method.as_str() {
        "POST" => reply(202, &[("location", "/upload")], ""),
        "PUT" => reply(201, &[], ""),
        _ => reply(200, &[], CONTENT),
    })
    .await;
    let registry = anonymous(&server);
    let task = tokio::spawn(async move {
        let digest = digest_of(CONTENT);
        registry.push_blob("x", &digest, SIZE, whole).await?;
        let mut stream = Box::pin(registry.blob("x", &digest, SIZE));
        stream.next().await.transpose()
    });
    assert_eq!(task.await.unwrap().unwrap().unwrap(), CONTENT);
}

#[tokio::test]
async fn a_run_that_ends_waits_for_its_own_uploads_and_not_for_those_of_another() {
    let server = taking_uploads(|_, _| reply(201, &[], "")).await;
    let (one, other) = (anonymous(&server), anonymous(&server));
    let digest = digest_of(CONTENT);
    // It goes on for as long as anybody wants.
    let endless = move || whole().take(1).chain(stream::pending());
    let upload = tokio::spawn(async move { other.push_blob("x", &digest, SIZE, endless).await });
    while !methods(&server).contains(&"PUT".to_owned()) {
        tokio::task::yield_now().await;
    }
    tokio::time::timeout(Duration::from_secs(5), one.settle()).await.expect("it has none");
    upload.abort();
}
