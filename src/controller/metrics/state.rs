//! How a resource is, in one word. Pure.

use crate::api::{Condition, Status, condition};
use crate::reason::{Reason, parse};

/// How a resource is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum State {
    /// Nobody has looked at it yet.
    #[default]
    Unseen,
    /// A run is on its way, and nothing has failed.
    Progressing,
    /// What it needs is not there yet: a payload that has not arrived, or the end of an older run.
    Waiting,
    /// Something failed, and it is tried again.
    Failing,
    /// A person wants no run for now.
    Suspended,
    /// It will not succeed until a person changes something.
    Stalled,
    /// It is done.
    Ready,
}

/// How a resource was at a look.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    pub state: State,
    /// When it last changed or moved a byte, in seconds since 1970.
    pub since: Option<i64>,
}

impl State {
    pub(super) const ALL: [Self; 7] = [
        Self::Unseen,
        Self::Progressing,
        Self::Waiting,
        Self::Failing,
        Self::Suspended,
        Self::Stalled,
        Self::Ready,
    ];

    /// The value of the label.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Unseen => "unseen",
            Self::Progressing => "progressing",
            Self::Waiting => "waiting",
            Self::Failing => "failing",
            Self::Suspended => "suspended",
            Self::Stalled => "stalled",
            Self::Ready => "ready",
        }
    }

    /// Whether a run is to end yet.
    pub(super) fn is_unfinished(self) -> bool {
        matches!(self, Self::Progressing | Self::Waiting | Self::Failing)
    }
}

impl Seen {
    /// How the resource with this status is.
    pub(super) fn of(status: &Status) -> Self {
        let ready = find(status, condition::READY);
        let changed = ready.map(|ready| ready.last_transition_time.0.as_second());
        let moved = status.progress.as_ref().map(|progress| progress.update_time.0.as_second());
        Self { state: state(status, ready), since: changed.max(moved) }
    }
}

fn find<'a>(status: &'a Status, type_: &str) -> Option<&'a Condition> {
    status.conditions.iter().find(|condition| condition.type_ == type_)
}

fn state(status: &Status, ready: Option<&Condition>) -> State {
    let Some(ready) = ready else { return State::Unseen };
    if find(status, condition::STALLED).is_some() {
        return State::Stalled;
    }
    match (ready.status.as_str(), parse(&ready.reason)) {
        ("True", _) => State::Ready,
        ("False", Some(Reason::Suspended)) => State::Suspended,
        ("False", Some(Reason::SourceNotFound | Reason::SourceIncomplete | Reason::Superseded)) => {
            State::Waiting
        }
        ("False", _) => State::Failing,
        _ => State::Progressing,
    }
}
