//! The whole journey on a real node, driven as a user drives it: by kubectl, helm and the program.
//!
//! It runs inside the test cluster; `make test` brings one up.

#![allow(clippy::unwrap_used)] // what a test cannot do fails it

mod bucket;
mod carry;
mod interrupted;
mod proxy;
mod refusals;
mod runs;
mod table;
mod world;
