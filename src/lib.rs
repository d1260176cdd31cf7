//! Charon carries container images into air-gapped registries in a single zip, the payload.
//!
//! ARCHITECTURE.md shows the house; each module is a room of it.

pub mod api;
pub mod controller;
pub mod digest;
pub mod payload;
pub mod reason;
pub mod reference;
pub mod registry;
pub mod storage;
pub mod worker;
