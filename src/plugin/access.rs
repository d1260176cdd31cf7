use std::path::PathBuf;

use clap::Args;
use hyper_util::client::proxy::matcher::Matcher;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};

use super::{PluginError, chain};

/// Which cluster, and which namespace of it.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Cluster")]
pub struct Cluster {
    /// The namespace; by default that of the context
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// The context of the kubeconfig; by default its current one
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// The kubeconfig; by default those that KUBECONFIG names, or ~/.kube/config
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
}

impl Cluster {
    /// The way to the cluster, with the rights of its user, and the namespace.
    pub(super) async fn connect(&self) -> Result<(Client, String), PluginError> {
        let failed = |said: String| {
            PluginError::new(format!(
                "cannot find out how to reach the cluster: {said}; kubectl config view shows what there is, --context and --kubeconfig choose"
            ))
        };
        let config = self.config().await.map_err(|error| failed(chain(&error)))?;
        let namespace = self.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        Ok((Client::try_from(config).map_err(|error| failed(chain(&error)))?, namespace))
    }

    async fn config(&self) -> Result<Config, KubeconfigError> {
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        let kubeconfig = match &self.kubeconfig {
            Some(path) => Kubeconfig::read_from(path)?,
            None => Kubeconfig::read()?,
        };
        let has_own_proxy = kubeconfig
            .clusters
            .iter()
            .any(|cluster| cluster.cluster.as_ref().is_some_and(|cluster| cluster.proxy_url.is_some()));
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await?;
        // The library takes the environment's proxy, and does not look at NO_PROXY.
        if !has_own_proxy && Matcher::from_env().intercept(&config.cluster_url).is_none() {
            config.proxy_url = None;
        }
        Ok(config)
    }
}
