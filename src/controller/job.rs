//! The Job of one attempt. Pure, and nothing here can fail but a run configuration that is too big.

use std::collections::BTreeMap;

use k8s_openapi::api::batch::v1::{
    Job, JobSpec, PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement,
    PodFailurePolicyOnPodConditionsPattern, PodFailurePolicyRule,
};
use k8s_openapi::api::core::v1::{
    Capabilities, Container, ContainerPort, DownwardAPIVolumeFile, DownwardAPIVolumeSource, KeyToPath,
    ObjectFieldSelector, PersistentVolumeClaimVolumeSource, PodSecurityContext, PodSpec, PodTemplateSpec,
    ProjectedVolumeSource, SeccompProfile, SecretProjection, SecurityContext, Volume, VolumeMount,
    VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::settings::{WorkerDefaults, ids, resources};
use super::validate::{Invalid, Registry, Valid};
use super::{Subject, run_id};
use crate::digest::Digest;
use crate::worker::contract::{
    CONTRACT_VERSION, PAYLOAD_MOUNT, PROGRESS_PORT, REGISTRY_SECRETS, RUN_ANNOTATION, RUN_CONFIG_PATH,
    RunConfig,
};

/// The worker's container.
pub(super) const CONTAINER: &str = "worker";
/// Every Job and pod of ours has it; the watches ask for nothing else.
pub(super) const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "charon");
/// The uid of the resource.
pub(super) const UID_LABEL: &str = "charon.dev/uid";
/// The run.
pub(super) const RUN_LABEL: &str = "charon.dev/run-id";
/// The attempt.
pub(super) const ATTEMPT_LABEL: &str = "charon.dev/attempt";
/// The resource's name, which may be too long for a label.
pub(super) const NAME_ANNOTATION: &str = "charon.dev/name";
/// The resource's kind.
pub(super) const KIND_LABEL: &str = "charon.dev/kind";
/// The generation of the spec that the Job was made from.
pub(super) const GENERATION_ANNOTATION: &str = "charon.dev/generation";

/// The biggest run configuration: all annotations of a pod together may have 256 KiB.
const RUN_CONFIG_LIMIT: usize = 200 * 1024;
/// The exit codes that end a Job at once: the final ones, and 76 and 77, after which the controller
/// paces what follows.
pub(super) const FINAL_EXIT_CODES: [i32; 12] = [64, 65, 66, 67, 68, 69, 70, 71, 72, 73, 76, 77];
/// How long a worker has to stop.
const GRACE_SECONDS: i64 = 30;

/// What is settled about an attempt before its Job exists, and written to the status first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub attempt: u32,
    pub run_id: String,
    /// The Job's name.
    pub name: String,
    /// The run configuration, as the worker reads it.
    pub config: String,
    /// Its sha256 in hexadecimal.
    pub input_digest: String,
    /// The worker's image.
    pub image: String,
}

/// Plans attempt `attempt` of run `run_id`.
pub(super) fn plan(
    subject: &Subject,
    valid: &Valid,
    run_id: &str,
    attempt: u32,
    defaults: &WorkerDefaults,
) -> Result<Plan, Invalid> {
    let config = RunConfig {
        version: CONTRACT_VERSION,
        run_id: run_id.to_owned(),
        nonce: run_id::nonce(&subject.uid, run_id, attempt),
        work: valid.work.clone(),
        registries: valid.registries.iter().map(|registry| registry.access.clone()).collect(),
    };
    let config = serde_json::to_string(&config).expect("a run configuration is plain data");
    if config.len() > RUN_CONFIG_LIMIT {
        return Err(Invalid(format!(
            "the image names take {} KiB, and a pod can be given {}; divide them into several payloads",
            config.len().div_ceil(1024),
            RUN_CONFIG_LIMIT / 1024
        )));
    }
    Ok(Plan {
        attempt,
        run_id: run_id.to_owned(),
        name: run_id::job_name(subject.letter, &subject.name, &subject.uid, run_id, attempt),
        input_digest: Digest::sha256(config.as_bytes()).hex().to_owned(),
        config,
        image: defaults.image.clone(),
    })
}

/// The Job of `plan`.
pub(super) fn job(subject: &Subject, valid: &Valid, plan: &Plan, defaults: &WorkerDefaults) -> Job {
    let labels = BTreeMap::from(
        [
            ("app.kubernetes.io/name", "charon"),
            ("app.kubernetes.io/component", "worker"),
            MANAGED_BY,
            (KIND_LABEL, subject.kind),
            (UID_LABEL, &subject.uid),
            (RUN_LABEL, &plan.run_id),
            (ATTEMPT_LABEL, &plan.attempt.to_string()),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned())),
    );
    let annotations = BTreeMap::from([
        (NAME_ANNOTATION.to_owned(), subject.name.clone()),
        (GENERATION_ANNOTATION.to_owned(), subject.generation.to_string()),
    ]);
    let mut pod_annotations = annotations.clone();
    pod_annotations.insert(RUN_ANNOTATION.to_owned(), plan.config.clone());
    Job {
        metadata: ObjectMeta {
            name: Some(plan.name.clone()),
            namespace: Some(subject.namespace.clone()),
            labels: Some(labels.clone()),
            annotations: Some(annotations),
            owner_references: Some(vec![owner(subject)]),
            ..ObjectMeta::default()
        },
        spec: Some(JobSpec {
            completions: Some(1),
            parallelism: Some(1),
            backoff_limit: Some(valid.backoff_limit),
            // A replacement must not start while the old pod still holds the volume.
            pod_replacement_policy: Some("Failed".into()),
            pod_failure_policy: Some(failure_policy()),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(labels),
                    annotations: Some(pod_annotations),
                    ..ObjectMeta::default()
                }),
                spec: Some(pod(valid, defaults)),
            },
            ..JobSpec::default()
        }),
        status: None,
    }
}

fn owner(subject: &Subject) -> OwnerReference {
    OwnerReference {
        api_version: format!("{}/{}", crate::api::GROUP, crate::api::VERSION),
        kind: subject.kind.to_owned(),
        name: subject.name.clone(),
        uid: subject.uid.clone(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// Which ends of a pod end the Job, and which do not count.
fn failure_policy() -> PodFailurePolicy {
    let on_exit_codes = PodFailurePolicyOnExitCodesRequirement {
        container_name: Some(CONTAINER.into()),
        operator: "In".into(),
        values: FINAL_EXIT_CODES.into(),
    };
    let on_disruption =
        PodFailurePolicyOnPodConditionsPattern { type_: "DisruptionTarget".into(), status: "True".into() };
    PodFailurePolicy {
        rules: vec![
            PodFailurePolicyRule {
                action: "FailJob".into(),
                on_exit_codes: Some(on_exit_codes),
                on_pod_conditions: None,
            },
            PodFailurePolicyRule {
                action: "Ignore".into(),
                on_exit_codes: None,
                on_pod_conditions: Some(vec![on_disruption]),
            },
        ],
    }
}

fn pod(valid: &Valid, defaults: &WorkerDefaults) -> PodSpec {
    let ids = ids(valid.worker.security_context.as_ref(), defaults.ids.as_ref());
    let (mut volumes, mut mounts) = (Vec::new(), Vec::new());
    volumes.push(run_config_volume());
    mounts.push(VolumeMount {
        name: "run".into(),
        mount_path: RUN_CONFIG_PATH.rsplit_once('/').map_or("/", |(folder, _)| folder).to_owned(),
        read_only: Some(true),
        ..VolumeMount::default()
    });
    volumes.push(Volume {
        name: "payload".into(),
        // A source is read-only by its mount: a read-only claim source would skip fsGroup.
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name: valid.claim.claim_name.clone(),
            read_only: None,
        }),
        ..Volume::default()
    });
    mounts.push(VolumeMount {
        name: "payload".into(),
        mount_path: PAYLOAD_MOUNT.into(),
        read_only: valid.read_only().then_some(true),
        ..VolumeMount::default()
    });
    for (index, registry) in valid.registries.iter().enumerate() {
        if let Some(volume) = secrets_volume(index, registry) {
            mounts.push(VolumeMount {
                name: volume.name.clone(),
                mount_path: format!("{REGISTRY_SECRETS}/{index}"),
                read_only: Some(true),
                ..VolumeMount::default()
            });
            volumes.push(volume);
        }
    }
    let seccomp = || SeccompProfile { type_: "RuntimeDefault".into(), localhost_profile: None };
    PodSpec {
        restart_policy: Some("Never".into()),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        termination_grace_period_seconds: Some(GRACE_SECONDS),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: ids.run_as_user,
            run_as_group: ids.run_as_group,
            fs_group: ids.fs_group,
            fs_group_change_policy: ids.fs_group.map(|_| "OnRootMismatch".into()),
            supplemental_groups: ids.supplemental_groups,
            seccomp_profile: Some(seccomp()),
            ..PodSecurityContext::default()
        }),
        containers: vec![Container {
            name: CONTAINER.into(),
            image: Some(defaults.image.clone()),
            image_pull_policy: defaults.pull_policy.clone(),
            args: Some(vec!["worker".into()]),
            ports: Some(vec![ContainerPort {
                name: Some("progress".into()),
                container_port: i32::from(PROGRESS_PORT),
                ..ContainerPort::default()
            }]),
            resources: Some(resources(valid.worker.resources.as_ref(), &defaults.resources)),
            security_context: Some(SecurityContext {
                allow_privilege_escalation: Some(false),
                capabilities: Some(Capabilities { drop: Some(vec!["ALL".into()]), add: None }),
                privileged: Some(false),
                read_only_root_filesystem: Some(true),
                run_as_non_root: Some(true),
                seccomp_profile: Some(seccomp()),
                ..SecurityContext::default()
            }),
            termination_message_policy: Some("FallbackToLogsOnError".into()),
            volume_mounts: Some(mounts),
            ..Container::default()
        }],
        volumes: Some(volumes),
        ..PodSpec::default()
    }
}

/// The run configuration lives and dies with the pod, as its annotation.
fn run_config_volume() -> Volume {
    let file = RUN_CONFIG_PATH.rsplit_once('/').map_or(RUN_CONFIG_PATH, |(_, file)| file);
    Volume {
        name: "run".into(),
        downward_api: Some(DownwardAPIVolumeSource {
            items: Some(vec![DownwardAPIVolumeFile {
                path: file.into(),
                field_ref: Some(ObjectFieldSelector {
                    field_path: format!("metadata.annotations['{RUN_ANNOTATION}']"),
                    api_version: None,
                }),
                ..DownwardAPIVolumeFile::default()
            }]),
            default_mode: None,
        }),
        ..Volume::default()
    }
}

/// The Secrets of one registry. Only the keys that are known are mounted, and the one that must be
/// there is in a source of its own that is not optional: a Secret of another kind stops the pod
/// instead of being read.
fn secrets_volume(index: usize, registry: &Registry) -> Option<Volume> {
    let source = |name: &String, keys: &[&str], optional: bool| VolumeProjection {
        secret: Some(SecretProjection {
            name: name.clone(),
            items: Some(keys.iter().map(|key| key_as_itself(key)).collect()),
            optional: Some(optional),
        }),
        ..VolumeProjection::default()
    };
    let credentials = registry.credentials.iter().map(|name| source(name, &[".dockerconfigjson"], false));
    let certificates =
        registry.certificates.iter().map(|name| source(name, &["ca.crt", "tls.crt", "tls.key"], true));
    let sources: Vec<_> = credentials.chain(certificates).collect();
    (!sources.is_empty()).then(|| Volume {
        name: format!("registry-{index}"),
        projected: Some(ProjectedVolumeSource { sources: Some(sources), default_mode: Some(0o444) }),
        ..Volume::default()
    })
}

fn key_as_itself(key: &str) -> KeyToPath {
    KeyToPath { key: key.into(), path: key.into(), mode: None }
}
