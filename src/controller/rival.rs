//! Another build that writes to the same file. The older one is right, the younger one waits.

use jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject, ListParams};
use kube::{Api, Client, ResourceExt as _};

use super::Subject;
use super::validate::Place;
use crate::api::{Output, PayloadBuild};

/// The name of an older build than `subject`, in the same namespace, with the same output.
pub(super) async fn rival(
    client: &Client,
    subject: &Subject,
    output: &Place,
) -> Result<Option<String>, kube::Error> {
    let kind = ApiResource::erase::<PayloadBuild>(&());
    let builds: Api<DynamicObject> = Api::namespaced_with(client.clone(), &subject.namespace, &kind);
    Ok(older(subject, output, &builds.list(&ListParams::default()).await?.items))
}

/// One that is being deleted counts until it is gone: its worker may still write.
fn older(subject: &Subject, output: &Place, builds: &[DynamicObject]) -> Option<String> {
    let age = |build: &DynamicObject| {
        let created = build.metadata.creation_timestamp.as_ref();
        (created.map_or(Timestamp::UNIX_EPOCH, |time| time.0), build.uid().unwrap_or_default())
    };
    let ours = (subject.created, subject.uid.clone());
    let has_same_output = |build: &&DynamicObject| {
        // Not as a whole: what is wrong elsewhere in another's spec is not our trouble.
        let theirs = build
            .data
            .pointer("/spec/output")
            .cloned()
            .and_then(|output| serde_json::from_value::<Output>(output).ok());
        let theirs = theirs.and_then(|theirs| match (theirs.persistent_volume_claim, theirs.object_store) {
            (Some(claim), None) => Some(Place::Claim(claim)),
            (None, Some(object)) => Some(Place::Object(object)),
            _ => None,
        });
        theirs.is_some_and(|theirs| theirs.is_that_of(output))
    };
    let rivals = builds.iter().filter(has_same_output).filter(|build| age(build) < ours);
    rivals.min_by_key(|build| age(build)).map(kube::ResourceExt::name_any)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::{Claim, ObjectStore};

    fn build(name: &str, second: u32, path: &str) -> DynamicObject {
        let claim = json!({ "claimName": "transfer", "path": path });
        serde_json::from_value(json!({
            "apiVersion": "charon.dev/v1alpha1",
            "kind": "PayloadBuild",
            "metadata": { "name": name, "uid": name, "creationTimestamp": format!("1970-01-01T00:00:{second:02}Z") },
            "spec": { "output": { "persistentVolumeClaim": claim }, "images": "of a later version" },
        }))
        .unwrap()
    }

    fn rival_of(name: &str, second: i64, builds: &[DynamicObject]) -> Option<String> {
        let created = Timestamp::from_second(second).unwrap();
        let subject = Subject { uid: name.into(), created, ..Subject::default() };
        older(&subject, &Place::Claim(Claim { claim_name: "transfer".into(), path: "a.zip".into() }), builds)
    }

    #[test]
    fn of_two_builds_of_one_file_the_older_one_is_right_and_of_twins_the_one_with_the_lesser_uid() {
        let builds = [build("b", 5, "a.zip"), build("a", 5, "a.zip"), build("c", 7, "a.zip")];
        assert_eq!(rival_of("c", 7, &builds).as_deref(), Some("a"));
        assert_eq!(rival_of("b", 5, &builds).as_deref(), Some("a"));
        assert_eq!(rival_of("a", 5, &builds), None);
    }

    #[test]
    fn of_two_builds_of_one_object_the_older_one_is_right_whatever_opens_the_store() {
        let mut first = build("a", 5, "a.zip");
        let object = |bucket: &str| json!({ "bucket": bucket, "key": "a.zip", "secretRef": { "name": "s" } });
        first.data["spec"]["output"] = json!({ "objectStore": object("transfer") });
        let subject =
            Subject { uid: "b".into(), created: Timestamp::from_second(7).unwrap(), ..Subject::default() };
        let ours = ObjectStore { bucket: "transfer".into(), key: "a.zip".into(), ..ObjectStore::default() };
        let ours = Place::Object(ours);
        assert_eq!(older(&subject, &ours, &[first.clone()]).as_deref(), Some("a"));
        first.data["spec"]["output"] = json!({ "objectStore": object("other") });
        assert_eq!(older(&subject, &ours, &[first]), None);
    }

    #[test]
    fn another_file_and_one_without_an_output_are_no_rivals() {
        let mut without = build("a", 1, "a.zip");
        without.data = json!({ "spec": {} });
        assert_eq!(rival_of("c", 7, &[build("b", 5, "b.zip"), without]), None);
    }
}
