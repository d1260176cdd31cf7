//! charon beside docker-charon 0.4.3 itself, as PyPI has it, against real registries.
//!
//! A test's name is the sentence that it proves. The programs come from `tests/tools/install`, and `make test` puts
//! them on PATH. What the two do with each argument is the table in docs/docker-charon.md: `UPDATE_DOCS=1` writes it.

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

#[allow(dead_code)]
#[path = "../command_line/image.rs"]
mod image;
#[path = "../support/payload.rs"]
mod payload;
#[allow(dead_code)]
#[path = "../command_line/program.rs"]
mod program;
#[allow(dead_code)]
#[path = "../command_line/registry.rs"]
mod registry;

mod content;
mod proxy;
mod stage;
mod table;

mod crossing;
mod far_names;
mod make_payload;
mod outside;
mod push_payload;
