//! A transfer from beginning to end, and the life of its pod: it is made, waited for, spoken with, and removed whatever happens.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use indicatif::DecimalBytes;
use k8s_openapi::api::core::v1::{Event, PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::api::{AttachParams, AttachedProcess, DeleteParams, ListParams, PostParams};
use kube::{Api, Client};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::near::{self, Incoming, NearError, Placed};
use super::pod::{PROGRAM, SELECTOR, pod};
use super::resource::{self, BuildName, Model};
use super::wire::{CHUNK, Prefix, Pulse, TRY_AGAIN, Wire, hash};
use super::{Cluster, PluginError};
use crate::controller::{CONTAINER, why_it_waits};
use crate::digest::Digest;
use crate::payload::FilePayload;
use crate::progress::{Progress, STEP, Stage};
use crate::read_at::{LocalFile, ReadAt as _};
use crate::storage::StorageError;

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

/// Get the payload of a PayloadBuild out of its claim
///
/// A short-lived pod reads it there. What an earlier attempt left in FILE.partial is compared and kept. The sha256 of the
/// file is printed as sha256sum does.
// The docstrings are the help that people read at a terminal.
#[allow(clippy::doc_markdown)]
#[derive(Clone, Debug, Args)]
pub struct Get {
    /// The PayloadBuild, such as pbuild/app-1.4; it must be ready
    #[arg(value_name = "pbuild/NAME")]
    build: BuildName,
    /// Where the payload goes; by default its own name, here
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The image of the pod: Charon's, with /charon in it; by default that of the run
    #[arg(long)]
    image: Option<String>,
    #[command(flatten)]
    cluster: Cluster,
}

/// Put a payload into a claim
///
/// A short-lived pod writes it there, under NAME.partial until it is whole and has the right sha256: an import that waits for
/// it never sees a part. What an earlier attempt left is compared and kept. The sha256 of the file is printed as sha256sum does.
#[derive(Clone, Debug, Args)]
pub struct Put {
    /// The payload
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The claim: a PersistentVolumeClaim of the namespace
    #[arg(long, value_name = "CLAIM")]
    pvc: String,
    /// The payload's path in the volume; by default the file's name
    #[arg(long, value_name = "PATH")]
    path: Option<String>,
    /// Replace another payload that has the path; what is no payload is never replaced
    #[arg(long)]
    replace: bool,
    /// The image of the pod: Charon's, with /charon in it; by default that of an import that reads the claim, else of the last run of the
    /// namespace
    #[arg(long)]
    image: Option<String>,
    #[command(flatten)]
    cluster: Cluster,
}

/// Does what `get` says; gives the file's sha256 and its name.
pub async fn get(
    args: &Get,
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<(Digest, String), PluginError> {
    let (client, namespace) = args.cluster.connect().await?;
    let built = args.build.find(&client, &namespace).await?;
    let image = args.image.as_deref();
    let model = resource::model(&client, &namespace, image, &built.status, &built.worker).await?;
    let from = &built.claim.path;
    let output = args.output.clone().unwrap_or_else(|| from.rsplit('/').next().unwrap_or(from).into());
    let shown = output.display().to_string();
    let here = here(&output, built.expected.size).await?;
    let mut session = Session::new(client, namespace, model, built.claim.claim_name.clone(), true);
    if let Some(here) = here {
        let same = session.transfer(progress, cancel, async |wire| near::is_same(wire, from, &here).await);
        if same.await? {
            info!("{shown} is there already, and is the same");
            return Ok((here.sha256, shown));
        }
        return Err(another(&output));
    }
    let opened = Incoming::open(output, built.expected).await;
    let mut incoming = opened.map_err(|error| PluginError::new(error.to_string()))?;
    let got = session.transfer(progress, cancel, async |wire| incoming.get(wire, from, progress).await);
    let sha256 = got.await?;
    let size = incoming.size();
    incoming.finish().await.map_err(|error| PluginError::new(error.to_string()))?;
    info!("{}", moved("got", progress, size));
    Ok((sha256, shown))
}

/// Does what `put` says; gives the file's sha256 and its name.
pub async fn put(
    args: &Put,
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<(Digest, String), PluginError> {
    let source = open_payload(&args.file).await?;
    let path = match (&args.path, args.file.file_name()) {
        (Some(path), _) => path.clone(),
        (None, Some(name)) => name.to_string_lossy().into_owned(),
        (None, None) => return Err(PluginError::new(format!("{} has no name", args.file.display()))),
    };
    let (client, namespace) = args.cluster.connect().await?;
    let image = args.image.as_deref();
    let model = resource::model_for_claim(&client, &namespace, image, &args.pvc).await?;
    let mut session = Session::new(client, namespace, model, args.pvc.clone(), false);
    let put = session.transfer(progress, cancel, async |wire| {
        near::put(wire, &source, &path, args.replace, progress).await
    });
    let placed = put.await?;
    let shown = format!("{}/{path}", args.pvc);
    Ok(match placed {
        Placed::Sent(sha256) => {
            info!("{}", moved("sent", progress, source.size()));
            (sha256, shown)
        }
        Placed::AlreadyThere(sha256) => {
            info!("{shown} is there already, and is the same");
            (sha256, shown)
        }
    })
}

fn moved(done: &str, progress: &Progress, size: u64) -> String {
    let moved = progress.snapshot().bytes_done;
    match size.saturating_sub(moved) {
        0 => format!("{done} {}", DecimalBytes(size)),
        there => format!("{done} {}; {} were there from before", DecimalBytes(moved), DecimalBytes(there)),
    }
}

/// The file that has the name already, if it may be the one that is wanted.
async fn here(path: &Path, size: u64) -> Result<Option<Prefix>, PluginError> {
    let failed = |error| PluginError::new(StorageError::io("read", path, error).to_string());
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed)?,
    };
    let local = LocalFile::new(Arc::new(file)).map_err(failed)?;
    if local.size() != size {
        return Err(another(path));
    }
    let hashed = tokio::task::spawn_blocking(move || hash(&local, size)).await.map_err(io::Error::from);
    let sha256 = hashed.and_then(std::convert::identity).map_err(failed)?.finish();
    Ok(Some(Prefix { bytes: size, sha256 }))
}

/// A file would have to give way.
fn another(path: &Path) -> PluginError {
    PluginError::new(format!(
        "{} is there, and is another file; move it away, or name another one with --output",
        path.display()
    ))
}

async fn open_payload(path: &Path) -> Result<LocalFile, PluginError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(PluginError::new(StorageError::SourceNotFound(path.to_owned()).to_string()));
        }
        opened => opened.and_then(|file| LocalFile::new(Arc::new(file))),
    };
    let file = file.map_err(|error| PluginError::new(StorageError::io("read", path, error).to_string()))?;
    let payload = FilePayload::open_at(Arc::new(file.clone())).await;
    payload.map_err(|error| PluginError::new(format!("{}: {error}", path.display())))?;
    Ok(file)
}

/// A connection to the program in the pod.
type Line = Wire<Box<dyn AsyncRead + Send + Unpin>, Box<dyn AsyncWrite + Send + Unpin>>;

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
struct Session {
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
    fn new(client: Client, namespace: String, model: Model, claim: String, read_only: bool) -> Self {
        let pods = Api::namespaced(client.clone(), &namespace);
        Self { client, pods, namespace, model, claim, read_only, pod: None }
    }

    /// Does `work` with the program in the pod, again where a connection breaks; the pod is gone afterwards.
    async fn transfer<T>(
        &mut self,
        progress: &Progress,
        cancel: &CancellationToken,
        work: impl AsyncFnMut(&mut Line) -> Result<T, NearError>,
    ) -> Result<T, PluginError> {
        progress.enter(Stage::Checking);
        let done = cancel.run_until_cancelled(self.try_often(progress, work)).await;
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
            kube::Error::UpgradeConnection(kube::client::UpgradeConnectionError::ProtocolSwitch(code))
                if matches!(code.as_u16(), 401 | 403) =>
            {
                PluginError::new(format!(
                    "cannot {doing}: the API server answered {code}; you need the rights create and get on pods/exec there, see docs/kubectl-charon.md"
                ))
                .into()
            }
            error => Attempt::Again(format!("cannot {doing}: {}", super::chain(error))),
        }
    }

    /// The pod, running: the one that there is, or another one.
    async fn running_pod(&mut self) -> Result<String, Attempt> {
        if let Some(name) = &self.pod {
            let looked = self.pods.get_opt(name).await;
            let pod = looked.map_err(|error| {
                Attempt::Again(format!("cannot look at pod {name}: {}", super::chain(&error)))
            })?;
            let is_up = |pod: &Pod| pod.metadata.deletion_timestamp.is_none() && phase(pod) == "Running";
            if pod.as_ref().is_some_and(is_up) {
                return Ok(name.clone());
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
            Ok(Err(error)) => super::chain(&error),
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
            text = String::from_utf8_lossy(&bytes).trim().to_owned();
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
