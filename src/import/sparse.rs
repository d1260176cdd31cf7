//! Indexes of which images were left out: some registries refuse them.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use serde_json::Value;

use crate::digest::Digest;
use crate::payload::{BillManifest, PayloadError};

/// The manifests of an image, in push order, with every index written anew that names what is `omitted`,
/// or names an index that had to be.
///
/// Whatever else an index says stays; the digests of the others do not change.
pub(super) fn rewritten(
    manifests: &[BillManifest],
    omitted: &HashSet<&Digest>,
    manifest: impl Fn(&Digest) -> Result<Bytes, PayloadError>,
) -> Result<Vec<(BillManifest, Bytes)>, PayloadError> {
    let mut anew: HashMap<&Digest, BillManifest> = HashMap::new();
    let mut list = Vec::with_capacity(manifests.len());
    for described in manifests {
        let bytes = manifest(&described.digest)?;
        let refused = |error: serde_json::Error| PayloadError::Manifest {
            digest: described.digest.clone(),
            why: error.to_string(),
        };
        let mut index: Value = serde_json::from_slice(&bytes).map_err(refused)?;
        if !rewrite(&mut index, omitted, &anew) {
            list.push((described.clone(), bytes));
            continue;
        }
        let bytes = Bytes::from(serde_json::to_vec(&index).map_err(refused)?);
        let (digest, size) = (Digest::sha256(&bytes), bytes.len() as u64);
        let changed = BillManifest { digest, size, media_type: described.media_type.clone() };
        anew.insert(&described.digest, changed.clone());
        list.push((changed, bytes));
    }
    Ok(list)
}

/// Whether there was something to change.
fn rewrite(index: &mut Value, omitted: &HashSet<&Digest>, anew: &HashMap<&Digest, BillManifest>) -> bool {
    let Some(children) = index.get_mut("manifests").and_then(Value::as_array_mut) else {
        return false;
    };
    let digest_of = |child: &Value| child.get("digest")?.as_str()?.parse::<Digest>().ok();
    let count = children.len();
    children.retain(|child| digest_of(child).is_none_or(|digest| !omitted.contains(&digest)));
    let mut is_changed = children.len() != count;
    for child in children {
        if let Some(changed) = digest_of(child).and_then(|digest| anew.get(&digest)) {
            child["digest"] = changed.digest.as_str().into();
            child["size"] = changed.size.into();
            is_changed = true;
        }
    }
    is_changed
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_index_that_names_a_rewritten_one_is_rewritten_and_what_else_they_say_stays() {
        let (kept, gone) = (Digest::sha256(b"{}"), Digest::sha256(b"gone"));
        let descriptor = |digest: &Digest, size: usize| json!({ "digest": digest, "size": size, "platform": { "os": "linux" } });
        let inner =
            json!({ "manifests": [descriptor(&kept, 2), descriptor(&gone, 4)], "annotations": { "a": "b" } });
        let inner = inner.to_string();
        let inner_digest = Digest::sha256(inner.as_bytes());
        let outer = json!({ "manifests": [descriptor(&inner_digest, inner.len())], "x": 1 }).to_string();
        let texts: HashMap<Digest, String> =
            [("{}".to_owned()), inner, outer].map(|text| (Digest::sha256(text.as_bytes()), text)).into();
        let order = [
            "{}",
            texts[&inner_digest].as_str(),
            texts.values().find(|text| text.contains("\"x\"")).unwrap(),
        ];
        let manifests = order.map(|text| BillManifest {
            digest: Digest::sha256(text.as_bytes()),
            media_type: "m".into(),
            size: text.len() as u64,
        });
        let bytes = |digest: &Digest| Ok(Bytes::from(texts[digest].clone()));
        let list = rewritten(&manifests, &HashSet::from([&gone]), bytes).unwrap();
        let read = |place: usize| serde_json::from_slice::<Value>(&list[place].1).unwrap();
        assert_eq!(list[0].0, manifests[0]);
        assert_eq!(read(1), json!({ "manifests": [descriptor(&kept, 2)], "annotations": { "a": "b" } }));
        assert_eq!(read(2), json!({ "manifests": [descriptor(&list[1].0.digest, list[1].1.len())], "x": 1 }));
        assert_eq!(list[2].0.digest, Digest::sha256(&list[2].1));
    }
}
