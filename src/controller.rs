//! The controller: makes Jobs of resources, and statuses of what becomes of them.
//!
//! observe ([`observe`](self)) → validate → decide → act → summarise → one write of the status. Only
//! the first and the fourth of these touch the cluster, and nothing is remembered between two looks:
//! all state is in the status, the Jobs and their pods.

mod announce;
mod bases;
mod confine;
mod decide;
mod health;
mod hold;
mod job;
mod known;
mod lease;
mod metrics;
mod observe;
mod outcome;
mod progress;
mod reach;
mod recent;
mod reconcile;
mod redact;
mod rival;
mod run_id;
mod settings;
#[cfg(test)]
mod simulation;
mod summarise;
mod trouble;
mod validate;
mod wish;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::core::PartialObjectMeta;
use kube::runtime::controller::{self, Config};
use kube::runtime::events::{Event, Recorder, Reporter};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::{Controller, watcher};
use kube::{Api, Client, Resource, ResourceExt as _};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::job::{KIND_LABEL, MANAGED_BY, NAME_ANNOTATION};
use self::known::Known;
use self::lease::Candidate;
use self::metrics::Metrics;
use self::progress::Asker;
use self::recent::Recent;
use self::wish::Wish;
use crate::api::{GROUP, PayloadBuild, PayloadImport, VERSION};

pub(crate) use confine::{confined, restricted_by_default};
pub(crate) use job::CONTAINER;
pub use lease::LeaseTiming;
pub use reach::{CaBundle, CaBundleError, OpenProxy, OpenProxyError, Reach, RegistryReach};
pub use settings::{Pace, Settings, WorkerDefaults};
pub(crate) use trouble::why_it_waits;

/// The first pause after an error; it doubles with every further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(64);
/// So many resources come in one answer. They may be large, and little of each is kept; but what the
/// largest answer took, the process has for as long as it lives.
const PAGE: u32 = 100;

/// Why the controller ended.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// The health checks cannot be served.
    #[error("cannot answer health checks: {0}")]
    Health(#[source] std::io::Error),
    /// Another controller works now, or may: the Lease could not be kept.
    #[error("the Lease could not be kept; another controller takes over")]
    LeaseLost,
    /// The client that asks workers cannot be made.
    #[error("cannot make the client that asks workers for their progress: {0}")]
    Asker(#[source] reqwest::Error),
}

/// Who a resource is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Subject {
    kind: &'static str,
    letter: char,
    name: String,
    namespace: String,
    uid: String,
    generation: i64,
    created: jiff::Timestamp,
    /// The annotation's value, if it has one.
    requested_at: Option<String>,
}

impl Subject {
    fn reference(&self) -> ObjectReference {
        ObjectReference {
            api_version: Some(format!("{GROUP}/{VERSION}")),
            kind: Some(self.kind.into()),
            name: Some(self.name.clone()),
            namespace: Some(self.namespace.clone()),
            uid: Some(self.uid.clone()),
            ..ObjectReference::default()
        }
    }
}

/// What every look needs. The only memory is of looks, errors and silence, and losing it costs nothing.
struct Context {
    client: Client,
    settings: Settings,
    recorder: Recorder,
    asker: Asker,
    metrics: Arc<Metrics>,
    recent: Recent,
    /// How often a look failed in a row, by kind, namespace and name of the resource.
    errors: Mutex<HashMap<String, u32>>,
    /// How often a pod did not answer in a row, by its uid.
    silence: Mutex<HashMap<String, u32>>,
}

impl Context {
    fn new(client: Client, settings: Settings, metrics: Arc<Metrics>) -> Result<Self, ControllerError> {
        Ok(Self {
            recorder: Recorder::new(client.clone(), Reporter::from("charon")),
            asker: Asker::new().map_err(ControllerError::Asker)?,
            client,
            settings,
            metrics,
            recent: Recent::default(),
            errors: Mutex::default(),
            silence: Mutex::default(),
        })
    }

    /// The pause after one more error of `key`.
    fn pause(&self, key: &str) -> Duration {
        let mut errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        let count = errors.entry(key.to_owned()).or_default();
        *count += 1;
        FIRST_PAUSE.saturating_mul(1 << (*count - 1).min(10)).min(LONGEST_PAUSE)
    }

    /// `key` made no error, or is gone.
    fn calm(&self, key: &str) {
        self.errors.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    /// How often the pod `uid` has not answered, once more included.
    fn unanswered(&self, uid: &str) -> u32 {
        let mut silence = self.silence.lock().unwrap_or_else(PoisonError::into_inner);
        if silence.len() > 10_000 {
            // Pods that are long gone; the price is one event too many.
            silence.clear();
        }
        let count = silence.entry(uid.to_owned()).or_default();
        *count = count.saturating_add(1);
        *count
    }

    /// The pod `uid` has answered.
    fn answered(&self, uid: &str) {
        self.silence.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }

    /// Publishes `event` about `reference`. Events are a courtesy: without them all goes on.
    async fn publish(&self, event: &Event, reference: &ObjectReference) {
        if let Err(error) = self.recorder.publish(event, reference).await {
            tracing::debug!("an event could not be published: {error}");
        }
    }
}

/// Looks after the resources until `stop` is cancelled; looks that have begun are finished.
///
/// While a definition of the resources is missing it waits, and `/readyz` says which.
pub async fn run(client: Client, settings: Settings, stop: CancellationToken) -> Result<(), ControllerError> {
    let (tell, mut missing) = watch::channel(Some("the API server was not asked yet".to_owned()));
    let health_address = settings.health_address;
    let metrics = Arc::new(Metrics::new());
    let answers = health::Answers { missing: missing.clone(), metrics: metrics.clone() };
    let health = async move {
        match health_address {
            Some(address) => health::serve(address, answers).await,
            None => std::future::pending().await,
        }
    };
    let mut candidate = settings.lease.map(|timing| Candidate::new(client.clone(), timing));
    let context = Arc::new(Context::new(client.clone(), settings, metrics)?);
    let work = async {
        // The sender lives as long as this future.
        let _ = missing.wait_for(Option::is_none).await;
        if let Some(candidate) = &mut candidate {
            tracing::info!("waiting for the Lease");
            if stop.run_until_cancelled(candidate.lead()).await.is_none() {
                return Ok(());
            }
        }
        tracing::info!("ready");
        context.metrics.leads();
        let loops = async {
            futures::join!(
                control::<PayloadBuild>(context.clone(), stop.clone()),
                control::<PayloadImport>(context.clone(), stop.clone())
            );
        };
        let Some(candidate) = &mut candidate else {
            loops.await;
            return Ok(());
        };
        tokio::select! {
            () = loops => {}
            () = candidate.keep() => return Err(ControllerError::LeaseLost),
        }
        candidate.release().await;
        Ok(())
    };
    let waiting_is_over = async {
        stop.cancelled().await;
        if tell.borrow().is_some() {
            return;
        }
        // The loops end by themselves.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        result = health => result.map_err(ControllerError::Health),
        () = health::look_for_definitions(&client, &tell) => Ok(()),
        () = waiting_is_over => Ok(()),
        result = work => result,
    }
}

/// What the looks at resources of one kind need.
struct Sight<K: Wish> {
    context: Arc<Context>,
    /// All that there are, as the watch knows them.
    known: Store<Known<K>>,
}

/// The loop of one kind.
async fn control<K: Wish>(context: Arc<Context>, stop: CancellationToken) {
    // The watches only tell that something happened: they need no more than metadata.
    let ours = format!("{}={},{KIND_LABEL}={}", MANAGED_BY.0, MANAGED_BY.1, K::KIND);
    let ours = watcher::Config::default().labels(&ours);
    let jobs: Api<PartialObjectMeta<Job>> = scoped(&context);
    let pods: Api<PartialObjectMeta<Pod>> = scoped(&context);
    let concurrency = Config::default().concurrency(context.settings.concurrency.max(1));
    let all = watcher::Config::default().page_size(PAGE);
    let controller = Controller::new(scoped::<Known<K>>(&context), all);
    let known = controller.store();
    let sight = Arc::new(Sight { context: context.clone(), known: known.clone() });
    context.metrics.watch(K::KIND, move || known.state().iter().filter_map(|known| known.uid()).collect());
    controller
        .with_config(concurrency)
        .owns(jobs, ours.clone())
        .watches(pods, ours, |pod| resource_of::<K>(&pod))
        .graceful_shutdown_on(stop.cancelled_owned())
        .run(reconcile::reconcile::<K>, reconcile::after_error::<K>, sight)
        .for_each(|result| {
            match result {
                // It was deleted.
                Err(controller::Error::ObjectNotFound(gone)) => {
                    context.calm(&key::<K>(gone.namespace.as_deref(), &gone.name));
                    if let Some(uid) = gone.extra.uid {
                        context.metrics.forget(&uid);
                        context.recent.forget(&uid);
                    }
                }
                // It is told where it happened.
                Ok(_) | Err(controller::Error::ReconcilerFailed(..)) => {}
                Err(error) => tracing::warn!("{error}"),
            }
            std::future::ready(())
        })
        .await;
}

/// What the errors of a resource of kind `K` are counted under.
fn key<K: Wish>(namespace: Option<&str>, name: &str) -> String {
    format!("{}/{}/{name}", K::KIND, namespace.unwrap_or_default())
}

fn scoped<K>(context: &Context) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    match &context.settings.namespace {
        Some(namespace) => Api::namespaced(context.client.clone(), namespace),
        None => Api::all(context.client.clone()),
    }
}

/// The resource that a worker's pod is for.
fn resource_of<K: Wish>(pod: &PartialObjectMeta<Pod>) -> Option<ObjectRef<Known<K>>> {
    let name = pod.annotations().get(NAME_ANNOTATION)?;
    Some(ObjectRef::new(name).within(&pod.namespace().unwrap_or_default()))
}

#[cfg(test)]
mod tests;
