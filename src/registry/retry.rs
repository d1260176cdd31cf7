//! Patience: what is waited for, and what is tried again for how long.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use reqwest::header::{HeaderMap, RETRY_AFTER};
use tokio::time::Instant;

use super::client::Registry;
use super::error::RegistryError;

/// For how long a registry is waited for.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Tries end so long after the first failure, while this client never had an answer of use.
    pub before_anything_moved: Duration,
    /// Tries end so long after the last success, once something moved.
    pub once_moving: Duration,
    /// The first pause between two tries; each further one is twice as long.
    pub first_pause: Duration,
    /// No pause is longer, unless the registry asks for it.
    pub longest_pause: Duration,
    /// What a registry asks for in `Retry-After` is honoured up to here.
    pub longest_retry_after: Duration,
    /// For a connection to be made.
    pub connect: Duration,
    /// For the next bytes of an exchange, in either direction.
    pub idle: Duration,
    /// For the answer once a whole blob was sent: object stores copy it before they answer.
    pub commit: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            before_anything_moved: Duration::from_secs(30),
            once_moving: Duration::from_mins(15),
            first_pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(20),
            longest_retry_after: Duration::from_mins(2),
            connect: Duration::from_secs(10),
            idle: Duration::from_mins(1),
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
    begun: Instant,
    failing_since: Option<Instant>,
}

impl Retry {
    pub(super) fn new(registry: Registry) -> Self {
        Self { registry, tries: 0, begun: Instant::now(), failing_since: None }
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
        let patience = self.registry.patience();
        let limit =
            if self.registry.has_moved() { patience.once_moving } else { patience.before_anything_moved };
        let since = *self.failing_since.get_or_insert(self.begun);
        let left = limit.saturating_sub(since.elapsed());
        let retry_after = error.retry_after();
        let pause = pause(patience, self.tries, retry_after);
        // A last try at the end of patience is worth making, but not before the registry wants to be asked.
        if left.is_zero() || (retry_after.is_some() && pause >= left) {
            return Err(error.after(self.tries));
        }
        let pause = pause.min(left);
        tracing::debug!(%error, tries = self.tries, ?pause, "trying again");
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

/// Twice as long after each try, less a random part up to a half so that many do not come back at once.
fn pause(patience: &Patience, tries: u32, retry_after: Option<Duration>) -> Duration {
    let doubled = patience.first_pause.saturating_mul(1 << tries.saturating_sub(1).min(16));
    let backoff = doubled.min(patience.longest_pause).mul_f64(0.5 + fastrand::f64() / 2.0);
    match retry_after {
        Some(asked) => asked.min(patience.longest_retry_after).max(backoff),
        None => backoff,
    }
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
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_are_never_all_alike() {
        let patience = Patience::default();
        for (tries, least, most) in [(1, 250, 500), (2, 500, 1000), (5, 4000, 8000), (100, 10_000, 20_000)] {
            for _ in 0..100 {
                let pause = pause(&patience, tries, None).as_millis();
                assert!((least..=most).contains(&pause), "{tries}: {pause}");
            }
        }
    }

    #[test]
    fn a_registry_may_ask_for_a_longer_pause_up_to_a_limit() {
        let patience = Patience::default();
        assert_eq!(pause(&patience, 1, Some(Duration::from_secs(7))), Duration::from_secs(7));
        assert_eq!(pause(&patience, 1, Some(Duration::from_hours(1))), Duration::from_mins(2));
        assert!(pause(&patience, 1, Some(Duration::ZERO)) >= Duration::from_millis(250));
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
