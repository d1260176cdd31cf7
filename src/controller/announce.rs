//! Events, on transitions only: the same words as the conditions.

use kube::runtime::events::{Event, EventType};

use super::redact::sentence;
use crate::api::{Condition, Status, condition};
use crate::reason::Reason;
use crate::worker::contract::cut;

/// The API server refuses a longer note.
const NOTE_LIMIT: usize = 1000;

/// What the change from `old` to `new` is worth telling.
pub(super) fn transition(old: &Status, new: &Status) -> Option<Event> {
    let of = |status: &Status, type_: &str| -> Option<Condition> {
        status.conditions.iter().find(|condition| condition.type_ == type_).cloned()
    };
    // A change that says more comes first.
    for type_ in [condition::STALLED, condition::READY, condition::RECONCILING] {
        let (before, after) = (of(old, type_), of(new, type_));
        let Some(after) = after else { continue };
        let is_same = before
            .as_ref()
            .is_some_and(|before| (&before.status, &before.reason) == (&after.status, &after.reason));
        if is_same {
            continue;
        }
        let is_wanted = after.reason == Reason::Suspended.as_str();
        let is_bad = type_ == condition::STALLED
            || (type_ == condition::READY && after.status == "False" && !is_wanted);
        return Some(event(
            if is_bad { EventType::Warning } else { EventType::Normal },
            &after.reason,
            &after.message,
        ));
    }
    None
}

/// That the worker does not tell how far it is.
pub(super) fn progress_unknown(why: &str) -> Event {
    let note = format!("the worker's progress is unknown, its work is not affected: {why}");
    event(EventType::Normal, "ProgressUnknown", &sentence(&note))
}

fn event(type_: EventType, reason: &str, note: &str) -> Event {
    Event {
        type_,
        reason: reason.into(),
        note: Some(cut(note, NOTE_LIMIT).into()),
        action: "Reconcile".into(),
        secondary: None,
    }
}
