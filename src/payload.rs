//! The payload: one zip that is an OCI image layout, too, and says in its first entry what it holds.
//!
//! [`Contents`] is a payload before it is written, [`PayloadWriter`] writes it in sequence, [`PlacedPayload`] in any order,
//! [`FilePayload`] and [`StreamPayload`] read it; [`FilePayload`] also reads those of docker-charon. Every offset follows from the bill alone
//! ([`Layout`]), so a reader knows where each byte lies, and how long the file is, after one small
//! read.

mod base;
mod bill;
mod contents;
mod docker_charon;
mod error;
mod framing;
mod layout;
mod manifest;
mod placed;
mod plan;
mod reader;
mod stream;
mod verified;
mod writer;

#[cfg(test)]
mod tests;

pub use base::Base;
pub use bill::{
    Bill, BillEntry, BillFile, BillImage, BillManifest, BillReferrer, EntryKind, FORMAT_VERSION,
    MissingImage, REFERRERS_DEPTH, Required, RequiredSource, cosign_tags,
};
pub use contents::Contents;
pub use docker_charon::Obstacle;
pub use error::PayloadError;
pub use layout::{Layout, LayoutEntry};
pub use manifest::{Descriptor, MANIFEST_LIMIT, MANIFESTS_LIMIT, ManifestContent};
pub use placed::{PlacedBlob, PlacedPayload, Remains};
pub use plan::{ImagePlan, ManifestPlan, ReferrerPlan};
pub(crate) use reader::{BILL_HEADER_LEN, Start};
pub use reader::{FilePayload, is_payload};
pub use stream::StreamPayload;
pub use verified::Verified;
pub use writer::{BlobError, PayloadWriter, Sink, Sums};
