//! A cluster in miniature, in which everything happens at the worst moment.
//!
//! Jobs have their pods at once, the controller is killed between any two of its deeds, wishes change,
//! pods end as they like. Whatever happens: never are there two workers, and when the trouble is over
//! the wish comes true or is stalled for a reason.

use std::time::Duration;

use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::json;

use super::Subject;
use super::decide::{Decision, JobKey, Scene, Verdict, decide, requested_at};
use super::hold::{Hold, hold};
use super::job::Plan;
use super::observe::{JobFailure, JobView, Observed, Phase, PodView, Terminated};
use super::settings::{Pace, Settings, WorkerDefaults};
use super::summarise::{News, summarise};
use super::validate::{self, Valid};
use crate::api::{Run, Status};
use crate::reason::{Class, Reason};
use crate::worker::contract::{CONTRACT_VERSION, Outcome};

/// How often a pod may fail.
const BACKOFF_LIMIT: u32 = 2;

/// What can happen.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The controller looks, and is killed after so many of its deeds.
    Look(usize),
    Seconds(u16),
    /// The pod runs.
    Starts,
    /// The pod ends.
    Ends(Reason),
    /// The pod ends well, and its word is lost.
    EndsMute,
    /// Somebody deletes the pod.
    PodDeleted,
    /// Pods and Jobs that are being deleted are gone.
    Settles,
    /// The person wants another image.
    Wants(u8),
    /// The person changes what asks for nothing new.
    Tunes,
    /// The person suspends the wish, or lets it go on.
    Suspends(bool),
    /// An older build of the same file is there, or gone.
    Rivals(bool),
    /// A payload that is built upon is not there, or is.
    Awaits(bool),
    /// Somebody deletes the Job.
    JobDeleted,
}

/// What is decided in one look.
type Deliberation = (Option<Hold>, Decision);

/// A Job with the pods that it ever had.
#[derive(Clone, Debug)]
struct SimulatedJob {
    view: JobView,
    pods: Vec<PodView>,
}

struct Cluster {
    subject: Subject,
    wants: u8,
    suspended: bool,
    has_rival: bool,
    awaits: bool,
    status: Status,
    jobs: Vec<SimulatedJob>,
    settings: Settings,
    now: Timestamp,
    names: u32,
}

impl Cluster {
    fn new() -> Self {
        Self {
            subject: Subject {
                kind: "PayloadBuild",
                letter: 'b',
                name: "app".into(),
                namespace: "ns".into(),
                uid: "uid".into(),
                generation: 1,
                created: jiff::Timestamp::UNIX_EPOCH,
                requested_at: None,
            },
            wants: 0,
            suspended: false,
            has_rival: false,
            awaits: false,
            status: Status::default(),
            jobs: vec![],
            settings: Settings {
                lease: None,
                worker: WorkerDefaults::with_image("i"),
                namespace: None,
                concurrency: 1,
                pace: Pace::default(),
                health_address: None,
            },
            now: Timestamp::UNIX_EPOCH,
            names: 0,
        }
    }

    fn valid(&self) -> Valid {
        let spec = json!({
            "images": [{ "image": format!("python:{}", self.wants) }],
            "output": { "persistentVolumeClaim": { "claimName": "transfer", "path": "app.zip" } },
            "backoffLimit": BACKOFF_LIMIT,
            "suspend": self.suspended,
        });
        validate::build(&serde_json::from_value(spec).unwrap()).unwrap()
    }

    fn observe(&self) -> Observed {
        let current = self.status.run.as_ref().and_then(|run| run.job_name.clone());
        let mut observed = Observed::default();
        for job in &self.jobs {
            if Some(&job.view.name) == current.as_ref() {
                observed.current = Some(job.view.clone());
                observed.pods = job.pods.clone();
            } else {
                observed.others.push(job.view.clone());
                observed.strays.extend(job.pods.iter().filter(|pod| pod.phase.is_active()).cloned());
            }
        }
        observed
    }

    /// What somebody would decide who knows nothing but what the API server has of all this, with the status as JSON.
    fn decided_by_a_stranger(&self) -> Deliberation {
        let json = serde_json::to_string(&self.status).unwrap();
        let status: Status = serde_json::from_str(&json).unwrap();
        self.deliberate(&status, &self.observe())
    }

    fn deliberate(&self, status: &Status, observed: &Observed) -> Deliberation {
        let valid = self.valid();
        let (subject, settings, now) = (&self.subject, &self.settings, self.now);
        let scene = Scene { subject, valid: &valid, status, observed, settings, now };
        let (rival, awaited) =
            (self.has_rival.then_some("older"), self.awaits.then_some("a base is not there"));
        (hold(&scene, rival, awaited), decide(&scene).unwrap())
    }

    /// One look, of which only the first `deeds` deeds are done.
    fn look(&mut self, deeds: usize) -> Verdict {
        let (valid, observed) = (self.valid(), self.observe());
        let scene = Scene {
            subject: &self.subject,
            valid: &valid,
            status: &self.status,
            observed: &observed,
            settings: &self.settings,
            now: self.now,
        };
        if let Some(hold) =
            hold(&scene, self.has_rival.then_some("older"), self.awaits.then_some("a base is not there"))
        {
            for (_, key) in (1..deeds).zip(&hold.delete) {
                self.delete(key);
            }
            if deeds > hold.delete.len() + 1 {
                self.status = self.summary(&valid, hold.run.as_ref(), &hold.verdict, None);
            }
            return hold.verdict;
        }
        let decision = decide(&scene).unwrap();
        let mut left = deeds;
        let mut next = || {
            left = left.saturating_sub(1);
            left > 0
        };
        for key in &decision.delete {
            if next() {
                self.delete(key);
            }
        }
        if let Some(plan) = decision.create.as_ref().filter(|_| next()) {
            let written = self.status.run.as_ref().map(|run| (run.attempt, run.job_name.as_ref()));
            assert_eq!(written, Some((plan.attempt, Some(&plan.name))), "its attempt is not written down");
            self.create(plan);
        }
        if next() {
            let outcome = decision.outcome.as_deref();
            let status = self.summary(&valid, Some(&decision.run), &decision.verdict, outcome);
            let attempt = |status: &Status| status.run.as_ref().map_or(0, |run| run.attempt);
            assert!(attempt(&self.status) <= attempt(&status), "attempts only grow");
            self.status = status;
        }
        decision.verdict
    }

    fn summary(
        &self,
        valid: &Valid,
        run: Option<&Run>,
        verdict: &Verdict,
        outcome: Option<&Outcome>,
    ) -> Status {
        let news = News {
            generation: self.subject.generation,
            is_import: false,
            location: &valid.location(),
            registry: None,
            requested_at: requested_at(&self.subject, &self.status),
            run,
            verdict,
            outcome,
            progress: None,
            now: self.now,
        };
        summarise(&self.status, &news)
    }

    fn delete(&mut self, key: &JobKey) {
        let Some(job) = self.jobs.iter_mut().find(|job| job.view.uid == key.uid) else { return };
        job.view.terminating = true;
        for pod in job.pods.iter_mut().filter(|pod| pod.phase.is_active()) {
            pod.gone_by = Some(self.now + Duration::from_secs(30));
        }
    }

    /// Job and pod are there in the same moment, which is the worst case.
    fn create(&mut self, plan: &Plan) {
        if self.jobs.iter().any(|job| job.view.name == plan.name) {
            return;
        }
        let uid = self.name("job");
        let view = JobView {
            name: plan.name.clone(),
            uid,
            run_id: plan.run_id.clone(),
            generation: Some(self.subject.generation),
            input_digest: plan.input_digest.clone(),
            created: self.now,
            ..JobView::default()
        };
        let pod = self.pod();
        self.jobs.push(SimulatedJob { view, pods: vec![pod] });
    }

    fn name(&mut self, what: &str) -> String {
        self.names += 1;
        format!("{what}-{}", self.names)
    }

    fn pod(&mut self) -> PodView {
        let name = self.name("pod");
        PodView { uid: name.clone(), name, created: self.now, ..PodView::default() }
    }

    /// The Job that has a worker, and that.
    fn worker(&mut self) -> Option<(&mut JobView, &mut PodView)> {
        self.jobs.iter_mut().find_map(|job| {
            let pod = job.pods.iter_mut().find(|pod| pod.phase.is_active())?;
            Some((&mut job.view, pod))
        })
    }

    fn happens(&mut self, step: Step) {
        let now = self.now;
        match step {
            Step::Look(deeds) => {
                self.look(deeds);
            }
            Step::Seconds(seconds) => self.now += Duration::from_secs(seconds.into()),
            Step::Starts => {
                if let Some((_, pod)) = self.worker() {
                    pod.phase = Phase::Running;
                }
            }
            Step::Ends(reason) => {
                if let Some((job, pod)) = self.worker() {
                    end(job, pod, Some(reason), now);
                }
                self.job_controller();
            }
            Step::EndsMute => {
                if let Some((job, pod)) = self.worker() {
                    end(job, pod, None, now);
                }
                self.job_controller();
            }
            Step::PodDeleted => {
                for job in &mut self.jobs {
                    let before = job.pods.len();
                    job.pods.retain(|pod| !pod.phase.is_active());
                    job.view.failed_pods += u32::try_from(before - job.pods.len()).unwrap();
                }
                self.job_controller();
            }
            Step::Settles => self.jobs.retain(|job| !job.view.terminating),
            Step::Wants(image) => {
                self.subject.generation += i64::from(self.wants != image);
                self.wants = image;
            }
            Step::Tunes => self.subject.generation += 1,
            Step::Suspends(suspended) => {
                self.subject.generation += i64::from(self.suspended != suspended);
                self.suspended = suspended;
            }
            Step::Rivals(has_rival) => self.has_rival = has_rival,
            Step::Awaits(awaits) => self.awaits = awaits,
            Step::JobDeleted => {
                let keys = self
                    .jobs
                    .iter()
                    .map(|job| JobKey { name: job.view.name.clone(), uid: job.view.uid.clone() });
                for key in keys.collect::<Vec<_>>() {
                    self.delete(&key);
                }
            }
        }
        let workers = self.jobs.iter().flat_map(|job| &job.pods).filter(|pod| pod.phase.is_active()).count();
        assert!(workers <= 1, "{workers} workers at once after {step:?}");
    }

    /// Jobs complete, fail, or get another pod.
    fn job_controller(&mut self) {
        let replacements: Vec<PodView> = (0..self.jobs.len()).map(|_| self.pod()).collect();
        for (job, replacement) in self.jobs.iter_mut().zip(replacements) {
            let view = &mut job.view;
            if view.complete.is_some()
                || view.failed.is_some()
                || job.pods.iter().any(|pod| pod.phase.is_active())
            {
                continue;
            }
            let last = job.pods.last().and_then(|pod| pod.terminated.as_ref()).map(|end| end.exit_code);
            let ends_it = last.is_some_and(|code| (64..=73).contains(&code) || code == 76 || code == 77);
            if job.pods.iter().any(|pod| pod.phase == Phase::Succeeded) {
                view.complete = Some(self.now);
            } else if ends_it || view.failed_pods > BACKOFF_LIMIT {
                view.failed = Some(JobFailure { time: self.now, message: "it failed".into() });
            } else if !view.terminating {
                job.pods.push(replacement);
            }
        }
    }

    /// No more trouble: every pod ends well, time passes, the controller lives.
    fn heal(&mut self) -> Verdict {
        self.happens(Step::Suspends(false));
        self.happens(Step::Rivals(false));
        self.happens(Step::Awaits(false));
        for _ in 0..40 {
            let before = self.status.run.clone();
            let verdict = self.look(usize::MAX);
            let is_settled =
                before == self.status.run && matches!(verdict, Verdict::Succeeded | Verdict::Stalled);
            self.happens(Step::Settles);
            if is_settled && self.look(usize::MAX) == verdict {
                return verdict;
            }
            self.happens(Step::Starts);
            self.happens(Step::Ends(Reason::Succeeded));
            self.happens(Step::Settles);
            self.happens(Step::Seconds(301));
        }
        panic!("it never settles: {:#?} {:#?}", self.status, self.jobs)
    }
}

fn end(job: &mut JobView, pod: &mut PodView, reason: Option<Reason>, now: Timestamp) {
    let message = reason.map(|reason| {
        let outcome = Outcome {
            version: CONTRACT_VERSION,
            run_id: job.run_id.clone(),
            input_digest: job.input_digest.clone(),
            reason,
            message: "so it was".into(),
            payload: None,
            result: None,
            failures: vec![],
            failures_total: 0,
            retry_after_seconds: None,
        };
        outcome.to_message()
    });
    let exit_code = i32::from(reason.unwrap_or(Reason::Succeeded).exit_code());
    pod.phase = if exit_code == 0 { Phase::Succeeded } else { Phase::Failed };
    pod.terminated = Some(Terminated {
        exit_code,
        message: message.unwrap_or_default(),
        finished: Some(now),
        ..Terminated::default()
    });
    job.failed_pods += u32::from(exit_code != 0);
}

fn steps() -> impl Strategy<Value = Step> {
    let reasons = proptest::sample::select(vec![
        Reason::Succeeded,
        Reason::AccessDenied,
        Reason::AuthenticationFailed,
        Reason::SourceNotFound,
        Reason::ImageNotFound,
        Reason::WorkerFailed,
    ]);
    prop_oneof![
        8 => (0_usize..5).prop_map(Step::Look),
        8 => Just(Step::Look(usize::MAX)),
        2 => (1_u16..400).prop_map(Step::Seconds),
        2 => Just(Step::Starts),
        4 => reasons.prop_map(Step::Ends),
        1 => Just(Step::EndsMute),
        1 => Just(Step::PodDeleted),
        4 => Just(Step::Settles),
        2 => (0_u8..3).prop_map(Step::Wants),
        1 => Just(Step::Tunes),
        1 => proptest::bool::ANY.prop_map(Step::Suspends),
        1 => proptest::bool::ANY.prop_map(Step::Rivals),
        1 => proptest::bool::ANY.prop_map(Step::Awaits),
        1 => Just(Step::JobDeleted),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_wish_that_is_suspended_or_has_an_older_rival_has_no_worker_soon_whatever_was_before(
        steps in proptest::collection::vec(steps(), 0..60),
        suspended in proptest::bool::ANY,
    ) {
        let mut cluster = Cluster::new();
        for step in steps {
            cluster.happens(step);
        }
        cluster.happens(if suspended { Step::Suspends(true) } else { Step::Rivals(true) });
        let mut verdict = cluster.look(usize::MAX);
        for _ in 0..3 {
            cluster.happens(Step::Settles);
            verdict = cluster.look(usize::MAX);
        }
        let is_active = |job: &SimulatedJob| job.pods.iter().any(|pod| pod.phase.is_active());
        prop_assert!(!cluster.jobs.iter().any(is_active));
        let is_held = matches!(verdict, Verdict::Suspended(_) | Verdict::Conflict(_) | Verdict::Succeeded);
        prop_assert!(is_held, "{:?}", verdict);
        prop_assert_eq!(cluster.heal(), Verdict::Succeeded);
    }

    #[test]
    fn never_are_there_two_workers_and_in_the_end_the_wish_is_settled(
        steps in proptest::collection::vec(steps(), 0..60),
    ) {
        let mut cluster = Cluster::new();
        for step in steps {
            cluster.happens(step);
        }
        match cluster.heal() {
            Verdict::Succeeded => {}
            Verdict::Stalled => {
                let run = cluster.status.run.clone().unwrap();
                let end = crate::reason::parse(&run.ended.unwrap().reason).unwrap();
                let is_final = matches!(end.class(), Class::Final | Class::Twice);
                prop_assert!(is_final, "stalled for {end}");
                // A person who changes something gets another try, which now goes well.
                cluster.happens(Step::Tunes);
                prop_assert_eq!(cluster.heal(), Verdict::Succeeded);
            }
            other => prop_assert!(false, "{other:?}"),
        }
    }
}

proptest! {
    // Each decides at every step.
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn what_is_decided_depends_on_what_the_api_server_has_and_on_nothing_that_a_controller_remembers(
        steps in proptest::collection::vec(steps(), 0..60),
    ) {
        let mut cluster = Cluster::new();
        for step in steps {
            cluster.happens(step);
            let here = cluster.deliberate(&cluster.status, &cluster.observe());
            prop_assert_eq!(&cluster.decided_by_a_stranger(), &here, "the second to look, after {:?}", step);
        }
    }
}
