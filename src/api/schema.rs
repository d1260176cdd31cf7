//! From the types to the custom resource definitions that a cluster is given.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, CustomResourceValidation,
};
use kube::CustomResourceExt as _;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use super::{PayloadBuild, PayloadImport};

/// The files below `crds/`, in the order of [`crds`].
pub const CRD_FILES: [&str; 2] = ["charon.dev_payloadbuilds.yaml", "charon.dev_payloadimports.yaml"];

/// The first line of each document.
const HEADER: &str = "# Generated from src/api by `charon crds`. Do not edit.\n";

/// The definitions of both resources, as a cluster is given them.
#[must_use]
pub fn crds() -> Vec<CustomResourceDefinition> {
    let mut build = PayloadBuild::crd();
    finish(&mut build, |schema| {
        // The status is shared, but only an import has a result.
        if let Some(properties) = schema.pointer_mut("/properties/status/properties") {
            properties.as_object_mut().map(|properties| properties.remove("result"));
        }
    });
    let mut import = PayloadImport::crd();
    finish(&mut import, |_| {});
    vec![build, import]
}

/// [`crds`] as YAML documents, one for each of [`CRD_FILES`].
///
/// # Panics
/// Never: the definitions are constants of the program.
#[must_use]
pub fn crds_yaml() -> Vec<String> {
    let yaml = |crd| serde_saphyr::to_string(&crd).expect("a definition is plain data");
    crds().into_iter().map(|crd| format!("{HEADER}{}", yaml(crd))).collect()
}

/// Puts right what the derived schema of `crd` cannot express, and what `also` adds to that.
fn finish(crd: &mut CustomResourceDefinition, also: impl Fn(&mut Value)) {
    for version in &mut crd.spec.versions {
        let schema = version.schema.take().and_then(|schema| schema.open_api_v3_schema);
        let mut schema = serde_json::to_value(schema).expect("a schema is plain data");
        known_formats_only(&mut schema);
        if let Some(status) = schema.pointer_mut("/properties/status").and_then(Value::as_object_mut) {
            // kstatus calls an object whose observedGeneration is not its generation InProgress: so is
            // one that no controller has seen.
            status.insert("default".into(), json!({ "observedGeneration": -1 }));
            status.remove("nullable");
        }
        also(&mut schema);
        let schema = serde_json::from_value(schema).expect("it was a schema before");
        version.schema = Some(CustomResourceValidation { open_api_v3_schema: schema });
    }
}

/// The API server knows no unsigned formats, and warns of each; `minimum: 0` stays.
/// `nullable` goes too: an absent field is the one way to leave something out.
fn known_formats_only(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            let signed = match map.get("format").and_then(Value::as_str) {
                Some("uint32") => Some("int32"),
                Some("uint64") => Some("int64"),
                _ => None,
            };
            if let Some(signed) = signed {
                map.insert("format".into(), signed.into());
            }
            if map.get("nullable") == Some(&Value::Bool(true)) {
                map.remove("nullable");
            }
            map.values_mut().for_each(known_formats_only);
        }
        Value::Array(items) => items.iter_mut().for_each(known_formats_only),
        _ => {}
    }
}

/// A point in time, as Kubernetes writes it.
pub(super) fn time(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "format": "date-time" })
}

/// How images are called at the far side.
pub(super) fn naming(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "maxLength": 16, "enum": ["AsWritten", "Canonical", "WithHost"] })
}

pub(super) fn provider(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "maxLength": 16, "enum": ["S3", "Azure", "GCS"] })
}

/// What becomes of an index that a registry refuses.
pub(super) fn sparse_index(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "maxLength": 16, "enum": ["Keep", "Rewrite"] })
}

/// What becomes of a tag that is there.
pub(super) fn tag_policy(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "maxLength": 16, "enum": ["Overwrite", "KeepExisting", "Fail"] })
}

/// Amounts of resources by their names. Kubernetes takes a number or a text with a suffix.
pub(super) fn quantities(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 8,
        "additionalProperties": {
            "x-kubernetes-int-or-string": true,
            "maxLength": 32,
            "pattern": r"^[+]?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE][+-]?[0-9]+))?$",
        },
    })
}

/// Labels by their keys.
pub(super) fn labels(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 32,
        "additionalProperties": {
            "type": "string",
            "maxLength": 63,
            "pattern": "^([A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?)?$",
        },
    })
}

/// Annotations by their keys; with a run configuration they must fit a pod.
pub(super) fn annotations(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 16,
        "additionalProperties": { "type": "string", "maxLength": 2048 },
    })
}

/// How a toleration compares.
pub(super) fn toleration_operator(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "maxLength": 16, "enum": ["Equal", "Exists"] })
}

/// What a taint does.
pub(super) fn taint_effect(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "maxLength": 32, "enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"] })
}

/// Something of a pod's that Kubernetes knows better than this schema.
pub(super) fn as_in_a_pod(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "object", "maxProperties": 2, "x-kubernetes-preserve-unknown-fields": true })
}

/// Conditions as `metav1.Condition` has them.
pub(super) fn conditions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 16,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["type", "status", "lastTransitionTime", "reason", "message"],
            "properties": {
                "type": { "type": "string", "maxLength": 316 },
                "status": { "type": "string", "enum": ["True", "False", "Unknown"] },
                "observedGeneration": { "type": "integer", "format": "int64", "minimum": 0 },
                "lastTransitionTime": { "type": "string", "format": "date-time" },
                "reason": { "type": "string", "minLength": 1, "maxLength": 1024 },
                "message": { "type": "string", "maxLength": 32768 },
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_files_in_crds_are_what_the_types_say() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("crds");
        for (file, expected) in CRD_FILES.iter().zip(crds_yaml()) {
            let path = folder.join(file);
            if std::env::var_os("UPDATE_CRDS").is_some() {
                std::fs::write(&path, &expected).unwrap();
            }
            let found = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(found == expected, "{file} is not what the types say; run `make crds`");
        }
    }

    /// Calls `check` with every schema below `schema` and its path.
    fn walk(schema: &Value, path: &str, check: &mut dyn FnMut(&str, &Value)) {
        check(path, schema);
        for (name, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            walk(property, &format!("{path}.{name}"), check);
        }
        for inner in ["items", "additionalProperties"] {
            if let Some(inner) = schema.get(inner) {
                walk(inner, &format!("{path}[]"), check);
            }
        }
    }

    fn schemas() -> Vec<(String, Value)> {
        let schema = |crd: CustomResourceDefinition| {
            (
                crd.spec.names.kind,
                serde_json::to_value(&crd.spec.versions[0].schema).unwrap()["openAPIV3Schema"].take(),
            )
        };
        crds().into_iter().map(schema).collect()
    }

    #[test]
    fn every_text_list_and_map_of_a_spec_is_bounded_and_has_no_default() {
        for (kind, schema) in schemas() {
            walk(&schema["properties"]["spec"], &kind, &mut |path, schema| {
                let bound = match schema["type"].as_str() {
                    Some("string") => "maxLength",
                    Some("array") => "maxItems",
                    Some("object") if schema.get("properties").is_none() => "maxProperties",
                    _ => "type",
                };
                let dynamic = schema.get("x-kubernetes-int-or-string").is_some();
                assert!(dynamic || schema.get(bound).is_some(), "{path} has no {bound}");
                assert!(schema.get("default").is_none(), "{path} has a default");
                assert!(schema.get("nullable").is_none(), "{path} may be null");
            });
        }
    }

    #[test]
    fn every_field_of_a_spec_tells_what_it_means_and_every_rule_has_a_message() {
        for (kind, schema) in schemas() {
            walk(&schema["properties"]["spec"], &kind, &mut |path, schema| {
                assert!(
                    path.ends_with("[]") || schema.get("description").is_some(),
                    "{path} is not described"
                );
                for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
                    assert!(rule.get("message").is_some(), "{path}: {rule}");
                }
            });
        }
    }

    #[test]
    fn only_formats_that_the_api_server_knows_are_in_the_definitions() {
        for document in crds_yaml() {
            assert!(!document.contains("uint"), "{document}");
        }
    }

    #[test]
    fn a_resource_that_no_controller_has_seen_is_in_progress_for_kstatus() {
        for (kind, schema) in schemas() {
            assert_eq!(
                schema["properties"]["status"]["default"],
                json!({ "observedGeneration": -1 }),
                "{kind}"
            );
        }
    }

    #[test]
    fn only_an_import_has_a_result() {
        let has_result =
            |schema: &Value| schema["properties"]["status"]["properties"].get("result").is_some();
        let found: Vec<_> =
            schemas().iter().map(|(kind, schema)| (kind.clone(), has_result(schema))).collect();
        assert_eq!(found, [("PayloadBuild".into(), false), ("PayloadImport".into(), true)]);
    }
}
