//! The worker: one attempt of a run, in a pod of its own, without access to the Kubernetes API.
//!
//! It reads its run configuration once, moves the bytes, and leaves its outcome in the termination
//! message and the exit code.

pub mod contract;
mod list;
mod place;
mod report;
mod run;
mod serve;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};

use crate::digest::Digest;
use crate::progress::Progress;
use crate::reason::Reason;
use crate::reference::ReferenceError;
use crate::registry::{RegistryError, Traffic};
use crate::storage::StorageError;
use contract::{
    CA_BUNDLE, CONTRACT_VERSION, IMAGES_LIST, OBJECT_STORE_SECRETS, Outcome, PAYLOAD_MOUNT, PROGRESS_PORT,
    PROXY_SECRETS, REGISTRY_SECRETS, RUN_CONFIG_PATH, RunConfig, TrafficLimits,
};

pub(crate) use place::payload_path;

/// Why a run came to nothing before its engine began.
#[derive(Debug)]
struct Refusal {
    reason: Reason,
    message: String,
}

impl Refusal {
    fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

impl From<ReferenceError> for Refusal {
    fn from(error: ReferenceError) -> Self {
        Self::new(Reason::InvalidSpec, error.to_string())
    }
}

impl From<StorageError> for Refusal {
    fn from(error: StorageError) -> Self {
        Self::new(error.reason(), error.to_string())
    }
}

impl From<RegistryError> for Refusal {
    fn from(error: RegistryError) -> Self {
        Self::new(error.reason(), error.to_string())
    }
}

impl From<Refusal> for Outcome {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.reason, refusal.message)
    }
}

/// The exit code of a run that was told to stop: never a final one.
const TERMINATED: u8 = 143;

/// Do one attempt of a run.
#[derive(Debug, Args)]
pub struct Worker {
    /// The run configuration
    #[arg(long, default_value = RUN_CONFIG_PATH)]
    config: PathBuf,
    /// The folder that payloads are in
    #[arg(long, default_value = PAYLOAD_MOUNT)]
    payloads: PathBuf,
    /// The folder with the registries' credentials and certificates
    #[arg(long, default_value = REGISTRY_SECRETS)]
    registry_secrets: PathBuf,
    /// The folder with the object store's credentials and certificates
    #[arg(long, default_value = OBJECT_STORE_SECRETS)]
    object_store_secrets: PathBuf,
    /// The folder with the proxy's address and credentials
    #[arg(long, default_value = PROXY_SECRETS)]
    proxy_secrets: PathBuf,
    /// Certificates of authorities for all registries and the object store
    #[arg(long, default_value = CA_BUNDLE)]
    ca_bundle: PathBuf,
    /// The list of images
    #[arg(long, default_value = IMAGES_LIST)]
    images_list: PathBuf,
    /// Where the outcome goes
    #[arg(long, default_value = "/dev/termination-log")]
    termination_log: PathBuf,
    /// The port of the progress report
    #[arg(long, default_value_t = PROGRESS_PORT)]
    progress_port: u16,
}

impl Worker {
    /// Does the attempt; gives the process' exit code.
    pub async fn run(self) -> u8 {
        let outcome = match self.config().await {
            Err(outcome) => outcome,
            Ok((config, input_digest)) => {
                let traffic = traffic(&config.traffic);
                let outcome = tokio::select! {
                    outcome = self.attempt(&config, &traffic) => outcome,
                    () = terminated() => {
                        warn!("told to stop; the next attempt goes on with what is there");
                        traffic.settle().await;
                        return TERMINATED;
                    }
                };
                Outcome { run_id: config.run_id, input_digest, ..outcome }
            }
        };
        match outcome.reason {
            reason if reason.is_success() => info!("{}", outcome.message),
            reason => {
                for failure in &outcome.failures {
                    error!("{}: {}", failure.reason, failure.message);
                }
                error!("{reason}: {}", outcome.message);
            }
        }
        if let Err(error) = tokio::fs::write(&self.termination_log, outcome.to_message()).await {
            error!("cannot write the outcome to {}: {error}", self.termination_log.display());
        }
        outcome.reason.exit_code()
    }

    /// The run configuration, and the sha256 of its bytes in hexadecimal.
    async fn config(&self) -> Result<(RunConfig, String), Outcome> {
        let bytes = tokio::fs::read(&self.config).await.map_err(|error| {
            let message = format!("cannot read the run configuration {}: {error}", self.config.display());
            Outcome::new(Reason::WorkerFailed, message)
        })?;
        let input_digest = Digest::sha256(&bytes).hex().to_owned();
        match parse(&bytes) {
            Ok(config) => Ok((config, input_digest)),
            Err(message) => Err(Outcome { input_digest, ..Outcome::new(Reason::WorkerFailed, message) }),
        }
    }

    async fn attempt(&self, config: &RunConfig, traffic: &Traffic) -> Outcome {
        let progress = Arc::new(Progress::default());
        match TcpListener::bind(("::", self.progress_port)).await {
            Ok(listener) => {
                // It ends with the process.
                tokio::spawn(serve::serve(
                    listener,
                    config.run_id.clone(),
                    config.nonce.clone(),
                    Arc::clone(&progress),
                ));
            }
            Err(error) => warn!("cannot report progress on port {}: {error}", self.progress_port),
        }
        let folders = run::Folders {
            payloads: &self.payloads,
            registry_secrets: &self.registry_secrets,
            object_store_secrets: &self.object_store_secrets,
            proxy_secrets: &self.proxy_secrets,
            ca_bundle: &self.ca_bundle,
            images_list: &self.images_list,
        };
        Box::pin(run::run(config, &folders, traffic, &progress)).await
    }
}

fn parse(bytes: &[u8]) -> Result<RunConfig, String> {
    let config: RunConfig = serde_json::from_slice(bytes).map_err(|error| {
        format!("cannot read the run configuration: {error}; are controller and worker of one version?")
    })?;
    if config.version != CONTRACT_VERSION {
        return Err(format!(
            "the run configuration has version {}, this worker reads {CONTRACT_VERSION}; controller and worker must be of one version",
            config.version
        ));
    }
    Ok(config)
}

fn traffic(limits: &TrafficLimits) -> Traffic {
    let mut traffic = Traffic::default();
    if let Some(parallel) = limits.parallel {
        traffic = traffic.at_once(parallel);
    }
    if let Some(most) = limits.requests_per_second {
        traffic = traffic.requests_per_second(most);
    }
    if let Some(seconds) = limits.retry_for_seconds {
        traffic = traffic.waiting(Duration::from_secs(seconds));
    }
    traffic
}

/// Waits for SIGTERM.
async fn terminated() {
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => {
            terminate.recv().await;
        }
        Err(error) => {
            warn!("cannot listen for SIGTERM: {error}");
            std::future::pending::<()>().await;
        }
    }
}
