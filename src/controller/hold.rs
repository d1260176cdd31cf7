//! What keeps a wish from being worked on: a person who suspended it, an older wish for the same file,
//! or a payload that is not there yet. Pure.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::decide::{JobKey, Scene, Verdict, key, requested_at};
use super::run_id;
use crate::api::Run;

/// No worker may run for now.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Hold {
    /// The run, as the status shall tell it, if there has been one.
    pub run: Option<Run>,
    pub verdict: Verdict,
    /// Delete these Jobs.
    pub delete: Vec<JobKey>,
    /// Look again after this time, whatever happens.
    pub look_again: Option<Duration>,
}

/// What holds the wish of `scene` back, if anything does; `rival` is the older build that writes to
/// the same file, `awaited` tells of a payload that is not there yet.
///
/// Its Job is deleted, not suspended: Kubernetes counts a pod that it stopped before its container
/// had started, or that it had to kill, as a failure of the Job, and a person's wish is none. The Job
/// that is made when the wish goes on has whatever the spec says by then.
pub(super) fn hold(scene: &Scene, rival: Option<&str>, awaited: Option<&str>) -> Option<Hold> {
    let id = run_id::run_id(scene.valid, requested_at(scene.subject, scene.status));
    let run = scene.status.run.clone();
    if scene.valid.suspended {
        let is_done = run.as_ref().is_some_and(|run| {
            let current = scene.observed.current.as_ref();
            let has_result = current.is_some_and(|job| job.complete.is_some() && !job.terminating);
            run.id == id && (run.completion_time.is_some() || (run.ended.is_none() && has_result))
        });
        return (!is_done).then(|| scene.suspended(run));
    }
    if let Some(rival) = rival {
        return Some(scene.in_conflict(run, rival));
    }
    awaited.and_then(|why| scene.awaiting(run, id, why))
}

impl Scene<'_> {
    fn suspended(&self, run: Option<Run>) -> Hold {
        let pods = self.observed.pods.iter().chain(&self.observed.strays);
        let stopping = pods.into_iter().find(|pod| pod.phase.is_active());
        let message = match stopping {
            Some(pod) => format!("it is suspended, and pod {} is being stopped", pod.name),
            None => "it is suspended; it goes on when spec.suspend is false".to_owned(),
        };
        // Its time does not pass meanwhile.
        let run = run
            .map(|run| Run { start_time: run.start_time.filter(|_| run.completion_time.is_some()), ..run });
        let is_ending = stopping.is_some() || self.jobs().next().is_some();
        Hold {
            run,
            verdict: Verdict::Suspended(message),
            delete: self.all_jobs(),
            look_again: is_ending.then_some(self.settings.pace.progress),
        }
    }

    fn in_conflict(&self, run: Option<Run>, rival: &str) -> Hold {
        let message = format!(
            "PayloadBuild {rival:?} is older and writes to {}, too; give one of them another path",
            self.valid.location()
        );
        // Whatever this run wrote may be the other's by the time that it is its turn again.
        let run = run.map(|run| Run {
            start_time: None,
            completion_time: None,
            last_failure: None,
            ended: None,
            ..run
        });
        Hold {
            run,
            verdict: Verdict::Conflict(message),
            delete: self.all_jobs(),
            // Nobody tells us of what becomes of the other.
            look_again: Some(self.settings.pace.again),
        }
    }

    /// A run that is done, at work or at its end does not ask for its bases any more.
    fn awaiting(&self, run: Option<Run>, id: String, why: &str) -> Option<Hold> {
        let attempt = run.as_ref().map_or(0, |run| run.attempt);
        let run = match run.filter(|run| run.id == id) {
            Some(run) => {
                let is_settled = run.completion_time.is_some() || run.ended.is_some();
                if is_settled || self.observed.current.is_some() || self.time_is_up(&run) {
                    return None;
                }
                Run { start_time: run.start_time.or(Some(Time(self.now))), ..run }
            }
            // Its time counts from now.
            None => Run { id, attempt: attempt + 1, start_time: Some(Time(self.now)), ..Run::default() },
        };
        let left = self.deadline(&run).map(|deadline| deadline.duration_since(self.now).unsigned_abs());
        Some(Hold {
            run: Some(run),
            verdict: Verdict::AwaitingBase(why.to_owned()),
            delete: self.all_jobs(),
            // Nobody tells us of what becomes of the other.
            look_again: left.into_iter().chain([self.settings.pace.again]).min(),
        })
    }

    fn all_jobs(&self) -> Vec<JobKey> {
        self.jobs().filter(|job| !job.terminating).map(key).collect()
    }
}
