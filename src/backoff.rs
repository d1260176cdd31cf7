//! How long a server that fails in passing is tried again, and at which pauses.

use std::time::Duration;

/// Tries end so long after the first failure, while the server never had an answer of use.
pub(crate) const BEFORE_ANYTHING_MOVED: Duration = Duration::from_secs(30);
/// Tries end so long after the first failure, once something moved.
pub(crate) const ONCE_MOVING: Duration = Duration::from_mins(15);
/// The first pause between two tries; each further one is twice as long.
pub(crate) const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// No pause is longer, unless the server asks for it.
pub(crate) const LONGEST_PAUSE: Duration = Duration::from_secs(20);

/// The pause after so many tries: twice as long after each, less a random part up to a half so that many do not come back
/// at once.
pub(crate) fn pause(tries: u32, first: Duration, longest: Duration) -> Duration {
    let doubled = first.saturating_mul(1 << tries.saturating_sub(1).min(16));
    doubled.min(longest).mul_f64(0.5 + fastrand::f64() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_are_never_all_alike() {
        for (tries, least, most) in [(1, 250, 500), (2, 500, 1000), (5, 4000, 8000), (100, 10_000, 20_000)] {
            for _ in 0..100 {
                let pause = pause(tries, FIRST_PAUSE, LONGEST_PAUSE).as_millis();
                assert!((least..=most).contains(&pause), "{tries}: {pause}");
            }
        }
    }
}
