//! The documents say what there is: every field, every reason, every message, every test that they name.

#![allow(clippy::unwrap_used)] // what a test cannot do fails it

mod document;
mod manuals;
mod promises;
