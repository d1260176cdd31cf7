//! What a run is called: a hash of what it makes. Pure.

use serde_json::Value;

use super::validate::Valid;
use crate::digest::Digest;

/// A run id has so many hexadecimal digits of a sha256: it must fit a label.
const RUN_ID_LENGTH: usize = 32;
/// The longest name that a Job may have, because its pods carry it in a label.
const JOB_NAME_LIMIT: usize = 63;

/// The id of the run that makes `valid` true, asked for again at `requested_at`.
pub(super) fn run_id(valid: &Valid, requested_at: Option<&str>) -> String {
    let mut identity = valid.identity.clone();
    if let (Some(fields), Some(requested_at)) = (identity.as_object_mut(), requested_at) {
        fields.insert("requestedAt".into(), requested_at.into());
    }
    let mut text = String::new();
    canonical(&identity, &mut text);
    Digest::sha256(text.as_bytes()).hex()[..RUN_ID_LENGTH].to_owned()
}

/// The name of the Job of one attempt: the same for the same attempt, whoever asks.
pub(super) fn job_name(letter: char, name: &str, uid: &str, run_id: &str, attempt: u32) -> String {
    let hash = Digest::sha256(format!("{letter}/{uid}/{run_id}/{attempt}").as_bytes());
    let hash = &hash.hex()[..10];
    let prefix = format!("charon-{letter}-");
    let room = JOB_NAME_LIMIT - prefix.len() - 1 - hash.len();
    let name = name.replace('.', "-");
    // A resource's name is ASCII.
    let name = name.get(..room).unwrap_or(&name).trim_end_matches('-');
    format!("{prefix}{name}-{hash}")
}

/// Tells one worker's answer from that of another pod which got its address.
pub(super) fn nonce(uid: &str, run_id: &str, attempt: u32) -> String {
    Digest::sha256(format!("nonce/{uid}/{run_id}/{attempt}").as_bytes()).hex()[..16].to_owned()
}

/// JSON with sorted keys, without spaces, without what is null.
///
/// It is written out here because hashes of it lie in clusters: a library may not change its mind.
fn canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().filter(|key| !map[*key].is_null()).collect();
            keys.sort();
            out.push('{');
            for (index, key) in keys.into_iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                canonical(&Value::String(key.clone()), out);
                out.push(':');
                canonical(&map[key], out);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                canonical(item, out);
            }
            out.push(']');
        }
        // Texts, numbers and booleans have one form, which is serde_json's.
        scalar => out.push_str(&scalar.to_string()),
    }
}

#[cfg(test)]
#[allow(clippy::needless_pass_by_value)] // json! makes values
mod tests {
    use serde_json::json;

    use super::*;
    use crate::controller::validate;

    fn of_build(spec: Value, requested_at: Option<&str>) -> String {
        run_id(&validate::build(&serde_json::from_value(spec).unwrap()).unwrap(), requested_at)
    }

    fn of_import(spec: Value, requested_at: Option<&str>) -> String {
        run_id(&validate::import(&serde_json::from_value(spec).unwrap()).unwrap(), requested_at)
    }

    fn build(fields: Value) -> Value {
        merged(
            json!({
                "images": [{ "image": "python:3" }],
                "output": { "persistentVolumeClaim": { "claimName": "transfer", "path": "app.zip" } },
            }),
            fields,
        )
    }

    fn import(fields: Value) -> Value {
        merged(
            json!({
                "source": { "persistentVolumeClaim": { "claimName": "inbox", "path": "app.zip" } },
                "registry": { "host": "registry.infra:5000" },
            }),
            fields,
        )
    }

    fn merged(mut spec: Value, fields: Value) -> Value {
        spec.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        spec
    }

    /// These lie in the statuses of clusters: a change runs every build and import of the world again.
    const GOLDEN: [&str; 20] = [
        "e82a6c7461d3511aefe8673aeb65b5ab",
        "4e06c1dacb7f69d52799a0b2d3c01827",
        "98765aba109e2ae835a922b3c85ea604",
        "15194294ac6b6a8bec5148006fc3203a",
        "06b7916128f95de8c7c5d54b10086473",
        "caf0fa2f5fb735d8cec353471d394132",
        "55cfc920c3b7fbe2740d74b5d9ffbc55",
        "5ac1a75e81d048b9b97ddd48c7439844",
        "f4ed327de1210c2d62ba9b90ea38988b",
        "d407b2f3b1a28ee360b94f3db94dae87",
        "93479dc068986ec192bac4516c7287da",
        "852b22217ff68f5e2f50d6a159b06e27",
        "558b18813ff68a79a6402208cff26e98",
        "51a560eccb32d52ca75d9691971ad973",
        "1146ea41d37055e517c8a835d4b9172e",
        "d5171c75fc25018ff8d27e2a97364ec4",
        "162625e27fe79e965cac13c2d33c63de",
        "b7f259ed2af60f11d38d3189b522e27d",
        "909290baed626a7b03085d7507684aeb",
        "d1a610eab741b915001db16fe7962be8",
    ];

    #[test]
    fn the_ids_of_runs_are_what_they_were() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let claim =
            |name: &str, path: &str| json!({ "persistentVolumeClaim": { "claimName": name, "path": path } });
        let images =
            |images: &[&str]| images.iter().map(|image| json!({ "image": image })).collect::<Vec<_>>();
        let at = Some("2026-11-01T00:00:00Z");
        let found = [
            of_build(build(json!({})), None),
            of_build(build(json!({ "images": images(&["python:4"]) })), None),
            of_build(build(json!({ "images": images(&["python:3", "redis"]) })), None),
            of_build(build(json!({ "images": images(&["redis", "python:3"]) })), None),
            of_build(build(json!({ "images": images(&["docker.io/library/python:3"]) })), None),
            of_build(build(json!({ "output": claim("transfer", "out/app.zip") })), None),
            of_build(build(json!({ "output": claim("other", "app.zip") })), None),
            of_build(build(json!({ "alreadyTransferred": {} })), None),
            of_build(build(json!({ "alreadyTransferred": { "images": ["python:2"] } })), None),
            of_build(build(json!({ "trigger": "" })), None),
            of_build(build(json!({ "trigger": "ü\"\\\n" })), None),
            of_build(build(json!({})), at),
            of_build(build(json!({ "trigger": "1" })), at),
            of_import(import(json!({})), None),
            of_import(import(json!({ "source": claim("inbox", "b.zip") })), None),
            of_import(import(json!({ "expectedDigest": digest })), None),
            of_import(import(json!({ "registry": { "host": "other" } })), None),
            of_import(
                import(json!({ "registry": { "host": "registry.infra:5000", "repositoryPrefix": "m" } })),
                None,
            ),
            of_import(import(json!({ "strict": false })), None),
            of_import(import(json!({ "strict": true })), at),
        ];
        let distinct: std::collections::BTreeSet<_> = found.iter().collect();
        assert_eq!(distinct.len(), found.len());
        assert_eq!(found.iter().map(String::as_str).collect::<Vec<_>>(), GOLDEN);
    }

    #[test]
    fn each_field_about_names_and_about_what_is_carried_asks_for_another_run() {
        let images = |image: Value| build(json!({ "images": [image] }));
        let registry = |fields: Value| {
            import(json!({ "registry": merged(json!({ "host": "registry.infra:5000" }), fields) }))
        };
        let mut found = vec![
            of_build(images(json!({ "image": "python:3", "as": "base/python:3" })), None),
            of_build(images(json!({ "image": "python:3", "as": "base/python" })), None),
            of_build(images(json!({ "image": "python:3", "platforms": ["linux/amd64"] })), None),
            of_build(build(json!({ "platforms": ["linux/amd64"] })), None),
            of_build(build(json!({ "platforms": ["linux/arm64"] })), None),
            of_build(build(json!({ "foreignLayers": true })), None),
            of_build(build(json!({ "allowMissing": true })), None),
            of_build(build(json!({ "allowMissing": false })), None),
            of_build(build(json!({ "alreadyTransferred": { "payloads": [{ "name": "a" }] } })), None),
            of_build(build(json!({ "alreadyTransferred": { "payloads": [{ "name": "b" }] } })), None),
        ];
        for fields in [
            json!({ "naming": "AsWritten" }),
            json!({ "naming": "Canonical" }),
            json!({ "naming": "WithHost" }),
            json!({ "baseRepositories": ["base/python"] }),
            json!({ "tagDigests": true }),
            json!({ "tagDigests": false }),
            json!({ "sparseIndex": "Keep" }),
            json!({ "sparseIndex": "Rewrite" }),
        ] {
            found.push(of_import(registry(fields), None));
        }
        for key in ["a", "b"] {
            let from = json!({ "configMapKeyRef": { "name": "images", "key": key } });
            found.push(of_build(build(json!({ "imagesFrom": from })), None));
            found.push(of_build(json!({ "imagesFrom": from, "output": build(json!({}))["output"] }), None));
        }
        for asked in [true, false] {
            let place = json!({ "claimName": "transfer", "path": "app.zip" });
            let output = json!({ "persistentVolumeClaim": place, "fileDigest": asked });
            found.push(of_build(build(json!({ "output": output })), None));
        }
        for policy in ["Overwrite", "KeepExisting", "Fail"] {
            found.push(of_import(import(json!({ "tagPolicy": policy })), None));
        }
        found.extend(GOLDEN.map(str::to_owned));
        let distinct: std::collections::BTreeSet<_> = found.iter().collect();
        assert_eq!(distinct.len(), found.len());
    }

    /// As [`GOLDEN`], of objects.
    const GOLDEN_OBJECTS: [&str; 7] = [
        "6598326ec952dbec1f18e698c098c62e",
        "85ed71b406d460b397709f3562cdb0b0",
        "48e4446958053469a474e8686040f635",
        "ea1503a6870f4847f13a9adb11eaa112",
        "f5b4a46ce3d7ca3874783f697097f182",
        "47b3f8ff6a0b093fa3ff2119406407bb",
        "9fc705c67c9044149a3fd7c18a1220d6",
    ];

    #[test]
    fn the_ids_of_runs_with_objects_are_what_they_were_whatever_opens_the_store() {
        let object = |fields: Value| json!({ "objectStore": merged(json!({ "bucket": "transfer", "key": "app.zip" }), fields) });
        let output = |fields: Value| of_build(build(json!({ "output": object(fields) })), None);
        let found = [
            output(json!({})),
            output(json!({ "bucket": "other" })),
            output(json!({ "key": "b.zip" })),
            output(json!({ "endpoint": "https://s3.example" })),
            output(json!({ "region": "eu-central-1" })),
            output(json!({ "provider": "GCS" })),
            of_import(import(json!({ "source": object(json!({})) })), None),
        ];
        assert_eq!(found.iter().map(String::as_str).collect::<Vec<_>>(), GOLDEN_OBJECTS);
        let distinct: std::collections::BTreeSet<_> =
            found.iter().map(String::as_str).chain(GOLDEN).collect();
        assert_eq!(distinct.len(), found.len() + GOLDEN.len());
        let opened = json!({ "secretRef": { "name": "s" }, "certSecretRef": { "name": "c" } });
        assert_eq!(output(opened), found[0]);
    }

    /// These lie in statuses, too.
    #[test]
    fn the_ids_of_runs_that_tell_of_referrers_are_what_they_were() {
        let found = [true, false].map(|referrers| of_build(build(json!({ "referrers": referrers })), None));
        assert_eq!(found, ["d05799ab60d58c3416e44a7dceeadaae", "6fe75d1471a26b347666ce86a9973b8e"]);
        assert!(!GOLDEN.contains(&found[0].as_str()) && !GOLDEN.contains(&found[1].as_str()));
    }

    #[test]
    fn tuning_changes_no_id() {
        let plain = of_build(build(json!({})), None);
        for tuning in [
            json!({ "registries": [{ "host": "docker.io", "secretRef": { "name": "pull" } }] }),
            json!({ "registries": [{ "host": "docker.io", "endpoint": "mirror.corp/dockerhub" }] }),
            json!({ "worker": { "securityContext": { "runAsUser": 1 } } }),
            json!({ "worker": { "nodeSelector": { "a": "b" }, "podMetadata": { "labels": { "a": "b" } } } }),
            json!({ "proxySecretRef": { "name": "way-out" } }),
            json!({ "backoffLimit": 1 }),
            json!({ "timeout": "1h" }),
            json!({ "suspend": true }),
            json!({ "ttlSecondsAfterFinished": 60 }),
            json!({ "trigger": null }),
        ] {
            assert_eq!(of_build(build(tuning.clone()), None), plain, "{tuning}");
        }
        let registry =
            json!({ "host": "registry.infra:5000", "insecure": true, "secretRef": { "name": "s" } });
        let tuned = of_import(import(json!({ "registry": registry })), None);
        assert_eq!(tuned, of_import(import(json!({})), None));
    }

    #[test]
    fn canonical_json_is_sorted_and_without_nulls() {
        let mut text = String::new();
        canonical(&json!({ "b": [1, null, { "z": null, "a": "ü" }], "a": true, "c": null }), &mut text);
        assert_eq!(text, r#"{"a":true,"b":[1,null,{"a":"ü"}]}"#);
    }

    #[test]
    fn a_jobs_name_fits_its_pods_label_and_differs_with_all_that_matters() {
        let name = job_name('b', "app", "uid", "run", 1);
        assert!(name.starts_with("charon-b-app-"), "{name}");
        for other in [
            job_name('i', "app", "uid", "run", 1),
            job_name('b', "app", "other", "run", 1),
            job_name('b', "app", "uid", "other", 1),
            job_name('b', "app", "uid", "run", 2),
        ] {
            assert_ne!(name, other);
        }
        for long in ["a".repeat(253), "a.b".repeat(80), format!("{}.b", "a".repeat(42)), "a-".repeat(100)] {
            let name = job_name('b', &long, "uid", "run", 1);
            assert!(name.len() <= JOB_NAME_LIMIT, "{name}");
            assert!(!name.contains('.') && !name.contains("--"), "{name}");
        }
    }
}
