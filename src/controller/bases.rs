//! The payloads that a build is built upon: where they lie, and which they are by now. Pure, but for one question.

use kube::api::{ApiResource, DynamicObject, ListParams};
use kube::{Api, Client, ResourceExt as _};

use super::Subject;
use super::validate::{Invalid, Place, Valid};
use crate::api::{Claim, PayloadBuild, Status, condition};
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
    if valid.bases.is_empty() {
        return Ok(Ok(Bases::There(Vec::new())));
    }
    let kind = ApiResource::erase::<PayloadBuild>(&());
    let builds: Api<DynamicObject> = Api::namespaced_with(client.clone(), &subject.namespace, &kind);
    Ok(found(subject, valid, &builds.list(&ListParams::default()).await?.items))
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
    let Place::Claim(Claim { claim_name: ours, .. }) = &valid.place else {
        return awaited("lies where this build cannot look");
    };
    // Not as a whole: what is wrong elsewhere in another's spec is not our trouble.
    let theirs = build.data.pointer("/spec/output/persistentVolumeClaim/claimName");
    if let Some(theirs) = theirs.and_then(serde_json::Value::as_str)
        && theirs != ours
    {
        return Err(Invalid(format!(
            "spec.alreadyTransferred.payloads names {name:?}, which writes into the claim {theirs:?}, and this build into {ours:?}; a worker has one claim: write both into the same one"
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
        let path = payload.location.strip_prefix(ours)?.strip_prefix('/')?;
        Some((path.to_owned(), payload.digest.as_ref()?.parse().ok()?))
    });
    match payload {
        Some((path, digest)) => Ok(Ok(BasePayload { name: name.to_owned(), path, digest })),
        None => awaited(&format!("has no payload in the claim {ours:?} yet")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

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

    fn look(names: &[&str], builds: &[DynamicObject]) -> Result<Bases, String> {
        let names: Vec<Value> = names.iter().map(|name| json!({ "name": name })).collect();
        let spec = json!({
            "images": [{ "image": "python:3" }],
            "alreadyTransferred": { "payloads": names },
            "output": { "persistentVolumeClaim": { "claimName": "transfer", "path": "app.zip" } },
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
        assert!(refused.contains("the claim \"other\", and this build into \"transfer\""), "{refused}");
        assert!(look(&["app"], &[]).unwrap_err().contains("which is this build itself"));
    }
}
