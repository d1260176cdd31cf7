//! The resources that a transfer is about: where their payload lies, and what their worker is like.

use std::str::FromStr;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::PodSpec;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt as _};

use super::PluginError;
use super::near::Expected;
use crate::api::{
    Claim, ObjectStore, PayloadBuild, PayloadImport, SecretRef, Status, Toleration, Worker, condition,
};
use crate::controller;
use crate::object_location::ObjectLocation;

/// A `PayloadBuild` as kubectl's users name it: `pbuild/NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildName(String);

/// The text names no `PayloadBuild`.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildNameError {
    /// It has no kind, or no name.
    #[error("expected a kind and a name, such as pbuild/app-1.4")]
    Form,
    /// It is of another kind.
    #[error("{0:?} is no kind that makes payloads; only a PayloadBuild does: pbuild/NAME")]
    Kind(String),
}

impl FromStr for BuildName {
    type Err = BuildNameError;

    fn from_str(text: &str) -> Result<Self, BuildNameError> {
        let (kind, name) = text.split_once('/').ok_or(BuildNameError::Form)?;
        if name.is_empty() || name.contains('/') {
            return Err(BuildNameError::Form);
        }
        let plain = kind.to_lowercase();
        match plain.strip_suffix(".charon.dev").unwrap_or(&plain) {
            "pbuild" | "payloadbuild" | "payloadbuilds" => Ok(Self(name.to_owned())),
            _ => Err(BuildNameError::Kind(kind.to_owned())),
        }
    }
}

/// What a pod that reaches a claim is made of.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Model {
    pub image: String,
    /// A worker's pod: ids, node, what its image is pulled with.
    pub spec: PodSpec,
}

/// A payload that a build left in a claim.
#[derive(Debug)]
pub(super) struct Built {
    pub claim: Claim,
    pub expected: Expected,
    pub status: Status,
    pub worker: Worker,
}

impl BuildName {
    /// The build's payload, if it is there and in a claim.
    pub(super) async fn find(&self, client: &Client, namespace: &str) -> Result<Built, PluginError> {
        let builds: Api<PayloadBuild> = Api::namespaced(client.clone(), namespace);
        let doing = format!("read PayloadBuild {} in namespace {namespace}", self.0);
        let build = builds.get_opt(&self.0).await.map_err(|error| PluginError::api(&doing, &error))?;
        let build = build.ok_or_else(|| {
            PluginError::new(format!(
                "there is no PayloadBuild {} in namespace {namespace}; kubectl get pbuild -A lists all",
                self.0
            ))
        })?;
        built(build).map_err(PluginError::new)
    }
}

/// The payload of `build`, or why there is none to get, with what to do.
fn built(build: PayloadBuild) -> Result<Built, String> {
    let (name, generation) = (build.name_any(), build.metadata.generation);
    let namespace = build.namespace().unwrap_or_default();
    let status = build.status.unwrap_or_default();
    let wait = format!("kubectl -n {namespace} wait --for=condition=Ready pbuild/{name} waits for it");
    if status.observed_generation != generation {
        return Err(format!(
            "the controller has not looked at PayloadBuild {name} since it was changed; {wait}"
        ));
    }
    let ready = status.conditions.iter().find(|it| it.type_ == condition::READY);
    match ready {
        Some(ready) if ready.status == "True" => {}
        Some(ready) => {
            return Err(format!(
                "PayloadBuild {name} is not ready ({}: {}); {wait}",
                ready.reason, ready.message
            ));
        }
        None => return Err(format!("PayloadBuild {name} is not ready; {wait}")),
    }
    let output = build.spec.output;
    if let Some(object) = &output.object_store {
        return Err(format!("the payload of PayloadBuild {name} is in no claim: {}", elsewhere(object)));
    }
    let (Some(claim), Some(payload)) = (output.persistent_volume_claim, status.payload.clone()) else {
        return Err(format!(
            "PayloadBuild {name} does not tell where its payload is; ask for a new run by spec.trigger"
        ));
    };
    let digest = |text: Option<String>| text.and_then(|text| text.parse().ok());
    let expected = Expected {
        size: payload.size_bytes,
        digest: digest(payload.digest),
        file_digest: digest(payload.file_digest),
    };
    Ok(Built { claim, expected, status, worker: build.spec.worker.unwrap_or_default() })
}

/// Where an object lies, and how it is had.
fn elsewhere(object: &ObjectStore) -> String {
    let ObjectStore { bucket, key, .. } = object;
    let location = ObjectLocation::new(object.provider.unwrap_or_default(), bucket, key);
    let location = location.map_or_else(|_| format!("{bucket}/{key}"), |location| location.to_string());
    let endpoint = object.endpoint.as_ref().map(|endpoint| format!(" at {endpoint}")).unwrap_or_default();
    format!(
        "it is the object {location}{endpoint}; get it with a client of that store and the keys of whoever may read it"
    )
}

/// The pod to be like, for the run that `status` tells of; `image` goes before the one of the run.
pub(super) async fn model(
    client: &Client,
    namespace: &str,
    image: Option<&str>,
    status: &Status,
    worker: &Worker,
) -> Result<Model, PluginError> {
    let run = status.run.as_ref();
    let of_run = run.and_then(|run| run.image.as_deref());
    let image = image.or(of_run).ok_or_else(no_image)?.to_owned();
    let jobs: Api<Job> = Api::namespaced(client.clone(), namespace);
    // What the controller made knows the chart's settings, too. It goes a day after its end, and not everybody may read it.
    let job = match run.and_then(|run| run.job_name.as_deref()) {
        Some(name) => jobs.get_opt(name).await.ok().flatten(),
        None => None,
    };
    let spec = job.and_then(|job| job.spec?.template.spec).unwrap_or_else(|| worker_pod(worker));
    Ok(Model { image, spec })
}

fn no_image() -> PluginError {
    PluginError::new(
        "no run in this namespace tells which image the cluster has of charon; name it with --image, as the chart's image.repository and image.tag do",
    )
}

/// What is known of a worker's pod without its Job.
fn worker_pod(worker: &Worker) -> PodSpec {
    let secret =
        |secret: &SecretRef| k8s_openapi::api::core::v1::LocalObjectReference { name: secret.name.clone() };
    let toleration = |given: &Toleration| k8s_openapi::api::core::v1::Toleration {
        key: given.key.clone(),
        operator: given.operator.clone(),
        value: given.value.clone(),
        effect: given.effect.clone(),
        toleration_seconds: given.toleration_seconds,
    };
    PodSpec {
        security_context: Some(controller::restricted_by_default(worker.security_context.as_ref())),
        image_pull_secrets: worker.image_pull_secrets.as_ref().map(|all| all.iter().map(secret).collect()),
        node_selector: worker.node_selector.clone(),
        tolerations: worker.tolerations.as_ref().map(|all| all.iter().map(toleration).collect()),
        ..PodSpec::default()
    }
}

/// The pod to be like for a claim that a payload is put into: that of an import which reads it, else that of the last run.
pub(super) async fn model_for_claim(
    client: &Client,
    namespace: &str,
    image: Option<&str>,
    claim: &str,
) -> Result<Model, PluginError> {
    let runs = runs(client, namespace, claim).await;
    // Whoever names the image need not be able to read the resources.
    let best = match (runs, image) {
        (Ok(runs), _) => runs.into_iter().max_by_key(Candidate::rank),
        (Err(_), Some(_)) => None,
        (Err(error), None) => return Err(error),
    };
    let best = best.unwrap_or_default();
    model(client, namespace, image, &best.status, &best.worker).await
}

/// A resource whose worker knows how things are in its namespace.
#[derive(Debug, Default)]
struct Candidate {
    reads_claim: bool,
    status: Status,
    worker: Worker,
}

impl Candidate {
    fn rank(&self) -> (bool, bool, Option<jiff::Timestamp>) {
        let run = self.status.run.as_ref();
        let has_image = run.is_some_and(|run| run.image.is_some());
        (has_image, self.reads_claim, run.and_then(|run| Some(run.start_time.as_ref()?.0)))
    }
}

async fn runs(client: &Client, namespace: &str, claim: &str) -> Result<Vec<Candidate>, PluginError> {
    let imports: Api<PayloadImport> = Api::namespaced(client.clone(), namespace);
    let builds: Api<PayloadBuild> = Api::namespaced(client.clone(), namespace);
    let all = ListParams::default();
    let failed = |error| PluginError::api(&format!("list the resources in namespace {namespace}"), &error);
    let imports = imports.list(&all).await.map_err(failed)?;
    let builds = builds.list(&all).await.map_err(failed)?;
    let imports = imports.into_iter().map(|import| Candidate {
        reads_claim: import.spec.source.persistent_volume_claim.is_some_and(|it| it.claim_name == claim),
        status: import.status.unwrap_or_default(),
        worker: import.spec.worker.unwrap_or_default(),
    });
    let builds = builds.into_iter().map(|build| Candidate {
        reads_claim: false,
        status: build.status.unwrap_or_default(),
        worker: build.spec.worker.unwrap_or_default(),
    });
    Ok(imports.chain(builds).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::digest::Digest;

    #[test]
    fn a_build_is_named_as_kubectl_takes_it_and_nothing_else_has_a_payload() {
        for text in [
            "pbuild/app-1.4",
            "payloadbuild/app-1.4",
            "PayloadBuilds/app-1.4",
            "payloadbuilds.charon.dev/app-1.4",
        ] {
            assert_eq!(text.parse(), Ok(BuildName("app-1.4".into())), "{text}");
        }
        for (text, error) in [
            ("app-1.4", BuildNameError::Form),
            ("pbuild/", BuildNameError::Form),
            ("pbuild/a/b", BuildNameError::Form),
            ("pimport/app", BuildNameError::Kind("pimport".into())),
        ] {
            assert_eq!(text.parse::<BuildName>(), Err(error), "{text}");
        }
    }

    fn build(output: &Value, generation: u64, ready: Option<(&str, &str)>) -> PayloadBuild {
        let ready = ready.map(|(status, reason)| {
            json!({ "type": "Ready", "status": status, "reason": reason, "message": "what happened; what to do",
                    "lastTransitionTime": "2026-01-01T00:00:00Z" })
        });
        serde_json::from_value(json!({
            "apiVersion": "charon.dev/v1alpha1", "kind": "PayloadBuild",
            "metadata": { "name": "app-1.4", "namespace": "ship", "generation": 2 },
            "spec": { "output": output },
            "status": {
                "observedGeneration": generation, "conditions": Vec::from_iter(ready),
                "payload": { "runId": "r", "location": "transfer/out/app-1.4.zip", "digest": Digest::sha256(b"bill"),
                             "sizeBytes": 7, "formatVersion": 1, "images": 1, "blobs": 1, "blobsReused": 0 },
            },
        }))
        .unwrap()
    }

    #[test]
    fn a_payload_can_be_got_when_its_build_is_ready_for_what_its_spec_says_now() {
        let claim =
            json!({ "persistentVolumeClaim": { "claimName": "transfer", "path": "out/app-1.4.zip" } });
        let found = built(build(&claim, 2, Some(("True", "Succeeded")))).unwrap();
        assert_eq!(
            (found.claim.claim_name.as_str(), found.claim.path.as_str()),
            ("transfer", "out/app-1.4.zip")
        );
        let digest = Some(Digest::sha256(b"bill"));
        assert_eq!(found.expected, Expected { size: 7, digest, file_digest: None });
    }

    #[test]
    fn a_payload_that_cannot_be_got_is_told_with_what_to_do() {
        let claim =
            json!({ "persistentVolumeClaim": { "claimName": "transfer", "path": "out/app-1.4.zip" } });
        let store = json!({ "objectStore": { "endpoint": "https://s3.example", "bucket": "transfer", "key": "app.zip" } });
        let ready = Some(("True", "Succeeded"));
        let said = [
            build(&claim, 1, ready),
            build(&claim, 2, Some(("False", "ImageNotFound"))),
            build(&claim, 2, None),
            build(&store, 2, ready),
            build(&json!({}), 2, ready),
        ]
        .map(|build| built(build).unwrap_err());
        insta::assert_snapshot!(said.join("\n"));
    }

    #[test]
    fn of_all_runs_an_import_that_reads_the_claim_knows_best_which_image_there_is() {
        let candidate = |reads_claim, image: Option<&str>, start: i64| {
            let start_time = jiff::Timestamp::from_second(start).ok();
            let run = crate::api::Run {
                image: image.map(str::to_owned),
                start_time: start_time.map(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time),
                ..Default::default()
            };
            Candidate {
                reads_claim,
                status: Status { run: Some(run), ..Status::default() },
                ..Candidate::default()
            }
        };
        let best = |all: Vec<Candidate>| {
            all.into_iter().max_by_key(Candidate::rank).unwrap().status.run.unwrap().image.unwrap()
        };
        let others = || vec![candidate(false, Some("new"), 8), candidate(false, Some("old"), 1)];
        assert_eq!(best(others()), "new");
        let mut all = others();
        all.push(candidate(true, None, 9));
        assert_eq!(best(all), "new", "it has not run yet");
        let mut all = others();
        all.push(candidate(true, Some("best"), 2));
        assert_eq!(best(all), "best");
    }
}
