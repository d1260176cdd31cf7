//! Who was looked at, and how lately.
//!
//! Much happens to a resource at once: its status is written, its Job is made, the Job's pod, the Job's status. One look a
//! little later sees all of it; and a resource that waits for its first look need not wait for the fifth of another.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Between two looks at one resource.
const APART: Duration = Duration::from_millis(250);
/// The same while other resources have their first look.
const APART_IN_A_RUSH: Duration = Duration::from_secs(5);
/// After a first look another one is likely for so long.
const RUSH: Duration = Duration::from_millis(500);

/// When each resource was looked at last, by uid.
#[derive(Debug, Default)]
pub(super) struct Recent(Mutex<Looks>);

#[derive(Debug, Default)]
struct Looks {
    last: HashMap<String, Instant>,
    last_of_a_new_one: Option<Instant>,
}

impl Recent {
    /// A look at the resource `uid` has ended.
    pub(super) fn looked(&self, uid: &str) {
        let now = Instant::now();
        let mut looks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if looks.last.insert(uid.to_owned(), now).is_none() {
            looks.last_of_a_new_one = Some(now);
        }
    }

    /// For how long the next look at the resource `uid` should wait, or be asked for again.
    pub(super) fn rest(&self, uid: &str) -> Option<Duration> {
        let now = Instant::now();
        let looks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_rush = looks.last_of_a_new_one.is_some_and(|last| now < last + RUSH);
        let apart = if is_rush { APART_IN_A_RUSH } else { APART };
        let left = (*looks.last.get(uid)? + apart).saturating_duration_since(now);
        // The rush may be over sooner.
        (!left.is_zero()).then_some(left.min(APART))
    }

    /// The resource `uid` is gone.
    pub(super) fn forget(&self, uid: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).last.remove(uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_millis(100);

    #[tokio::test(start_paused = true)]
    async fn a_resource_that_was_looked_at_rests_for_a_moment_and_a_new_one_does_not() {
        let recent = Recent::default();
        recent.looked("a");
        tokio::time::advance(RUSH).await;
        assert_eq!(recent.rest("a"), None);
        recent.looked("a");
        tokio::time::advance(APART / 2).await;
        assert_eq!(recent.rest("a"), Some(APART / 2));
        assert_eq!(recent.rest("new"), None);
        tokio::time::advance(APART / 2).await;
        assert_eq!(recent.rest("a"), None);
        recent.looked("a");
        recent.forget("a");
        assert_eq!(recent.rest("a"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn while_others_have_their_first_look_the_next_one_of_a_resource_waits_but_not_for_ever() {
        let recent = Recent::default();
        let begin = Instant::now();
        recent.looked("a");
        for new in 0.. {
            tokio::time::advance(PAUSE).await;
            recent.looked(&new.to_string());
            if recent.rest("a").is_none() {
                break;
            }
        }
        assert_eq!(begin.elapsed(), APART_IN_A_RUSH);
    }
}
