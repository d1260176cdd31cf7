//! Uploads that break, and go on.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::http::Response;
use bytes::Bytes;
use futures::{Stream, stream};

use super::scripted::{Seen, Server, reply};
use super::*;
use crate::reason::Reason;

/// 20 MiB of which no two pieces are alike.
fn content() -> Bytes {
    let words = (0..5_u32 << 20).flat_map(u32::to_le_bytes);
    words.collect::<Vec<u8>>().into()
}

fn in_chunks(content: &Bytes) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static + use<> {
    let content = content.clone();
    let starts = (0..content.len()).step_by(256 << 10);
    stream::iter(starts.map(move |start| Ok(content.slice(start..content.len().min(start + (256 << 10))))))
}

/// A registry that takes one upload, and what it has of it.
#[derive(Clone, Default)]
struct Taking(Arc<Mutex<Vec<u8>>>);

impl Taking {
    fn length(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    fn reset(&self, length: usize) {
        self.0.lock().unwrap().truncate(length);
    }

    /// Serves it; `before` may answer first.
    async fn serve(
        &self,
        before: impl Fn(&Seen, usize, &Self) -> Option<Response<Body>> + Send + Sync + 'static,
    ) -> Server {
        let taking = self.clone();
        Server::start(move |seen, nth| before(seen, nth, &taking).unwrap_or_else(|| taking.answer(seen)))
            .await
    }

    fn answer(&self, seen: &Seen) -> Response<Body> {
        let body = seen.body.clone().unwrap_or_default();
        let length = self.length();
        let location = |length: usize| format!("/upload?has={length}");
        // Only the newest Location is good.
        let is_newest = seen.target.split('&').next() == Some(location(length).as_str());
        match seen.method.as_str() {
            "POST" => {
                self.reset(0);
                reply(202, &[("location", &location(0))], "")
            }
            "GET" => {
                let range = format!("0-{}", length.saturating_sub(1));
                reply(204, &[("location", &location(length)), ("range", &range)], "")
            }
            "DELETE" => reply(204, &[], ""),
            _ if !is_newest => reply(416, &[], ""),
            "PATCH" => {
                let end = length + body.len();
                let expected = format!("{length}-{}", end - 1);
                if seen.header("content-range") != Some(&expected) {
                    return reply(416, &[], "");
                }
                self.0.lock().unwrap().extend_from_slice(&body);
                let range = format!("0-{}", end - 1);
                // ECR answers 201.
                reply(201, &[("location", &location(end)), ("range", &range)], "")
            }
            _ => {
                self.0.lock().unwrap().extend_from_slice(&body);
                let digest = digest_of(&self.0.lock().unwrap());
                let is_right = seen.target.ends_with(&format!("digest=sha256%3A{}", digest.hex()));
                reply(if is_right { 201 } else { 400 }, &[], "")
            }
        }
    }
}

fn methods(server: &Server) -> Vec<String> {
    server.seen().into_iter().map(|seen| seen.method).collect()
}

fn patched(server: &Server) -> Vec<usize> {
    let seen = server.seen();
    let pieces = seen.iter().filter(|seen| seen.method == "PATCH");
    pieces.map(|seen| seen.header("content-length").unwrap().parse().unwrap()).collect()
}

async fn push(server: &Server, content: &Bytes) -> Result<(), RegistryError> {
    push_to(&anonymous(server), content).await
}

async fn push_to(registry: &Registry, content: &Bytes) -> Result<(), RegistryError> {
    registry.push_blob("x", &digest_of(content), content.len() as u64, || in_chunks(content)).await
}

async fn push_passing(server: &Server, content: &Bytes) -> Result<(), RegistryError> {
    let digest = digest_of(content);
    anonymous(server).push_passing_blob("x", &digest, content.len() as u64, in_chunks(content)).await
}

#[tokio::test]
async fn an_upload_that_broke_goes_on_where_the_registry_says_that_it_is() {
    // Behind the first byte a range of `0-0` tells nothing: it is taken for no byte at all.
    for kept in [7_000_001, 0, 20 << 20] {
        let taking = Taking::default();
        let server = taking
            .serve(move |seen, nth, taking| {
                (seen.method == "PUT" && nth == 0).then(|| {
                    taking.0.lock().unwrap().extend_from_slice(&seen.body.clone().unwrap()[..kept]);
                    reply(502, &[], "")
                })
            })
            .await;
        let content = content();
        push(&server, &content).await.unwrap();
        assert!(*taking.0.lock().unwrap() == content, "{kept}");
        let expected: &[&str] = match kept {
            0 => &["POST", "PUT", "GET", "PUT"],
            kept if kept == content.len() => &["POST", "PUT", "GET", "PUT"],
            _ => &["POST", "PUT", "GET", "PATCH", "PUT"],
        };
        assert_eq!(methods(&server), expected);
        let sent: usize = server.seen().iter().map(|seen| seen.body.as_ref().unwrap().len()).sum();
        assert_eq!(sent, 2 * content.len() - kept);
    }
}

#[tokio::test]
async fn an_upload_that_the_registry_forgot_is_begun_anew_a_few_times() {
    for status in [404, 416] {
        let taking = Taking::default();
        let server = taking
            .serve(move |seen, nth, taking| match (seen.method.as_str(), nth) {
                ("PUT", 0) => Some(reply(status, &[], "")),
                ("GET", _) => {
                    taking.reset(0);
                    Some(reply(404, &[], ""))
                }
                _ => None,
            })
            .await;
        let content = content();
        push(&server, &content).await.unwrap();
        assert!(*taking.0.lock().unwrap() == content);
        assert_eq!(methods(&server).iter().filter(|method| *method == "POST").count(), 2);

        let server = taking
            .serve(move |seen, _, _| {
                matches!(seen.method.as_str(), "PUT" | "GET").then(|| reply(status, &[], ""))
            })
            .await;
        push(&server, &content).await.unwrap_err();
        assert_eq!(methods(&server).iter().filter(|method| *method == "POST").count(), 4);
    }
}

#[tokio::test]
async fn an_upload_in_pieces_that_the_registry_forgets_at_the_same_place_is_begun_anew_a_few_times() {
    let taking = Taking::default();
    let server = taking
        .serve(|seen, _, taking| match seen.method.as_str() {
            "PUT" => Some(reply(413, &[], "")),
            // It knows nothing of any second piece.
            "PATCH" if taking.length() > 0 => Some(reply(404, &[], "")),
            "GET" => Some(reply(404, &[], "")),
            _ => None,
        })
        .await;
    push(&server, &content()).await.unwrap_err();
    // The whole blob once, and pieces four times.
    assert_eq!(methods(&server).iter().filter(|method| *method == "POST").count(), 5);
}

#[tokio::test]
async fn a_blob_whose_commit_was_not_answered_is_looked_for_before_it_is_sent_again() {
    let server = Server::start(|seen, _| match seen.method.as_str() {
        "POST" => reply(202, &[("location", "/upload")], ""),
        "PUT" => reply(504, &[], ""),
        "HEAD" => reply(200, &[], ""),
        _ => reply(404, &[], ""),
    })
    .await;
    push(&server, &content()).await.unwrap();
    assert_eq!(methods(&server), ["POST", "PUT", "GET", "HEAD"]);
}

#[tokio::test]
async fn a_request_that_is_too_large_is_halved_until_it_is_taken_and_the_size_is_remembered() {
    let taking = Taking::default();
    let server = taking
        .serve(|seen, _, _| {
            let length: usize = seen.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
            (length > 6 << 20).then(|| reply(413, &[], ""))
        })
        .await;
    let (registry, content) = (anonymous(&server), content());
    push_to(&registry, &content).await.unwrap();
    assert!(*taking.0.lock().unwrap() == content);
    let tried = [10 << 20, 5 << 20, 5 << 20, 5 << 20, 5 << 20];
    assert_eq!(patched(&server), tried);
    push_to(&registry, &content).await.unwrap();
    assert_eq!(patched(&server)[tried.len()..], [5 << 20; 4]);
    let puts = server.seen().into_iter().filter(|seen| seen.method == "PUT");
    assert_eq!(puts.map(|seen| seen.body.unwrap().len()).collect::<Vec<_>>(), [20 << 20, 0, 0]);
}

#[tokio::test]
async fn pieces_are_never_smaller_than_a_registry_takes() {
    let floor = (7 << 20).to_string();
    let server = Server::start(move |seen, _| match seen.method.as_str() {
        "POST" => reply(202, &[("location", "/upload"), ("oci-chunk-min-length", &floor)], ""),
        "GET" => reply(204, &[("range", "0-0")], ""),
        "DELETE" => reply(204, &[], ""),
        _ => reply(413, &[], ""),
    })
    .await;
    let error = push(&server, &content()).await.unwrap_err();
    assert!(error.to_string().contains("raise the request size limit"), "{error}");
    assert_eq!(patched(&server), [10 << 20, 7 << 20]);
}

#[tokio::test]
async fn a_minimum_that_is_larger_than_what_is_held_is_kept_to_by_what_can_be_read_anew_and_by_one_request_of_what_passes()
 {
    const SIZE: u64 = 140 << 20;
    let floor = (70 << 20).to_string();
    let server = Server::start(move |seen, _| {
        let length: u64 = seen.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
        match seen.method.as_str() {
            "POST" => reply(202, &[("location", "/upload"), ("oci-chunk-min-length", &floor)], ""),
            "GET" => reply(204, &[("range", "0-0"), ("location", "/upload")], ""),
            "PUT" if length > 0 && seen.target.ends_with(&digest_of(b"read anew").hex()) => {
                reply(413, &[], "")
            }
            "PATCH" => reply(202, &[("location", "/upload")], ""),
            _ => reply(201, &[], ""),
        }
    })
    .await;
    let piece = Bytes::from(vec![0; 1 << 20]);
    let body = || {
        let piece = piece.clone();
        stream::iter((0..SIZE >> 20).map(move |_| Ok(piece.clone())))
    };
    let registry = anonymous(&server);
    // Proxies take no request of that size.
    registry.push_blob("x", &digest_of(b"read anew"), SIZE, body).await.unwrap();
    assert_eq!(patched(&server), [70 << 20; 2]);
    let before = server.seen().len();
    anonymous(&server).push_passing_blob("x", &digest_of(b"passes"), SIZE, body()).await.unwrap();
    assert_eq!(methods(&server)[before..], ["POST", "PUT"]);
}

#[tokio::test]
async fn requests_that_break_again_and_again_are_halved() {
    let taking = Taking::default();
    let server = taking
        .serve(|seen, _, _| {
            let length: usize = seen.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
            (length > 6 << 20).then(|| reply(504, &[], ""))
        })
        .await;
    let content = content();
    push(&server, &content).await.unwrap();
    assert!(*taking.0.lock().unwrap() == content);
    assert_eq!(patched(&server), [10 << 20, 5 << 20, 5 << 20, 5 << 20, 5 << 20]);
}

#[tokio::test]
async fn what_passes_once_goes_in_pieces_that_can_be_sent_again() {
    let taking = Taking::default();
    let server = taking
        .serve(|seen, nth, taking| match (seen.method.as_str(), nth) {
            // Some of the second piece arrives, and the answer is lost.
            ("PATCH", 1) => {
                taking.0.lock().unwrap().extend_from_slice(&seen.body.clone().unwrap()[..1_000_001]);
                Some(reply(503, &[], ""))
            }
            _ => None,
        })
        .await;
    let content = content();
    push_passing(&server, &content).await.unwrap();
    assert!(*taking.0.lock().unwrap() == content);
    assert_eq!(methods(&server), ["POST", "PATCH", "PATCH", "GET", "PATCH", "PATCH", "PUT"]);
    assert_eq!(patched(&server), [8 << 20, 8 << 20, 8 << 20, (4 << 20) - 1_000_001]);
}

#[tokio::test]
async fn a_piece_of_which_the_registry_says_that_it_has_nothing_is_asked_about_and_sent_again() {
    let taking = Taking::default();
    let server = taking
        .serve(|seen, nth, taking| {
            // It took the piece, and lost it.
            let nothing = format!("0-{}", taking.length().saturating_sub(1));
            let location = format!("/upload?has={}", taking.length());
            let headers = [("location", location.as_str()), ("range", nothing.as_str())];
            (seen.method == "PATCH" && nth < 2).then(|| reply(202, &headers, ""))
        })
        .await;
    let content = content();
    push_passing(&server, &content).await.unwrap();
    assert!(*taking.0.lock().unwrap() == content);
    let expected = ["POST", "PATCH", "GET", "PATCH", "GET", "PATCH", "PATCH", "PATCH", "PUT"];
    assert_eq!(methods(&server), expected);

    // One that has the piece, and does not count well, is believed what it says when it is asked.
    let taking = Taking::default();
    let server = taking
        .serve(|seen, _, taking| {
            (seen.method == "PATCH").then(|| {
                let mut response = taking.answer(seen);
                response.headers_mut().insert("range", "0-0".parse().unwrap());
                response
            })
        })
        .await;
    push_passing(&server, &content).await.unwrap();
    assert!(*taking.0.lock().unwrap() == content);
    assert_eq!(patched(&server), [8 << 20, 8 << 20, 4 << 20]);
}

#[tokio::test]
async fn a_registry_that_takes_pieces_and_never_has_any_is_given_up() {
    let server = Taking::default()
        .serve(|seen, _, _| {
            let headers = [("location", "/upload?has=0"), ("range", "0-0")];
            (seen.method == "PATCH").then(|| reply(202, &headers, ""))
        })
        .await;
    let error = push_passing(&server, &content()).await.unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("takes pieces, and has none of them; check the registry and any proxy before it"),
        "{error}"
    );
    assert_eq!(patched(&server).len(), 4);
}

#[tokio::test]
async fn what_passes_once_and_is_small_goes_in_one_request() {
    let taking = Taking::default();
    let server =
        taking.serve(|seen, nth, _| (seen.method == "PUT" && nth == 0).then(|| reply(503, &[], ""))).await;
    let content = content().slice(..8 << 20);
    push_passing(&server, &content).await.unwrap();
    assert!(*taking.0.lock().unwrap() == content);
    assert_eq!(methods(&server), ["POST", "PUT", "GET", "PUT"]);
}

#[tokio::test]
async fn what_has_passed_is_not_made_up_where_the_registry_lost_it() {
    let taking = Taking::default();
    let server = taking
        .serve(|seen, nth, taking| match (seen.method.as_str(), nth) {
            ("PATCH", 1) => {
                taking.reset(1_000_001);
                Some(reply(503, &[], ""))
            }
            _ => None,
        })
        .await;
    let content = content();
    let error = push_passing(&server, &content).await.unwrap_err();
    let expected = format!(
        "cannot push blob HOST/x@{}: HOST forgot an upload that has come to byte 8388608 of a stream, \
         which cannot be sent again; check the registry and any proxy before it",
        digest_of(&content)
    );
    assert_eq!(told(&server, &error), expected);
    assert_eq!(error.reason(), Reason::RegistryUnavailable);
}

#[tokio::test]
async fn a_registry_that_takes_no_pieces_gets_what_passes_in_one_request() {
    let taking = Taking::default();
    let server = taking.serve(|seen, _, _| (seen.method == "PATCH").then(|| reply(405, &[], ""))).await;
    let content = content();
    push_passing(&server, &content).await.unwrap();
    assert!(*taking.0.lock().unwrap() == content);
    assert_eq!(methods(&server), ["POST", "PATCH", "DELETE", "POST", "PUT"]);
}

#[tokio::test]
async fn no_piece_with_the_last_byte_is_sent_before_the_body_ended_well() {
    let content = content();
    let wrong = || {
        let error = io::Error::new(io::ErrorKind::InvalidData, "the hash is wrong");
        futures::StreamExt::chain(in_chunks(&self::content()), stream::iter([Err(error)]))
    };
    let (digest, size) = (digest_of(&content), content.len() as u64);
    let taking = Taking::default();
    let server = taking
        .serve(|seen, _, _| (seen.method == "PUT" && seen.body.is_some()).then(|| reply(413, &[], "")))
        .await;
    let error = anonymous(&server).push_passing_blob("x", &digest, size, wrong()).await.unwrap_err();
    assert_eq!(error.body_error().unwrap().to_string(), "the hash is wrong");
    assert!(taking.length() < content.len());
    assert!(!methods(&server).contains(&"PUT".to_owned()));
    assert_eq!(methods(&server).last().unwrap(), "DELETE");
}

#[tokio::test]
async fn a_fresh_body_is_made_only_where_it_has_to_go_back() {
    let taking = Taking::default();
    let server = taking
        .serve(|seen, nth, _| {
            let length: usize = seen.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
            let breaks = seen.method == "PATCH" && nth == 3;
            (length > 2 << 20).then(|| reply(413, &[], "")).or_else(|| breaks.then(|| reply(503, &[], "")))
        })
        .await;
    let (content, made) = (content(), AtomicUsize::new(0));
    let body = || {
        made.fetch_add(1, Ordering::Relaxed);
        in_chunks(&content)
    };
    anonymous(&server).push_blob("x", &digest_of(&content), content.len() as u64, body).await.unwrap();
    assert!(*taking.0.lock().unwrap() == content);
    // The first request, one for each that was too large, and the one after the failure.
    assert!(made.load(Ordering::Relaxed) <= 6, "{made:?}");
}

/// A registry that wants tokens; the first one opens all but the requests of `method` from number `from` on.
async fn with_a_token_that_ends(method: &'static str, from: usize, arrived: Arc<Mutex<Vec<u8>>>) -> Server {
    Server::start(move |seen, nth| {
        if seen.target.starts_with("/token") {
            return reply(200, &[], format!(r#"{{"token":"t{nth}","expires_in":300}}"#));
        }
        let token = seen.header("authorization").and_then(|value| value.strip_prefix("Bearer "));
        if token.is_none() || (token == Some("t0") && seen.method == method && nth >= from) {
            let challenge = format!(r#"Bearer realm="http://{}/token""#, seen.header("host").unwrap());
            return reply(401, &[("www-authenticate", &challenge)], "");
        }
        let mut arrived = arrived.lock().unwrap();
        arrived.extend_from_slice(&seen.body.clone().unwrap_or_default());
        let range = format!("0-{}", arrived.len().saturating_sub(1));
        let status = if seen.method == "PUT" { 201 } else { 202 };
        reply(status, &[("location", "/upload"), ("range", &range)], "")
    })
    .await
}

#[tokio::test]
async fn a_token_that_ends_in_the_middle_of_an_upload_is_replaced_and_nothing_is_lost() {
    let content = content();
    let (digest, size) = (digest_of(&content), content.len() as u64);
    // The second piece of a pipe, the last word of one, and a blob in one request.
    for (method, from, passes) in [("PATCH", 1, true), ("PUT", 0, true), ("PUT", 0, false)] {
        let taken = Arc::<Mutex<Vec<u8>>>::default();
        let server = with_a_token_that_ends(method, from, taken.clone()).await;
        let registry = anonymous(&server);
        let pushed = if passes {
            registry.push_passing_blob("x", &digest, size, in_chunks(&content)).await
        } else {
            registry.push_blob("x", &digest, size, || in_chunks(&content)).await
        };
        pushed.unwrap();
        assert!(*taken.lock().unwrap() == content, "{method} {passes}");
        let tokens = server.lines().into_iter().filter(|line| line.contains("/token")).count();
        assert_eq!(tokens, 2, "{method} {passes}");
        assert!(!methods(&server).contains(&"DELETE".to_owned()));
    }
}
