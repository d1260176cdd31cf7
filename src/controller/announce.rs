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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A status with these conditions, `Type=Status/Reason/message`.
    fn status(conditions: &[&str]) -> Status {
        let condition = |text: &&str| {
            let (type_, rest) = text.split_once('=').unwrap();
            let [status, reason, message] = rest.splitn(3, '/').collect::<Vec<_>>()[..] else {
                panic!("{text}")
            };
            json!({
                "type": type_, "status": status, "reason": reason, "message": message,
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            })
        };
        let conditions: Vec<_> = conditions.iter().map(condition).collect();
        serde_json::from_value(json!({ "conditions": conditions })).unwrap()
    }

    #[test]
    fn only_a_change_of_a_conditions_status_or_reason_is_told_once_and_what_says_most() {
        const WORKING: &[&str] = &["Ready=Unknown/Progressing/a", "Reconciling=True/Progressing/a"];
        const SAYS_MORE: &[&str] = &["Ready=Unknown/Progressing/b", "Reconciling=True/Progressing/b"];
        const RETRYING: &[&str] = &["Ready=False/RateLimited/c", "Reconciling=True/RateLimited/d"];
        const AGAIN: &[&str] = &["Ready=False/RateLimited/c", "Reconciling=True/ProgressingWithRetry/e"];
        const STALLED: &[&str] = &["Ready=False/RateLimited/c", "Stalled=True/DeadlineExceeded/f"];
        const SUSPENDED: &[&str] = &["Ready=False/Suspended/g"];
        const DONE: &[&str] = &["Ready=True/Succeeded/h", "PayloadAvailable=True/Succeeded/i"];
        for (old, new, told) in [
            (&[][..], WORKING, Some(("Normal", "Progressing", "a"))),
            (WORKING, WORKING, None),
            (WORKING, SAYS_MORE, None),
            (WORKING, RETRYING, Some(("Warning", "RateLimited", "c"))),
            (RETRYING, AGAIN, Some(("Normal", "ProgressingWithRetry", "e"))),
            (AGAIN, STALLED, Some(("Warning", "DeadlineExceeded", "f"))),
            (STALLED, STALLED, None),
            (STALLED, WORKING, Some(("Normal", "Progressing", "a"))),
            (WORKING, SUSPENDED, Some(("Normal", "Suspended", "g"))),
            (SUSPENDED, AGAIN, Some(("Warning", "RateLimited", "c"))),
            (AGAIN, DONE, Some(("Normal", "Succeeded", "h"))),
            (DONE, DONE, None),
        ] {
            let event = transition(&status(old), &status(new));
            let event = event.map(|event| (format!("{:?}", event.type_), event.reason, event.note.unwrap()));
            let told =
                told.map(|(type_, reason, note)| (type_.to_owned(), reason.to_owned(), note.to_owned()));
            assert_eq!(event, told, "{old:?} {new:?}");
        }
    }

    #[test]
    fn a_note_is_cut_to_what_the_api_server_takes() {
        let long = format!("Ready=False/WorkerFailed/{}", "é".repeat(NOTE_LIMIT));
        let note = transition(&Status::default(), &status(&[&long])).unwrap().note.unwrap();
        assert!(note.len() <= NOTE_LIMIT, "{}", note.len());
    }
}
