//! The command line against real registries.
//!
//! A test's name is the sentence that it proves. Each starts the registries that it needs and ends them; the programs
//! come from `tests/tools/install`, and `make test` puts them on PATH.

// Everything here is test, though Clippy knows only the functions with #[test].
#![allow(clippy::unwrap_used)]

#[path = "../support/image.rs"]
mod image;
#[path = "../support/program.rs"]
mod program;
#[path = "../support/proxy.rs"]
mod proxy;
#[macro_use]
#[path = "../support/registry.rs"]
mod registry;

mod gate;
mod token_service;

mod access;
mod already_transferred;
mod broken_uploads;
mod carrying;
mod credential_helpers;
mod failing_builds;
mod failing_pushes;
mod far_side;
mod hosts;
mod interruption;
mod kinds;
mod library;
mod missing_base;
mod names;
mod odd_registries;
mod payload_file;
mod proxies;
mod rate_limits;
mod terminal;
mod worker;
