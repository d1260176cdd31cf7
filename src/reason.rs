//! Why something is as it is: the reasons of conditions, failures and exit codes.

use std::error::Error;
use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

/// A machine-readable reason, in the `CamelCase` of Kubernetes conditions.
///
/// The words are part of the contract with users: none is renamed within an API version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[allow(missing_docs)] // each name says what it means; docs/troubleshooting.md tells what to do about it
pub enum Reason {
    Succeeded,
    AlreadyPresent,
    Progressing,
    ProgressingWithRetry,
    Suspended,
    Superseded,
    InvalidSpec,
    ConfigMapNotFound,
    SecretNotFound,
    AuthenticationFailed,
    AccessDenied,
    SourceNotFound,
    SourceIncomplete,
    ImageNotFound,
    RegistryUnavailable,
    RateLimited,
    DigestMismatch,
    PayloadCorrupt,
    UnsupportedFormatVersion,
    MissingBase,
    WaitingForBase,
    PartiallyImported,
    UnsupportedImage,
    RepositoryNotFound,
    TagConflict,
    OutputConflict,
    StorageNotFound,
    StorageBusy,
    StorageFull,
    StorageReadOnly,
    StorageAccessDenied,
    WorkerUnschedulable,
    WorkerCreateFailed,
    WorkerImagePullFailed,
    WorkerOutOfMemory,
    WorkerEvicted,
    WorkerLost,
    WorkerFailed,
    BackoffLimitExceeded,
    DeadlineExceeded,
    ResultLost,
}

/// What follows when a run ended for a reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// It will not succeed until a person changes something.
    Final,
    /// The pod ends, and the controller paces the next attempt.
    Wait,
    /// The Job's own retries, within its backoff limit.
    Again,
    /// Two attempts: more can lock an account.
    Twice,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 41] = [
        Self::Succeeded,
        Self::AlreadyPresent,
        Self::Progressing,
        Self::ProgressingWithRetry,
        Self::Suspended,
        Self::Superseded,
        Self::InvalidSpec,
        Self::ConfigMapNotFound,
        Self::SecretNotFound,
        Self::AuthenticationFailed,
        Self::AccessDenied,
        Self::SourceNotFound,
        Self::SourceIncomplete,
        Self::ImageNotFound,
        Self::RegistryUnavailable,
        Self::RateLimited,
        Self::DigestMismatch,
        Self::PayloadCorrupt,
        Self::UnsupportedFormatVersion,
        Self::MissingBase,
        Self::WaitingForBase,
        Self::PartiallyImported,
        Self::UnsupportedImage,
        Self::RepositoryNotFound,
        Self::TagConflict,
        Self::OutputConflict,
        Self::StorageNotFound,
        Self::StorageBusy,
        Self::StorageFull,
        Self::StorageReadOnly,
        Self::StorageAccessDenied,
        Self::WorkerUnschedulable,
        Self::WorkerCreateFailed,
        Self::WorkerImagePullFailed,
        Self::WorkerOutOfMemory,
        Self::WorkerEvicted,
        Self::WorkerLost,
        Self::WorkerFailed,
        Self::BackoffLimitExceeded,
        Self::DeadlineExceeded,
        Self::ResultLost,
    ];

    /// The reason as conditions spell it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "Succeeded",
            Self::AlreadyPresent => "AlreadyPresent",
            Self::Progressing => "Progressing",
            Self::ProgressingWithRetry => "ProgressingWithRetry",
            Self::Suspended => "Suspended",
            Self::Superseded => "Superseded",
            Self::InvalidSpec => "InvalidSpec",
            Self::ConfigMapNotFound => "ConfigMapNotFound",
            Self::SecretNotFound => "SecretNotFound",
            Self::AuthenticationFailed => "AuthenticationFailed",
            Self::AccessDenied => "AccessDenied",
            Self::SourceNotFound => "SourceNotFound",
            Self::SourceIncomplete => "SourceIncomplete",
            Self::ImageNotFound => "ImageNotFound",
            Self::RegistryUnavailable => "RegistryUnavailable",
            Self::RateLimited => "RateLimited",
            Self::DigestMismatch => "DigestMismatch",
            Self::PayloadCorrupt => "PayloadCorrupt",
            Self::UnsupportedFormatVersion => "UnsupportedFormatVersion",
            Self::MissingBase => "MissingBase",
            Self::WaitingForBase => "WaitingForBase",
            Self::PartiallyImported => "PartiallyImported",
            Self::UnsupportedImage => "UnsupportedImage",
            Self::RepositoryNotFound => "RepositoryNotFound",
            Self::TagConflict => "TagConflict",
            Self::OutputConflict => "OutputConflict",
            Self::StorageNotFound => "StorageNotFound",
            Self::StorageBusy => "StorageBusy",
            Self::StorageFull => "StorageFull",
            Self::StorageReadOnly => "StorageReadOnly",
            Self::StorageAccessDenied => "StorageAccessDenied",
            Self::WorkerUnschedulable => "WorkerUnschedulable",
            Self::WorkerCreateFailed => "WorkerCreateFailed",
            Self::WorkerImagePullFailed => "WorkerImagePullFailed",
            Self::WorkerOutOfMemory => "WorkerOutOfMemory",
            Self::WorkerEvicted => "WorkerEvicted",
            Self::WorkerLost => "WorkerLost",
            Self::WorkerFailed => "WorkerFailed",
            Self::BackoffLimitExceeded => "BackoffLimitExceeded",
            Self::DeadlineExceeded => "DeadlineExceeded",
            Self::ResultLost => "ResultLost",
        }
    }

    /// Whether a run that ended for this reason did what was asked for.
    #[must_use]
    pub fn is_success(self) -> bool {
        matches!(self, Self::Succeeded | Self::AlreadyPresent)
    }

    /// What follows when a run ended for this reason.
    #[must_use]
    pub fn class(self) -> Class {
        match self {
            Self::InvalidSpec
            | Self::DigestMismatch
            | Self::PayloadCorrupt
            | Self::UnsupportedFormatVersion
            | Self::MissingBase
            | Self::PartiallyImported
            | Self::UnsupportedImage
            | Self::RepositoryNotFound
            | Self::TagConflict
            | Self::OutputConflict
            | Self::StorageReadOnly
            | Self::StorageAccessDenied
            | Self::StorageFull
            | Self::AccessDenied
            | Self::BackoffLimitExceeded
            | Self::DeadlineExceeded => Class::Final,
            Self::ConfigMapNotFound
            | Self::SecretNotFound
            | Self::SourceNotFound
            | Self::SourceIncomplete
            | Self::WaitingForBase
            | Self::RegistryUnavailable
            | Self::RateLimited => Class::Wait,
            Self::AuthenticationFailed => Class::Twice,
            Self::Succeeded
            | Self::AlreadyPresent
            | Self::Progressing
            | Self::ProgressingWithRetry
            | Self::Suspended
            | Self::Superseded
            | Self::ImageNotFound
            | Self::StorageNotFound
            | Self::StorageBusy
            | Self::WorkerUnschedulable
            | Self::WorkerCreateFailed
            | Self::WorkerImagePullFailed
            | Self::WorkerOutOfMemory
            | Self::WorkerEvicted
            | Self::WorkerLost
            | Self::WorkerFailed
            | Self::ResultLost => Class::Again,
        }
    }

    /// The exit code with which a worker that ended for this reason leaves its pod.
    ///
    /// The Job's pod failure policy reads it: 64 to 73 and 77 end the Job, 76 too (the controller
    /// paces what follows), the rest counts against the Job's backoff limit.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Succeeded | Self::AlreadyPresent => 0,
            Self::InvalidSpec | Self::UnsupportedImage => 64,
            Self::PayloadCorrupt | Self::DigestMismatch => 65,
            Self::UnsupportedFormatVersion => 66,
            Self::MissingBase | Self::PartiallyImported => 67,
            Self::TagConflict | Self::OutputConflict => 69,
            Self::StorageFull | Self::StorageReadOnly | Self::StorageAccessDenied => 73,
            Self::AccessDenied | Self::RepositoryNotFound | Self::AuthenticationFailed => 77,
            Self::ConfigMapNotFound
            | Self::SecretNotFound
            | Self::SourceNotFound
            | Self::SourceIncomplete
            | Self::WaitingForBase
            | Self::RegistryUnavailable
            | Self::RateLimited => 76,
            _ => 75,
        }
    }

    /// The reason that an exit code alone can tell, when nothing else of a worker is left.
    #[must_use]
    pub fn from_exit_code(code: i32) -> Self {
        match code {
            64 => Self::InvalidSpec,
            65 => Self::PayloadCorrupt,
            66 => Self::UnsupportedFormatVersion,
            67 => Self::MissingBase,
            69 => Self::OutputConflict,
            73 => Self::StorageAccessDenied,
            76 => Self::RegistryUnavailable,
            77 => Self::AccessDenied,
            _ => Self::WorkerFailed,
        }
    }
}

/// One thing that went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The image or file that it is about.
    pub item: String,
    /// Why.
    pub reason: Reason,
    /// The same in words: what was being done, what came back, what to do.
    pub message: String,
    /// What lies behind it, from the nearest cause to the first, for whoever looks closer.
    #[serde(skip)]
    pub causes: Vec<String>,
}

impl Failure {
    /// A failure of `item`.
    pub fn new(item: impl Into<String>, reason: Reason, message: impl Into<String>) -> Self {
        Self { item: item.into(), reason, message: message.into(), causes: Vec::new() }
    }

    /// The same, which `error` led to.
    #[must_use]
    pub fn caused_by(self, error: &(dyn Error + 'static)) -> Self {
        Self { causes: causes(error), ..self }
    }
}

/// What failures say, a line each.
#[must_use]
pub fn messages(failures: &[Failure]) -> String {
    failures.iter().map(|failure| failure.message.as_str()).collect::<Vec<_>>().join("\n")
}

/// What lies behind an error, without what a text before it says already.
#[must_use]
pub fn causes(error: &(dyn Error + 'static)) -> Vec<String> {
    let mut said = error.to_string();
    let mut causes = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if !said.ends_with(&text) {
            causes.push(text.clone());
        }
        said = text;
        next = cause.source();
    }
    causes
}

/// The reason that is spelled as `text`, if this version knows it.
#[must_use]
pub fn parse(text: &str) -> Option<Reason> {
    Reason::ALL.into_iter().find(|reason| reason.as_str() == text)
}

/// The one reason for several failures: one that may pass if there is any, else the most frequent.
///
/// Of nothing it is [`Reason::WorkerFailed`].
#[must_use]
pub fn of_all(failures: &[Failure]) -> Reason {
    let count = |reason: Reason| failures.iter().filter(|failure| failure.reason == reason).count();
    let rank = |reason: Reason| match reason.class() {
        Class::Wait => 3,
        Class::Again => 2,
        Class::Twice => 1,
        Class::Final => 0,
    };
    // Of equals the first in the list: `max_by_key` would take the last.
    let reasons = failures.iter().rev().map(|failure| failure.reason);
    reasons.max_by_key(|reason| (rank(*reason), count(*reason))).unwrap_or(Reason::WorkerFailed)
}

/// An error that knows its reason and must pass through an [`io::Error`].
#[derive(Debug)]
pub struct Told {
    reason: Reason,
    error: Box<dyn Error + Send + Sync>,
}

impl Told {
    /// `error`, which happened for `reason`, as an [`io::Error`].
    pub fn io(reason: Reason, error: impl Into<Box<dyn Error + Send + Sync>>) -> io::Error {
        io::Error::other(Self { reason, error: error.into() })
    }

    /// Whether one passed through `error`.
    #[must_use]
    pub fn is_in(error: &io::Error) -> bool {
        error.get_ref().and_then(|error| error.downcast_ref::<Self>()).is_some()
    }

    /// What passed through `error`, if it is of that type.
    #[must_use]
    pub fn find<E: Error + 'static>(error: &io::Error) -> Option<&E> {
        error.get_ref()?.downcast_ref::<Self>()?.error.downcast_ref()
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl Error for Told {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.error.source()
    }
}

impl From<&io::Error> for Reason {
    /// Why bytes could not be read or written.
    fn from(error: &io::Error) -> Self {
        if let Some(told) = error.get_ref().and_then(|error| error.downcast_ref::<Told>()) {
            return told.reason;
        }
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::StorageFull,
            io::ErrorKind::ReadOnlyFilesystem => Self::StorageReadOnly,
            io::ErrorKind::PermissionDenied => Self::StorageAccessDenied,
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory => {
                Self::StorageNotFound
            }
            _ => Self::WorkerFailed,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_spelled_the_same_in_a_condition_and_in_json() {
        for reason in [Reason::Succeeded, Reason::StorageAccessDenied, Reason::ResultLost] {
            assert_eq!(serde_json::to_string(&reason).unwrap(), format!("{:?}", reason.as_str()));
        }
    }

    #[test]
    fn a_success_leaves_with_0_and_nothing_else_does() {
        for reason in Reason::ALL {
            assert_eq!(reason.exit_code() == 0, reason.is_success(), "{reason}");
        }
    }

    #[test]
    fn several_failures_are_one_that_may_pass_or_else_the_most_frequent() {
        let failure = |reason| Failure::new("a", reason, "b");
        let all = |reasons: &[Reason]| of_all(&reasons.iter().copied().map(failure).collect::<Vec<_>>());
        assert_eq!(all(&[Reason::AccessDenied, Reason::RateLimited]), Reason::RateLimited);
        assert_eq!(all(&[Reason::AccessDenied, Reason::ImageNotFound]), Reason::ImageNotFound);
        let denied_twice = [Reason::UnsupportedImage, Reason::AccessDenied, Reason::AccessDenied];
        assert_eq!(all(&denied_twice), Reason::AccessDenied);
        assert_eq!(all(&[Reason::MissingBase, Reason::AccessDenied]), Reason::MissingBase);
    }

    #[test]
    fn only_reasons_that_a_retry_may_mend_leave_with_75() {
        assert_eq!(Reason::ImageNotFound.exit_code(), 75);
        assert_eq!(Reason::RegistryUnavailable.exit_code(), 76);
        for reason in [Reason::InvalidSpec, Reason::PayloadCorrupt, Reason::MissingBase, Reason::AccessDenied]
        {
            assert_eq!(reason.class(), Class::Final);
            assert!(!(75..=76).contains(&reason.exit_code()));
        }
    }
}
