//! The short-lived pod that reaches a claim. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Container, PersistentVolumeClaimVolumeSource, Pod, PodSpec, ResourceRequirements, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::resource::Model;
use crate::controller;
use crate::worker::contract::PAYLOAD_MOUNT;

/// What all such pods have in common.
pub(super) const SELECTOR: &str = "app.kubernetes.io/managed-by=kubectl-charon";
/// Where the program is in its image.
pub(super) const PROGRAM: &str = "/charon";
/// Whatever happens to whoever started it, the pod is gone after half a day; a transfer that takes longer goes on in another one.
const DEADLINE_SECONDS: i64 = 12 * 60 * 60;
/// A process that is told to end ends at once.
const GRACE_SECONDS: i64 = 5;

/// The pod that reads `claim`, or writes to it.
pub(super) fn pod(name: &str, model: &Model, claim: &str, read_only: bool) -> Pod {
    let like = model.spec.clone();
    let amounts = |amounts: [(&str, &str); 2]| {
        Some(BTreeMap::from(amounts.map(|(name, amount)| (name.to_owned(), Quantity(amount.to_owned())))))
    };
    let labels = [
        ("app.kubernetes.io/name", "charon"),
        ("app.kubernetes.io/component", "transfer"),
        ("app.kubernetes.io/managed-by", "kubectl-charon"),
    ];
    Pod {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            restart_policy: Some("Never".into()),
            active_deadline_seconds: Some(DEADLINE_SECONDS),
            termination_grace_period_seconds: Some(GRACE_SECONDS),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            security_context: like.security_context,
            containers: vec![Container {
                name: controller::CONTAINER.into(),
                image: Some(model.image.clone()),
                image_pull_policy: like
                    .containers
                    .first()
                    .and_then(|worker| worker.image_pull_policy.clone()),
                args: Some(vec!["transfer".into(), "--wait".into()]),
                resources: Some(ResourceRequirements {
                    requests: amounts([("cpu", "100m"), ("memory", "64Mi")]),
                    limits: amounts([("cpu", "2"), ("memory", "256Mi")]),
                    ..ResourceRequirements::default()
                }),
                security_context: Some(controller::confined()),
                termination_message_policy: Some("FallbackToLogsOnError".into()),
                volume_mounts: Some(vec![VolumeMount {
                    name: "payload".into(),
                    mount_path: PAYLOAD_MOUNT.into(),
                    read_only: read_only.then_some(true),
                    ..VolumeMount::default()
                }]),
                ..Container::default()
            }],
            volumes: Some(vec![Volume {
                name: "payload".into(),
                // Read-only is its mount: a read-only claim source would skip fsGroup.
                persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                    claim_name: claim.to_owned(),
                    read_only: None,
                }),
                ..Volume::default()
            }]),
            image_pull_secrets: like.image_pull_secrets,
            node_selector: like.node_selector,
            tolerations: like.tolerations,
            affinity: like.affinity,
            priority_class_name: like.priority_class_name,
            service_account_name: like.service_account_name,
            ..PodSpec::default()
        }),
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{LocalObjectReference, PodSecurityContext};

    use super::*;

    fn model() -> Model {
        Model {
            image: "registry.example/charon:1".into(),
            spec: PodSpec {
                security_context: Some(controller::restricted_by_default(None)),
                image_pull_secrets: Some(vec![LocalObjectReference { name: "pull".into() }]),
                ..PodSpec::default()
            },
        }
    }

    #[test]
    fn the_pod_reads_its_claim_only_by_the_mount_has_no_token_and_stands_before_the_restricted_standard() {
        insta::assert_snapshot!(
            serde_saphyr::to_string(&pod("charon-transfer-x", &model(), "transfer", true)).unwrap()
        );
    }

    #[test]
    fn the_pod_has_the_workers_own_ids_and_writes_where_it_is_to_write() {
        let ids = PodSecurityContext { run_as_user: Some(1000), ..PodSecurityContext::default() };
        let mut model = model();
        model.spec.security_context = Some(ids.clone());
        let spec = pod("charon-transfer-x", &model, "inbox", false).spec.unwrap();
        assert_eq!(spec.security_context, Some(ids));
        assert_eq!(spec.containers[0].volume_mounts.as_ref().unwrap()[0].read_only, None);
    }
}
