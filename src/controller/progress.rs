//! Asks a worker how far it is. Best effort: what it does not say is not known, and nothing depends on it.

use std::time::Duration;

use futures::StreamExt as _;

use super::observe::PodView;
use crate::worker::contract::{PROGRESS_PORT, Progress};

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How long an answer may be.
const ANSWER_LIMIT: usize = 64 * 1024;

/// A client that asks workers and nobody else.
#[derive(Clone, Debug)]
pub(super) struct Asker {
    client: reqwest::Client,
    port: u16,
}

/// Why a worker's progress is unknown.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProgressError {
    /// It could not be asked, or did not answer.
    #[error("{}", innermost(.0))]
    Http(#[from] reqwest::Error),
    /// It answered something else.
    #[error("the answer is no progress report: {0}")]
    Answer(#[from] serde_json::Error),
    /// It answered too much.
    #[error("the answer is longer than {ANSWER_LIMIT} bytes")]
    TooLong,
    /// It answered for another run: the pod's address was given to another pod.
    #[error("the answer is about another run")]
    AnotherRun,
}

impl Asker {
    /// A client without proxies, redirects and trusted roots: it speaks plain HTTP to pods.
    pub(super) fn new() -> Result<Self, reqwest::Error> {
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .tls_certs_only([])
            .timeout(TIMEOUT)
            .build()?;
        Ok(Self { client, port: PROGRESS_PORT })
    }

    /// What the worker in `pod` says, if it works on run `run_id` and was given `nonce`.
    pub(super) async fn ask(
        &self,
        pod: &PodView,
        run_id: &str,
        nonce: &str,
    ) -> Result<Progress, ProgressError> {
        let ip = pod.ip.as_deref().unwrap_or_default();
        let response = self.client.get(url(ip, self.port)).send().await?.error_for_status()?;
        let mut body = Vec::new();
        let mut chunks = response.bytes_stream();
        while let Some(chunk) = chunks.next().await {
            body.extend_from_slice(&chunk?);
            if body.len() > ANSWER_LIMIT {
                return Err(ProgressError::TooLong);
            }
        }
        let progress: Progress = serde_json::from_slice(&body)?;
        if progress.run_id != run_id || progress.nonce != nonce {
            return Err(ProgressError::AnotherRun);
        }
        Ok(progress)
    }
}

/// What is at the bottom of an error: reqwest's own words only say that there was one.
fn innermost(error: &reqwest::Error) -> String {
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

fn url(ip: &str, port: u16) -> String {
    if ip.contains(':') {
        format!("http://[{ip}]:{port}/progress")
    } else {
        format!("http://{ip}:{port}/progress")
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// What the asker makes of a worker that answers `response`, whole.
    async fn ask(response: String) -> Result<Progress, ProgressError> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let asker = Asker { port: listener.local_addr().unwrap().port(), ..Asker::new().unwrap() };
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(response.as_bytes()).await;
        });
        let pod = PodView { ip: Some("127.0.0.1".into()), ..PodView::default() };
        asker.ask(&pod, "r", "n").await
    }

    fn ok(body: &str) -> String {
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    }

    fn report(run_id: &str, nonce: &str) -> String {
        format!(
            r#"{{"runId":"{run_id}","nonce":"{nonce}","stage":"Transferring","bytesDone":1,"bytesTotal":4,"blobsDone":0,"blobsTotal":2}}"#
        )
    }

    #[tokio::test]
    async fn a_worker_tells_how_far_it_is() {
        assert_eq!(ask(ok(&report("r", "n"))).await.unwrap().bytes_total, 4);
    }

    #[tokio::test]
    async fn another_run_another_pod_a_redirect_and_a_flood_are_no_answer() {
        assert!(matches!(ask(ok(&report("other", "n"))).await, Err(ProgressError::AnotherRun)));
        assert!(matches!(ask(ok(&report("r", "other"))).await, Err(ProgressError::AnotherRun)));
        assert!(matches!(ask(ok("hello")).await, Err(ProgressError::Answer(_))));
        assert!(matches!(ask(ok(&" ".repeat(ANSWER_LIMIT + 1))).await, Err(ProgressError::TooLong)));
        let redirect = "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n";
        assert!(matches!(ask(redirect.into()).await, Err(ProgressError::Answer(_))));
        assert!(matches!(
            ask("HTTP/1.1 500 no\r\ncontent-length: 0\r\n\r\n".into()).await,
            Err(ProgressError::Http(_))
        ));
    }

    #[test]
    fn an_address_of_either_kind_makes_a_url() {
        assert_eq!(url("10.0.0.1", 80), "http://10.0.0.1:80/progress");
        assert_eq!(url("fd00::1", 80), "http://[fd00::1]:80/progress");
    }
}
