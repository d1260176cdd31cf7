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
