//! The life of a transfer's pod: it is made, waited for, spoken with, and removed whatever happens.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerStateTerminated, Event, PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::api::{AttachParams, AttachedProcess, DeleteParams, ListParams, PostParams};
use kube::{Api, Client};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::far::LINGER;
use super::near::NearError;
use super::pod::{PROGRAM, SELECTOR, pod};
use super::resource::Model;
use super::wire::{CHUNK, Pulse, TRY_AGAIN, Wire};
use super::{PluginError, told};
use crate::controller::{CONTAINER, why_it_waits};
use crate::progress::{Progress, STEP, Stage};

/// A connection may break so often in a row without a byte in between.
const RETRIES: u32 = 6;
/// The first pause before another one; it doubles with each.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// What keeps the pod from starting may pass by itself for so long.
const TROUBLE_PATIENCE: Duration = Duration::from_mins(1);
/// A pod that does not start for no reason that is known, such as a large image on a slow way, is waited for so long.
const START_PATIENCE: Duration = Duration::from_mins(10);
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// After so long without a container the pod's events are asked for.
const EVENTS_AFTER: Duration = Duration::from_secs(5);
/// The API server may take so long to take a request that ends something.
const END_PATIENCE: Duration = Duration::from_secs(10);
/// What the program in the pod says of its failure is told up to this length.
const SAID_LIMIT: usize = 4 << 10;

/// A connection to the program in the pod.
pub(super) type Line = Wire<Box<dyn AsyncRead + Send + Unpin>, Box<dyn AsyncWrite + Send + Unpin>>;

/// Why an attempt came to nothing.
enum Attempt {
    /// Another one may come through.
    Again(String),
    /// No other one will.
    Never(PluginError),
}

impl From<PluginError> for Attempt {
    fn from(error: PluginError) -> Self {
        Self::Never(error)
    }
}

/// A pod that reaches a claim.
pub(super) struct Session {
    client: Client,
    pods: Api<Pod>,
    namespace: String,
    model: Model,
    claim: String,
    read_only: bool,
    /// The pod's name, from before it is made until it is deleted.
    pod: Option<String>,
}

impl Session {
    pub(super) fn new(
        client: Client,
        namespace: String,
        model: Model,
        claim: String,
        read_only: bool,
    ) -> Self {
        let pods = Api::namespaced(client.clone(), &namespace);
        Self { client, pods, namespace, model, claim, read_only, pod: None }
    }

    /// Does `work` with the program in the pod, again where a connection breaks; the pod is gone afterwards.
    pub(super) async fn transfer<T>(
        &mut self,
        progress: &Progress,
        cancel: &CancellationToken,
        work: impl AsyncFnMut(&mut Line) -> Result<T, NearError>,
    ) -> Result<T, PluginError> {
        progress.enter(Stage::Checking);
        let done = cancel.run_until_cancelled(Box::pin(self.try_often(progress, work))).await;
        self.remove().await;
        done.unwrap_or(Err(PluginError::Cancelled))
    }

    async fn try_often<T>(
        &mut self,
        progress: &Progress,
        mut work: impl AsyncFnMut(&mut Line) -> Result<T, NearError>,
    ) -> Result<T, PluginError> {
        let (mut in_a_row, mut moved) = (0, 0);
        loop {
            let why = match self.try_once(&mut work).await {
                Ok(done) => return Ok(done),
                Err(Attempt::Never(error)) => return Err(error),
                Err(Attempt::Again(why)) => why,
            };
            let now = progress.snapshot().bytes_done;
            in_a_row = if now > moved { 1 } else { in_a_row + 1 };
            moved = now;
            if in_a_row > RETRIES {
                return Err(PluginError::new(format!(
                    "the connection broke {in_a_row} times in a row: {why}; what has arrived stays: run it again to go on"
                )));
            }
            let pause = FIRST_PAUSE * 2_u32.pow(in_a_row - 1);
            warn!("the connection broke: {why}; going on in {} s", pause.as_secs());
            tokio::time::sleep(pause).await;
        }
    }

    async fn try_once<T>(
        &mut self,
        work: &mut impl AsyncFnMut(&mut Line) -> Result<T, NearError>,
    ) -> Result<T, Attempt> {
        let pod = self.running_pod().await?;
        let params = AttachParams::default()
            .container(CONTAINER)
            .stdin(true)
            .stdout(true)
            .stderr(true)
            .max_stdin_buf_size(CHUNK)
            .max_stdout_buf_size(CHUNK)
            .max_stderr_buf_size(SAID_LIMIT);
        let process = self.pods.exec(&pod, [PROGRAM, "transfer"], &params).await;
        let mut process = process.map_err(|error| self.cannot_exec(&pod, &error))?;
        let (Some(stdout), Some(stdin)) = (process.stdout(), process.stdin()) else {
            return Err(Attempt::Again("it has no streams".into()));
        };
        let pulse = Pulse::new();
        let mut wire: Line = Wire::new(Box::new(stdout), Box::new(stdin), Arc::clone(&pulse));
        let done = tokio::select! {
            done = work(&mut wire) => done,
            () = pulse.stops() => Err(NearError::Lost(io::ErrorKind::TimedOut.into())),
        };
        match done {
            Ok(done) => Ok(done),
            Err(NearError::Refused(message)) => Err(PluginError::Failed(message).into()),
            Err(NearError::Lost(why)) => Err(said(process, &why).await),
        }
    }

    fn cannot_exec(&self, pod: &str, error: &kube::Error) -> Attempt {
        let doing = format!("run {PROGRAM} in pod {pod} of namespace {}", self.namespace);
        match error {
            kube::Error::Api(status) if matches!(status.code, 401 | 403) => PluginError::new(format!(
                "cannot {doing}: {}; it takes the rights create and get on pods/exec there, see docs/kubectl-charon.md",
                status.message
            ))
            .into(),
            error => Attempt::Again(format!("cannot {doing}: {}", told(error))),
        }
    }

    /// The pod, running: the one that there is, or another one.
    async fn running_pod(&mut self) -> Result<String, Attempt> {
        if let Some(name) = &self.pod {
            let looked = self.pods.get_opt(name).await;
            let pod = looked
                .map_err(|error| Attempt::Again(format!("cannot look at pod {name}: {}", told(&error))))?;
            let is_up = |pod: &Pod| pod.metadata.deletion_timestamp.is_none() && phase(pod) == "Running";
            if pod.as_ref().is_some_and(is_up) {
                return Ok(name.clone());
            }
            if let Some(pod) = pod.filter(ended_at_once) {
                return Err(PluginError::new(ended(name, &pod, &self.model.image)).into());
            }
            self.remove().await;
        }
        self.check_claim().await?;
        self.remove_finished().await;
        let name = format!("charon-transfer-{}", suffix());
        let pod = pod(&name, &self.model, &self.claim, self.read_only);
        info!(target: STEP, "starting pod {name} of namespace {}, which reaches claim {}", self.namespace, self.claim);
        // Known before it is made: whatever ends this, it is removed.
        self.pod = Some(name.clone());
        let made = self.pods.create(&PostParams::default(), &pod).await;
        if let Err(error) = made {
            if matches!(error, kube::Error::Api(_)) {
                self.pod = None;
            }
            return Err(
                PluginError::api(&format!("create a pod in namespace {}", self.namespace), &error).into()
            );
        }
        self.wait_until_it_runs(&name).await?;
        Ok(name)
    }

    async fn check_claim(&self) -> Result<(), PluginError> {
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &self.namespace);
        match claims.get_opt(&self.claim).await {
            Ok(None) => Err(PluginError::new(format!(
                "there is no PersistentVolumeClaim {} in namespace {}; kubectl -n {} get pvc lists those that there are",
                self.claim, self.namespace, self.namespace
            ))),
            // Who may not look at claims is told by the pod.
            Ok(Some(_)) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 403 => Ok(()),
            Err(error) => Err(PluginError::api(&format!("look at claim {}", self.claim), &error)),
        }
    }

    async fn wait_until_it_runs(&self, name: &str) -> Result<(), Attempt> {
        let begun = Instant::now();
        let mut trouble: Option<(String, Instant)> = None;
        loop {
            let looked = self.pods.get_opt(name).await;
            let pod = looked.map_err(|error| PluginError::api(&format!("look at pod {name}"), &error))?;
            let Some(pod) = pod else {
                return Err(Attempt::Again(format!("somebody deleted pod {name}")));
            };
            match phase(&pod) {
                "Running" => return Ok(()),
                "Succeeded" | "Failed" => {
                    return Err(PluginError::new(ended(name, &pod, &self.model.image)).into());
                }
                _ => {}
            }
            let events = if begun.elapsed() > EVENTS_AFTER { self.events(name).await } else { Vec::new() };
            match why_it_waits(&pod, &events) {
                Some(why) => {
                    let since = trouble.as_ref().map_or_else(Instant::now, |(_, since)| *since);
                    if since.elapsed() > TROUBLE_PATIENCE {
                        return Err(PluginError::new(why).into());
                    }
                    if trouble.as_ref().is_none_or(|(before, _)| *before != why) {
                        warn!("{why}");
                    }
                    trouble = Some((why, since));
                }
                None => trouble = None,
            }
            if begun.elapsed() > START_PATIENCE {
                let namespace = &self.namespace;
                return Err(PluginError::new(format!(
                    "pod {name} has not started in {} minutes; kubectl -n {namespace} get events may tell why",
                    START_PATIENCE.as_secs() / 60
                ))
                .into());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// What Kubernetes says about the pod, as far as one may read it.
    async fn events(&self, pod: &str) -> Vec<Event> {
        let events: Api<Event> = Api::namespaced(self.client.clone(), &self.namespace);
        let about = ListParams::default().fields(&format!("involvedObject.name={pod}"));
        events.list(&about).await.map(|found| found.items).unwrap_or_default()
    }

    /// Removes what others left who could not: their pods have ended by themselves.
    async fn remove_finished(&self) {
        for phase in ["Succeeded", "Failed"] {
            let ended = ListParams::default().labels(SELECTOR).fields(&format!("status.phase={phase}"));
            // Whoever may not list pods leaves it to the next.
            for pod in self.pods.list(&ended).await.map(|found| found.items).unwrap_or_default() {
                let _ =
                    self.pods.delete(&pod.metadata.name.unwrap_or_default(), &DeleteParams::default()).await;
            }
        }
    }

    async fn remove(&mut self) {
        let Some(name) = self.pod.take() else { return };
        let params = DeleteParams::default();
        let deleted = tokio::time::timeout(END_PATIENCE, self.pods.delete(&name, &params)).await;
        let why = match deleted {
            Ok(Ok(_)) => return,
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => return,
            Ok(Err(error)) => told(&error),
            Err(_) => "the API server does not answer".to_owned(),
        };
        warn!(
            "cannot delete pod {name} of namespace {}: {why}; it ends by itself in a minute or two",
            self.namespace
        );
    }
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

/// Why a connection ended: what the program in the pod said of it, if it said something.
async fn said(mut process: AttachedProcess, why: &io::Error) -> Attempt {
    let (status, stderr) = (process.take_status(), process.stderr());
    let mut text = String::new();
    let read = async {
        if let Some(stderr) = stderr {
            let mut bytes = Vec::new();
            let _ = stderr.take(SAID_LIMIT as u64).read_to_end(&mut bytes).await;
            String::from_utf8_lossy(&bytes).trim().clone_into(&mut text);
        }
        match status {
            Some(status) => status.await,
            None => None,
        }
    };
    let status = tokio::time::timeout(END_PATIENCE, read).await.ok().flatten();
    let by_itself = status.as_ref().and_then(exit_code).is_some_and(|code| code != TRY_AGAIN.to_string());
    let text = text.lines().map(|line| line.trim_start_matches("error: ")).collect::<Vec<_>>().join("; ");
    match status.and_then(|status| status.message) {
        _ if by_itself && !text.is_empty() => PluginError::Failed(text).into(),
        Some(message) => Attempt::Again(message),
        None => Attempt::Again(why.to_string()),
    }
}

fn exit_code(status: &Status) -> Option<&str> {
    let causes = status.details.as_ref()?.causes.as_ref()?;
    causes.iter().find(|cause| cause.reason.as_deref() == Some("ExitCode"))?.message.as_deref()
}

/// Whether the pod's own program ended before it could have been waiting: another pod's would do the same.
fn ended_at_once(pod: &Pod) -> bool {
    let status = pod.status.clone().unwrap_or_default();
    // A reason is the cluster's: an eviction, the deadline.
    let by_itself = status.reason.is_none();
    let ends =
        status.container_statuses.unwrap_or_default().into_iter().filter_map(|it| it.state?.terminated);
    let short = |end: ContainerStateTerminated| {
        let (Some(started), Some(finished)) = (end.started_at, end.finished_at) else { return false };
        finished.0.duration_since(started.0).unsigned_abs() < LINGER / 2
    };
    by_itself && ends.into_iter().any(short)
}

/// What a pod says that ended before anything was asked of it.
fn ended(name: &str, pod: &Pod, image: &str) -> String {
    let status = pod.status.clone().unwrap_or_default();
    let state = status.container_statuses.unwrap_or_default().into_iter().find_map(|it| it.state?.terminated);
    let said = match state {
        Some(end) => {
            let message = end.message.unwrap_or_default();
            let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
            format!("exit status {}: {message}", end.exit_code)
        }
        None => [status.reason, status.message].into_iter().flatten().collect::<Vec<_>>().join(": "),
    };
    format!(
        "pod {name} ended at once ({said}); is {image} charon's image, and no older than this program? --image names another"
    )
}

/// What makes a pod's name its own.
fn suffix() -> String {
    std::iter::repeat_with(fastrand::alphanumeric).take(8).map(|c| c.to_ascii_lowercase()).collect()
}
