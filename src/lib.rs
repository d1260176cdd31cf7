//! Charon carries container images into air-gapped registries in a single zip, the payload.
//!
//! [`make_payload`] and [`push_payload`] do what the commands of these names do; [`library`] has an example.
//! ARCHITECTURE.md shows the house; each module is a room of it.

#![forbid(unsafe_code)]

pub mod api;
mod backoff;
pub mod build;
pub mod cli;
pub mod controller;
pub mod digest;
pub mod import;
pub mod library;
pub mod object_location;
pub mod payload;
pub mod platform;
pub mod plugin;
pub mod progress;
pub mod proxy;
pub mod read_at;
pub mod reason;
pub mod reference;
pub mod registry;
pub mod storage;
pub mod worker;

pub use library::{
    Error, MakePayload, PushPayload, RegistryOptions, make_payload, make_payload_to, plan_payload,
    plan_payload_stream, plan_push, push_payload, push_payload_from,
};
