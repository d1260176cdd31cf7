//! What is decided, situation by situation.

use serde_json::json;

use super::*;
use crate::controller::hold::{Hold, hold};
use crate::controller::observe::{EventView, JobFailure, Terminated};
use crate::controller::settings::{Pace, WorkerDefaults};
use crate::controller::validate;
use crate::worker::contract::CONTRACT_VERSION;

const START: Timestamp = Timestamp::UNIX_EPOCH;

fn at(seconds: u64) -> Timestamp {
    START + Duration::from_secs(seconds)
}

/// A build of one image, and all that there is of it.
struct Stage {
    subject: Subject,
    valid: Valid,
    status: Status,
    observed: Observed,
    settings: Settings,
    now: Timestamp,
}

impl Stage {
    fn new() -> Self {
        let spec = json!({
            "images": [{ "image": "python:3" }],
            "output": { "persistentVolumeClaim": { "claimName": "transfer", "path": "app.zip" } },
            "timeout": "1h",
        });
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
            valid: validate::build(&serde_json::from_value(spec).unwrap()).unwrap(),
            status: Status::default(),
            observed: Observed::default(),
            settings: Settings {
                lease: None,
                worker: WorkerDefaults::with_image("i"),
                namespace: None,
                concurrency: 1,
                pace: Pace::default(),
                health_address: None,
            },
            now: START,
        }
    }

    /// The attempt is written down.
    fn begun() -> Self {
        let mut stage = Self::new();
        stage.status.run = Some(stage.decide().run);
        stage
    }

    /// Its Job is there.
    fn with_job() -> Self {
        let mut stage = Self::begun();
        let run = stage.run();
        stage.observed.current = Some(JobView {
            name: run.job_name.unwrap(),
            uid: "job".into(),
            run_id: run.id,
            generation: Some(1),
            input_digest: run.input_digest.unwrap(),
            ..JobView::default()
        });
        stage
    }

    /// Its pod has ended, with this reason and exit code.
    fn with_end(reason: Reason) -> Self {
        let mut stage = Self::with_job();
        let job = stage.job().clone();
        let outcome = Outcome {
            version: CONTRACT_VERSION,
            run_id: job.run_id,
            input_digest: job.input_digest,
            reason,
            message: "so it was".into(),
            payload: None,
            result: None,
            failures: vec![],
            failures_total: 0,
            retry_after_seconds: None,
        };
        let exit_code = i32::from(reason.exit_code());
        let end = Terminated { exit_code, message: outcome.to_message(), ..Terminated::default() };
        let phase = if exit_code == 0 { Phase::Succeeded } else { Phase::Failed };
        stage.observed.pods = vec![PodView { phase, terminated: Some(end), ..pod("p") }];
        stage
    }

    fn run(&self) -> Run {
        self.status.run.clone().unwrap()
    }

    fn job(&mut self) -> &mut JobView {
        self.observed.current.as_mut().unwrap()
    }

    fn scene(&self) -> Scene<'_> {
        let Self { subject, valid, status, observed, settings, now } = self;
        Scene { subject, valid, status, observed, settings, now: *now }
    }

    fn decide(&self) -> Decision {
        decide(&self.scene()).unwrap()
    }

    /// What is decided becomes the status, and it is later.
    fn go_on(&mut self, seconds: u64) -> Decision {
        self.status.run = Some(self.decide().run);
        self.now = at(seconds);
        self.decide()
    }
}

fn pod(name: &str) -> PodView {
    PodView { name: name.into(), uid: name.into(), ..PodView::default() }
}

fn job_of_another_attempt() -> JobView {
    JobView { name: "other".into(), uid: "other".into(), ..JobView::default() }
}

fn end(decision: &Decision) -> &str {
    decision.run.ended.as_ref().map_or("", |ended| &ended.reason)
}

#[test]
fn the_first_decision_writes_the_attempt_down_and_creates_nothing() {
    let decision = Stage::new().decide();
    assert_eq!((decision.run.attempt, decision.run.start_time), (1, Some(Time(START))));
    assert!(decision.run.job_name.is_some() && decision.run.input_digest.is_some());
    assert_eq!((decision.create, decision.look_again), (None, Some(Duration::ZERO)));
}

#[test]
fn the_second_one_creates_its_job() {
    let stage = Stage::begun();
    let plan = stage.decide().create.unwrap();
    assert_eq!(Some(plan.name), stage.run().job_name);
    assert_eq!(Some(plan.input_digest), stage.run().input_digest);
}

#[test]
fn a_change_before_the_job_is_made_is_written_down_first() {
    let mut stage = Stage::begun();
    stage.settings.worker.image = "newer".into();
    let decision = stage.decide();
    assert_eq!(decision.create, None);
    assert_eq!(decision.run.image.as_deref(), Some("newer"));
    stage.go_on(1);
    assert!(stage.decide().create.is_some());
}

#[test]
fn no_job_is_created_while_another_one_or_a_pod_of_another_one_is_there() {
    let mut stage = Stage::begun();
    stage.observed.others = vec![job_of_another_attempt()];
    let decision = stage.decide();
    assert_eq!((decision.create, decision.delete.len()), (None, 1));
    assert!(matches!(decision.verdict, Verdict::Superseding(_)));

    stage.observed.others[0].terminating = true;
    let decision = stage.decide();
    assert_eq!((decision.create, decision.delete.len()), (None, 0));

    stage.observed.others.clear();
    stage.observed.strays = vec![pod("orphan")];
    let decision = stage.decide();
    assert_eq!(decision.create, None);
    assert_eq!(
        decision.verdict,
        Verdict::Superseding("pod orphan of an older attempt must end first".into())
    );

    stage.observed.strays[0].gone_by = Some(START);
    stage.now = at(121);
    assert!(
        matches!(stage.decide().verdict, Verdict::NotStarting(failure) if failure.reason == Reason::WorkerLost)
    );

    stage.observed.strays.clear();
    assert!(stage.decide().create.is_some());
}

#[test]
fn a_wish_that_changed_deletes_the_old_job_and_takes_the_next_number() {
    let mut stage = Stage::with_job();
    let before = stage.run();
    stage.subject.requested_at = Some("now".into());
    let decision = stage.decide();
    assert_ne!(decision.run.id, before.id);
    assert_eq!((decision.run.attempt, decision.create), (2, None));
    assert_eq!(decision.delete, [JobKey { name: before.job_name.unwrap(), uid: "job".into() }]);
}

#[test]
fn success_is_written_down_once_and_for_all() {
    let mut stage = Stage::with_end(Reason::Succeeded);
    assert!(matches!(stage.decide().verdict, Verdict::Working(_)), "the Job has not completed");
    stage.job().complete = Some(at(9));
    let decision = stage.decide();
    assert_eq!(decision.verdict, Verdict::Succeeded);
    assert_eq!(decision.run.completion_time, Some(Time(at(9))));
    assert!(decision.outcome.is_some());
    assert_eq!(decision.expire, None, "the result is not in the status yet");
    let decision = stage.go_on(11);
    assert_eq!(decision.expire, Some(JobKey { name: stage.run().job_name.unwrap(), uid: "job".into() }));
    // Whatever happens to the Job, and however it is tuned.
    stage.observed = Observed::default();
    stage.subject.generation = 2;
    let decision = stage.go_on(100_000);
    assert_eq!((decision.verdict, decision.create), (Verdict::Succeeded, None));
}

#[test]
fn each_class_of_failure_has_its_consequence() {
    let pace = Pace::default();
    for (reason, ended, next) in [
        (Reason::AccessDenied, "AccessDenied", None),
        (Reason::StorageFull, "StorageFull", None),
        (Reason::SourceNotFound, "SourceNotFound", Some(pace.wait)),
        (Reason::RateLimited, "RateLimited", Some(pace.wait)),
        (Reason::AuthenticationFailed, "AuthenticationFailed", Some(pace.again)),
    ] {
        let mut stage = Stage::with_end(reason);
        let decision = stage.decide();
        assert_eq!(end(&decision), ended);
        let expected = next.map_or(Verdict::Stalled, |after| Verdict::Retrying(START + after));
        assert_eq!(decision.verdict, expected, "{reason}");
        assert_eq!(decision.run.last_failure.as_ref().unwrap().reason, reason.as_str());
        // The Job says it too, later: that changes nothing.
        stage.status.run = Some(decision.run.clone());
        stage.job().failed = Some(JobFailure { time: at(2), message: "exit code 1".into() });
        assert_eq!(stage.go_on(3).run, decision.run);
        if let Some(after) = next {
            let due = stage.go_on(after.as_secs());
            assert_eq!((due.run.attempt, due.run.ended), (2, None));
        }
    }
}

#[test]
fn a_registry_that_asks_to_be_left_alone_is_left_alone_for_six_hours_at_most() {
    for (asked, expected) in [(None, 300), (Some(60), 300), (Some(4000), 4000), (Some(u32::MAX), 6 * 3600)] {
        let mut stage = Stage::with_end(Reason::RateLimited);
        let end = stage.observed.pods[0].terminated.as_mut().unwrap();
        let outcome: Outcome = serde_json::from_str(&end.message).unwrap();
        end.message = Outcome { retry_after_seconds: asked, ..outcome }.to_message();
        let due = START + Duration::from_secs(expected);
        assert_eq!(stage.decide().verdict, Verdict::Retrying(due), "{asked:?}");
        // It is in the status, and holds after the Job is gone.
        stage.go_on(1);
        stage.observed = Observed::default();
        assert_eq!(stage.decide().verdict, Verdict::Retrying(due), "{asked:?}");
    }
}

#[test]
fn a_failure_that_may_pass_is_the_jobs_to_retry_until_it_gives_up() {
    let mut stage = Stage::with_end(Reason::ImageNotFound);
    let decision = stage.decide();
    assert!(matches!(decision.verdict, Verdict::Working(_)));
    assert_eq!(decision.run.last_failure.unwrap().reason, "ImageNotFound");
    assert_eq!(decision.run.pod_failures, Some(1));
    stage.job().failed = Some(JobFailure { time: at(2), message: "backoff limit".into() });
    let decision = stage.go_on(3);
    assert_eq!((end(&decision), decision.verdict.clone()), ("BackoffLimitExceeded", Verdict::Stalled));
}

#[test]
fn credentials_are_not_tried_a_third_time_whatever_happens_between() {
    let mut stage = Stage::with_end(Reason::AuthenticationFailed);
    stage.status.run.as_mut().unwrap().authentication_failures = Some(1);
    let decision = stage.decide();
    assert_eq!((decision.verdict, decision.run.authentication_failures), (Verdict::Stalled, Some(2)));
}

#[test]
fn a_tuned_spec_gives_a_stalled_run_all_its_time_and_tries_again() {
    let mut stage = Stage::with_end(Reason::AccessDenied);
    stage.go_on(7200);
    assert_eq!(stage.decide().verdict, Verdict::Stalled);
    stage.subject.generation = 2;
    let decision = stage.decide();
    assert_eq!((decision.run.attempt, decision.run.start_time), (2, Some(Time(at(7200)))));
    assert_eq!(decision.run.last_failure.unwrap().reason, "AccessDenied", "Ready does not flap");
}

#[test]
fn a_tuned_spec_replaces_a_job_only_where_it_does_not_go_well() {
    let mut stage = Stage::with_job();
    stage.observed.pods = vec![PodView { phase: Phase::Running, ip: Some("10.0.0.1".into()), ..pod("p") }];
    stage.subject.generation = 2;
    assert_eq!(stage.decide().run.attempt, 1);
    stage.observed.pods[0] = PodView { waiting: Some(("ErrImagePull".into(), String::new())), ..pod("p") };
    assert_eq!(stage.decide().run.attempt, 2);
}

#[test]
fn time_runs_out_in_every_state_but_the_last() {
    let mut waiting = Stage::with_end(Reason::SourceNotFound);
    waiting.settings.pace.wait = Duration::from_secs(10_000);
    waiting.go_on(1);
    for (name, mut stage) in [("no Job", Stage::begun()), ("a Job", Stage::with_job()), ("waiting", waiting)]
    {
        stage.now = at(3599);
        assert_eq!(stage.decide().look_again, Some(Duration::from_secs(1)), "{name}");
        stage.now = at(3600);
        let decision = stage.decide();
        assert_eq!((end(&decision), decision.create.is_some()), ("DeadlineExceeded", false), "{name}");
        assert_eq!(decision.verdict, Verdict::Stalled, "{name}");
        assert_eq!(decision.delete.len(), stage.observed.current.iter().count(), "{name}");
    }
    let mut done = Stage::with_end(Reason::Succeeded);
    done.job().complete = Some(at(1));
    done.now = at(100_000);
    assert_eq!(done.decide().verdict, Verdict::Succeeded);
}

#[test]
fn a_completed_job_without_a_word_is_a_lost_result() {
    let mut stage = Stage::with_job();
    stage.job().complete = Some(at(5));
    let decision = stage.decide();
    assert_eq!((end(&decision), decision.verdict.clone()), ("ResultLost", Verdict::Retrying(at(65))));
    assert_eq!(stage.go_on(65).run.attempt, 2);
}

#[test]
fn a_failed_job_without_pods_tells_by_its_exit_code_or_the_cause_that_was_seen() {
    let mut stage = Stage::with_job();
    let message = "Container worker for pod ns/p failed with exit code 65 matching FailJob rule at index 0";
    stage.job().failed = Some(JobFailure { time: at(1), message: message.into() });
    assert_eq!(end(&stage.decide()), "PayloadCorrupt");

    let mut stage = Stage::with_end(Reason::ImageNotFound);
    stage.go_on(1);
    stage.observed.pods.clear();
    stage.job().failed = Some(JobFailure { time: at(2), message: "Job has reached the limit".into() });
    let decision = stage.decide();
    assert_eq!(end(&decision), "BackoffLimitExceeded");
    assert_eq!(decision.run.last_failure.unwrap().reason, "ImageNotFound");
}

#[test]
fn a_pod_that_vanished_is_a_failure_once() {
    let mut stage = Stage::with_job();
    stage.job().failed_pods = 1;
    let decision = stage.go_on(1);
    assert_eq!(decision.run.last_failure.unwrap().reason, "WorkerLost");
    assert_eq!(stage.go_on(2).run.last_failure.unwrap().time, Time(START));
}

#[test]
fn more_than_ten_disruptions_are_no_accident() {
    let mut stage = Stage::with_job();
    let disrupted =
        |index: usize| PodView { phase: Phase::Failed, disrupted: true, ..pod(&format!("p{index}")) };
    stage.observed.pods = (0..10).map(disrupted).collect();
    assert_eq!(end(&stage.decide()), "");
    stage.observed.pods.push(disrupted(10));
    let decision = stage.decide();
    assert_eq!((end(&decision), decision.delete.len()), ("WorkerEvicted", 1));
    assert_eq!(decision.verdict, Verdict::Stalled);
}

#[test]
fn a_job_without_a_pod_says_why_and_a_pod_at_work_is_asked() {
    let mut stage = Stage::with_job();
    let why = EventView { reason: "FailedCreate".into(), message: "exceeded quota".into(), last: START };
    stage.observed.events = vec![why];
    assert!(
        matches!(stage.decide().verdict, Verdict::NotStarting(failure) if failure.reason == Reason::WorkerCreateFailed)
    );
    stage.observed.events.clear();
    stage.observed.pods = vec![PodView { phase: Phase::Running, ip: Some("10.0.0.1".into()), ..pod("p") }];
    let decision = stage.decide();
    assert_eq!(decision.ask.map(|pod| pod.name).as_deref(), Some("p"));
    assert_eq!(decision.look_again, Some(FIRST_PROGRESS));
}

fn held(stage: &Stage, rival: Option<&str>) -> Option<Hold> {
    hold(&stage.scene(), rival, None)
}

/// `stage` with `suspend: true`.
fn suspended(mut stage: Stage) -> Stage {
    stage.valid.suspended = true;
    stage.subject.generation += 1;
    stage
}

#[test]
fn a_suspended_wish_begins_nothing_and_remembers_nothing() {
    let hold = held(&suspended(Stage::new()), None).unwrap();
    assert_eq!((hold.run, hold.delete, hold.look_again), (None, vec![], None));
    assert!(matches!(hold.verdict, Verdict::Suspended(_)), "{:?}", hold.verdict);
}

#[test]
fn suspending_ends_the_job_keeps_the_run_and_stops_its_clock() {
    let mut stage = suspended(Stage::with_job());
    let hold = held(&stage, None).unwrap();
    assert_eq!(hold.delete, [key(stage.job())]);
    let run = hold.run.unwrap();
    assert_eq!(run.start_time, None);
    // Long after its time is up it goes on, with all the time that a run has, and its Job's name.
    let before = stage.run();
    (stage.status.run, stage.observed.current, stage.now) = (Some(run), None, at(1_000_000));
    stage.valid.suspended = false;
    let decision = stage.decide();
    assert_eq!(decision.run.start_time, Some(Time(at(1_000_000))));
    assert_eq!((&decision.run.id, &decision.run.job_name), (&before.id, &before.job_name));
    assert!(decision.create.is_some());
}

#[test]
fn a_pod_that_was_stopped_by_suspending_is_no_failure() {
    let mut stage = Stage::with_end(Reason::WorkerFailed);
    let pod = stage.observed.pods.last_mut().unwrap();
    pod.terminated = Some(Terminated { exit_code: 143, ..Terminated::default() });
    stage.observed.current.as_mut().unwrap().terminating = true;
    assert_eq!(stage.decide().run.last_failure, None);
}

#[test]
fn what_is_done_is_not_suspended_and_a_result_is_taken_first() {
    let mut stage = Stage::with_end(Reason::Succeeded);
    stage.observed.current.as_mut().unwrap().complete = Some(at(9));
    let mut stage = suspended(stage);
    assert_eq!(held(&stage, None), None);
    stage.status.run = Some(stage.decide().run);
    assert!(stage.run().completion_time.is_some());
    assert_eq!(held(&stage, None), None);
}

#[test]
fn a_stalled_run_that_is_suspended_gets_another_try_when_it_goes_on() {
    let mut stage = Stage::with_end(Reason::AccessDenied);
    stage.status.run = Some(stage.decide().run);
    let mut stage = suspended(stage);
    let hold = held(&stage, None).unwrap();
    assert!(matches!(hold.verdict, Verdict::Suspended(_)), "{:?}", hold.verdict);
    (stage.status.run, stage.observed) = (hold.run, Observed::default());
    stage.valid.suspended = false;
    stage.subject.generation += 1;
    assert_eq!(stage.decide().run.attempt, 2);
}

#[test]
fn a_build_with_an_older_rival_ends_its_job_says_so_and_runs_again_when_the_rival_is_gone() {
    let mut stage = Stage::with_end(Reason::Succeeded);
    stage.observed.current.as_mut().unwrap().complete = Some(at(9));
    stage.status.run = Some(stage.decide().run);
    let hold = held(&stage, Some("first")).unwrap();
    assert_eq!(
        hold.verdict,
        Verdict::Conflict(
            "PayloadBuild \"first\" is older and writes to transfer/app.zip, too; give one of them another path"
                .into()
        )
    );
    assert_eq!((hold.delete.len(), hold.look_again), (1, Some(stage.settings.pace.again)));
    (stage.status.run, stage.observed) = (hold.run, Observed::default());
    assert_eq!(held(&stage, None), None);
    assert!(stage.decide().create.is_some(), "the other may have written over it");
}

#[test]
fn a_build_whose_base_is_not_there_waits_within_its_time_and_asks_no_more_once_its_job_is_made() {
    let awaits = |stage: &Stage| hold(&stage.scene(), None, Some("PayloadBuild \"first\" is not Ready"));
    let mut stage = Stage::new();
    let held = awaits(&stage).unwrap();
    assert_eq!(held.verdict, Verdict::AwaitingBase("PayloadBuild \"first\" is not Ready".into()));
    assert_eq!(held.look_again, Some(stage.settings.pace.again));
    let run = held.run.unwrap();
    assert_eq!((run.attempt, &run.job_name, &run.start_time), (1, &None, &Some(Time(stage.now))));
    // Looking again changes nothing, and the attempt that follows is the first.
    stage.status.run = Some(run.clone());
    assert_eq!(awaits(&stage).unwrap().run, Some(run));
    stage.status.run = Some(stage.decide().run);
    assert_eq!(stage.decide().create.map(|plan| plan.attempt), Some(1));

    assert_eq!(awaits(&Stage::with_job()), None);
    stage.now = at(3601);
    assert_eq!(awaits(&stage), None);
    assert_eq!(stage.decide().run.ended.unwrap().reason, "DeadlineExceeded");
    let mut done = Stage::with_end(Reason::Succeeded);
    done.observed.current.as_mut().unwrap().complete = Some(at(9));
    (done.status.run, done.observed) = (Some(done.decide().run), Observed::default());
    assert_eq!(awaits(&done), None);
}

#[test]
fn a_finished_job_stays_as_long_as_the_spec_says_now() {
    let mut stage = Stage::with_end(Reason::Succeeded);
    stage.observed.current.as_mut().unwrap().complete = Some(at(9));
    let decision = stage.decide();
    assert_eq!(decision.expire, None, "not before the result is in the status");
    stage.status.run = Some(decision.run);
    assert_eq!(stage.decide().expire, Some(key(stage.job())));
    stage.observed.current.as_mut().unwrap().ttl = Some(86_400);
    assert_eq!(stage.decide().expire, None);
    stage.valid.job_ttl = 60;
    assert_eq!(stage.decide().expire, Some(key(stage.job())));
}
