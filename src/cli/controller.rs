use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::CliError;
use crate::api::{SecretRef, Toleration, WorkerResources};
use crate::controller::{
    self, CaBundle, LeaseTiming, OpenProxy, Pace, Reach, RegistryReach, Settings, WorkerDefaults,
};
use crate::worker::contract::TrafficLimits;

/// Look after the PayloadBuilds and PayloadImports of a cluster
#[derive(Debug, Clone, clap::Args)]
pub(super) struct ControllerArgs {
    /// Image of the worker pods: the image that this program is in
    #[arg(long, value_name = "IMAGE")]
    pub(super) worker_image: String,
    /// When the worker's image is pulled; by default as Kubernetes chooses by its tag
    #[arg(long, value_name = "POLICY", value_parser = ["Always", "IfNotPresent", "Never"])]
    pub(super) worker_image_pull_policy: Option<String>,
    /// Requests and limits of worker pods, as JSON; a resource's own win
    #[arg(long, value_name = "JSON", value_parser = resources)]
    pub(super) worker_resources: Option<WorkerResources>,
    /// User and groups of worker pods: 65532, or those that the cluster gives (OpenShift)
    #[arg(long, value_enum, default_value = "auto")]
    pub(super) worker_security_context: Ids,
    /// Secrets to pull the worker's image with, as JSON; each namespace must have them, a resource's own win
    #[arg(long, value_name = "JSON", value_parser = list::<SecretRef>)]
    pub(super) worker_image_pull_secrets: Option<List<SecretRef>>,
    /// Labels of the nodes for worker pods, as JSON; a resource's own win
    #[arg(long, value_name = "JSON", value_parser = labels)]
    pub(super) worker_node_selector: Option<BTreeMap<String, String>>,
    /// Tolerations of worker pods, as JSON; a resource's own win
    #[arg(long, value_name = "JSON", value_parser = list::<Toleration>)]
    pub(super) worker_tolerations: Option<List<Toleration>>,
    /// Let each worker move so many blobs at once [default: 4]
    #[arg(long, value_name = "NUMBER")]
    pub(super) worker_parallel: Option<NonZeroUsize>,
    /// Let each worker ask no registry more often; as often as needed if it is not given
    #[arg(long, value_name = "NUMBER")]
    pub(super) worker_requests_per_second: Option<NonZeroU32>,
    /// Let each worker wait for registries that fail for so long in all, 90s or 2h [default: 30m, of which 15m for one, 30s for one that never answered]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(super) worker_retry_for: Option<Duration>,
    /// File with certificates of authorities (PEM) that workers trust for all registries and object stores
    #[arg(long, value_name = "FILE")]
    pub(super) worker_ca_bundle: Option<PathBuf>,
    /// Proxy that workers reach registries and object stores by; a resource's own wins
    #[arg(long, value_name = "URL")]
    pub(super) worker_proxy: Option<OpenProxy>,
    /// Hosts that workers reach without that proxy, separated by commas
    #[arg(long, value_name = "HOSTS", requires = "worker_proxy")]
    pub(super) worker_no_proxy: Option<String>,
    /// Mirrors and plain HTTP of registries, as a JSON list of host, endpoint and insecure; a resource's own win
    #[arg(long, value_name = "JSON", value_parser = RegistryReach::list)]
    pub(super) worker_registries: Option<List<RegistryReach>>,
    /// Namespace to look after; by default all
    #[arg(long, value_name = "NAMESPACE")]
    pub(super) namespace: Option<String>,
    /// Resources of a kind that are looked at at once
    #[arg(long, value_name = "COUNT", default_value = "32", value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) concurrency: u16,
    /// Pause before another attempt where time may help, such as for a source that has not arrived
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration)]
    pub(super) wait_interval: Duration,
    /// Pause before the second and last attempt with credentials that were refused
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = duration)]
    pub(super) auth_retry_interval: Duration,
    /// Take turns with other controllers: the one that holds the Lease works, the others stand by
    #[arg(long)]
    pub(super) leader_election: bool,
    /// Where /healthz, /readyz and /metrics answer
    #[arg(long, value_name = "ADDRESS", default_value = "[::]:8081")]
    pub(super) health_address: SocketAddr,
}

/// Who chooses the user and the groups of worker pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Ids {
    /// Charon: 65532.
    Auto,
    /// The cluster.
    None,
}

/// Looks after the cluster that the environment names until SIGTERM or SIGINT.
pub(super) async fn run(args: ControllerArgs) -> Result<(), CliError> {
    let failed = |what: &str, error: &dyn std::error::Error| CliError::Failed(format!("{what}: {error}"));
    let settings = args.into_settings();
    if let Some(bundle) = &settings.worker.reach.ca_bundle {
        // It is read again for each worker; what is wrong from the start is told at the start.
        bundle.read().await.map_err(|error| CliError::Failed(error.to_string()))?;
    }
    let client = kube::Client::try_default().await;
    let client = client.map_err(|error| failed("cannot find out how to reach the cluster", &error))?;
    let mut terminate =
        signal(SignalKind::terminate()).map_err(|error| failed("cannot wait for signals", &error))?;
    let mut interrupt =
        signal(SignalKind::interrupt()).map_err(|error| failed("cannot wait for signals", &error))?;
    let stop = CancellationToken::new();
    let running = controller::run(client, settings, stop.clone());
    let signals = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        stop.cancel();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        result = running => result.map_err(|error| CliError::Failed(error.to_string())),
        () = signals => Ok(()),
    }
}

impl ControllerArgs {
    fn into_settings(self) -> Settings {
        let mut worker = WorkerDefaults::with_image(self.worker_image);
        worker.pull_policy = self.worker_image_pull_policy;
        if let Some(resources) = self.worker_resources {
            worker.resources = resources;
        }
        if self.worker_security_context == Ids::None {
            worker.ids = None;
        }
        worker.image_pull_secrets = self.worker_image_pull_secrets.unwrap_or_default();
        worker.node_selector = self.worker_node_selector.unwrap_or_default();
        worker.tolerations = self.worker_tolerations.unwrap_or_default();
        worker.traffic = TrafficLimits {
            parallel: self.worker_parallel,
            requests_per_second: self.worker_requests_per_second,
            retry_for_seconds: self.worker_retry_for.map(|time| time.as_secs()),
        };
        let no_proxy = self.worker_no_proxy;
        worker.reach = Reach {
            ca_bundle: self.worker_ca_bundle.map(CaBundle::at),
            proxy: self.worker_proxy.map(|proxy| proxy.except(no_proxy)),
            registries: self.worker_registries.unwrap_or_default(),
        };
        Settings {
            worker,
            // An empty value is what a chart gives for "not set".
            namespace: self.namespace.filter(|namespace| !namespace.is_empty()),
            concurrency: self.concurrency,
            pace: Pace { wait: self.wait_interval, again: self.auth_retry_interval, ..Pace::default() },
            lease: self.leader_election.then(LeaseTiming::default),
            health_address: Some(self.health_address),
        }
    }
}

/// One value, and not an option that is given several times.
type List<T> = Vec<T>;

fn resources(text: &str) -> Result<WorkerResources, serde_json::Error> {
    serde_json::from_str(text)
}

fn labels(text: &str) -> Result<BTreeMap<String, String>, serde_json::Error> {
    serde_json::from_str(text)
}

fn list<T: DeserializeOwned>(text: &str) -> Result<List<T>, serde_json::Error> {
    serde_json::from_str(text)
}

fn duration(text: &str) -> Result<Duration, String> {
    let duration = text.parse::<kube::core::Duration>().map_err(|error| error.to_string())?;
    if duration.is_negative() {
        return Err("it must not be negative".into());
    }
    Ok(duration.into())
}

#[cfg(test)]
mod tests {
    use clap::{Args as _, FromArgMatches as _};

    use super::*;

    #[test]
    fn what_workers_are_told_of_registries_is_what_the_options_say() {
        let traffic = |options: &[&str]| {
            let given = ["controller", "--worker-image", "i"].iter().chain(options);
            let matches =
                ControllerArgs::augment_args(clap::Command::new("controller")).get_matches_from(given);
            ControllerArgs::from_arg_matches(&matches).unwrap().into_settings().worker.traffic
        };
        assert_eq!(traffic(&[]), TrafficLimits::default());
        let options = ["--worker-parallel=2", "--worker-requests-per-second=10", "--worker-retry-for=1h30m"];
        let expected = TrafficLimits {
            parallel: NonZeroUsize::new(2),
            requests_per_second: NonZeroU32::new(10),
            retry_for_seconds: Some(5400),
        };
        assert_eq!(traffic(&options), expected);
    }
}
