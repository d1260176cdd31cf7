//! What a bill may say of what belongs to an image without being a part of it: signatures, attestations, SBOMs.

use std::collections::{HashMap, HashSet};

use super::{BillEntry, BillImage, BillReferrer, EntryKind, is_media_type};
use crate::digest::Digest;
use crate::payload::error::PayloadError;
use crate::payload::manifest::ManifestContent;

/// A referrer may have referrers, but not without end.
pub const REFERRERS_DEPTH: usize = 8;

/// The endings of the tags that cosign makes of a manifest's digest.
const COSIGN_ENDINGS: [&str; 3] = ["att", "sbom", "sig"];
/// A tag is no longer.
const TAG_LIMIT: usize = 128;

/// The tags under which cosign keeps what it has of a manifest, sorted.
#[must_use]
pub fn cosign_tags(subject: &Digest) -> Vec<String> {
    let tags = COSIGN_ENDINGS.map(|ending| format!("{}-{}.{ending}", subject.algorithm(), subject.hex()));
    tags.into_iter().filter(|tag| tag.len() <= TAG_LIMIT).collect()
}

/// That what a bill says of the referrers of an image can be.
pub(super) fn check(image: &BillImage, entries: &HashMap<&Digest, &BillEntry>) -> Result<(), PayloadError> {
    let corrupt = |why: String| Err(PayloadError::Corrupt(why));
    let mut depths: HashMap<&Digest, usize> =
        image.manifests.iter().map(|manifest| (&manifest.digest, 0)).collect();
    let (mut seen, mut tags) = (HashSet::new(), HashSet::new());
    for referrer in &image.referrers {
        let BillReferrer { digest, media_type, size, subject, tag, manifests } = referrer;
        let children = manifests.iter().map(|child| (&child.digest, &child.media_type, child.size));
        for (digest, media_type, size) in children.chain([(digest, media_type, *size)]) {
            if !is_media_type(media_type) {
                return corrupt(format!("gives {digest} the media type {media_type:?}"));
            }
            let is_carried = |entry: &&BillEntry| entry.kind == EntryKind::Manifest && entry.size == size;
            if !entries.get(digest).is_some_and(is_carried) {
                return corrupt(format!("lacks the manifest {digest}, which refers to {}", image.name));
            }
        }
        // Only what came before can be a subject: so there is no circle.
        let Some(depth) = depths.get(subject).map(|depth| depth + 1) else {
            return corrupt(format!("has {digest} refer to {subject}, which is not of {}", image.name));
        };
        if depth > REFERRERS_DEPTH {
            return corrupt(format!("has referrers of referrers of {} beyond {REFERRERS_DEPTH}", image.name));
        }
        if tag.as_ref().is_some_and(|tag| !cosign_tags(subject).contains(tag)) {
            return corrupt(format!("gives {digest} the tag {tag:?}, which is not cosign's of {subject}"));
        }
        let is_first = match tag {
            Some(tag) => tags.insert(tag),
            None => seen.insert((digest, subject)),
        };
        if !is_first {
            return corrupt(format!("names the referrer {digest} of {} twice", image.name));
        }
        depths.entry(digest).or_insert(depth);
    }
    Ok(())
}

/// That the referrers of an image are what the bill says, by what all manifests of the payload say.
pub(super) fn check_manifests(
    image: &BillImage,
    contents: &HashMap<Digest, ManifestContent>,
    is_lost: impl Fn(&Digest) -> bool,
) -> Result<(), PayloadError> {
    let corrupt = |why: String| Err(PayloadError::Corrupt(why));
    for referrer in &image.referrers {
        let mut before = HashSet::new();
        let children = referrer.manifests.iter().map(|child| &child.digest);
        for digest in children.chain([&referrer.digest]) {
            let Some(content) = contents.get(digest) else { continue };
            let is_unknown = |child: &Digest| !before.contains(child);
            let named = content.children.iter().map(|child| &child.digest);
            let blobs = content.blobs().map(|blob| &blob.digest);
            let lost =
                named.filter(|child| is_unknown(child)).chain(blobs.filter(|blob| is_lost(blob))).next();
            if let Some(lost) = lost {
                return corrupt(format!(
                    "{digest}, which refers to {}, needs {lost}, which its bill does not name",
                    image.name
                ));
            }
            before.insert(digest);
        }
        let said = contents.get(&referrer.digest).and_then(|content| content.subject.as_ref());
        if referrer.tag.is_none() && said != Some(&referrer.subject) {
            return corrupt(format!(
                "its bill says that {} refers to {}, and the manifest does not",
                referrer.digest, referrer.subject
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::BillManifest;
    use super::*;

    fn digest(name: &str) -> Digest {
        Digest::sha256(name.as_bytes())
    }

    fn referrer(name: &str, subject: &str) -> BillReferrer {
        BillReferrer {
            digest: digest(name),
            media_type: "m".into(),
            size: 1,
            subject: digest(subject),
            tag: None,
            manifests: Vec::new(),
        }
    }

    fn image(referrers: Vec<BillReferrer>) -> BillImage {
        BillImage {
            name: "a".into(),
            far_name: None,
            reference: "docker.io/library/a:latest".into(),
            digest: Some(digest("root")),
            media_type: "m".into(),
            size: 1,
            platforms: Vec::new(),
            omitted: Vec::new(),
            carried: true,
            manifests: vec![BillManifest { digest: digest("root"), media_type: "m".into(), size: 1 }],
            referrers,
            blobs: Vec::new(),
        }
    }

    fn refusal(referrers: Vec<BillReferrer>) -> Option<String> {
        let names = ["root", "a", "b", "c", "d", "e", "f", "g", "h", "i"];
        let entry = |name: &str| BillEntry {
            digest: digest(name),
            size: 1,
            kind: EntryKind::Manifest,
            encoding: "identity".into(),
        };
        let entries: Vec<BillEntry> = names.map(entry).into();
        let entries = entries.iter().map(|entry| (&entry.digest, entry)).collect();
        check(&image(referrers), &entries).err().map(|error| error.to_string())
    }

    #[test]
    fn a_bill_may_name_referrers_of_referrers_and_cosigns_tags() {
        let tagged = |ending: &str, mut referrer: BillReferrer| {
            referrer.tag = Some(format!("sha256-{}.{ending}", referrer.subject.hex()));
            referrer
        };
        let chain = ["a", "b", "c", "d", "e", "f", "g", "h"];
        let subjects = ["root", "a", "b", "c", "d", "e", "f", "g"];
        let mut referrers: Vec<_> =
            chain.iter().zip(subjects).map(|(name, subject)| referrer(name, subject)).collect();
        // One manifest can be two things, and be about two others.
        referrers.push(referrer("h", "root"));
        for ending in COSIGN_ENDINGS {
            referrers.push(tagged(ending, referrer("h", "root")));
        }
        assert_eq!(refusal(referrers), None);
    }

    #[test]
    fn referrers_that_cannot_be_are_refused_with_what_is_wrong() {
        let told = |referrers, what: &str| {
            let told = refusal(referrers).expect(what);
            assert!(told.contains(what), "{told}");
        };
        told(vec![referrer("a", "other")], "which is not of a");
        told(vec![referrer("a", "b"), referrer("b", "a")], "which is not of a");
        told(vec![referrer("a", "a")], "which is not of a");
        told(vec![referrer("elsewhere", "root")], "lacks the manifest");
        told(vec![BillReferrer { size: 2, ..referrer("a", "root") }], "lacks the manifest");
        told(vec![referrer("a", "root"), referrer("a", "root")], "twice");
        let tag = Some(format!("sha256-{}.sig", digest("root").hex()));
        let tagged = |name| BillReferrer { tag: tag.clone(), ..referrer(name, "root") };
        told(vec![tagged("a"), tagged("b")], "twice");
        told(vec![BillReferrer { media_type: "a\nb".into(), ..referrer("a", "root") }], "media type");
        let other = format!("sha256-{}.sig", digest("b").hex());
        let own = format!("sha256-{}.exe", digest("root").hex());
        for tag in ["latest", "../x", "\u{1b}[2J", &other, &own] {
            told(vec![BillReferrer { tag: Some(tag.into()), ..referrer("a", "root") }], "not cosign's");
        }
        let child = BillManifest { digest: digest("elsewhere"), media_type: "m".into(), size: 1 };
        told(vec![BillReferrer { manifests: vec![child], ..referrer("a", "root") }], "lacks the manifest");
        let chain = ["a", "b", "c", "d", "e", "f", "g", "h", "i"];
        let subjects = ["root", "a", "b", "c", "d", "e", "f", "g", "h"];
        told(chain.iter().zip(subjects).map(|(name, of)| referrer(name, of)).collect(), "beyond 8");
    }

    #[test]
    fn a_manifest_says_itself_what_it_refers_to() {
        let content =
            |subject: &str| ManifestContent { subject: Some(digest(subject)), ..ManifestContent::default() };
        let refused = |said: &str, referrer: BillReferrer| {
            let contents = HashMap::from([(digest("a"), content(said))]);
            check_manifests(&image(vec![referrer]), &contents, |_| false).is_err()
        };
        assert!(!refused("root", referrer("a", "root")));
        assert!(refused("b", referrer("a", "root")));
        assert!(!refused("b", BillReferrer { tag: Some("t".into()), ..referrer("a", "root") }));
    }

    #[test]
    fn cosign_has_no_tag_for_a_digest_that_is_too_long_for_one() {
        let digest: Digest = format!("sha512:{}", "0".repeat(128)).parse().unwrap();
        assert_eq!(cosign_tags(&digest), Vec::<String>::new());
    }
}
