//! Looks at all runs, once or for as long as somebody looks on.

use std::collections::HashSet;
use std::fmt::Debug;
use std::time::Duration;

use clap::Args;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use jiff::Timestamp;
use k8s_openapi::NamespaceResourceScope;
use kube::api::ListParams;
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use super::runs::{Kind, Runs};
use super::{Cluster, PluginError};
use crate::api::{PayloadBuild, PayloadImport};

/// Ages and what is left are told anew this often.
const TICK: Duration = Duration::from_secs(1);

/// Show all runs: how far they are, how fast, and how long still
///
/// At a terminal the table is live until Ctrl-C; elsewhere it is printed once.
// The docstrings are the help that people read at a terminal.
#[allow(clippy::doc_markdown)]
#[derive(Clone, Debug, Args)]
pub struct StatusArgs {
    /// Of all namespaces
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    #[command(flatten)]
    cluster: Cluster,
}

/// A resource that can be looked at.
trait Watched:
    Kind + kube::Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug + Send + 'static
{
}

impl Watched for PayloadBuild {}
impl Watched for PayloadImport {}

/// A change of what there is.
type Change = Box<dyn FnOnce(&mut Runs, Timestamp) + Send>;

/// Where the runs are looked at.
#[derive(Clone)]
pub struct Lookout {
    client: Client,
    /// The one namespace. Absent: all.
    namespace: Option<String>,
}

impl Lookout {
    /// Finds the cluster.
    pub async fn new(args: &StatusArgs) -> Result<Self, PluginError> {
        let (client, namespace) = args.cluster.connect().await?;
        Ok(Self { client, namespace: (!args.all_namespaces).then_some(namespace) })
    }

    /// What there is now.
    pub async fn look(&self) -> Result<Runs, PluginError> {
        let mut runs = Runs::default();
        self.list::<PayloadBuild>(&mut runs).await?;
        self.list::<PayloadImport>(&mut runs).await?;
        Ok(runs)
    }

    /// Where that is, for people.
    #[must_use]
    pub fn place(&self) -> String {
        match &self.namespace {
            Some(namespace) => format!("namespace {namespace}"),
            None => "all namespaces".to_owned(),
        }
    }

    /// Shows what there is at each change, and at least every second, until it is cancelled. `draw` gets a word of what is
    /// wrong with the API server, too.
    pub async fn follow(
        &self,
        mut runs: Runs,
        cancel: &CancellationToken,
        mut draw: impl FnMut(&Runs, Option<&str>) -> Result<(), PluginError>,
    ) -> Result<Runs, PluginError> {
        let builds = self.changes::<PayloadBuild>();
        let imports = self.changes::<PayloadImport>();
        let mut changes = futures::stream::select(builds, imports);
        let mut tick = tokio::time::interval(TICK);
        let mut wrong = None;
        loop {
            tokio::select! {
                () = cancel.cancelled() => return Ok(runs),
                change = changes.next() => match change {
                    Some(Ok(change)) => {
                        change(&mut runs, Timestamp::now());
                        wrong = None;
                    }
                    Some(Err(error)) => wrong = Some(super::chain(&error)),
                    None => return Ok(runs),
                },
                _ = tick.tick() => {}
            }
            draw(&runs, wrong.as_deref())?;
        }
    }

    fn api<K: Watched>(&self) -> Api<K> {
        match &self.namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        }
    }

    async fn list<K: Watched>(&self, runs: &mut Runs) -> Result<(), PluginError> {
        let listed = self.api::<K>().list(&ListParams::default()).await;
        let doing = format!("list the {} of {}", K::plural(&()), self.place());
        let listed = listed.map_err(|error| PluginError::api(&doing, &error))?;
        let now = Timestamp::now();
        listed.iter().for_each(|resource| runs.take(resource, now));
        Ok(())
    }

    fn changes<K: Watched>(&self) -> BoxStream<'static, Result<Change, watcher::Error>> {
        let events = watcher(self.api::<K>(), watcher::Config::default()).default_backoff();
        // Of a list that is read again: what is not in it is gone.
        let mut listed = HashSet::new();
        let change = move |event: Event<K>| -> Change {
            match event {
                Event::Apply(resource) => Box::new(move |runs, now| runs.take(&resource, now)),
                Event::Delete(resource) => Box::new(move |runs, _| runs.remove(&resource)),
                Event::Init => {
                    listed.clear();
                    Box::new(|_, _| {})
                }
                Event::InitApply(resource) => {
                    listed.insert((resource.namespace().unwrap_or_default(), resource.name_any()));
                    Box::new(move |runs, now| runs.take(&resource, now))
                }
                Event::InitDone => {
                    let listed = std::mem::take(&mut listed);
                    Box::new(move |runs, _| runs.keep::<K>(&listed))
                }
            }
        };
        let mut change = change;
        events.map(move |event| event.map(&mut change)).boxed()
    }
}
