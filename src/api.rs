//! The resources: `PayloadBuild` and `PayloadImport` of `charon.dev/v1alpha1`.
//!
//! Types, schema rules and nothing else: what a field means stands at the field, because its
//! comment is what `kubectl explain` shows. Specs have no schema defaults (they make GitOps tools see
//! drift); a default is told in the field's comment and lives in the controller.

// The schema derive repeats each type inside a function, where its `pub` reaches nobody; and each
// printer column names its type and path, which are no duplicates.
#[allow(unreachable_pub, clippy::duplicated_attributes)]
mod build;
#[allow(unreachable_pub, clippy::duplicated_attributes)]
mod import;
#[cfg(test)]
mod rules;
mod schema;
#[allow(unreachable_pub)]
mod shared;
mod status;
#[allow(unreachable_pub, clippy::struct_field_names)] // an affinity's fields are named as a pod's are
mod worker;

pub use build::{
    AlreadyTransferred, BuildImage, BuildRef, ConfigMapKeyRef, ImagesFrom, Output, PayloadBuild,
    PayloadBuildSpec,
};
pub use import::{PayloadImport, PayloadImportSpec, Source, TargetRegistry};
pub use schema::{CRD_FILES, crds, crds_yaml};
pub use shared::{Claim, ObjectStore, RegistryAccess, SecretRef};
pub use status::{
    AttemptEnd, Condition, ImportCounts, ItemFailure, LastFailure, Payload, Plan, Progress, RewrittenImage,
    Run, Status,
};
pub use worker::{PodIds, PodMetadata, Toleration, Worker, WorkerAffinity, WorkerResources};

/// The API group of the resources.
pub const GROUP: &str = "charon.dev";
/// The version of the resources.
pub const VERSION: &str = "v1alpha1";
/// Asks for a new run when its value changes, like `spec.trigger`, without a change of the spec.
pub const REQUESTED_AT: &str = "charon.dev/requestedAt";

/// The condition types.
pub mod condition {
    /// The wish is fulfilled for this generation.
    pub const READY: &str = "Ready";
    /// A run is pending, active, or waiting to try again. Present only while it is true.
    pub const RECONCILING: &str = "Reconciling";
    /// It will not succeed until a person changes something. Present only while it is true.
    pub const STALLED: &str = "Stalled";
    /// Some good payload was written, maybe for an older generation.
    pub const PAYLOAD_AVAILABLE: &str = "PayloadAvailable";
    /// Some payload was imported whole, maybe for an older generation.
    pub const IMPORTED: &str = "Imported";
    /// The payload's structure holds, and every blob that was read had its digest.
    pub const PAYLOAD_VERIFIED: &str = "PayloadVerified";
}
