//! What `/metrics` tells. No label has more values than Charon has words: none names a resource.
//!
//! How the resources are is worked out when it is asked for, from those that the watch knows at that
//! moment: nothing is counted up and down, so nothing can be left over.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::core::{Collector, MetricVec, MetricVecBuilder};
use prometheus::{
    HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

use self::state::{Seen, State};
use super::wish::Wish;
use crate::api::{PayloadBuild, PayloadImport, Status, condition};
use crate::reason::{Reason, parse};

mod state;

/// The kinds of resources.
const KINDS: [&str; 2] = [PayloadBuild::KIND, PayloadImport::KIND];
/// A look is a few requests to the API server, seconds.
const LOOK_BUCKETS: [f64; 10] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];
/// A run takes between ten seconds and a week.
const RUN_BUCKETS: [f64; 12] =
    [10.0, 30.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 14_400.0, 43_200.0, 86_400.0, 259_200.0, 604_800.0];

/// Names of what the watch of a kind knows: uids.
type Known = Box<dyn Fn() -> HashSet<String> + Send + Sync>;

/// What is counted, and what is known of the resources.
pub(super) struct Metrics {
    registry: Registry,
    looks: HistogramVec,
    errors: IntCounterVec,
    runs: IntCounterVec,
    durations: HistogramVec,
    bytes: IntCounterVec,
    leader: IntGauge,
    resources: IntGaugeVec,
    oldest: IntGaugeVec,
    cache: Mutex<Cache>,
}

/// What is asked when the resources are counted.
#[derive(Default)]
struct Cache {
    /// What there is, by kind.
    known: HashMap<&'static str, Known>,
    /// How each was at the last look, by uid.
    seen: HashMap<String, Seen>,
}

impl Metrics {
    pub(super) fn new() -> Self {
        let registry = Registry::new();
        let looks = HistogramOpts::new(
            "charon_reconcile_duration_seconds",
            "How long one look at a resource took, with all that was done about it.",
        );
        let durations = HistogramOpts::new(
            "charon_run_duration_seconds",
            "How long runs that ended had taken, waiting and further attempts included.",
        );
        let opts = |name: &str, help: &str| Opts::new(name, help);
        let metrics = Self {
            looks: vec(&registry, HistogramVec::new(looks.buckets(LOOK_BUCKETS.to_vec()), &["kind"])),
            errors: vec(
                &registry,
                IntCounterVec::new(
                    opts(
                        "charon_reconcile_errors_total",
                        "Looks at a resource that came to nothing: the API server could not be asked, or refused.",
                    ),
                    &["kind"],
                ),
            ),
            runs: vec(
                &registry,
                IntCounterVec::new(
                    opts("charon_runs_total", "Runs that ended, by how and why."),
                    &["kind", "result", "reason"],
                ),
            ),
            durations: vec(
                &registry,
                HistogramVec::new(durations.buckets(RUN_BUCKETS.to_vec()), &["kind", "result"]),
            ),
            bytes: vec(
                &registry,
                IntCounterVec::new(
                    opts(
                        "charon_run_bytes_total",
                        "Bytes of the payloads that builds wrote, and of the blobs that imports uploaded.",
                    ),
                    &["kind"],
                ),
            ),
            leader: vec_one(
                &registry,
                IntGauge::new(
                    "charon_leader",
                    "1 where this controller works, 0 where it stands by or waits for the definitions.",
                ),
            ),
            resources: vec(
                &registry,
                IntGaugeVec::new(
                    opts(
                        "charon_resources",
                        "Resources, by how they are. A controller that stands by counts none.",
                    ),
                    &["kind", "state"],
                ),
            ),
            oldest: vec(
                &registry,
                IntGaugeVec::new(
                    opts(
                        "charon_resources_oldest_change_timestamp_seconds",
                        "When that resource of a state last changed or moved a byte for which this is longest ago.",
                    ),
                    &["kind", "state"],
                ),
            ),
            cache: Mutex::default(),
            registry,
        };
        // A rate needs something that it rises from.
        for kind in KINDS {
            metrics.errors.with_label_values(&[kind]);
            metrics.bytes.with_label_values(&[kind]);
        }
        metrics
    }

    /// From now on `known` tells which resources of `kind` there are, by uid.
    pub(super) fn watch(
        &self,
        kind: &'static str,
        known: impl Fn() -> HashSet<String> + Send + Sync + 'static,
    ) {
        self.cache().known.insert(kind, Box::new(known));
    }

    /// This controller works.
    pub(super) fn leads(&self) {
        self.leader.set(1);
    }

    /// A look at a resource of `kind` took so long.
    pub(super) fn looked(&self, kind: &str, duration: Duration) {
        self.looks.with_label_values(&[kind]).observe(duration.as_secs_f64());
    }

    /// A look at a resource of `kind` came to nothing.
    pub(super) fn failed(&self, kind: &str) {
        self.errors.with_label_values(&[kind]).inc();
    }

    /// So the resource was at this look.
    pub(super) fn saw(&self, uid: &str, status: &Status) {
        self.cache().seen.insert(uid.to_owned(), Seen::of(status));
    }

    /// The resource is gone.
    pub(super) fn forget(&self, uid: &str) {
        self.cache().seen.remove(uid);
    }

    /// The status was `old`, and `new` was written: counts the run that ended with it, if one did.
    pub(super) fn wrote(&self, kind: &str, old: &Status, new: &Status) {
        let Some((result, reason, duration)) = end(old, new) else { return };
        self.runs.with_label_values(&[kind, result, reason.as_str()]).inc();
        if let Some(duration) = duration {
            self.durations.with_label_values(&[kind, result]).observe(duration.as_secs_f64());
        }
        if reason == Reason::Succeeded {
            let pushed = new.result.as_ref().map(|result| result.bytes_pushed);
            let written = new.payload.as_ref().map(|payload| payload.size_bytes);
            self.bytes.with_label_values(&[kind]).inc_by(pushed.or(written).unwrap_or(0));
        }
    }

    /// All of it, in Prometheus' text format.
    pub(super) fn text(&self) -> Result<String, prometheus::Error> {
        // Held to the end: of two who ask at once, each gets all of it.
        let mut cache = self.cache();
        let Cache { known, seen } = &mut *cache;
        self.resources.reset();
        self.oldest.reset();
        let mut there = HashSet::new();
        for (kind, known) in known {
            for state in State::ALL {
                self.resources.with_label_values(&[kind, state.as_str()]);
            }
            for uid in known() {
                let seen = seen.get(&uid).copied().unwrap_or_default();
                let labels = [kind, seen.state.as_str()];
                self.resources.with_label_values(&labels).inc();
                if let Some(since) = seen.since.filter(|_| seen.state.is_unfinished()) {
                    let oldest = self.oldest.with_label_values(&labels);
                    if oldest.get() == 0 || oldest.get() > since {
                        oldest.set(since);
                    }
                }
                there.insert(uid);
            }
        }
        seen.retain(|uid, _| there.contains(uid));
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A metric that is told from now on. Its name and labels stand above, and none is there twice.
fn vec<T: MetricVecBuilder>(registry: &Registry, metric: prometheus::Result<MetricVec<T>>) -> MetricVec<T>
where
    MetricVec<T>: Collector + Clone + 'static,
{
    vec_one(registry, metric)
}

fn vec_one<C: Collector + Clone + 'static>(registry: &Registry, metric: prometheus::Result<C>) -> C {
    let metric = metric.expect("a valid name and help");
    registry.register(Box::new(metric.clone())).expect("each name once");
    metric
}

/// How a run ended when the status `old` became `new`, and after which time.
fn end(old: &Status, new: &Status) -> Option<(&'static str, Reason, Option<Duration>)> {
    // A status that was lost and found again tells of no new run.
    let (before, after) = (old.run.as_ref()?, new.run.as_ref()?);
    if before.id != after.id {
        let was_over = before.completion_time.is_some() || is_stalled(old);
        return (!was_over).then_some(("superseded", Reason::Superseded, None));
    }
    if before.attempt != after.attempt {
        return None;
    }
    let took = |end: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Time| {
        let start = after.start_time.as_ref()?;
        Duration::try_from(end.0.duration_since(start.0)).ok()
    };
    let ready = new.conditions.iter().find(|condition| condition.type_ == condition::READY);
    let reason = ready.and_then(|ready| parse(&ready.reason));
    match (&after.completion_time, &after.ended) {
        (Some(end), _) if before.completion_time.is_none() => {
            Some(("succeeded", reason.unwrap_or(Reason::Succeeded), took(end)))
        }
        (None, Some(end)) if is_stalled(new) && !is_stalled(old) => {
            Some(("failed", reason.unwrap_or(Reason::WorkerFailed), took(&end.time)))
        }
        _ => None,
    }
}

fn is_stalled(status: &Status) -> bool {
    status.conditions.iter().any(|condition| condition.type_ == condition::STALLED)
}

#[cfg(test)]
mod tests;
