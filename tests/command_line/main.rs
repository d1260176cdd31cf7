//! The command line against real registries.
//!
//! A test's name is the sentence that it proves. Each starts the registries that it needs and ends them; the programs
//! come from `tests/tools/install`, and `make test` puts them on PATH.

// Everything here is test, though Clippy knows only the functions with #[test].
#![allow(clippy::unwrap_used)]

/// Proves each of the sentences with each registry.
macro_rules! with_each_registry {
    ($($name:ident),+ $(,)?) => {
        mod with_distribution_3 {
            $(#[test] fn $name() { super::$name(crate::registry::Software::Distribution3); })+
        }
        mod with_docker_registry_2 {
            $(#[test] fn $name() { super::$name(crate::registry::Software::Distribution2); })+
        }
    };
}

mod gate;
mod image;
mod program;
mod registry;
mod token_service;

mod access;
mod already_transferred;
mod carrying;
mod failing_builds;
mod failing_pushes;
mod far_side;
mod hosts;
mod interruption;
mod kinds;
mod missing_base;
mod names;
mod payload_file;
