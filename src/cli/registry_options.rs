use std::io::Read;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use jiff::SignedDuration;
use secrecy::{ExposeSecret, SecretString};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::context::unless_cancelled;
use super::{CliError, Context};
use crate::library;
use crate::registry::{Credentials, DockerConfig, Netrc, Traffic};

/// The variables of docker-charon, which are read beside our own.
const DOCKER_CHARON_USERNAME: &str = "DOCKER_CHARON_USERNAME";
const DOCKER_CHARON_PASSWORD: &str = "DOCKER_CHARON_PASSWORD";
/// No password is longer.
const PASSWORD_LIMIT: u64 = 64 << 10;

/// How a registry is reached.
// The docstrings are the help that people read at a terminal.
#[allow(clippy::doc_markdown)]
#[derive(Args)]
pub(super) struct RegistryOptions {
    /// The registry, host or host:port; Docker Hub if it is not given
    #[arg(short, long, value_name = "HOST")]
    registry: Option<String>,
    /// Use plain HTTP instead of HTTPS
    #[arg(short, long)]
    insecure: bool,
    /// The name to sign in with; also from DOCKER_CHARON_USERNAME
    #[arg(short, long, value_name = "NAME")]
    username: Option<String>,
    /// The password to sign in with; also from DOCKER_CHARON_PASSWORD. Others on this machine can see it here: better use the variable or --password-stdin
    #[arg(short, long, value_name = "PASSWORD", hide_env_values = true)]
    password: Option<SecretString>,
    /// Read the password from standard input
    #[arg(long)]
    password_stdin: bool,
    /// Trust the certificate authorities in this file (PEM), too
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Show this client certificate (PEM) where one is asked for
    #[arg(long, value_name = "FILE", requires = "key_file")]
    cert_file: Option<PathBuf>,
    /// The key of the client certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "cert_file")]
    key_file: Option<PathBuf>,
    /// Move so many blobs at once [default: 4]
    #[arg(long, value_name = "NUMBER", help_heading = TRAFFIC)]
    parallel: Option<NonZeroUsize>,
    /// Ask no registry more often; as often as needed if it is not given
    #[arg(long, value_name = "NUMBER", help_heading = TRAFFIC)]
    requests_per_second: Option<NonZeroU32>,
    /// Wait for registries that fail for so long in all, 90s or 2h [default: 30m, of which 15m for one, 30s for one that never answered]
    #[arg(long, value_name = "TIME", value_parser = time, help_heading = TRAFFIC)]
    retry_for: Option<Duration>,
}

/// Stands above what few ever need.
const TRAFFIC: &str = "Traffic";

fn time(text: &str) -> Result<Duration, String> {
    let time = text.parse::<SignedDuration>().map_err(|error| error.to_string())?;
    time.try_into().map_err(|_| "it is less than nothing".to_owned())
}

impl std::fmt::Debug for RegistryOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryOptions").field("registry", &self.registry).finish_non_exhaustive()
    }
}

impl RegistryOptions {
    /// Whether the password comes over standard input.
    pub(super) fn reads_stdin(&self) -> bool {
        self.password_stdin
    }

    /// What was given, by option, variable, standard input, Docker's configuration or netrc, in this order.
    pub(super) async fn read(self, context: &Context) -> Result<library::RegistryOptions, CliError> {
        // docker-charon does not know of it, and it may be another program's trouble.
        let docker_config = DockerConfig::load_default().unwrap_or_else(|error| {
            warn!("{error}; going on without it");
            None
        });
        let netrc = Netrc::load_default().unwrap_or_else(|error| {
            warn!("{error}; going on without it");
            None
        });
        let credentials = self.credentials(&context.cancel()).await?;
        let ca_pem = match &self.ca_file {
            Some(file) => Some(pem(file).await?),
            None => None,
        };
        let identity_pem = match (&self.cert_file, &self.key_file) {
            (Some(certificate), Some(key)) => {
                Some([pem(certificate).await?, b"\n".to_vec(), pem(key).await?].concat())
            }
            _ => None,
        };
        let mut traffic = Traffic::default();
        if let Some(parallel) = self.parallel {
            traffic = traffic.at_once(parallel);
        }
        if let Some(most) = self.requests_per_second {
            traffic = traffic.requests_per_second(most);
        }
        if let Some(time) = self.retry_for {
            traffic = traffic.waiting(time);
        }
        Ok(library::RegistryOptions {
            registry: self.registry,
            insecure: self.insecure,
            credentials,
            ca_pem,
            identity_pem,
            docker_config,
            netrc,
            traffic,
        })
    }

    /// What is empty was not given: scripts pass variables on that may not be set.
    async fn credentials(&self, cancel: &CancellationToken) -> Result<Option<Credentials>, CliError> {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let username = self.username.clone().filter(|username| !username.is_empty());
        let username = username.or_else(|| variable(DOCKER_CHARON_USERNAME));
        let password = if self.password_stdin {
            Some(password_from_stdin(cancel).await?)
        } else {
            let from_variable = || variable(DOCKER_CHARON_PASSWORD).map(SecretString::from);
            let password = self.password.clone().filter(|password| !password.expose_secret().is_empty());
            password.or_else(from_variable)
        };
        match (username, password) {
            (Some(username), Some(password)) => Ok(Some(Credentials::Password { username, password })),
            (None, None) => Ok(None),
            (Some(_), None) => Err(CliError::Usage(
                "a username without a password: give one with DOCKER_CHARON_PASSWORD or --password-stdin"
                    .to_owned(),
            )),
            (None, Some(_)) => {
                Err(CliError::Usage("a password without a username: give one with --username".to_owned()))
            }
        }
    }
}

async fn pem(file: &Path) -> Result<Vec<u8>, CliError> {
    tokio::fs::read(file).await.map_err(|error| CliError::of_file(file, &error))
}

/// Whoever is to type it may not be there: a signal ends the waiting.
async fn password_from_stdin(cancel: &CancellationToken) -> Result<SecretString, CliError> {
    let read = unless_cancelled(cancel, || {
        let mut text = String::new();
        std::io::stdin().take(PASSWORD_LIMIT).read_to_string(&mut text).map(|_| text)
    });
    let text = read.await?.map_err(|error| {
        CliError::Failed(format!("cannot read the password from standard input: {error}"))
    })?;
    Ok(SecretString::from(text.trim_end_matches(['\r', '\n'])))
}
