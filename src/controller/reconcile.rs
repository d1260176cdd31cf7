//! One look at one resource: observe, validate, decide, act, summarise, and one write of the status.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions,
    PropagationPolicy,
};
use kube::runtime::controller::Action;
use kube::{Api, Resource, ResourceExt as _};
use serde_json::json;
use tracing::Instrument as _;

use super::bases::bases;
use super::decide::{Decision, JobKey, Scene, Verdict, decide, requested_at};
use super::hold::hold;
use super::job::{Plan, RUN_LABEL, job};
use super::known::Known;
use super::observe::{Observed, PodView, observe};
use super::rival::rival;
use super::summarise::{News, is_transition, summarise};
use super::validate::{Invalid, Valid};
use super::wish::Wish;
use super::{Context, Sight, Subject, announce, key, run_id};
use crate::api::{Run, Status};
use crate::worker::contract::{Outcome, Progress, Work};

/// Whose fields the statuses are.
const FIELD_MANAGER: &str = "charon";
/// Where nothing is expected to happen, we look anyway: nobody tells a build that an older one was
/// changed to write to the same file. Thousands may be at rest, so this is seldom, and not for all at
/// once: twice a day, give or take half of that.
const IDLE: Duration = Duration::from_hours(12);
/// What was changed in the meantime is looked at again; not before the resource has [rested](super::recent).
const SOON: Duration = Duration::ZERO;
/// So many times a worker is asked in vain before people are told.
const UNANSWERED: u32 = 3;

/// Why a look at a resource came to nothing. It is taken again, ever less often.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReconcileError {
    /// The API server could not be asked, or refused.
    #[error("cannot {doing}: {source}")]
    Kube {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        source: kube::Error,
    },
    /// A resource is not what every resource is.
    #[error("the API server's answer has no {0}")]
    Answer(&'static str),
}

fn while_trying_to(doing: &'static str) -> impl FnOnce(kube::Error) -> ReconcileError {
    move |source| ReconcileError::Kube { doing, source }
}

/// Looks at the resource that `known` names, unless that was done a moment ago: then a little later.
pub(super) async fn reconcile<K: Wish>(
    known: Arc<Known<K>>,
    sight: Arc<Sight<K>>,
) -> Result<Action, ReconcileError> {
    let Context { recent, metrics, .. } = &*sight.context;
    let uid = known.uid().unwrap_or_default();
    if let Some(rest) = recent.rest(&uid) {
        return Ok(Action::requeue(rest));
    }
    let begin = Instant::now();
    let result = look_at(&known, &sight).instrument(span(&known)).await;
    metrics.looked(K::KIND, begin.elapsed());
    recent.looked(&uid);
    result
}

/// Says in every line of the log which resource it is about, at whatever level the log is.
fn span<K: Wish>(known: &Known<K>) -> tracing::Span {
    // Not `name`: in JSON that is the span's own.
    let (namespace, resource) = (known.namespace().unwrap_or_default(), known.name_any());
    tracing::error_span!("reconcile", kind = K::KIND, namespace, resource)
}

async fn look_at<K: Wish>(known: &Known<K>, sight: &Sight<K>) -> Result<Action, ReconcileError> {
    let (name, namespace) = (known.name_any(), known.namespace().unwrap_or_default());
    let api = api::<K>(&sight.context, &namespace);
    // From the API server, not from the watch: what is decided here may create a Job.
    let object = api.get_opt(&name).await.map_err(while_trying_to("read the resource"))?;
    let action = match object.filter(|object| object.metadata.deletion_timestamp.is_none()) {
        Some(object) => match look(sight, &api, &object, None).await? {
            // Whose attempt it is may make its Job, and there was nothing that could be in its way.
            (_, Some(begun)) => look(sight, &api, &begun, Some(Observed::default())).await?.0,
            (action, None) => action,
        },
        // Its Job and pods go with it: they are owned.
        None => Action::await_change(),
    };
    sight.context.calm(&key::<K>(Some(&namespace), &name));
    Ok(action)
}

/// What follows after `error`: the same again, later each time.
#[allow(clippy::needless_pass_by_value)] // kube calls it so
pub(super) fn after_error<K: Wish>(
    known: Arc<Known<K>>,
    error: &ReconcileError,
    sight: Arc<Sight<K>>,
) -> Action {
    let context = &sight.context;
    let pause = context.pause(&key::<K>(known.namespace().as_deref(), &known.name_any()));
    context.metrics.failed(K::KIND);
    span(&known).in_scope(|| tracing::warn!(pause_seconds = pause.as_secs(), "{error}"));
    Action::requeue(pause)
}

/// When to look at what is at rest.
fn some_day() -> Duration {
    IDLE.mul_f64(0.5 + fastrand::f64())
}

fn api<K: Wish>(context: &Context, namespace: &str) -> Api<DynamicObject> {
    Api::namespaced_with(context.client.clone(), namespace, &ApiResource::erase::<K>(&()))
}

/// What follows from `object`, and from what there is of it, if that is known already. Gives the resource as it was
/// written where an attempt was begun and there is nothing of it yet: then the next look can be taken at once.
async fn look<K: Wish>(
    sight: &Sight<K>,
    api: &Api<DynamicObject>,
    object: &DynamicObject,
    observed: Option<Observed>,
) -> Result<(Action, Option<DynamicObject>), ReconcileError> {
    let context = &*sight.context;
    let old = object.data.get("status").and_then(|status| serde_json::from_value(status.clone()).ok());
    let old: Status = old.unwrap_or_default();
    let now = now();
    let wish = serde_json::to_value(object).and_then(serde_json::from_value::<K>);
    let (wish, valid) = match wish {
        Ok(wish) => {
            let valid = wish.valid();
            (Some(wish), valid)
        }
        // An object of another version of the definition is its own trouble, not everyone's.
        Err(error) => (None, Err(Invalid(format!("the resource cannot be read: {error}")))),
    };
    let subject = wish.as_ref().map(Wish::subject).unwrap_or_default();
    let mut scene = Look { context, subject: &subject, old: &old, observed, now };
    let (next, look_again) = match valid {
        Ok(valid) => {
            let writes = !valid.read_only() && !valid.suspended;
            let rival = if writes { rival(&sight.known, &subject, &valid.place) } else { None };
            scene.run(&valid, K::LETTER == 'i', rival.as_deref()).await?
        }
        Err(invalid) => {
            let generation = object.metadata.generation.unwrap_or(0);
            (scene.invalid(&invalid, generation, K::LETTER == 'i'), None)
        }
    };
    let nothing_is_there = scene.observed.as_ref() == Some(&Observed::default());
    let (look_again, written) = write::<K>(context, api, object, &old, &next, look_again, now).await?;
    context.metrics.saw(object.metadata.uid.as_deref().unwrap_or_default(), &next);
    let has_begun = nothing_is_there && look_again == Some(Duration::ZERO) && attempt(&old) != attempt(&next);
    Ok((Action::requeue(look_again.unwrap_or_else(some_day)), written.filter(|_| has_begun)))
}

fn attempt(status: &Status) -> Option<u32> {
    status.run.as_ref().map(|run| run.attempt)
}

/// Times in a status have whole seconds, as everywhere in Kubernetes.
fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

struct Look<'a> {
    context: &'a Context,
    subject: &'a Subject,
    old: &'a Status,
    /// What there is, once it was looked at.
    observed: Option<Observed>,
    now: Timestamp,
}

impl Look<'_> {
    fn invalid(&self, invalid: &Invalid, generation: i64, is_import: bool) -> Status {
        let verdict = Verdict::Invalid(invalid.0.clone());
        let news = News {
            generation,
            is_import,
            location: "",
            registry: None,
            requested_at: None,
            run: None,
            verdict: &verdict,
            outcome: None,
            progress: None,
            now: self.now,
        };
        summarise(self.old, &news)
    }

    async fn run(
        &mut self,
        valid: &Valid,
        is_import: bool,
        rival: Option<&str>,
    ) -> Result<(Status, Option<Duration>), ReconcileError> {
        let (context, subject, old) = (self.context, self.subject, self.old);
        let settings = &context.settings;
        let current = old.run.as_ref().and_then(|run| run.job_name.as_deref());
        if self.observed.is_none() {
            let observed = observe(&context.client, subject, current, &settings.pace, self.now);
            self.observed = Some(observed.await.map_err(while_trying_to("read Jobs, pods and events"))?);
        }
        let observed = self.observed.clone().unwrap_or_default();
        let mut valid = valid.clone();
        // They are looked for before the Job of an attempt is made, and not again: its worker was told.
        let awaited = if observed.current.is_some() || valid.suspended || self.is_done(&valid) {
            None
        } else {
            let bases = bases(&context.client, subject, &valid).await;
            match bases.map_err(while_trying_to("look for the payloads to build upon"))? {
                Ok(bases) => bases.put_into(&mut valid),
                Err(invalid) => return Ok((self.invalid(&invalid, subject.generation, is_import), None)),
            }
        };
        let valid = &valid;
        let scene = Scene { subject, valid, status: old, observed: &observed, settings, now: self.now };
        if let Some(hold) = hold(&scene, rival, awaited.as_deref()) {
            for job in &hold.delete {
                delete(&self.jobs(), job).await?;
            }
            let status = self.summary(valid, is_import, hold.run.as_ref(), &hold.verdict, None, None);
            return Ok((status, hold.look_again));
        }
        let mut decision = match decide(&scene) {
            Ok(decision) => decision,
            Err(invalid) => return Ok((self.invalid(&invalid, subject.generation, is_import), None)),
        };
        let progress = self.act(valid, &mut decision).await?;
        let (run, outcome) = (Some(&decision.run), decision.outcome.as_deref());
        let status = self.summary(valid, is_import, run, &decision.verdict, outcome, progress.as_ref());
        Ok((status, decision.look_again))
    }

    /// Whether the run of the present spec is complete.
    fn is_done(&self, valid: &Valid) -> bool {
        let id = run_id::run_id(valid, requested_at(self.subject, self.old));
        self.old.run.as_ref().is_some_and(|run| run.id == id && run.completion_time.is_some())
    }

    fn summary(
        &self,
        valid: &Valid,
        is_import: bool,
        run: Option<&Run>,
        verdict: &Verdict,
        outcome: Option<&Outcome>,
        progress: Option<&Progress>,
    ) -> Status {
        let location = valid.location();
        let news = News {
            generation: self.subject.generation,
            is_import,
            location: &location,
            registry: match &valid.work {
                Work::Import(import) => Some(&import.registry),
                Work::Build(_) => None,
            },
            requested_at: requested_at(self.subject, self.old),
            run,
            verdict,
            outcome,
            progress,
            now: self.now,
        };
        summarise(self.old, &news)
    }

    fn jobs(&self) -> Api<Job> {
        Api::namespaced(self.context.client.clone(), &self.subject.namespace)
    }

    /// Does what was decided. What cannot be done by the cluster's own rules becomes the verdict.
    async fn act(&self, valid: &Valid, decision: &mut Decision) -> Result<Option<Progress>, ReconcileError> {
        let jobs = self.jobs();
        for job in &decision.delete {
            delete(&jobs, job).await?;
        }
        if let Some(job) = &decision.expire {
            expire(&jobs, job, valid.job_ttl).await?;
        }
        if let Some(plan) = decision.create.take()
            && let Some(verdict) = self.create(&jobs, valid, &plan).await?
        {
            decision.verdict = verdict;
        }
        Ok(match &decision.ask {
            Some(pod) => self.ask(pod, &decision.run.id, decision.run.attempt).await,
            None => None,
        })
    }

    /// Creates the Job of `plan`; says why if the cluster does not let us.
    async fn create(
        &self,
        jobs: &Api<Job>,
        valid: &Valid,
        plan: &Plan,
    ) -> Result<Option<Verdict>, ReconcileError> {
        let defaults = &self.context.settings.worker;
        let ca_bundle = match &defaults.reach.ca_bundle {
            None => None,
            Some(bundle) => match bundle.read().await {
                Ok(pem) => Some(pem),
                Err(error) => {
                    let message = format!("{error}; that is for the cluster's administrator to mend");
                    return Ok(Some(Verdict::not_created(message)));
                }
            },
        };
        let job = job(self.subject, valid, plan, defaults, ca_bundle.as_deref());
        let Err(error) = jobs.create(&PostParams::default(), &job).await else {
            tracing::info!(job = plan.name, "created");
            return Ok(None);
        };
        let kube::Error::Api(status) = &error else {
            return Err(while_trying_to("create the Job")(error));
        };
        match status.code {
            409 if status.reason == "AlreadyExists" => self.is_taken(jobs, plan).await,
            // The schema let something through that the Job's rules refuse.
            422 => Ok(Some(Verdict::Invalid(format!("the Job is refused: {}", status.message)))),
            403 => {
                let message = format!("Job {} cannot be created: {}", plan.name, status.message);
                Ok(Some(Verdict::not_created(message)))
            }
            _ => Err(while_trying_to("create the Job")(error)),
        }
    }

    /// There is a Job of that name. It is fine if it is the one that was to be created.
    async fn is_taken(&self, jobs: &Api<Job>, plan: &Plan) -> Result<Option<Verdict>, ReconcileError> {
        let Some(job) = jobs.get_opt(&plan.name).await.map_err(while_trying_to("read the Job"))? else {
            return Ok(None);
        };
        let owner = job.owner_references().iter().find(|owner| owner.controller == Some(true));
        let is_ours = owner.is_some_and(|owner| owner.uid == self.subject.uid)
            && job.labels().get(RUN_LABEL) == Some(&plan.run_id);
        Ok((!is_ours).then(|| {
            Verdict::not_created(format!(
                "there is a Job {} which is not of this resource; delete it or rename the resource",
                plan.name
            ))
        }))
    }

    async fn ask(&self, pod: &PodView, run_id: &str, attempt: u32) -> Option<Progress> {
        let nonce = run_id::nonce(&self.subject.uid, run_id, attempt);
        let error = match self.context.asker.ask(pod, run_id, &nonce).await {
            Ok(progress) => {
                self.context.answered(&pod.uid);
                return Some(progress);
            }
            Err(error) => error,
        };
        tracing::debug!(pod = pod.name, "no progress: {error}");
        if self.context.unanswered(&pod.uid) == UNANSWERED {
            let why = format!("pod {} does not answer ({error})", pod.name);
            self.context.publish(&announce::progress_unknown(&why), &self.subject.reference()).await;
        }
        None
    }
}

/// In the foreground, so that the Job is there until its pods are gone, and only if it is this one.
async fn delete(jobs: &Api<Job>, job: &JobKey) -> Result<(), ReconcileError> {
    let how = DeleteParams {
        propagation_policy: Some(PropagationPolicy::Foreground),
        preconditions: Some(Preconditions { uid: Some(job.uid.clone()), resource_version: None }),
        ..DeleteParams::default()
    };
    match jobs.delete(&job.name, &how).await {
        Ok(_) => {
            tracing::info!(job = job.name, "deleted");
            Ok(())
        }
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        Err(error) => Err(while_trying_to("delete a Job")(error)),
    }
}

/// Lets a finished Job go after `seconds`.
async fn expire(jobs: &Api<Job>, job: &JobKey, seconds: i32) -> Result<(), ReconcileError> {
    let patch = json!({
        "metadata": { "uid": job.uid },
        "spec": { "ttlSecondsAfterFinished": seconds },
    });
    match jobs.patch(&job.name, &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        Err(error) => Err(while_trying_to("limit the stay of a Job")(error)),
    }
}

/// Writes `next`, if it is news, and says when to look again; gives the resource as it was written.
async fn write<K: Wish>(
    context: &Context,
    api: &Api<DynamicObject>,
    object: &DynamicObject,
    old: &Status,
    next: &Status,
    look_again: Option<Duration>,
    now: Timestamp,
) -> Result<(Option<Duration>, Option<DynamicObject>), ReconcileError> {
    if old == next {
        return Ok((look_again, None));
    }
    if !is_transition(old, next) {
        let written = old.progress.as_ref().map_or(Timestamp::UNIX_EPOCH, |progress| progress.update_time.0);
        let pause = context.settings.pace.progress_write;
        let age = now.duration_since(written);
        if age.unsigned_abs() < pause {
            return Ok((look_again, None));
        }
    }
    let types = object.types.as_ref().ok_or(ReconcileError::Answer("kind"))?;
    let patch = json!({
        "apiVersion": types.api_version,
        "kind": types.kind,
        // Of what was looked at, and nothing newer.
        "metadata": { "name": object.name_any(), "resourceVersion": object.metadata.resource_version },
        "status": next,
    });
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let written = match api.patch_status(&object.name_any(), &params, &Patch::Apply(&patch)).await {
        Ok(written) => written,
        Err(kube::Error::Api(status)) if status.code == 409 => return Ok((Some(SOON), None)),
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok((None, None)),
        Err(error) => return Err(while_trying_to("write the status")(error)),
    };
    context.metrics.wrote(K::KIND, old, next);
    if let Some(event) = announce::transition(old, next) {
        let reference = k8s_openapi::api::core::v1::ObjectReference {
            api_version: Some(types.api_version.clone()),
            kind: Some(types.kind.clone()),
            name: Some(object.name_any()),
            namespace: object.namespace(),
            uid: object.meta().uid.clone(),
            ..Default::default()
        };
        context.publish(&event, &reference).await;
    }
    Ok((look_again, Some(written)))
}
