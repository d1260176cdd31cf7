//! What pods and containers may: the restricted pod security standard, and less.

use k8s_openapi::api::core::v1::{Capabilities, PodSecurityContext, SeccompProfile, SecurityContext};

use super::settings::{WorkerDefaults, ids};
use crate::api::PodIds;

/// What a pod may that runs with `ids`.
pub(super) fn restricted(ids: PodIds) -> PodSecurityContext {
    PodSecurityContext {
        run_as_non_root: Some(true),
        run_as_user: ids.run_as_user,
        run_as_group: ids.run_as_group,
        fs_group: ids.fs_group,
        fs_group_change_policy: ids.fs_group.map(|_| "OnRootMismatch".into()),
        supplemental_groups: ids.supplemental_groups,
        seccomp_profile: Some(seccomp()),
        ..PodSecurityContext::default()
    }
}

/// The same for whoever does not know the controller's settings: with the ids that are `wanted`, and for the rest those of a fresh
/// installation.
pub(crate) fn restricted_by_default(wanted: Option<&PodIds>) -> PodSecurityContext {
    restricted(ids(wanted, WorkerDefaults::with_image("").ids.as_ref()))
}

/// What a container may.
pub(crate) fn confined() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".into()]), add: None }),
        privileged: Some(false),
        read_only_root_filesystem: Some(true),
        run_as_non_root: Some(true),
        seccomp_profile: Some(seccomp()),
        ..SecurityContext::default()
    }
}

fn seccomp() -> SeccompProfile {
    SeccompProfile { type_: "RuntimeDefault".into(), localhost_profile: None }
}
