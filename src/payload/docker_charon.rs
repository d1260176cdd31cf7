//! The payloads of docker-charon 0.4: a zip with its table of contents, `payload_descriptor.json`, at the end. Charon reads
//! them, and puts such a table into its own where docker-charon can push what is in them.

mod obstacle;
mod read;
mod write;

use std::collections::BTreeMap;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
pub use obstacle::Obstacle;
pub(super) use read::{check_entries, read};
pub(super) use write::descriptor;

/// What docker-charon asks for and sends, and so what a manifest is that does not say.
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// docker-charon's table of contents.
#[derive(Deserialize, Serialize)]
struct Descriptor {
    /// In payload order: docker-charon prints them so.
    manifests_paths: IndexMap<String, Option<String>>,
    blobs_paths: BTreeMap<Digest, BlobPath>,
}

#[derive(Deserialize, Serialize)]
#[serde(untagged)]
enum BlobPath {
    InZip { zip_path: String },
    InRegistry { repository: String },
}
