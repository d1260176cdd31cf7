//! What `kubectl charon` does: carries payloads out of claims and into them, and shows all runs.
//!
//! Only a pod reaches a claim. `session` starts one of the worker's kind and runs the program in it (`far`), which speaks with
//! this one (`near`) over the streams of an exec in the words of `wire`. Both sides hash every byte, what an earlier
//! attempt left included.

mod access;
mod carry;
mod far;
mod near;
mod pod;
mod resource;
mod runs;
mod session;
mod status;
#[cfg(test)]
mod tests;
mod wire;

pub use access::Cluster;
pub use carry::{Get, Put, get, put};
pub use far::{FarError, serve, wait_for_transfers};
pub use resource::{BuildName, BuildNameError};
pub use runs::{Runs, Table};
pub use status::{Lookout, StatusArgs};
pub use wire::TRY_AGAIN;

/// Why a command of the plugin did not do what it was asked. Each tells what to do.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// It was tried, and it failed.
    #[error("{0}")]
    Failed(String),
    /// It was told to stop.
    #[error("interrupted")]
    Cancelled,
}

impl PluginError {
    fn new(message: impl Into<String>) -> Self {
        Self::Failed(message.into())
    }

    /// What the API server, or the way to it, said while we were `doing` something.
    fn api(doing: &str, error: &kube::Error) -> Self {
        let hint = match error {
            kube::Error::Api(status) if status.code == 403 && status.message.contains("cannot") => {
                "; docs/kubectl-charon.md lists the rights that this takes: ask for them, or see that --context is right"
            }
            kube::Error::Api(status) if status.code == 401 => {
                "; sign in again, or see that --context is right"
            }
            // It has no object's name: it is the kind that is not there.
            kube::Error::Api(status)
                if status.code == 404 && status.details.as_ref().is_none_or(|it| it.name.is_empty()) =>
            {
                "; is Charon installed in this cluster, and --context right?"
            }
            _ => "",
        };
        Self::Failed(format!("cannot {doing}: {}{hint}", told(error)))
    }
}

/// What the API server, or the way to it, said.
fn told(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        error => chain(error),
    }
}

/// An error with what lies behind it.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    std::iter::once(error.to_string()).chain(crate::reason::causes(error)).collect::<Vec<_>>().join(": ")
}
