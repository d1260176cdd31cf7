//! The payloads that a build is built upon: where they lie, and which they are by now. Pure, but for one question.

use std::fmt;

use kube::api::{ApiResource, DynamicObject};
use kube::{Api, Client, ResourceExt as _};
use serde_json::Value;

use super::Subject;
use super::validate::{Invalid, Place, Valid};
use crate::api::{PayloadBuild, Status, condition};
use crate::object_location::Provider;
use crate::worker::contract::{BasePayload, Work};

/// What became of looking for the bases of a build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Bases {
    /// All are there, if any are wanted.
    There(Vec<BasePayload>),
    /// One is not there yet: why, in one sentence.
    Awaited(String),
}

/// Looks for the bases of `subject`, by the names of their resources.
pub(super) async fn bases(
    client: &Client,
    subject: &Subject,
    valid: &Valid,
) -> Result<Result<Bases, Invalid>, kube::Error> {
    let kind = ApiResource::erase::<PayloadBuild>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &subject.namespace, &kind);
    let mut builds = Vec::new();
    for name in &valid.bases {
        builds.extend(api.get_opt(name).await?);
    }
    Ok(found(subject, valid, &builds))
}

impl Bases {
    /// Tells the worker of them.
    pub(super) fn put_into(self, valid: &mut Valid) -> Option<String> {
        match (self, &mut valid.work) {
            (Self::There(bases), Work::Build(work)) => {
                work.bases = bases;
                None
            }
            (Self::There(_), Work::Import(_)) => None,
            (Self::Awaited(why), _) => Some(why),
        }
    }
}

fn found(subject: &Subject, valid: &Valid, builds: &[DynamicObject]) -> Result<Bases, Invalid> {
    let mut there = Vec::new();
    let mut awaited = None;
    for name in &valid.bases {
        if *name == subject.name {
            return Err(Invalid(format!(
                "spec.alreadyTransferred.payloads names {name:?}, which is this build itself; name an earlier one"
            )));
        }
        match one(valid, name, builds.iter().find(|build| build.name_any() == *name))? {
            Ok(base) => there.push(base),
            Err(why) => awaited = awaited.or(Some(why)),
        }
    }
    Ok(awaited.map_or(Bases::There(there), Bases::Awaited))
}

/// One base, or why it is not there yet.
fn one(
    valid: &Valid,
    name: &str,
    build: Option<&DynamicObject>,
) -> Result<Result<BasePayload, String>, Invalid> {
    let awaited =
        |why: &str| Ok(Err(format!("PayloadBuild {name:?}, upon which this is to be built, {why}")));
    let Some(build) = build else {
        return awaited("does not exist; create it, or take it out of spec.alreadyTransferred.payloads");
    };
    let ours = Shared::of(&valid.place);
    // Not as a whole: what is wrong elsewhere in another's spec is not our trouble.
    let theirs = build.data.pointer("/spec/output").and_then(Shared::of_output);
    if let Some(theirs) = theirs
        && theirs != ours
    {
        return Err(Invalid(format!(
            "spec.alreadyTransferred.payloads names {name:?}, which writes into {theirs}, and this build into {ours}; a worker has one of them: write both into the same one"
        )));
    }
    let status = build.data.get("status").and_then(|status| serde_json::from_value(status.clone()).ok());
    let status: Status = status.unwrap_or_default();
    let ready = status.conditions.iter().find(|condition| condition.type_ == condition::READY);
    match ready {
        _ if status.observed_generation != build.metadata.generation => {
            return awaited("has not been seen to");
        }
        Some(ready) if ready.status == "True" => {}
        Some(ready) => return awaited(&format!("is not Ready ({})", ready.reason)),
        None => return awaited("is not Ready"),
    }
    let payload = status.payload.as_ref().and_then(|payload| {
        let path = payload.location.strip_prefix(&ours.prefix())?;
        Some((path.to_owned(), payload.digest.as_ref()?.parse().ok()?))
    });
    match payload {
        Some((path, digest)) => Ok(Ok(BasePayload { name: name.to_owned(), path, digest })),
        None => awaited(&format!("has no payload in {ours} yet")),
    }
}

/// What a build and its bases must have in common: a worker has one volume, or one bucket.
#[derive(Debug, PartialEq)]
enum Shared {
    Claim(String),
    Bucket { provider: Provider, bucket: String, endpoint: Option<String> },
}

impl Shared {
    fn of(place: &Place) -> Self {
        match place {
            Place::Claim(claim) => Self::Claim(claim.claim_name.clone()),
            Place::Object(object) => Self::Bucket {
                provider: object.provider.unwrap_or_default(),
                bucket: object.bucket.clone(),
                endpoint: object.endpoint.clone(),
            },
        }
    }

    /// That of the output in another build's spec.
    fn of_output(output: &Value) -> Option<Self> {
        let text = |pointer: &str| Some(output.pointer(pointer)?.as_str()?.to_owned());
        if let Some(claim) = text("/persistentVolumeClaim/claimName") {
            return Some(Self::Claim(claim));
        }
        let provider = output.pointer("/objectStore/provider").cloned();
        Some(Self::Bucket {
            provider: provider.and_then(|provider| serde_json::from_value(provider).ok()).unwrap_or_default(),
            bucket: text("/objectStore/bucket")?,
            endpoint: text("/objectStore/endpoint"),
        })
    }

    /// What the locations of all payloads in it begin with.
    fn prefix(&self) -> String {
        match self {
            Self::Claim(claim) => format!("{claim}/"),
            Self::Bucket { provider, bucket, .. } => format!("{}://{bucket}/", provider.scheme()),
        }
    }
}

impl fmt::Display for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Claim(claim) => write!(f, "the claim {claim:?}"),
            Self::Bucket { provider, bucket, endpoint } => {
                write!(f, "the bucket {}://{bucket}", provider.scheme())?;
                endpoint.iter().try_for_each(|endpoint| write!(f, " at {endpoint}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::controller::validate;
    use crate::digest::Digest;

    fn base(name: &str, claim: &str, ready: &str) -> DynamicObject {
        let payload = json!({
            "runId": "r", "location": format!("{claim}/out/{name}.zip"), "digest": Digest::sha256(name.as_bytes()),
            "sizeBytes": 1, "formatVersion": 1, "images": 1, "blobs": 1, "blobsReused": 0,
        });
        let ready = json!({
            "type": "Ready", "status": ready, "reason": "Why", "message": "", "lastTransitionTime": "1970-01-01T00:00:00Z",
        });
        serde_json::from_value(json!({
            "apiVersion": "charon.dev/v1alpha1",
            "kind": "PayloadBuild",
            "metadata": { "name": name, "uid": name, "generation": 3 },
            "spec": { "output": { "persistentVolumeClaim": { "claimName": claim, "path": "elsewhere" } } },
            "status": { "observedGeneration": 3, "conditions": [ready], "payload": payload },
        }))
        .unwrap()
    }

    /// The same with its payload in a bucket.
    fn in_bucket(name: &str, store: &Value) -> DynamicObject {
        let mut build = base(name, "transfer", "True");
        build.data["spec"]["output"] = json!({ "objectStore": store });
        build.data["status"]["payload"]["location"] = json!(format!("s3://transfer/out/{name}.zip"));
        build
    }

    fn look(names: &[&str], builds: &[DynamicObject]) -> Result<Bases, String> {
        let claim = json!({ "persistentVolumeClaim": { "claimName": "transfer", "path": "app.zip" } });
        look_from(&claim, names, builds)
    }

    fn look_from(output: &Value, names: &[&str], builds: &[DynamicObject]) -> Result<Bases, String> {
        let names: Vec<Value> = names.iter().map(|name| json!({ "name": name })).collect();
        let spec = json!({
            "images": [{ "image": "python:3" }],
            "alreadyTransferred": { "payloads": names },
            "output": output,
        });
        let valid = validate::build(&serde_json::from_value(spec).unwrap()).unwrap();
        let subject = Subject { name: "app".into(), ..Subject::default() };
        found(&subject, &valid, builds).map_err(|invalid| invalid.0)
    }

    #[test]
    fn bases_are_the_payloads_that_their_builds_tell_of_in_the_order_in_which_they_are_named() {
        let builds = [base("a", "transfer", "True"), base("b", "transfer", "True")];
        let expected = ["b", "a"].map(|name| BasePayload {
            name: name.into(),
            path: format!("out/{name}.zip"),
            digest: Digest::sha256(name.as_bytes()),
        });
        assert_eq!(look(&["b", "a"], &builds), Ok(Bases::There(expected.into())));
        assert_eq!(look(&[], &builds), Ok(Bases::There(vec![])));
    }

    #[test]
    fn a_base_that_is_not_there_yet_is_awaited_and_told_why() {
        let mut unseen = base("a", "transfer", "True");
        unseen.metadata.generation = Some(4);
        let mut empty = base("a", "transfer", "True");
        empty.data["status"]["payload"] = Value::Null;
        for (builds, why) in [
            (vec![], "does not exist"),
            (vec![base("a", "transfer", "False")], "is not Ready (Why)"),
            (vec![unseen], "has not been seen to"),
            (vec![empty], "has no payload in the claim \"transfer\" yet"),
        ] {
            let Ok(Bases::Awaited(told)) = look(&["a"], &builds) else { panic!("{why}") };
            assert!(told.starts_with("PayloadBuild \"a\"") && told.contains(why), "{told}");
        }
    }

    #[test]
    fn a_base_in_another_claim_and_the_build_itself_are_refused() {
        // Also while another one is awaited.
        let refused = look(&["gone", "a"], &[base("a", "other", "False")]).unwrap_err();
        let words = "the claim \"other\", and this build into the claim \"transfer\"";
        assert!(refused.contains(words), "{refused}");
        assert!(look(&["app"], &[]).unwrap_err().contains("which is this build itself"));
    }

    #[test]
    fn a_build_into_a_bucket_finds_its_bases_in_the_same_bucket_of_the_same_store_and_nowhere_else() {
        let store = json!({ "bucket": "transfer", "key": "app.zip", "endpoint": "https://s3.infra:9000" });
        let output = json!({ "objectStore": store });
        let found = look_from(&output, &["a"], &[in_bucket("a", &store)]);
        let digest = Digest::sha256(b"a");
        let expected = BasePayload { name: "a".into(), path: "out/a.zip".into(), digest };
        assert_eq!(found, Ok(Bases::There(vec![expected])));
        for (field, value) in [("bucket", "other"), ("endpoint", "https://else:9000"), ("provider", "GCS")] {
            let mut theirs = store.clone();
            theirs[field] = json!(value);
            let refused = look_from(&output, &["a"], &[in_bucket("a", &theirs)]).unwrap_err();
            let words = "and this build into the bucket s3://transfer at https://s3.infra:9000;";
            assert!(refused.contains(words) && refused.contains("://"), "{refused}");
        }
        let refused = look_from(&output, &["a"], &[base("a", "transfer", "True")]).unwrap_err();
        assert!(refused.contains("which writes into the claim \"transfer\""), "{refused}");
        let refused = look(&["a"], &[in_bucket("a", &store)]).unwrap_err();
        assert!(refused.contains("which writes into the bucket s3://transfer at"), "{refused}");
    }
}
