use std::collections::HashMap;

use bytes::Bytes;

use super::*;

fn bill() -> Bill {
    let digest = Digest::sha256(b"root");
    let manifest = BillManifest { digest: digest.clone(), media_type: "m".into(), size: 4 };
    let file = |path: &str| BillFile { path: path.into(), size: 1, digest: Digest::sha256(b"f") };
    Bill {
        format_version: FORMAT_VERSION,
        images: vec![BillImage {
            name: "a".into(),
            far_name: None,
            reference: "docker.io/library/a:latest".into(),
            digest: Some(digest.clone()),
            media_type: "m".into(),
            size: 4,
            platforms: vec![],
            omitted: vec![],
            carried: true,
            manifests: vec![manifest],
            referrers: vec![],
            blobs: vec![],
        }],
        files: vec![file("oci-layout"), file("index.json")],
        entries: vec![BillEntry { digest, size: 4, kind: EntryKind::Manifest, encoding: "identity".into() }],
        required: vec![],
        missing: vec![],
    }
}

fn refusal(change: impl FnOnce(&mut Bill)) -> String {
    let mut bill = bill();
    change(&mut bill);
    Bill::parse(&serde_json::to_vec(&bill).unwrap()).unwrap_err().to_string()
}

#[test]
fn a_bill_is_read_as_it_was_written() {
    let bytes = bill().to_bytes().unwrap();
    assert_eq!(Bill::parse(&bytes).unwrap(), bill());
}

#[test]
fn a_bill_that_contradicts_itself_is_refused_with_what_is_wrong() {
    assert!(refusal(|bill| bill.format_version = 2).contains("format version 2"));
    assert!(refusal(|bill| bill.entries.push(bill.entries[0].clone())).contains("twice"));
    assert!(refusal(|bill| bill.images.push(bill.images[0].clone())).contains("twice"));
    assert!(refusal(|bill| bill.entries.clear()).contains("lacks the manifest"));
    assert!(refusal(|bill| bill.entries[0].kind = EntryKind::Blob).contains("lacks the manifest"));
    assert!(refusal(|bill| bill.entries[0].encoding = "zstd".into()).contains("\"zstd\""));
    assert!(refusal(|bill| bill.entries[0].size = 1 << 60).contains("bytes"));
    assert!(refusal(|bill| bill.images[0].manifests.clear()).contains("which manifests"));
    let root = bill().entries[0].digest.clone();
    assert!(refusal(|bill| bill.images[0].omitted.push(root)).contains("both carries and leaves out"));
    assert!(
        refusal(|bill| bill.files.push(BillFile {
            path: "../evil".into(),
            size: 1,
            digest: Digest::sha256(b"f")
        }))
        .contains("../evil")
    );
    let lacking = |name: &str, reason: &str| {
        let missing = MissingImage {
            name: name.into(),
            reference: format!("docker.io/library/{name}:latest"),
            reason: reason.into(),
        };
        refusal(|bill| bill.missing.push(missing))
    };
    assert!(lacking("a", "ImageNotFound").contains("both has and lacks a"));
    assert!(lacking("b", "\u{1b}").contains("says \"\\u{1b}\""));
    assert!(lacking("B", "ImageNotFound").contains("names the image \"B\""));
    assert!(Bill::parse(b"{}").is_err());
    assert!(Bill::parse(b"not json").is_err());
}

#[test]
fn an_index_may_lack_the_children_that_were_left_out_and_no_others() {
    let child = br#"{"layers":[]}"#;
    let names = |digest: &Digest| format!(r#"{{"digest":"{digest}","size":13}}"#);
    let (kept, gone) = (Digest::sha256(child), Digest::sha256(b"gone"));
    let index = format!(r#"{{"manifests":[{},{}]}}"#, names(&gone), names(&kept));
    let contents: HashMap<Digest, Bytes> = [Bytes::from_static(child), Bytes::from(index.clone())]
        .map(|bytes| (Digest::sha256(&bytes), bytes))
        .into();
    let of = |manifests: &[&Digest], omitted: &[&Digest]| {
        let mut bill = bill();
        let size = |digest: &Digest| contents[digest].len() as u64;
        let image = &mut bill.images[0];
        image.manifests.clear();
        bill.entries.clear();
        for digest in manifests.iter().copied().cloned() {
            let size = size(&digest);
            image.manifests.push(BillManifest { digest: digest.clone(), media_type: "m".into(), size });
            bill.entries.push(BillEntry {
                digest,
                size,
                kind: EntryKind::Manifest,
                encoding: "identity".into(),
            });
        }
        image.digest = Some(bill.entries.last().unwrap().digest.clone());
        image.omitted = omitted.iter().copied().cloned().collect();
        let read = Bill::parse(&bill.to_bytes().unwrap())?;
        read.check_manifests(|digest| Ok(contents[digest].clone())).map(drop)
    };
    let root = Digest::sha256(index.as_bytes());
    of(&[&kept, &root], &[&gone]).unwrap();
    for (manifests, omitted, words) in [
        (&[&kept, &root][..], &[][..], format!("needs the manifest {gone}, which its bill does not name")),
        (&[&root], &[&gone], format!("needs the manifest {kept}")),
        (&[&kept, &root], &[&gone, &kept], format!("both carries and leaves out {kept}")),
        (&[&kept], &[&gone], format!("leaves out {gone}, which no index of it names")),
    ] {
        let refusal = of(manifests, omitted).unwrap_err().to_string();
        assert!(refusal.contains(&words), "{refusal}");
    }
}

#[test]
fn another_name_at_the_far_side_stands_behind_the_name_and_is_left_out_where_there_is_none() {
    let without = String::from_utf8(bill().to_bytes().unwrap()).unwrap();
    assert!(!without.contains(r#""as""#), "{without}");
    let mut renamed = bill();
    renamed.images[0].far_name = Some("base/a:1".into());
    let with = String::from_utf8(renamed.to_bytes().unwrap()).unwrap();
    assert!(with.contains(r#""name":"a","as":"base/a:1","reference""#), "{with}");
    assert_eq!(Bill::parse(with.as_bytes()).unwrap(), renamed);
}

#[test]
fn a_name_at_the_far_side_that_is_none_is_refused() {
    let mut image = bill().images.remove(0);
    image.far_name = Some("../evil".into());
    assert_eq!(image.far_name().unwrap_err().reason(), crate::reason::Reason::PayloadCorrupt);
}

#[test]
fn names_and_media_types_that_a_terminal_would_obey_are_told_quoted() {
    let escape = "\u{1b}[2J";
    for refusal in [
        refusal(|bill| bill.images[0].name = escape.into()),
        refusal(|bill| bill.images[0].manifests[0].media_type = format!("a/b\r\n{escape}")),
        refusal(|bill| {
            let sources =
                vec![RequiredSource { name: escape.into(), reference: escape.into(), far_name: None }];
            bill.required.push(Required { digest: Digest::sha256(b"r"), size: 1, sources });
        }),
    ] {
        assert!(!refusal.contains('\u{1b}') && refusal.contains("\\u{1b}"), "{refusal}");
    }
}

#[test]
fn what_a_later_minor_version_adds_is_ignored() {
    let mut value = serde_json::to_value(bill()).unwrap();
    value["new"] = serde_json::json!({"a": 1});
    value["images"][0]["newer"] = serde_json::json!([]);
    assert_eq!(Bill::parse(&serde_json::to_vec(&value).unwrap()).unwrap(), bill());
}
