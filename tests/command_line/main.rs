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

#[path = "../support/azurite.rs"]
mod azurite;
mod front;
mod gate;
#[path = "../support/google.rs"]
mod google;
mod pod;
#[path = "../support/s3.rs"]
mod s3;
#[path = "../support/s3s.rs"]
mod s3s;
mod token_service;

mod access;
mod allow_missing;
mod already_transferred;
mod artifacts;
mod bases;
mod broken_uploads;
mod carrying;
mod cloud_identities;
mod costs;
mod counted;
mod credential_helpers;
mod dry_runs;
mod failing_builds;
mod failing_pushes;
mod far_side;
mod foreign_layers;
mod hosts;
mod interruption;
mod kills;
mod kinds;
mod last_steps;
mod leftovers;
mod library;
mod mirrors;
mod missing_base;
mod names;
mod netrc;
mod objects;
mod odd_registries;
mod other_clouds;
mod payload_file;
mod planning;
mod platforms;
mod proxies;
mod rate_limits;
mod referrer_lists;
mod referrers;
mod right_to_push;
mod scratch;
mod shared_blobs;
mod side_by_side;
mod stores;
mod terminal;
mod worker;
mod worker_fields;
mod worker_objects;
mod worker_proxies;
mod worker_secrets;
mod worker_traffic;
