//! What the command line does, as two functions: [`make_payload`] and [`push_payload`].
//!
//! The fields of [`MakePayload`] and [`PushPayload`] are the options of the commands. Each function
//! tells how far it is through a [`Progress`](crate::progress::Progress) that anybody may read meanwhile, and stops when its
//! token is cancelled. Who signs in is said by [`Credentials::password`](crate::registry::Credentials::password), or by
//! Docker's configuration. From one registry to another, `examples/carry.rs`:
//!
//! ```no_run
#![doc = include_str!("../examples/carry.rs")]
//! ```

mod access;
mod make_payload;
mod push_payload;

pub use access::RegistryOptions;
pub use make_payload::{MakePayload, make_payload, make_payload_to, plan_payload, plan_payload_stream};
pub use push_payload::{PushPayload, plan_push, push_payload, push_payload_from};
pub(crate) use push_payload::{named, plan_source, push_source};

use tokio_util::sync::CancellationToken;

use crate::build::{BaseError, BuildError};
use crate::import::ImportError;
use crate::reason::{Failure, Reason};
use crate::reference::ReferenceError;
use crate::registry::{DockerConfigError, RegistryError};
use crate::storage::StorageError;

/// Why a payload was not made or not pushed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The options do not fit together.
    #[error("{0}")]
    Usage(String),
    /// A name is no image reference, or a host none.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// Docker's configuration has no credentials that can be used.
    #[error(transparent)]
    DockerConfig(#[from] DockerConfigError),
    /// A client of a registry cannot be made.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// An earlier payload cannot be built upon.
    #[error(transparent)]
    Base(#[from] BaseError),
    /// The payload was not built.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The payload file cannot be read.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The payload was not pushed.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// The token was cancelled.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// Why, in one word.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Usage(_) | Self::Reference(_) | Self::DockerConfig(_) => Reason::InvalidSpec,
            Self::Registry(error) => error.reason(),
            Self::Base(error) => error.reason(),
            Self::Build(error) => error.reason(),
            Self::Storage(error) => error.reason(),
            Self::Import(error) => error.reason(),
            Self::Cancelled => Reason::WorkerFailed,
        }
    }

    /// What failed, image by image, where it can be told.
    #[must_use]
    pub fn failures(&self) -> &[Failure] {
        match self {
            Self::Build(error) => error.failures(),
            Self::Import(error) => error.failures(),
            _ => &[],
        }
    }
}

/// Does the work until it is done or the token is cancelled.
async fn unless_cancelled<T, E: Into<Error>>(
    cancel: &CancellationToken,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, Error> {
    match cancel.run_until_cancelled(work).await {
        Some(result) => result.map_err(Into::into),
        None => Err(Error::Cancelled),
    }
}
