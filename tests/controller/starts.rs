//! What keeps a worker from starting is told, and goes when it is mended.

use charon::api::{PayloadBuild, Status};
use charon::controller::CaBundle;
use charon::reason::Reason;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::ResourceExt as _;
use kube::api::PostParams;
use serde_json::{Value, json};

use crate::world::{DEADLINE, World, brief, build_spec, build_to, condition, kubectl};

/// A build whose pod is there, and its pod.
async fn with_pod(world: &World, name: &str) -> Pod {
    world.create::<PayloadBuild>(name, build_to("python:3", name)).await;
    let job = world.job_of_attempt::<PayloadBuild>(name, 1).await;
    world.pod_of(&job).await
}

fn unschedulable(message: &str) -> Value {
    json!({ "conditions": [{
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
    }]})
}

/// `name` is waiting for `reason` to pass, and says `words`.
async fn is_held_up(world: &World, name: &str, reason: Reason, words: &str) {
    let status = world.until_ready::<PayloadBuild>(name, "False", reason.as_str()).await;
    assert_eq!(brief(&status, "Reconciling"), "True/Progressing");
    assert_eq!(brief(&status, "Stalled"), "");
    let message = &condition(&status, "Ready").unwrap().message;
    assert!(message.contains(words), "{message}");
}

#[tokio::test]
async fn a_missing_secret_is_named_until_it_is_there() {
    let world = World::new("secret").await;
    let pod = with_pod(&world, "app").await;
    world.bind(&pod).await;
    world.waits(&pod, "ContainerCreating", "").await;
    let why = "MountVolume.SetUp failed for volume \"settings\" : secret \"pull\" not found";
    world.event(&pod, "FailedMount", why).await;
    is_held_up(&world, "app", Reason::SecretNotFound, "Secret \"pull\"").await;

    // It starts: nothing has failed.
    world.works(&pod, "127.0.7.6").await;
    let status = world.until_ready::<PayloadBuild>("app", "Unknown", "Progressing").await;
    assert_eq!(brief(&status, "Reconciling"), "True/Progressing");
    world.ends_for(&pod, Reason::Succeeded).await;
    world.until_ready::<PayloadBuild>("app", "True", "Succeeded").await;
}

#[tokio::test]
async fn a_missing_secret_of_a_proxy_is_waited_for_by_its_name_and_nothing_of_it_is_in_the_job() {
    let world = World::new("proxy").await;
    let secret = json!({ "metadata": { "name": "way-out" }, "stringData": { "password": "obolus" } });
    let secret: Secret = serde_json::from_value(secret).unwrap();
    world.api().create(&PostParams::default(), &secret).await.unwrap();
    for (name, why, words) in [
        (
            "no-key",
            "references non-existent secret key: address",
            "key \"address\" of Secret \"way-out\"; add it",
        ),
        ("no-secret", "secret \"way-out\" not found", "Secret \"way-out\"; create it"),
    ] {
        let mut spec = build_to("python:3", name);
        spec["proxySecretRef"] = json!({ "name": "way-out" });
        world.create::<PayloadBuild>(name, spec).await;
        let job = world.job_of_attempt::<PayloadBuild>(name, 1).await;
        assert!(!serde_json::to_string(&job).unwrap().contains("obolus"));
        let pod = world.pod_of(&job).await;
        world.bind(&pod).await;
        world.waits(&pod, "ContainerCreating", "").await;
        let why = format!("MountVolume.SetUp failed for volume \"settings\" : {why}");
        world.event(&pod, "FailedMount", &why).await;
        is_held_up(&world, name, Reason::SecretNotFound, words).await;
    }
}

#[tokio::test]
async fn authorities_that_no_worker_can_be_given_are_told_and_each_worker_gets_those_of_its_time() {
    let mut world = World::without_controller("authorities").await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca.crt");
    world.settings.worker.reach.ca_bundle = Some(CaBundle::at(&file));
    world.start().await;
    world.create::<PayloadBuild>("app", build_spec("python:3")).await;
    is_held_up(&world, "app", Reason::WorkerCreateFailed, "cannot read the CA bundle").await;
    assert!(world.jobs().await.is_empty());
    for (attempt, bytes) in [(1, "MAA="), (2, "MAAA")] {
        let pem = format!("-----BEGIN CERTIFICATE-----\n{bytes}\n-----END CERTIFICATE-----\n");
        std::fs::write(&file, &pem).unwrap();
        let job = world.job_of_attempt::<PayloadBuild>("app", attempt).await;
        let pod = world.pod_of(&job).await;
        assert_eq!(pod.annotations()["charon.dev/ca-bundle"], pem);
        world.ends_for(&pod, Reason::Succeeded).await;
        world.until_ready::<PayloadBuild>("app", "True", "Succeeded").await;
        // Other authorities ask for no run; whoever asks gets them.
        std::fs::remove_file(&file).unwrap();
        world.patch::<PayloadBuild>("app", json!({ "spec": { "trigger": "again" } })).await;
    }
}

#[tokio::test]
async fn a_missing_list_of_images_is_named_until_it_is_there() {
    let world = World::new("list").await;
    let mut spec = build_spec("python:3");
    spec.as_object_mut().unwrap().remove("images");
    spec["imagesFrom"] = json!({ "configMapKeyRef": { "name": "images", "key": "list" } });
    world.create::<PayloadBuild>("app", spec).await;
    let job = world.job_of_attempt::<PayloadBuild>("app", 1).await;
    let pod = world.pod_of(&job).await;
    world.bind(&pod).await;
    world.waits(&pod, "ContainerCreating", "").await;
    world.event(&pod, "FailedMount", "MountVolume.SetUp failed : configmap \"images\" not found").await;
    is_held_up(&world, "app", Reason::ConfigMapNotFound, "ConfigMap \"images\"; create it").await;
    world.works(&pod, "127.0.7.7").await;
    world.until_ready::<PayloadBuild>("app", "Unknown", "Progressing").await;
    world.ends_for(&pod, Reason::Succeeded).await;
    world.until_ready::<PayloadBuild>("app", "True", "Succeeded").await;
}

#[tokio::test]
async fn a_worker_that_cannot_be_placed_or_pulled_says_why() {
    let world = World::new("placed").await;
    let pod = with_pod(&world, "no-claim").await;
    world.say(&pod, unschedulable("persistentvolumeclaim \"transfer\" not found")).await;
    is_held_up(
        &world,
        "no-claim",
        Reason::StorageNotFound,
        "PersistentVolumeClaim \"transfer\"; create it: ",
    )
    .await;

    let pod = with_pod(&world, "no-node").await;
    world.say(&pod, unschedulable("0/1 nodes are available: 1 Insufficient memory.")).await;
    is_held_up(&world, "no-node", Reason::WorkerUnschedulable, "Insufficient memory").await;

    let pod = with_pod(&world, "no-image").await;
    world.waits(&pod, "ImagePullBackOff", "Back-off pulling image").await;
    is_held_up(&world, "no-image", Reason::WorkerImagePullFailed, "Back-off").await;

    let pod = with_pod(&world, "busy").await;
    world.bind(&pod).await;
    world.event(&pod, "FailedAttachVolume", "Multi-Attach error for volume \"pv\"").await;
    is_held_up(&world, "busy", Reason::StorageBusy, "Multi-Attach").await;
}

#[tokio::test]
async fn a_pod_that_cannot_be_created_says_why() {
    let world = World::new("quota").await;
    world.forbid("pods").await;
    world.create::<PayloadBuild>("app", build_spec("python:3")).await;
    let words = "cannot be created; raise the quota, or lower spec.worker.resources: ";
    is_held_up(&world, "app", Reason::WorkerCreateFailed, words).await;
    is_held_up(&world, "app", Reason::WorkerCreateFailed, "exceeded quota").await;
    world.allow().await;
    let job = world.job_of_attempt::<PayloadBuild>("app", 1).await;
    let pod = world.pod_of(&job).await;
    world.ends_for(&pod, Reason::Succeeded).await;
    world.until_ready::<PayloadBuild>("app", "True", "Succeeded").await;
}

#[tokio::test]
async fn a_pod_that_pod_security_refuses_says_why() {
    let world = World::new("standard").await;
    // The worker stands before the restricted standard: somebody has to alter its pods.
    let name = world.namespace.clone();
    let apply = |expression: &str| {
        format!(
            "
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicy
metadata: {{name: {name}}}
spec:
  failurePolicy: Fail
  reinvocationPolicy: Never
  matchConstraints:
    namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: {name}}}}}
    resourceRules: [{{apiGroups: [''], apiVersions: [v1], operations: [CREATE], resources: [pods]}}]
  mutations:
    - patchType: ApplyConfiguration
      applyConfiguration: {{expression: '{expression}'}}
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicyBinding
metadata: {{name: {name}}}
spec: {{policyName: {name}}}
"
        )
    };
    let policy = apply("Object{spec: Object.spec{hostNetwork: true}}");
    kubectl(&["apply", "--filename", "-"], &policy);
    // A policy is not in force at once.
    let pods = world.api::<Pod>();
    let probe = json!({ "metadata": { "name": "probe" }, "spec": {
        "containers": [{ "name": "a", "image": "a", "securityContext": {
            "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] },
        } }],
        "securityContext": { "runAsNonRoot": true, "runAsUser": 1, "seccompProfile": { "type": "RuntimeDefault" } },
    } });
    let probe: Pod = serde_json::from_value(probe).unwrap();
    let try_it = PostParams { dry_run: true, ..PostParams::default() };
    let in_force = async { while pods.create(&try_it, &probe).await.is_ok() {} };
    tokio::time::timeout(DEADLINE, in_force).await.expect("the policy is not in force");

    world.create::<PayloadBuild>("app", build_spec("python:3")).await;
    is_held_up(&world, "app", Reason::WorkerCreateFailed, "violates PodSecurity \"restricted:latest\"").await;
    let status = world.status::<PayloadBuild>("app").await;
    let message = &condition(&status, "Ready").unwrap().message;
    assert!(
        message.contains("; correct spec.worker.securityContext, or what the namespace enforces: "),
        "{message}"
    );
    kubectl(&["delete", "--filename", "-"], &policy);
    let job = world.job_of_attempt::<PayloadBuild>("app", 1).await;
    world.ends_for(&world.pod_of(&job).await, Reason::Succeeded).await;
    world.until_ready::<PayloadBuild>("app", "True", "Succeeded").await;
}

#[tokio::test]
async fn a_worker_that_cannot_start_is_replaced_when_the_spec_is_tuned() {
    let world = World::new("mended").await;
    let pod = with_pod(&world, "app").await;
    world.waits(&pod, "CreateContainerConfigError", "secret \"wrong\" not found").await;
    is_held_up(&world, "app", Reason::SecretNotFound, "wrong").await;
    let access = json!([{ "host": "docker.io", "secretRef": { "name": "right" } }]);
    world.patch::<PayloadBuild>("app", json!({ "spec": { "registries": access } })).await;
    let job = world.job_of_attempt::<PayloadBuild>("app", 2).await;
    let pod = world.pod_of(&job).await;
    let volumes = serde_json::to_string(&pod.spec.as_ref().unwrap().volumes).unwrap();
    assert!(volumes.contains("right") && !volumes.contains("wrong"), "{volumes}");
    assert_eq!(world.jobs().await.len(), 1);
    let works = |status: &Status| condition(status, "Ready").is_some_and(|ready| ready.status == "Unknown");
    world.until::<PayloadBuild>("app", "on its way", works).await;
}
