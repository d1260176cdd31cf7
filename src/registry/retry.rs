//! Patience: what is waited for, and what is tried again for how long.

use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use reqwest::header::{HeaderMap, RETRY_AFTER};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::client::Registry;
use super::error::RegistryError;
use super::gate::Gate;
use crate::backoff;

/// How the registries of one run are treated. Clones share what is left of the time for waiting, and the uploads that are
/// open.
#[derive(Clone, Debug)]
pub struct Traffic {
    patience: Patience,
    /// So many requests are under way at one registry; none: as many as are made.
    at_once: Option<NonZeroUsize>,
    requests_per_second: Option<NonZeroU32>,
    waiting: Duration,
    budget: Arc<Mutex<Budget>>,
    /// The uploads that are neither committed nor cancelled.
    open_uploads: TaskTracker,
}

/// So many blobs move at once where nothing else is said: four fill two cores, and more gain little.
const AT_ONCE: NonZeroUsize = NonZeroUsize::new(4).expect("it is not zero");
/// For so long a run waits for registries that fail, in all.
const WAITING: Duration = Duration::from_mins(30);

impl Default for Traffic {
    /// Four blobs at once, requests as they come, and half an hour for registries that fail: of that a quarter for one
    /// that had been of use, and half a minute for one that never was.
    fn default() -> Self {
        Self::with_patience(Patience::default(), WAITING)
    }
}

impl Traffic {
    /// The same with so many blobs that move at once, and no more requests that are under way at one registry.
    #[must_use]
    pub fn at_once(self, at_once: NonZeroUsize) -> Self {
        Self { at_once: Some(at_once), ..self }
    }

    /// The same with no registry asked more often.
    #[must_use]
    pub fn requests_per_second(self, most: NonZeroU32) -> Self {
        Self { requests_per_second: Some(most), ..self }
    }

    /// The same with so much time for registries that fail, in all, and for each that does.
    #[must_use]
    pub fn waiting(self, waiting: Duration) -> Self {
        let patience = Patience { before_anything_moved: waiting, once_moving: waiting, ..self.patience };
        Self { patience, waiting, ..self }.afresh()
    }

    /// The same for another run: none of its time is spent, and none of its uploads is open.
    pub(crate) fn afresh(&self) -> Self {
        Self { budget: Budget::of(self.waiting), open_uploads: TaskTracker::new(), ..self.clone() }
    }

    pub(super) fn blobs_at_once(&self) -> NonZeroUsize {
        self.at_once.unwrap_or(AT_ONCE)
    }

    /// Bounds the requests that are under way at one registry.
    pub(super) fn gate(&self) -> Gate {
        Gate::new(self.at_once)
    }

    pub(super) fn with_patience(patience: Patience, waiting: Duration) -> Self {
        Self {
            patience,
            at_once: None,
            requests_per_second: None,
            waiting,
            budget: Budget::of(waiting),
            open_uploads: TaskTracker::new(),
        }
    }

    pub(super) fn patience(&self) -> &Patience {
        &self.patience
    }

    pub(super) fn open_uploads(&self) -> &TaskTracker {
        &self.open_uploads
    }

    /// Keeps requests to one registry apart.
    pub(super) fn pacer(&self) -> Pacer {
        Pacer { requests_per_second: self.requests_per_second, next: tokio::sync::Mutex::new(Instant::now()) }
    }

    fn budget(&self) -> MutexGuard<'_, Budget> {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn left(&self) -> Duration {
        self.budget().left_at(Instant::now())
    }

    /// Waits, at the cost of the run's time; several that wait at once cost it once.
    async fn wait(&self, pause: Duration) {
        struct Waiting<'a>(&'a Traffic);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                let mut budget = self.0.budget();
                budget.left = budget.left_at(Instant::now());
                (budget.waiting, budget.since) = (budget.waiting - 1, Instant::now());
            }
        }
        {
            let mut budget = self.budget();
            budget.left = budget.left_at(Instant::now());
            (budget.waiting, budget.since) = (budget.waiting + 1, Instant::now());
        }
        let _waiting = Waiting(self);
        tokio::time::sleep(pause).await;
    }
}

/// The time that a run may spend with waiting.
#[derive(Debug)]
struct Budget {
    /// What was left at `since`.
    left: Duration,
    /// So many wait.
    waiting: usize,
    since: Instant,
}

impl Budget {
    fn of(left: Duration) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self { left, waiting: 0, since: Instant::now() }))
    }

    fn left_at(&self, now: Instant) -> Duration {
        if self.waiting > 0 { self.left.saturating_sub(now - self.since) } else { self.left }
    }
}

/// Keeps the requests to a registry apart.
pub(super) struct Pacer {
    requests_per_second: Option<NonZeroU32>,
    /// When the next request may be made.
    next: tokio::sync::Mutex<Instant>,
}

impl Pacer {
    /// Waits until another request may be made.
    pub(super) async fn turn(&self) {
        let Some(rate) = self.requests_per_second else { return };
        let at = {
            let mut next = self.next.lock().await;
            let at = (*next).max(Instant::now());
            *next = at + Duration::from_secs(1) / rate.get();
            at
        };
        tokio::time::sleep_until(at).await;
    }
}

/// For how long a registry is waited for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// Tries end so long after the first failure, while this client never had an answer of use.
    pub(super) before_anything_moved: Duration,
    /// Tries end so long after the last success, once something moved.
    pub(super) once_moving: Duration,
    /// The first pause between two tries; each further one is twice as long.
    pub(super) first_pause: Duration,
    /// No pause is longer, unless the registry asks for it.
    pub(super) longest_pause: Duration,
    /// For a connection to be made.
    pub(super) connect: Duration,
    /// For the next bytes of an exchange, in either direction.
    pub(super) idle: Duration,
    /// A blob of which fewer bytes come in so long a wait as `idle` has stopped.
    pub(super) trickle: u64,
    /// For the answer once a whole blob was sent: object stores copy it before they answer.
    pub(super) commit: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            before_anything_moved: backoff::BEFORE_ANYTHING_MOVED,
            once_moving: backoff::ONCE_MOVING,
            first_pause: backoff::FIRST_PAUSE,
            longest_pause: backoff::LONGEST_PAUSE,
            connect: Duration::from_secs(10),
            idle: Duration::from_mins(1),
            // The slowest lines that images are carried over are four times as fast.
            trickle: 16 << 10,
            commit: Duration::from_mins(5),
        }
    }
}

/// What a streamed body is at.
pub(super) struct Watch(Mutex<Stage>);

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Stage {
    /// The connection has not yet asked for the first bytes.
    Waiting,
    /// The body's source is asked for bytes: what it takes is its own affair.
    Reading,
    /// The connection was given bytes then.
    Sending(Instant),
    /// The connection was given the last bytes then.
    Sent(Instant),
}

impl Watch {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Stage::Waiting))
    }

    pub(super) fn set(&self, stage: Stage) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = stage;
    }

    pub(super) fn stage(&self) -> Stage {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until when an exchange that began at `start` may be silent.
    pub(super) fn deadline(&self, start: Instant, patience: &Patience) -> Instant {
        match self.stage() {
            Stage::Waiting => start + patience.idle,
            Stage::Reading => Instant::now() + patience.idle,
            Stage::Sending(at) => at + patience.idle,
            Stage::Sent(at) => at + patience.commit,
        }
    }
}

/// The tries of one operation.
pub(super) struct Retry {
    registry: Registry,
    tries: u32,
    /// So often an answer that tells of a failure is asked for, where the registry names no time to wait.
    most: u32,
    begun: Instant,
    failing_since: Option<Instant>,
}

impl Retry {
    pub(super) fn new(registry: Registry) -> Self {
        Self { registry, tries: 0, most: u32::MAX, begun: Instant::now(), failing_since: None }
    }

    /// The same for what there is another way to: a registry that fails at this alone is asked so often.
    pub(super) fn at_most(self, most: u32) -> Self {
        Self { most, ..self }
    }

    /// A try begins, or has come so far that its failure is one of this moment.
    pub(super) fn begin(&mut self) {
        self.begun = Instant::now();
    }

    /// The operation came further: what failed before is forgotten.
    pub(super) fn succeeded(&mut self) {
        self.tries = 0;
        self.failing_since = None;
        self.begin();
        self.registry.note_success();
    }

    /// Waits before the next try, or gives the error back if there is to be none.
    pub(super) async fn after(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        self.tries += 1;
        if !error.is_transient() {
            return Err(error);
        }
        let has_failed = matches!(error, RegistryError::Refused { .. }) && error.retry_after().is_none();
        if has_failed && self.tries >= self.most {
            return Err(error.after(self.tries));
        }
        let (traffic, patience) = (self.registry.traffic(), self.registry.patience());
        let limit =
            if self.registry.has_moved() { patience.once_moving } else { patience.before_anything_moved };
        let since = *self.failing_since.get_or_insert(self.begun);
        let left = limit.saturating_sub(since.elapsed()).min(traffic.left());
        let retry_after = error.retry_after();
        let pause = pause(patience, self.tries, retry_after);
        // A last try at the end of patience is worth making, but not before the registry wants to be asked.
        if left.is_zero() || (retry_after.is_some() && pause >= left) {
            if let Some(retry_after) = retry_after {
                self.registry.note_rest(retry_after);
            }
            return Err(error.after(self.tries));
        }
        let pause = pause.min(left);
        tracing::debug!(%error, tries = self.tries, ?pause, "trying again");
        traffic.wait(pause).await;
        Ok(())
    }
}

/// No shorter than the registry asks for.
fn pause(patience: &Patience, tries: u32, retry_after: Option<Duration>) -> Duration {
    let pause = backoff::pause(tries, patience.first_pause, patience.longest_pause);
    retry_after.map_or(pause, |asked| asked.max(pause))
}

/// RFC 9110, section 10.2.3: seconds or a date.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?;
    Some(date.timestamp().duration_since(jiff::Timestamp::now()).try_into().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use url::Url;

    use super::super::access::Access;
    use super::super::client::silent;
    use super::super::error::Asked;
    use super::*;
    use crate::reference::Host;

    #[test]
    fn a_registry_may_ask_for_a_longer_pause() {
        let patience = Patience::default();
        assert_eq!(pause(&patience, 1, Some(Duration::from_secs(7))), Duration::from_secs(7));
        assert_eq!(pause(&patience, 1, Some(Duration::from_hours(1))), Duration::from_hours(1));
        assert!(pause(&patience, 1, Some(Duration::ZERO)) >= Duration::from_millis(250));
    }

    #[tokio::test(start_paused = true)]
    async fn several_that_wait_at_once_cost_the_time_of_a_run_once() {
        let traffic = Traffic::default().waiting(Duration::from_secs(10));
        let seconds = Duration::from_secs;
        tokio::join!(traffic.wait(seconds(3)), traffic.wait(seconds(4)), async {
            tokio::time::sleep(seconds(1)).await;
            assert_eq!(traffic.left(), seconds(9));
            traffic.clone().wait(seconds(1)).await;
        });
        tokio::time::sleep(seconds(100)).await;
        assert_eq!(traffic.left(), seconds(6));
        traffic.wait(seconds(7)).await;
        assert_eq!(traffic.left(), Duration::ZERO);
    }

    /// For how long a registry is waited for that was of use, or never was, and fails from now on.
    async fn waited(traffic: Traffic, was_of_use: bool) -> Duration {
        let host: Host = "registry.example".parse().unwrap();
        let registry = Registry::with_traffic(host, Access::default(), &traffic).unwrap();
        if was_of_use {
            registry.note_success();
        }
        let (start, mut retry) = (Instant::now(), registry.retry());
        let url = Url::parse("https://registry.example/v2/").unwrap();
        let asked = Asked::pushing_to(registry.host(), "ferry");
        while retry.after(silent(&asked, &url)).await.is_ok() {}
        start.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_time_that_is_given_for_waiting_is_waited_for_whether_or_not_anything_moved_before() {
        for (given, before, after) in [
            (None, Duration::from_secs(30), Duration::from_mins(15)),
            (Some(Duration::from_hours(2)), Duration::from_hours(2), Duration::from_hours(2)),
            (Some(Duration::from_secs(5)), Duration::from_secs(5), Duration::from_secs(5)),
        ] {
            let traffic = || given.map_or_else(Traffic::default, |given| Traffic::default().waiting(given));
            assert_eq!(waited(traffic(), false).await.as_secs(), before.as_secs());
            assert_eq!(waited(traffic(), true).await.as_secs(), after.as_secs());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_that_one_operation_waited_is_not_there_for_another() {
        let (traffic, quarter) = (Traffic::default(), Duration::from_mins(15));
        for left in [quarter, quarter, Duration::ZERO] {
            assert_eq!(waited(traffic.clone(), true).await.as_secs(), left.as_secs());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn requests_are_kept_apart_where_that_is_asked_for() {
        let start = Instant::now();
        let pacer = Traffic::default().requests_per_second(NonZeroU32::new(4).unwrap()).pacer();
        for _ in 0..9 {
            pacer.turn().await;
        }
        assert_eq!(start.elapsed(), Duration::from_secs(2));
        let pacer = Traffic::default().pacer();
        for _ in 0..1000 {
            pacer.turn().await;
        }
        assert_eq!(start.elapsed(), Duration::from_secs(2));
    }

    #[test]
    fn retry_after_is_read_as_seconds_or_as_a_date() {
        let read = |text: &str| retry_after(&[(RETRY_AFTER, text.parse().unwrap())].into_iter().collect());
        assert_eq!(read("7"), Some(Duration::from_secs(7)));
        assert_eq!(read("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        assert!(read("Mon, 21 Oct 2999 07:28:00 GMT").unwrap() > Duration::from_hours(1));
        assert_eq!(read("soon"), None);
    }
}
