//! The Helm chart: what it renders, by Helm; whether Kubernetes and Prometheus would take it, by kubeconform and promtool.

// Everything here is test, though Clippy knows only the functions with #[test].
#![allow(clippy::unwrap_used)]

#[expect(dead_code)]
#[path = "../support/program.rs"]
mod program;

mod monitoring;
mod network;
mod rbac;
mod rendering;
mod values;
