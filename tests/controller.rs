//! The controller on a real API server with a real controller manager. There is no kubelet: the tests
//! play it, and say themselves how pods fare.
//!
//! Each test has a namespace of its own, where a controller runs with the rights of its Role and no
//! others. `make test` brings up the cluster; without one these tests fail.

// What does not go as the harness expects ends the test, there and then.
#![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]

#[path = "controller/kubelet.rs"]
mod kubelet;
#[expect(dead_code)]
#[path = "support/program.rs"]
mod program;
#[path = "controller/world.rs"]
mod world;

#[path = "controller/failures.rs"]
mod failures;
#[path = "controller/gitops.rs"]
mod gitops;
#[path = "controller/holds.rs"]
mod holds;
#[path = "controller/journey.rs"]
mod journey;
#[path = "controller/leader.rs"]
mod leader;
#[path = "controller/outside.rs"]
mod outside;
#[path = "controller/plugin.rs"]
mod plugin;
#[path = "controller/pods.rs"]
mod pods;
#[path = "controller/rest.rs"]
mod rest;
#[path = "controller/restarts.rs"]
mod restarts;
#[path = "controller/rules.rs"]
mod rules;
#[path = "controller/starts.rs"]
mod starts;
#[path = "controller/supersedes.rs"]
mod supersedes;
