//! What is kept of every resource for as long as it is there: who it is, and where it writes to.
//!
//! There may be ten thousand of them. All else is read when one is looked at.

use std::borrow::Cow;
use std::marker::PhantomData;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Resource;
use kube::api::ObjectMeta;
use serde::Deserialize;
use serde_json::Value;

use super::validate::Place;
use super::wish::Wish;
use crate::api::Output;

/// A resource of kind `K`, as the watch knows it. It is read from the whole resource.
#[derive(Debug, Deserialize)]
#[serde(from = "Whole", bound = "")]
pub(super) struct Known<K> {
    /// Name, namespace, uid, version and age.
    metadata: ObjectMeta,
    /// What is the same for all builds that write to the same file or object.
    output: Option<String>,
    kind: PhantomData<fn() -> K>,
}

/// As much of a resource as is read. What is wrong elsewhere in it does not keep it from being known.
#[derive(Deserialize)]
struct Whole {
    metadata: Metadata,
    spec: Option<Spec>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    creation_timestamp: Option<Time>,
}

#[derive(Deserialize)]
struct Spec {
    output: Option<Value>,
}

impl<K> From<Whole> for Known<K> {
    fn from(whole: Whole) -> Self {
        let Metadata { name, namespace, uid, resource_version, creation_timestamp } = whole.metadata;
        let metadata = ObjectMeta {
            name,
            namespace,
            uid,
            resource_version,
            creation_timestamp,
            ..ObjectMeta::default()
        };
        let output = whole.spec.and_then(|spec| serde_json::from_value::<Output>(spec.output?).ok());
        let place = output.and_then(|output| match (output.persistent_volume_claim, output.object_store) {
            (Some(claim), None) => Some(Place::Claim(claim)),
            (None, Some(object)) => Some(Place::Object(object)),
            _ => None,
        });
        Self { metadata, output: place.map(|place| place.key()), kind: PhantomData }
    }
}

impl<K> Known<K> {
    /// Whether it is a build in `namespace` that writes to the place of this [`Place::key`].
    pub(super) fn writes_to(&self, namespace: &str, key: &str) -> bool {
        self.output.as_deref() == Some(key) && self.metadata.namespace.as_deref() == Some(namespace)
    }
}

impl<K> Clone for Known<K> {
    fn clone(&self) -> Self {
        Self { metadata: self.metadata.clone(), output: self.output.clone(), kind: PhantomData }
    }
}

impl<K: Wish> Resource for Known<K> {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        K::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        K::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        K::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        K::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::{PayloadBuild, PayloadImport};

    #[test]
    fn of_a_resource_is_kept_who_it_is_and_nothing_that_grows_with_it() {
        let metadata = json!({
            "name": "app", "namespace": "team", "uid": "u", "resourceVersion": "7", "generation": 3,
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": { "a": "b" },
            "annotations": { "kubectl.kubernetes.io/last-applied-configuration": "{}" },
            "managedFields": [{ "manager": "kubectl", "operation": "Apply", "fieldsV1": { "f:spec": {} } }],
        });
        let whole = json!({ "metadata": metadata, "spec": { "images": [] }, "status": { "run": {} } });
        let known: Known<PayloadImport> = serde_json::from_value(whole).unwrap();
        let kept = json!({
            "name": "app", "namespace": "team", "uid": "u", "resourceVersion": "7",
            "creationTimestamp": "2026-01-01T00:00:00Z",
        });
        assert_eq!(serde_json::to_value(known.meta()).unwrap(), kept);
        assert_eq!(known.output, None);
    }

    #[test]
    fn a_resource_is_known_whatever_another_version_of_its_definition_made_of_its_spec() {
        for spec in [
            json!(null),
            json!({}),
            json!({ "output": [] }),
            json!({ "output": { "claim": 1 }, "images": 1 }),
        ] {
            let mut whole = json!({ "metadata": { "name": "app" }, "spec": spec });
            let known: Known<PayloadBuild> = serde_json::from_value(whole.clone()).unwrap();
            assert_eq!((known.metadata.name.as_deref(), known.output), (Some("app"), None));
            whole.as_object_mut().unwrap().remove("spec");
            assert!(serde_json::from_value::<Known<PayloadBuild>>(whole).is_ok());
        }
    }
}
