//! charon beside docker-charon 0.4.3 itself, as it is published, against real registries.
//!
//! A test's name is the sentence that it proves. The programs come from `tests/tools/install`, and `make test` puts
//! them on PATH. What the two do with each argument is the table in docs/docker-charon.md: `UPDATE_DOCS=1` writes it.

// Everything here is test, though Clippy knows only the functions with #[test].
#![allow(clippy::unwrap_used)]

#[expect(dead_code)]
#[path = "../support/image.rs"]
mod image;
#[expect(dead_code)]
#[path = "../support/payload.rs"]
mod payload;
#[expect(dead_code)]
#[path = "../support/program.rs"]
mod program;
#[expect(dead_code)]
#[macro_use]
#[path = "../support/registry.rs"]
mod registry;

mod content;
mod proxy;
mod stage;
mod table;

mod bench;
mod crossing;
mod far_names;
mod make_payload;
mod outside;
mod push_payload;
