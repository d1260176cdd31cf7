//! The worker: one attempt of a run, in a pod of its own, without access to the Kubernetes API.

pub mod contract;
