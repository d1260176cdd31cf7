//! Docker's credential helpers: programs that keep credentials, and tell them to whoever asks by their protocol.

use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use secrecy::SecretString;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use super::access::Credentials;
use super::error::plain;

/// A helper may ask a person for a password; it is not waited for longer.
const LONGEST_ANSWER: Duration = Duration::from_mins(1);
/// No answer is longer, in bytes.
const ANSWER_LIMIT: u64 = 64 << 10;

/// A credential helper does not tell what it should.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot ask {helper} for the credentials of {host}: {problem}; check credHelpers and credsStore in the Docker configuration"
)]
pub struct HelperError {
    helper: String,
    host: String,
    problem: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// Asks `docker-credential-<name>` for the credentials of `host`: none, if it knows of none.
pub(super) async fn ask(name: &str, host: &str) -> Result<Option<Credentials>, HelperError> {
    let helper = plain(&format!("docker-credential-{name}"));
    let failed = |problem: String| HelperError { helper: helper.clone(), host: host.to_owned(), problem };
    // It is looked for on PATH, and nowhere else.
    if name.is_empty() || name.contains('/') {
        return Err(failed("that is no name of a program".to_owned()));
    }
    let (status, stdout) = tokio::time::timeout(LONGEST_ANSWER, run(&helper, host))
        .await
        .map_err(|_| failed(format!("it did not answer in {} s", LONGEST_ANSWER.as_secs())))?
        .map_err(|error| failed(error.to_string()))?;
    if stdout.len() as u64 > ANSWER_LIMIT {
        return Err(failed("its answer is too long".to_owned()));
    }
    if !status.success() {
        // An error is told on standard output, too.
        let said = plain(&String::from_utf8_lossy(&stdout));
        let is_unknown = said.contains("credentials not found");
        return if is_unknown { Ok(None) } else { Err(failed(format!("it ended with {status} ({said})"))) };
    }
    // What it holds is not quoted: it is secret.
    let answer: Answer = serde_json::from_slice(&stdout)
        .map_err(|_| failed("its answer is no JSON with Username and Secret".to_owned()))?;
    let secret = SecretString::from(answer.secret);
    Ok(Some(match answer.username.as_str() {
        "<token>" => Credentials::IdentityToken(secret),
        _ => Credentials::Password { username: answer.username, password: secret },
    }))
}

async fn run(helper: &str, host: &str) -> io::Result<(ExitStatus, Vec<u8>)> {
    let mut child = Command::new(helper)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read may answer all the same.
        let _ = stdin.write_all(host.as_bytes()).await;
    }
    let mut stdout = Vec::new();
    if let Some(pipe) = child.stdout.take() {
        read_up_to(pipe, &mut stdout).await?;
    }
    if stdout.len() as u64 > ANSWER_LIMIT {
        child.start_kill()?;
    }
    Ok((child.wait().await?, stdout))
}

async fn read_up_to(pipe: impl AsyncRead + Unpin, bytes: &mut Vec<u8>) -> io::Result<()> {
    pipe.take(ANSWER_LIMIT + 1).read_to_end(bytes).await.map(drop)
}
