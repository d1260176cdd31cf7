//! The choice of platforms: which children of an index are carried, and whether nothing is amiss.

use std::collections::{BTreeSet, HashSet};

use serde::Deserialize;

use crate::digest::Digest;
use crate::payload::{Descriptor, ManifestContent};
use crate::platform::Platform;

/// The platforms that are wanted of an image, and those that it was seen to have.
#[derive(Debug)]
pub(super) struct Choice {
    wanted: Vec<Platform>,
    /// Whether the image is to be carried, and must have all of them.
    is_to_carry: bool,
    has: BTreeSet<Platform>,
}

/// What a choice says of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is carried.
    Kept,
    /// It is left out.
    Omitted,
    /// Its index does not say what it is for: it must be looked into.
    Unknown,
}

impl Choice {
    /// All that an image has, where nothing is `wanted`.
    pub(super) fn new(wanted: &[Platform], is_to_carry: bool) -> Self {
        let mut wanted = wanted.to_vec();
        wanted.sort();
        wanted.dedup();
        Self { wanted, is_to_carry, has: BTreeSet::new() }
    }

    /// What is wanted, each once and sorted; nothing: all.
    pub(super) fn wanted(&self) -> &[Platform] {
        &self.wanted
    }

    /// Whether everything is wanted.
    pub(super) fn is_open(&self) -> bool {
        self.wanted.is_empty()
    }

    /// Whether the image is to be carried; else the far side has it, or a part of it.
    pub(super) fn is_to_carry(&self) -> bool {
        self.is_to_carry
    }

    /// What is to be done with each child of an index. Attestations go with what they attest.
    pub(super) fn children(&mut self, index: &ManifestContent) -> Vec<Verdict> {
        if self.is_open() {
            return vec![Verdict::Kept; index.children.len()];
        }
        let mut kept = HashSet::new();
        let mut verdicts: Vec<Verdict> = index
            .children
            .iter()
            .map(|child| {
                let verdict = self.child(child);
                if verdict != Verdict::Omitted {
                    kept.insert(child.digest.clone());
                }
                verdict
            })
            .collect();
        for (child, verdict) in index.children.iter().zip(&mut verdicts) {
            if let Some(attested) = child.attested() {
                *verdict = if kept.contains(&attested) { Verdict::Kept } else { Verdict::Omitted };
            } else if kept.contains(&child.digest) && *verdict == Verdict::Omitted {
                // One manifest may be there for two platforms.
                *verdict = Verdict::Kept;
            }
        }
        verdicts
    }

    fn child(&mut self, child: &Descriptor) -> Verdict {
        if child.attested().is_some() {
            return Verdict::Omitted;
        }
        match child.platform() {
            None => Verdict::Unknown,
            Some(platform) => {
                if self.takes(platform) {
                    Verdict::Kept
                } else {
                    Verdict::Omitted
                }
            }
        }
    }

    /// Whether an image for `platform` is wanted. That the image has it is noted.
    pub(super) fn takes(&mut self, platform: Platform) -> bool {
        let is_wanted = self.wanted.iter().any(|wanted| wanted.wants(&platform));
        self.has.insert(platform);
        is_wanted
    }

    /// The platforms that are wanted and not there, and all that are. What tells of no platform, such as
    /// a chart, is for all.
    pub(super) fn missing(&self) -> Option<(Vec<Platform>, Vec<Platform>)> {
        if !self.is_to_carry || self.has.is_empty() {
            return None;
        }
        let is_missing = |wanted: &&Platform| !self.has.iter().any(|found| wanted.wants(found));
        let missing: Vec<Platform> = self.wanted.iter().filter(is_missing).cloned().collect();
        (!missing.is_empty()).then(|| (missing, self.has.iter().cloned().collect()))
    }
}

/// The descriptor of a config that tells the platform of its image.
pub(super) fn image_config(content: &ManifestContent) -> Option<&Descriptor> {
    let is_image = |config: &&Descriptor| {
        matches!(
            config.media_type.as_str(),
            "application/vnd.oci.image.config.v1+json" | "application/vnd.docker.container.image.v1+json"
        )
    };
    content.config.as_ref().filter(is_image)
}

/// The platform that a config tells, if it does.
pub(super) fn platform_of_config(bytes: &[u8]) -> Option<Platform> {
    #[derive(Deserialize)]
    struct Config {
        os: String,
        architecture: String,
        #[serde(default)]
        variant: Option<String>,
    }
    let config: Config = serde_json::from_slice(bytes).ok()?;
    if config.os.is_empty() || config.architecture.is_empty() {
        return None;
    }
    Some(Platform::new(&config.os, &config.architecture, config.variant.as_deref()))
}

/// The children that indexes of an image name and the choice left out, in the order in which they are
/// named.
pub(super) fn omitted<'a>(
    indexes: impl IntoIterator<Item = &'a ManifestContent>,
    carried: &HashSet<&Digest>,
) -> Vec<Digest> {
    let mut seen = HashSet::new();
    let children = indexes.into_iter().flat_map(|index| &index.children).map(|child| &child.digest);
    children.filter(|digest| !carried.contains(digest) && seen.insert(*digest)).cloned().collect()
}
