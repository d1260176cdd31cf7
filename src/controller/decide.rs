//! What follows from a wish and what there is. Pure.
//!
//! The rules, in the order in which they are asked:
//!
//! 1. A run that the status calls complete is done. A run of another id begins with a new attempt,
//!    which is written to the status before anything else.
//! 2. An attempt that has ended is followed by another one, now or later, or by none.
//! 3. A Job is created for an attempt that the status names already, once every other Job of the
//!    resource and every pod of those is gone.
//! 4. From then on the Job and its pods tell.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::job::{FINAL_EXIT_CODES, Plan, plan};
use super::observe::{JobView, Observed, Phase, PodView};
use super::outcome::{End, Failure, end_of, exit_code_in};
use super::settings::Settings;
use super::validate::{Invalid, Valid};
use super::{Subject, run_id, trouble};
use crate::api::{AttemptEnd, LastFailure, Run, Status};
use crate::reason::{Class, Reason, parse};
use crate::worker::contract::Outcome;

/// More disruptions than this are no accident.
pub(super) const DISRUPTIONS_LIMIT: usize = 10;
/// So many refused passwords are enough: more could lock an account.
const AUTHENTICATION_LIMIT: u32 = 2;
/// A registry that asks to be left alone for longer is asked again after this time.
const LONGEST_REST: Duration = Duration::from_hours(6);
/// The first progress is looked for early, for a small payload is done soon.
const FIRST_PROGRESS: Duration = Duration::from_secs(2);

/// Everything that a decision depends on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scene<'a> {
    pub subject: &'a Subject,
    pub valid: &'a Valid,
    pub status: &'a Status,
    pub observed: &'a Observed,
    pub settings: &'a Settings,
    pub now: Timestamp,
}

/// What is to be done, and what is to be said.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Decision {
    /// The run, as the status shall tell it.
    pub run: Run,
    pub verdict: Verdict,
    /// What a worker said in the end, to be copied to the status.
    pub outcome: Option<Box<Outcome>>,
    /// Create this Job: the status names it already.
    pub create: Option<Plan>,
    /// Delete these Jobs.
    pub delete: Vec<JobKey>,
    /// Let this Job go by itself: all that it knew is in the status.
    pub expire: Option<JobKey>,
    /// Ask this pod how far it is.
    pub ask: Option<PodView>,
    /// Look again after this time, whatever happens.
    pub look_again: Option<Duration>,
}

/// A Job, by name and identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct JobKey {
    pub name: String,
    pub uid: String,
}

/// The state of a wish.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Verdict {
    /// It cannot be fulfilled as it is written.
    Invalid(String),
    /// Another wish for the same file is older.
    Conflict(String),
    /// A person wants no worker for now.
    Suspended(String),
    /// A payload that this one is built upon is not there yet.
    AwaitingBase(String),
    /// A run is on its way.
    Working(String),
    /// The worker cannot start, or be found.
    NotStarting(Failure),
    /// The pods of an older run are still there.
    Superseding(String),
    /// The attempt failed; the next one is due at this time.
    Retrying(Timestamp),
    /// It will not succeed until a person changes something.
    Stalled,
    /// It is done.
    Succeeded,
}

impl Verdict {
    /// A Job that cannot be created, for a reason of the cluster's.
    pub(super) fn not_created(message: String) -> Self {
        Self::NotStarting(Failure::new(Reason::WorkerCreateFailed, message))
    }
}

/// The value of the annotation that counts: clearing it asks for nothing.
pub(super) fn requested_at<'a>(subject: &'a Subject, status: &'a Status) -> Option<&'a str> {
    subject.requested_at.as_deref().or(status.last_handled_reconcile_at.as_deref())
}

/// What follows from `scene`.
pub(super) fn decide(scene: &Scene) -> Result<Decision, Invalid> {
    let id = run_id::run_id(scene.valid, requested_at(scene.subject, scene.status));
    match &scene.status.run {
        Some(run) if run.id == id => scene.go_on(run.clone()),
        before => {
            let attempt = before.as_ref().map_or(0, |run| run.attempt) + 1;
            let fresh = Run { id, start_time: Some(Time(scene.now)), ..Run::default() };
            scene.begin(fresh, attempt)
        }
    }
}

impl Scene<'_> {
    /// Rules 1 and 2.
    fn go_on(&self, mut run: Run) -> Result<Decision, Invalid> {
        if run.completion_time.is_some() {
            let mut decision = self.decision(run, Verdict::Succeeded, None);
            decision.delete = self.others();
            decision.expire = self.finished_job();
            return Ok(decision);
        }
        // It has none while it is suspended: its time counts from now.
        run.start_time.get_or_insert(Time(self.now));
        let Some(ended) = run.ended.clone() else { return self.attempt(run) };
        if self.subject.generation > ended.generation {
            // A person changed something: another try, with all the time that a run has if none was left.
            let next = run.attempt + 1;
            let stalled = self.next_attempt(&run, &ended).is_none();
            let start_time = if stalled { Some(Time(self.now)) } else { run.start_time.clone() };
            return self.begin(Run { authentication_failures: None, start_time, ..run }, next);
        }
        let mut decision = match self.next_attempt(&run, &ended) {
            Some(_) if self.time_is_up(&run) => return Ok(self.out_of_time(run)),
            Some(due) if due <= self.now => {
                let next = run.attempt + 1;
                return self.begin(run, next);
            }
            Some(due) => {
                self.decision(run, Verdict::Retrying(due), Some(due.duration_since(self.now).unsigned_abs()))
            }
            None => self.decision(run, Verdict::Stalled, None),
        };
        decision.delete = self.others();
        decision.expire = self.finished_job();
        Ok(decision)
    }

    /// When the attempt after the one that `ended` is due, if there is to be one.
    fn next_attempt(&self, run: &Run, ended: &AttemptEnd) -> Option<Timestamp> {
        let pace = &self.settings.pace;
        let reason = parse(&ended.reason)?;
        let patience = match reason.class() {
            Class::Wait => {
                let asked = run.last_failure.as_ref().and_then(|failure| failure.retry_after_seconds);
                let asked = Duration::from_secs(asked.unwrap_or(0).into());
                pace.wait.max(asked.min(LONGEST_REST))
            }
            Class::Twice if run.authentication_failures.unwrap_or(0) < AUTHENTICATION_LIMIT => pace.again,
            _ if reason == Reason::ResultLost => pace.again,
            _ => return None,
        };
        Some(ended.time.0 + patience)
    }

    /// Writes down attempt `number` of `run`; nothing is created before that is seen to be written.
    fn begin(&self, run: Run, number: u32) -> Result<Decision, Invalid> {
        let plan = plan(self.subject, self.valid, &run.id, number, &self.settings.worker)?;
        let run = Run { attempt: number, pod_failures: None, ended: None, ..planned(run, &plan) };
        let verdict = match self.in_the_way(&plan.name) {
            Some(verdict) => verdict,
            None => Verdict::Working(format!("attempt {number} is about to start")),
        };
        let mut decision = self.decision(run, verdict, Some(Duration::ZERO));
        decision.delete = self.all_but(&plan.name);
        Ok(decision)
    }

    /// Rules 3 and 4.
    fn attempt(&self, run: Run) -> Result<Decision, Invalid> {
        match &self.observed.current {
            Some(job) => self.with_job(run, job),
            None => self.without_job(run),
        }
    }

    fn without_job(&self, run: Run) -> Result<Decision, Invalid> {
        if self.time_is_up(&run) {
            return Ok(self.out_of_time(run));
        }
        let plan = plan(self.subject, self.valid, &run.id, run.attempt, &self.settings.worker)?;
        let pace = self.settings.pace.progress;
        if let Some(verdict) = self.in_the_way(&plan.name) {
            let mut decision = self.decision(run, verdict, Some(pace));
            decision.delete = self.others();
            return Ok(decision);
        }
        let as_written = planned(run.clone(), &plan);
        if as_written != run {
            // Something changed since the attempt was written down, before its Job was made.
            let verdict = Verdict::Working(format!("attempt {} is about to start", run.attempt));
            return Ok(self.decision(as_written, verdict, Some(Duration::ZERO)));
        }
        let verdict = Verdict::Working(waits_for_its_pod(&plan.name));
        let mut decision = self.decision(run, verdict, Some(pace));
        decision.create = Some(plan);
        Ok(decision)
    }

    fn with_job(&self, mut run: Run, job: &JobView) -> Result<Decision, Invalid> {
        run.pod_failures = Some(self.failed_pods(job)).filter(|count| *count > 0);
        if let Some(completed) = job.complete {
            return Ok(self.completed(run, job, completed));
        }
        let (cause, outcome) = self.last_cause(job);
        if let Some((failure, time)) = &cause {
            run.last_failure = Some(last_failure(failure, *time));
        }
        let mut decision = if let Some(failed) = &job.failed {
            let reason = self.cause_of_failed_job(&mut run, &failed.message, failed.time);
            self.end(run, reason, job, failed.time)
        } else if let Some(pod) = self.observed.pods.iter().find(|pod| ends_the_job(pod)) {
            // The Job will say so in a moment: its pod failure policy is ours.
            let time = pod.ended_or_created();
            let reason = self.cause_of_failed_job(&mut run, "", time);
            self.end(run, reason, job, time)
        } else if self.time_is_up(&run) {
            if let Some(failure) = self.trouble(job) {
                run.last_failure = Some(last_failure(&failure, self.now));
            }
            self.out_of_time(run)
        } else if self.observed.pods.iter().filter(|pod| pod.disrupted).count() > DISRUPTIONS_LIMIT {
            let mut decision = self.end(run, Reason::WorkerEvicted, job, self.now);
            decision.delete.push(key(job));
            decision
        } else {
            self.active(run, job)?
        };
        decision.outcome = outcome;
        Ok(decision)
    }

    /// The Job says that it is done: so it is, if the worker says so too.
    fn completed(&self, mut run: Run, job: &JobView, completed: Timestamp) -> Decision {
        let mut ends = self.observed.pods.iter().rev().filter(|pod| pod.phase == Phase::Succeeded);
        match ends.find_map(|pod| end_of(pod, job)) {
            Some(End::Success(outcome)) => {
                run.completion_time = Some(Time(completed));
                run.last_failure = None;
                run.authentication_failures = None;
                let mut decision = self.decision(run, Verdict::Succeeded, None);
                decision.outcome = Some(outcome);
                decision.delete = self.others();
                decision
            }
            Some(End::Failure(failure)) => {
                run.last_failure = Some(last_failure(&failure, completed));
                self.end(run, failure.reason, job, completed)
            }
            Some(End::Lost) | None => {
                let failure = Failure::new(
                    Reason::ResultLost,
                    format!(
                        "Job {} completed, but its pod is gone and its result with it; the next attempt finds out",
                        job.name
                    ),
                );
                run.last_failure = Some(last_failure(&failure, completed));
                self.end(run, Reason::ResultLost, job, completed)
            }
        }
    }

    /// How many pods of `job` have failed. Its own count comes a moment after the pods tell.
    fn failed_pods(&self, job: &JobView) -> u32 {
        let seen = self.observed.pods.iter().filter(|pod| pod.phase == Phase::Failed && !pod.disrupted);
        job.failed_pods.max(seen.count().try_into().unwrap_or(u32::MAX))
    }

    /// Why a pod of `job` failed last, and what its worker said.
    fn last_cause(&self, job: &JobView) -> (Option<(Failure, Timestamp)>, Option<Box<Outcome>>) {
        // A pod that stops since its Job is being deleted has not failed.
        let has_failed =
            |pod: &&PodView| pod.phase == Phase::Failed && !(job.terminating && was_stopped(pod));
        let failed = self.observed.pods.iter().filter(has_failed);
        if let Some(pod) = failed.max_by_key(|pod| pod.ended_or_created())
            && let Some(End::Failure(failure)) = end_of(pod, job)
        {
            let outcome = failure.outcome.clone();
            return (Some((failure, pod.ended_or_created())), outcome);
        }
        if job.failed_pods > self.status.run.as_ref().and_then(|run| run.pod_failures).unwrap_or(0)
            && job.failed.is_none()
            && !job.terminating
        {
            let failure = Failure::new(
                Reason::WorkerLost,
                format!("a pod of Job {} was deleted before its end was known", job.name),
            );
            return (Some((failure, self.now)), None);
        }
        (None, None)
    }

    /// The reason that ends the attempt whose Job failed with `message`; the cause is in `run`.
    fn cause_of_failed_job(&self, run: &mut Run, message: &str, time: Timestamp) -> Reason {
        let seen = self.observed.pods.iter().any(|pod| pod.phase == Phase::Failed);
        if !seen {
            // The pods are gone. The Job quotes the exit code of the one that ended it.
            if let Some(code) = exit_code_in(message) {
                let failure = Failure::new(Reason::from_exit_code(code), message);
                run.last_failure = Some(last_failure(&failure, time));
            } else if run.last_failure.is_none() {
                run.last_failure = Some(last_failure(&Failure::new(Reason::WorkerFailed, message), time));
            }
        }
        let cause = run.last_failure.as_ref().and_then(|failure| parse(&failure.reason));
        let cause = cause.unwrap_or(Reason::WorkerFailed);
        if cause == Reason::AuthenticationFailed {
            run.authentication_failures = Some(run.authentication_failures.unwrap_or(0) + 1);
        }
        match cause.class() {
            Class::Again => Reason::BackoffLimitExceeded,
            Class::Final | Class::Wait | Class::Twice => cause,
        }
    }

    /// The attempt is over. What follows is decided when this is written.
    fn end(&self, mut run: Run, reason: Reason, job: &JobView, time: Timestamp) -> Decision {
        run.ended = Some(AttemptEnd {
            reason: reason.as_str().into(),
            generation: job.generation.unwrap_or(self.subject.generation),
            time: Time(time),
        });
        self.after_the_end(run)
    }

    fn out_of_time(&self, mut run: Run) -> Decision {
        run.ended = Some(AttemptEnd {
            reason: Reason::DeadlineExceeded.as_str().into(),
            generation: self.subject.generation,
            time: Time(self.now),
        });
        let mut decision = self.after_the_end(run);
        decision.delete.extend(self.observed.current.as_ref().map(key));
        decision
    }

    fn after_the_end(&self, run: Run) -> Decision {
        let next = run.ended.as_ref().and_then(|ended| self.next_attempt(&run, ended));
        let verdict = next.map_or(Verdict::Stalled, Verdict::Retrying);
        let mut decision = self.decision(run, verdict, Some(Duration::ZERO));
        decision.delete = self.others();
        decision
    }

    fn active(&self, run: Run, job: &JobView) -> Result<Decision, Invalid> {
        let trouble = self.trouble(job);
        let is_older = job.generation.is_some_and(|generation| generation < self.subject.generation);
        if is_older && !job.terminating && (trouble.is_some() || self.failed_pods(job) > 0) {
            // It does not go well, and a person changed something: a Job cannot be changed, but replaced.
            let next = run.attempt + 1;
            return self.begin(run, next);
        }
        let pace = self.settings.pace.progress;
        if let Some(failure) = trouble {
            return Ok(self.decision(run, Verdict::NotStarting(failure), Some(pace)));
        }
        let pod = self.observed.pods.iter().rev().find(|pod| pod.phase.is_active());
        let message = match pod {
            _ if job.terminating => format!("Job {} is being deleted; a new one follows", job.name),
            None => waits_for_its_pod(&job.name),
            Some(pod) if pod.phase == Phase::Running => format!("pod {} is at work", pod.name),
            Some(pod) => format!("pod {} is starting", pod.name),
        };
        let at_work = pod.filter(|pod| pod.phase == Phase::Running && pod.ip.is_some() && !job.terminating);
        let is_first = at_work.is_some() && self.status.progress.is_none();
        let pace = if is_first { pace.min(FIRST_PROGRESS) } else { pace };
        let mut decision = self.decision(run, Verdict::Working(message), Some(pace));
        decision.ask = at_work.cloned();
        decision.delete = self.others();
        Ok(decision)
    }

    /// What keeps the worker from starting or ending.
    fn trouble(&self, job: &JobView) -> Option<Failure> {
        let (events, pace) = (&self.observed.events, &self.settings.pace);
        match self.observed.pods.last() {
            Some(pod) => trouble::of_pod(pod, events, pace, self.now),
            None => trouble::of_job(job, events),
        }
    }

    /// What must be gone before the Job `name` may be created.
    fn in_the_way(&self, name: &str) -> Option<Verdict> {
        if let Some(lost) =
            self.observed.strays.iter().find_map(|pod| trouble::lost(pod, &self.settings.pace, self.now))
        {
            return Some(Verdict::NotStarting(lost));
        }
        if let Some(pod) = self.observed.strays.first() {
            return Some(Verdict::Superseding(format!(
                "pod {} of an older attempt must end first",
                pod.name
            )));
        }
        let job = self.jobs().find(|job| job.name != name)?;
        // A Job whose pods have ended is gone in a moment.
        let running = self.observed.pods.iter().find(|pod| pod.phase.is_active());
        Some(Verdict::Superseding(match running {
            Some(pod) => format!("pod {} of an older attempt must end first", pod.name),
            None => format!("Job {} of an older attempt must be gone first", job.name),
        }))
    }

    /// All Jobs of the resource.
    pub(super) fn jobs(&self) -> impl Iterator<Item = &JobView> {
        self.observed.current.iter().chain(&self.observed.others)
    }

    fn others(&self) -> Vec<JobKey> {
        self.observed.others.iter().filter(|job| !job.terminating).map(key).collect()
    }

    fn all_but(&self, name: &str) -> Vec<JobKey> {
        self.jobs().filter(|job| job.name != name && !job.terminating).map(key).collect()
    }

    /// The present Job, if it has finished and nothing, or something else, limits its stay.
    fn finished_job(&self) -> Option<JobKey> {
        let job = self.observed.current.as_ref()?;
        let finished = job.complete.is_some() || job.failed.is_some();
        (finished && job.ttl != Some(self.valid.job_ttl) && !job.terminating).then(|| key(job))
    }

    pub(super) fn deadline(&self, run: &Run) -> Option<Timestamp> {
        let timeout = SignedDuration::try_from(self.valid.timeout?).ok()?;
        run.start_time.as_ref()?.0.checked_add(timeout).ok()
    }

    pub(super) fn time_is_up(&self, run: &Run) -> bool {
        self.deadline(run).is_some_and(|deadline| self.now >= deadline)
    }

    fn decision(&self, run: Run, verdict: Verdict, look_again: Option<Duration>) -> Decision {
        let is_open = !matches!(verdict, Verdict::Succeeded | Verdict::Stalled);
        let left = self.deadline(&run).filter(|_| is_open).map(|deadline| {
            let left = deadline.duration_since(self.now);
            if left.is_positive() { left.unsigned_abs() } else { Duration::ZERO }
        });
        Decision {
            run,
            verdict,
            outcome: None,
            create: None,
            delete: Vec::new(),
            expire: None,
            ask: None,
            look_again: look_again.into_iter().chain(left).min(),
        }
    }
}

/// The same before and after the Job was made: that is no news.
fn waits_for_its_pod(job: &str) -> String {
    format!("Job {job} waits for its pod")
}

/// `run` with all that `plan` settles.
fn planned(run: Run, plan: &Plan) -> Run {
    Run {
        job_name: Some(plan.name.clone()),
        image: Some(plan.image.clone()),
        input_digest: Some(plan.input_digest.clone()),
        ..run
    }
}

fn last_failure(failure: &Failure, time: Timestamp) -> LastFailure {
    LastFailure {
        reason: failure.reason.as_str().into(),
        message: failure.message.clone(),
        time: Time(time),
        retry_after_seconds: failure.outcome.as_ref().and_then(|outcome| outcome.retry_after_seconds),
    }
}

/// Whether the pod's exit code ends its Job, whatever is left of the backoff limit.
fn ends_the_job(pod: &PodView) -> bool {
    let exit_code = pod.terminated.as_ref().map(|end| end.exit_code);
    pod.phase == Phase::Failed && exit_code.is_some_and(|code| FINAL_EXIT_CODES.contains(&code))
}

/// Whether the pod ended since it was told to.
fn was_stopped(pod: &PodView) -> bool {
    pod.terminated.as_ref().is_none_or(|end| matches!(end.exit_code, 137 | 143) && end.reason != "OOMKilled")
}

pub(super) fn key(job: &JobView) -> JobKey {
    JobKey { name: job.name.clone(), uid: job.uid.clone() }
}

#[cfg(test)]
mod tests;
