//! Another build that writes to the same file. The older one is right, the younger one waits. Pure.

use std::sync::Arc;

use jiff::Timestamp;
use kube::ResourceExt as _;
use kube::runtime::reflector::Store;

use super::Subject;
use super::known::Known;
use super::validate::Place;
use super::wish::Wish;

/// The name of an older build than `subject`, in the same namespace, with the same output.
///
/// This alone goes by what the watch knows: to list all builds at each look at one would take longer
/// than everything else together. The watch tells of them in the order in which they were made, so
/// that whoever looks at the younger one knows the older.
pub(super) fn rival<K: Wish>(known: &Store<Known<K>>, subject: &Subject, output: &Place) -> Option<String> {
    let key = output.key();
    older(subject, known.state_filter(|other| other.writes_to(&subject.namespace, &key)))
}

/// The oldest of `same`, if it is older than `subject`, which is one of them.
///
/// One that is being deleted counts until it is gone: its worker may still write.
fn older<K: Wish>(subject: &Subject, same: Vec<Arc<Known<K>>>) -> Option<String> {
    let age = |build: &Arc<Known<K>>| {
        (
            build.creation_timestamp().map_or(Timestamp::UNIX_EPOCH, |time| time.0),
            build.uid().unwrap_or_default(),
        )
    };
    let ours = (subject.created, subject.uid.clone());
    let oldest = same.into_iter().min_by_key(age)?;
    (age(&oldest) < ours).then(|| oldest.name_any())
}

#[cfg(test)]
mod tests {
    use kube::runtime::reflector::store;
    use kube::runtime::watcher::Event;
    use serde_json::{Value, json};

    use super::*;
    use crate::api::{Claim, ObjectStore, PayloadBuild};

    fn build(name: &str, second: u32, output: &Value) -> Known<PayloadBuild> {
        let created = format!("1970-01-01T00:00:{second:02}Z");
        serde_json::from_value(json!({
            "apiVersion": "charon.dev/v1alpha1",
            "kind": "PayloadBuild",
            "metadata": { "name": name, "namespace": "team", "uid": name, "creationTimestamp": created },
            "spec": { "output": output, "images": "of a later version" },
        }))
        .unwrap()
    }

    fn file(name: &str, second: u32, path: &str) -> Known<PayloadBuild> {
        build(name, second, &json!({ "persistentVolumeClaim": { "claimName": "transfer", "path": path } }))
    }

    fn object(name: &str, second: u32, bucket: &str) -> Known<PayloadBuild> {
        let object = json!({ "bucket": bucket, "key": "a.zip", "secretRef": { "name": "s" } });
        build(name, second, &json!({ "objectStore": object }))
    }

    /// The rival of the build `name` in `namespace`, where the watch knows of `builds`.
    fn rival_at(
        place: &Place,
        name: &str,
        namespace: &str,
        second: i64,
        builds: &[Known<PayloadBuild>],
    ) -> Option<String> {
        let created = Timestamp::from_second(second).unwrap();
        let subject =
            Subject { uid: name.into(), namespace: namespace.into(), created, ..Subject::default() };
        let (known, mut writer) = store();
        for build in builds {
            writer.apply_watcher_event(&Event::Apply(build.clone()));
        }
        rival(&known, &subject, place)
    }

    fn rival_of(name: &str, second: i64, builds: &[Known<PayloadBuild>]) -> Option<String> {
        let place = Place::Claim(Claim { claim_name: "transfer".into(), path: "a.zip".into() });
        rival_at(&place, name, "team", second, builds)
    }

    #[test]
    fn of_two_builds_of_one_file_the_older_one_is_right_and_of_twins_the_one_with_the_lesser_uid() {
        let builds = [file("b", 5, "a.zip"), file("a", 5, "a.zip"), file("c", 7, "a.zip")];
        assert_eq!(rival_of("c", 7, &builds).as_deref(), Some("a"));
        assert_eq!(rival_of("b", 5, &builds).as_deref(), Some("a"));
        assert_eq!(rival_of("a", 5, &builds), None);
    }

    #[test]
    fn of_two_builds_of_one_object_the_older_one_is_right_whatever_opens_the_store() {
        let ours = ObjectStore { bucket: "transfer".into(), key: "a.zip".into(), ..ObjectStore::default() };
        let ours = Place::Object(ours);
        let found = rival_at(&ours, "b", "team", 7, &[object("a", 5, "transfer")]);
        assert_eq!(found.as_deref(), Some("a"));
        assert_eq!(rival_at(&ours, "b", "team", 7, &[object("a", 5, "other")]), None);
    }

    #[test]
    fn another_file_another_namespace_and_one_without_an_output_are_no_rivals() {
        let builds = [file("b", 5, "b.zip"), build("a", 1, &Value::Null)];
        assert_eq!(rival_of("c", 7, &builds), None);
        let place = Place::Claim(Claim { claim_name: "transfer".into(), path: "a.zip".into() });
        assert_eq!(rival_at(&place, "c", "elsewhere", 7, &[file("a", 5, "a.zip")]), None);
    }
}
