//! The Job of one attempt. Pure, and nothing here can fail but a run configuration that is too big.

use std::collections::BTreeMap;

use k8s_openapi::api::batch::v1::{
    Job, JobSpec, PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement,
    PodFailurePolicyOnPodConditionsPattern, PodFailurePolicyRule,
};
use k8s_openapi::api::core;
use k8s_openapi::api::core::v1::{
    ConfigMapProjection, Container, ContainerPort, DownwardAPIProjection, DownwardAPIVolumeFile, KeyToPath,
    LocalObjectReference, ObjectFieldSelector, PersistentVolumeClaimVolumeSource, PodSpec, PodTemplateSpec,
    ProjectedVolumeSource, SecretProjection, Volume, VolumeMount, VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::confine::{confined, restricted};
use super::settings::{WorkerDefaults, ids, resources};
use super::validate::{Invalid, Place, Registry, Valid};
use super::{Subject, run_id};
use crate::api::{ObjectStore, SecretRef, Toleration};
use crate::digest::Digest;
use crate::object_location::Provider;
use crate::worker::contract::{
    BuildWork, CA_BUNDLE, CA_BUNDLE_ANNOTATION, CONTRACT_VERSION, IMAGES_LIST, OBJECT_STORE_SECRETS,
    PAYLOAD_MOUNT, PROGRESS_PORT, PROXY_SECRETS, REGISTRY_SECRETS, RUN_ANNOTATION, RUN_CONFIG_PATH,
    RunConfig, Work,
};

/// The worker's container.
pub(crate) const CONTAINER: &str = "worker";
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
        registries: defaults.reach.registries(&valid.registries, &valid.work),
        proxy: defaults.reach.proxy(valid.proxy.as_deref()),
        traffic: defaults.traffic,
    };
    let config = serde_json::to_string(&config).expect("a run configuration is plain data");
    if config.len() > RUN_CONFIG_LIMIT {
        return Err(Invalid(format!(
            "the image names take {} KiB, and a pod can be given {}; list them in a ConfigMap (spec.imagesFrom), or divide them into several payloads",
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

/// The Job of `plan`; `ca_bundle` is what the file of the defaults holds.
pub(super) fn job(
    subject: &Subject,
    valid: &Valid,
    plan: &Plan,
    defaults: &WorkerDefaults,
    ca_bundle: Option<&str>,
) -> Job {
    let metadata = valid.worker.pod_metadata.clone().unwrap_or_default();
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
    // What is ours comes last: it is what we find pods by.
    let mut pod_labels = metadata.labels.unwrap_or_default();
    pod_labels.extend(labels.clone());
    let mut pod_annotations = metadata.annotations.unwrap_or_default();
    pod_annotations.extend(annotations.clone());
    pod_annotations.insert(RUN_ANNOTATION.to_owned(), plan.config.clone());
    pod_annotations.extend(ca_bundle.map(|pem| (CA_BUNDLE_ANNOTATION.to_owned(), pem.to_owned())));
    Job {
        metadata: ObjectMeta {
            name: Some(plan.name.clone()),
            namespace: Some(subject.namespace.clone()),
            labels: Some(labels),
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
                    labels: Some(pod_labels),
                    annotations: Some(pod_annotations),
                    ..ObjectMeta::default()
                }),
                spec: Some(pod(valid, defaults, ca_bundle.is_some())),
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

fn pod(valid: &Valid, defaults: &WorkerDefaults, has_ca_bundle: bool) -> PodSpec {
    let ids = ids(valid.worker.security_context.as_ref(), defaults.ids.as_ref());
    let (settings, folder) = settings_volume(valid, has_ca_bundle);
    let payload = match &valid.place {
        Place::Object(_) => None,
        Place::Claim(claim) => Some(Volume {
            name: "payload".into(),
            // A source is read-only by its mount: a read-only claim source would skip fsGroup.
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim.claim_name.clone(),
                read_only: None,
            }),
            ..Volume::default()
        }),
    };
    let mount = |volume: &Volume, path: &str, read_only: bool| VolumeMount {
        name: volume.name.clone(),
        mount_path: path.into(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    };
    let payload_mount = payload.iter().map(|payload| mount(payload, PAYLOAD_MOUNT, valid.read_only()));
    let mounts = std::iter::once(mount(&settings, folder, true)).chain(payload_mount).collect();
    PodSpec {
        restart_policy: Some("Never".into()),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        termination_grace_period_seconds: Some(GRACE_SECONDS),
        security_context: Some(restricted(ids)),
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
            security_context: Some(confined()),
            termination_message_policy: Some("FallbackToLogsOnError".into()),
            volume_mounts: Some(mounts),
            ..Container::default()
        }],
        volumes: Some(std::iter::once(settings).chain(payload).collect()),
        service_account_name: valid.worker.service_account_name.clone(),
        priority_class_name: valid.worker.priority_class_name.clone(),
        affinity: valid.affinity.clone(),
        ..placed(valid, defaults)
    }
}

/// Where the pod may run, and what its image is pulled with: what the spec says of each stands in the place of the
/// defaults.
fn placed(valid: &Valid, defaults: &WorkerDefaults) -> PodSpec {
    let worker = &valid.worker;
    let secret = |secret: &SecretRef| LocalObjectReference { name: secret.name.clone() };
    let secrets = worker.image_pull_secrets.as_ref().unwrap_or(&defaults.image_pull_secrets);
    let toleration = |given: &Toleration| core::v1::Toleration {
        key: given.key.clone(),
        operator: given.operator.clone(),
        value: given.value.clone(),
        effect: given.effect.clone(),
        toleration_seconds: given.toleration_seconds,
    };
    let tolerations = worker.tolerations.as_ref().unwrap_or(&defaults.tolerations);
    let node_selector = worker.node_selector.as_ref().unwrap_or(&defaults.node_selector);
    PodSpec {
        image_pull_secrets: (!secrets.is_empty()).then(|| secrets.iter().map(secret).collect()),
        node_selector: (!node_selector.is_empty()).then(|| node_selector.clone()),
        tolerations: (!tolerations.is_empty()).then(|| tolerations.iter().map(toleration).collect()),
        ..PodSpec::default()
    }
}

/// All that a worker is told, and the folder where it looks for that: the run configuration and the authorities of all,
/// which live and die with the pod as its annotations, the Secrets of registries, store and proxy, and the list of
/// images. One volume for all, since nothing can be mounted inside another read-only one.
fn settings_volume(valid: &Valid, has_ca_bundle: bool) -> (Volume, &'static str) {
    let (folder, file) = RUN_CONFIG_PATH.rsplit_once('/').expect("it is an absolute path");
    let below = |path: &'static str| {
        path.strip_prefix(folder).expect("it is below the same folder").trim_start_matches('/')
    };
    let annotation = |name: &str, path: &str| DownwardAPIVolumeFile {
        path: path.into(),
        field_ref: Some(ObjectFieldSelector {
            field_path: format!("metadata.annotations['{name}']"),
            api_version: None,
        }),
        ..DownwardAPIVolumeFile::default()
    };
    let ca_bundle = has_ca_bundle.then(|| annotation(CA_BUNDLE_ANNOTATION, below(CA_BUNDLE)));
    let annotations = std::iter::once(annotation(RUN_ANNOTATION, file)).chain(ca_bundle).collect();
    let annotations = VolumeProjection {
        downward_api: Some(DownwardAPIProjection { items: Some(annotations) }),
        ..VolumeProjection::default()
    };
    let registries = valid.registries.iter().enumerate().flat_map(|(index, registry)| {
        secret_sources(&format!("{}/{index}", below(REGISTRY_SECRETS)), registry)
    });
    let store = match &valid.place {
        Place::Claim(_) => Vec::new(),
        Place::Object(object) => store_sources(below(OBJECT_STORE_SECRETS), object),
    };
    let proxy = valid.proxy.iter().flat_map(|name| {
        let folder = below(PROXY_SECRETS);
        [
            secret_source(folder, name, &["address"], false),
            secret_source(folder, name, &["username", "password", "noProxy"], true),
        ]
    });
    let list = match &valid.work {
        Work::Build(BuildWork { images_from: Some(list), .. }) => Some(list),
        Work::Build(_) | Work::Import(_) => None,
    };
    let list = list.map(|list| VolumeProjection {
        config_map: Some(ConfigMapProjection {
            name: list.config_map.clone(),
            items: Some(vec![KeyToPath {
                key: list.key.clone(),
                path: below(IMAGES_LIST).into(),
                mode: None,
            }]),
            optional: Some(false),
        }),
        ..VolumeProjection::default()
    });
    let secrets = registries.chain(store).chain(proxy).chain(list);
    let volume = Volume {
        name: "settings".into(),
        projected: Some(ProjectedVolumeSource {
            sources: Some(std::iter::once(annotations).chain(secrets).collect()),
            default_mode: Some(0o444),
        }),
        ..Volume::default()
    };
    (volume, folder)
}

/// The Secrets of one registry, below `folder`. Only the keys that are known are mounted, and the one
/// that must be there is in a source of its own that is not optional: a Secret of another kind stops
/// the pod instead of being read.
fn secret_sources(folder: &str, registry: &Registry) -> Vec<VolumeProjection> {
    let credentials = registry.credentials.iter();
    let credentials = credentials.map(|name| secret_source(folder, name, &[".dockerconfigjson"], false));
    let certificates = registry.access.certificates.iter();
    let certificates =
        certificates.map(|name| secret_source(folder, name, &["ca.crt", "tls.crt", "tls.key"], true));
    credentials.chain(certificates).collect()
}

/// The Secrets of an object store, in the same way.
fn store_sources(folder: &str, object: &ObjectStore) -> Vec<VolumeProjection> {
    let required: &[&str] = match object.provider.unwrap_or_default() {
        Provider::S3 | Provider::Azure => &["accesskey", "secretkey"],
        Provider::Gcs => &["serviceaccount"],
    };
    let mut sources = Vec::new();
    if let Some(secret) = &object.secret_ref {
        sources.push(secret_source(folder, &secret.name, required, false));
        if object.provider.unwrap_or_default() == Provider::S3 {
            sources.push(secret_source(folder, &secret.name, &["sessiontoken"], true));
        }
    }
    let certificates = object.cert_secret_ref.iter();
    sources.extend(certificates.map(|secret| secret_source(folder, &secret.name, &["ca.crt"], false)));
    sources
}

fn secret_source(folder: &str, name: &str, keys: &[&str], optional: bool) -> VolumeProjection {
    VolumeProjection {
        secret: Some(SecretProjection {
            name: name.to_owned(),
            items: Some(keys.iter().map(|key| key_below(folder, key)).collect()),
            optional: Some(optional),
        }),
        ..VolumeProjection::default()
    }
}

fn key_below(folder: &str, key: &str) -> KeyToPath {
    KeyToPath { key: key.into(), path: format!("{folder}/{key}"), mode: None }
}

#[cfg(test)]
mod tests;
