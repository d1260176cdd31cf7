//! Charon comes, becomes another version and goes, while its workers work: on a real node, by helm.
//!
//! It runs inside the test cluster before the journey, one test after the other; `make test` brings one up.

#![allow(clippy::unwrap_used)] // what a test cannot do fails it

#[expect(dead_code)] // the journey's needs are others
#[path = "../journey/proxy.rs"]
mod proxy;
#[expect(dead_code)]
#[path = "../journey/world.rs"]
mod world;

mod across;
mod defaults;
mod release;
mod uninstall;
mod upgrade;
