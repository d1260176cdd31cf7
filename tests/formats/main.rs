//! The payload's format, and every text that a user reads.
//!
//! A test's name is the sentence that it proves. Other programs read what charon writes: they come from
//! `tests/tools/install`, and `make test` puts them on PATH. Texts are snapshots: `INSTA_UPDATE=always` writes them.

// Everything here is test, though Clippy knows only the functions with #[test].
#![allow(clippy::unwrap_used)]

#[expect(dead_code)]
#[path = "../support/image.rs"]
mod image;
#[path = "../support/payload.rs"]
mod payload;
#[expect(dead_code)]
#[path = "../support/program.rs"]
mod program;
#[expect(dead_code, unused_macros)]
#[path = "../support/registry.rs"]
mod registry;

mod golden;
mod large;
mod layout;
mod sameness;
mod shells;
mod texts;
mod verify;
