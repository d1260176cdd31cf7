//! What makes a bill one that can be.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;

use super::{BILL_LIMIT, Bill, BillEntry, DESCRIPTOR_NAME, EntryKind, is_media_type, parsed, referrers};
use crate::digest::Digest;
use crate::payload::error::PayloadError;
use crate::payload::manifest::{MANIFEST_LIMIT, MANIFESTS_LIMIT, ManifestContent};

/// A payload never has more entries.
const ENTRIES_LIMIT: usize = 100_000;
/// Sizes are JSON numbers, safe below this.
const SIZE_LIMIT: u64 = 1 << 53;

impl Bill {
    /// That each image is whole by what its manifests say, given their bytes: every manifest that an
    /// index names comes before it, and every blob is carried or required. Gives what each says.
    pub fn check_manifests(
        &self,
        manifest: impl Fn(&Digest) -> Result<Bytes, PayloadError>,
    ) -> Result<HashMap<Digest, ManifestContent>, PayloadError> {
        let mut contents = HashMap::new();
        for entry in self.entries.iter().filter(|entry| entry.kind == EntryKind::Manifest) {
            let content = ManifestContent::parse(&entry.digest, &manifest(&entry.digest)?)?;
            contents.insert(entry.digest.clone(), content);
        }
        let blobs: HashSet<&Digest> = self.entries.iter().map(|entry| &entry.digest).collect();
        let required: HashSet<&Digest> = self.required.iter().map(|required| &required.digest).collect();
        for image in &self.images {
            let omitted: HashSet<&Digest> = image.omitted.iter().collect();
            let mut left_out = HashSet::new();
            let mut before = HashSet::new();
            for described in &image.manifests {
                let Some(content) = contents.get(&described.digest) else {
                    continue;
                };
                let (kept, absent): (Vec<_>, Vec<_>) =
                    content.children.iter().partition(|child| !omitted.contains(&child.digest));
                left_out.extend(absent.into_iter().map(|child| &child.digest));
                if let Some(child) = kept.into_iter().find(|child| !before.contains(&child.digest)) {
                    return Err(PayloadError::Corrupt(format!(
                        "{} needs the manifest {}, which its bill does not name",
                        image.name, child.digest
                    )));
                }
                let is_lost = |digest| !blobs.contains(digest) && !required.contains(digest);
                if let Some(lost) = content.blobs().find(|blob| is_lost(&blob.digest)) {
                    return Err(PayloadError::Corrupt(format!(
                        "{} needs {}, which its bill neither carries nor requires",
                        image.name, lost.digest
                    )));
                }
                before.insert(&described.digest);
            }
            if let Some(stray) = image.omitted.iter().find(|digest| !left_out.contains(digest)) {
                return Err(PayloadError::Corrupt(format!(
                    "its bill says that {} leaves out {stray}, which no index of it names",
                    image.name
                )));
            }
            referrers::check_manifests(image, &contents, |digest| {
                !blobs.contains(digest) && !required.contains(digest)
            })?;
        }
        Ok(contents)
    }

    /// What holds for every bill that Charon wrote.
    pub(in crate::payload) fn check(&self) -> Result<(), PayloadError> {
        self.check_content()?;
        self.check_files()?;
        self.check_missing()?;
        match self.images.iter().find(|image| image.digest.is_none()) {
            Some(image) => Err(PayloadError::Corrupt(format!("does not tell the digest of {}", image.name))),
            None => Ok(()),
        }
    }

    /// What holds for every payload, also for docker-charon's.
    pub(in crate::payload) fn check_content(&self) -> Result<(), PayloadError> {
        let corrupt = |why: String| Err(PayloadError::Corrupt(why));
        if self.entries.len() > ENTRIES_LIMIT {
            return Err(PayloadError::TooLarge(format!(
                "it has {} entries, and at most {ENTRIES_LIMIT} are allowed",
                self.entries.len()
            )));
        }
        let mut manifests_size = 0_u64;
        let mut entries = HashMap::new();
        for entry in &self.entries {
            if entry.encoding != "identity" {
                return Err(PayloadError::UnsupportedEncoding {
                    digest: entry.digest.clone(),
                    encoding: entry.encoding.clone(),
                });
            }
            if entry.size >= SIZE_LIMIT {
                return corrupt(format!("says that {} has {} bytes", entry.digest, entry.size));
            }
            if entry.kind == EntryKind::Manifest {
                manifests_size = manifests_size.saturating_add(entry.size);
                if entry.size > MANIFEST_LIMIT || manifests_size > MANIFESTS_LIMIT {
                    return Err(PayloadError::TooLarge(format!(
                        "its manifests are larger than {MANIFEST_LIMIT} bytes each or {MANIFESTS_LIMIT} together"
                    )));
                }
            }
            if entries.insert(&entry.digest, entry).is_some() {
                return corrupt(format!("names {} twice", entry.digest));
            }
        }
        self.check_images(&entries)?;
        for required in &self.required {
            for source in &required.sources {
                source.parsed()?;
                source.far_name()?;
            }
            if required.size >= SIZE_LIMIT {
                return corrupt(format!("says that {} has {} bytes", required.digest, required.size));
            }
            if entries.contains_key(&required.digest) {
                return corrupt(format!("both carries and requires {}", required.digest));
            }
        }
        Ok(())
    }

    fn check_images(&self, entries: &HashMap<&Digest, &BillEntry>) -> Result<(), PayloadError> {
        let corrupt = |why: String| Err(PayloadError::Corrupt(why));
        let mut names = HashSet::new();
        let mut mentions = 0;
        for image in &self.images {
            // What is no name is told of quoted, and nothing else that was read before is told of.
            image.parsed()?;
            image.far_name()?;
            if !names.insert((&image.name, &image.far_name)) {
                return corrupt(format!("names the image {} twice", image.name));
            }
            let referring = image.referrers.iter().map(|referrer| 1 + referrer.manifests.len());
            mentions += 1 + image.manifests.len() + image.omitted.len() + referring.sum::<usize>();
            if mentions > ENTRIES_LIMIT {
                let why = format!("it names over {ENTRIES_LIMIT} images and manifests");
                return Err(PayloadError::TooLarge(why));
            }
            if let Some(manifest) =
                image.manifests.iter().find(|manifest| !is_media_type(&manifest.media_type))
            {
                return corrupt(format!(
                    "gives {} the media type {:?}",
                    manifest.digest, manifest.media_type
                ));
            }
            let carried: HashSet<&Digest> = image.manifests.iter().map(|manifest| &manifest.digest).collect();
            if let Some(both) = image.omitted.iter().find(|digest| carried.contains(digest)) {
                return corrupt(format!("both carries and leaves out {both} of {}", image.name));
            }
            match (image.carried, image.manifests.last()) {
                (true, Some(root)) if Some(&root.digest) == image.digest.as_ref() => {}
                (false, None) => {}
                _ => return corrupt(format!("does not tell which manifests {} has", image.name)),
            }
            let places = self.entries.len() + self.required.len();
            if let Some(place) = image.blobs.iter().find(|place| **place as usize >= places) {
                return corrupt(format!("has no {place}th blob for {}", image.name));
            }
            for manifest in &image.manifests {
                let entry = entries.get(&manifest.digest);
                if !entry
                    .is_some_and(|entry| entry.kind == EntryKind::Manifest && entry.size == manifest.size)
                {
                    return corrupt(format!("lacks the manifest {} of {}", manifest.digest, image.name));
                }
            }
            referrers::check(image, entries)?;
        }
        Ok(())
    }

    fn check_missing(&self) -> Result<(), PayloadError> {
        let corrupt = |why: String| Err(PayloadError::Corrupt(why));
        if self.missing.len() > ENTRIES_LIMIT {
            return corrupt(format!("names over {ENTRIES_LIMIT} images that could not be had"));
        }
        let mut names: HashSet<&String> = self.images.iter().map(|image| &image.name).collect();
        for missing in &self.missing {
            parsed(&missing.name, &missing.reference)?;
            let is_word = |reason: &str| {
                !reason.is_empty()
                    && reason.len() <= 64
                    && reason.bytes().all(|byte| byte.is_ascii_alphanumeric())
            };
            if !is_word(&missing.reason) {
                return corrupt(format!("says {:?} of why it lacks {}", missing.reason, missing.name));
            }
            if !names.insert(&missing.name) {
                return corrupt(format!("both has and lacks {}, or lacks it twice", missing.name));
            }
        }
        Ok(())
    }

    fn check_files(&self) -> Result<(), PayloadError> {
        let paths: Vec<&str> = self.files.iter().map(|file| file.path.as_str()).collect();
        match paths.as_slice() {
            ["oci-layout", "index.json"] | ["oci-layout", "index.json", DESCRIPTOR_NAME] => {}
            _ => return Err(PayloadError::Corrupt(format!("names the files {paths:?}"))),
        }
        if self.files.iter().any(|file| file.size > BILL_LIMIT) {
            return Err(PayloadError::TooLarge(format!("a file is larger than {BILL_LIMIT} bytes")));
        }
        Ok(())
    }
}
