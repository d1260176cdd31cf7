use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;

use tracing::warn;

use super::names::Names;
use super::{Fate, ImportError, sparse};
use crate::digest::Digest;
use crate::payload::{Bill, BillImage, BillManifest, BillReferrer, ManifestContent, PayloadError, Required};
use crate::platform::SparseIndex;
use crate::reason::{Failure, Reason};
use crate::reference::{self, Host};
use crate::registry::RegistryError;

/// An image of the payload, and what is to become of it at the far side.
#[derive(Debug)]
pub(super) struct Target {
    /// Its name, as whoever built the payload wrote it.
    pub(super) name: String,
    /// Where it goes.
    pub(super) repository: String,
    /// None: it is pushed by its digest alone.
    pub(super) tag: Option<String>,
    /// The digest of its root manifest, where it is known: see [`crate::payload::BillImage`].
    pub(super) root: Option<Digest>,
    /// Its manifests in push order, the root last.
    manifests: Vec<BillManifest>,
    /// Every blob that its manifests name, and those of its referrers.
    blobs: Arc<HashSet<Digest>>,
    /// Those of its manifests that registries may refuse for what they name.
    pub(super) touchy: Touchy,
    indexes: Indexes,
    /// What belongs to it: see [`crate::payload::BillImage`].
    referrers: Vec<BillReferrer>,
    /// The blobs of these.
    referrers_blobs: HashSet<Digest>,
    pub(super) state: State,
}

/// What becomes of the indexes of an image at the far side.
#[derive(Debug)]
enum Indexes {
    /// They stay as they are.
    Kept,
    /// They are written anew if the registry refuses them.
    Rewritable(Rewriting),
    /// They were, or had been before.
    Rewritten(Rewriting),
}

/// An image with its indexes written anew.
#[derive(Debug)]
pub(super) struct Rewriting {
    /// Its manifests in push order, the root last.
    pub(super) manifests: Vec<(BillManifest, Bytes)>,
    /// What belongs to one of these.
    pub(super) referrers: Vec<BillReferrer>,
    referrers_blobs: HashSet<Digest>,
}

impl Rewriting {
    fn of(
        image: &BillImage,
        contents: &HashMap<Digest, ManifestContent>,
        manifest: impl Fn(&Digest) -> Result<Bytes, PayloadError>,
    ) -> Result<Self, PayloadError> {
        let omitted = image.omitted.iter().collect();
        let manifests = sparse::rewritten(&image.manifests, &omitted, manifest)?;
        // Nobody finds by its subject what belongs to a digest that is not there.
        let mut there: HashSet<&Digest> = manifests.iter().map(|(manifest, _)| &manifest.digest).collect();
        let mut referrers = Vec::new();
        for referrer in &image.referrers {
            if there.contains(&referrer.subject) {
                there.insert(&referrer.digest);
                referrers.push(referrer.clone());
            }
        }
        let referrers_blobs = referrers_blobs(&referrers, contents);
        Ok(Self { manifests, referrers, referrers_blobs })
    }

    fn root(&self) -> Option<&Digest> {
        self.manifests.last().map(|(root, _)| &root.digest)
    }
}

/// The blobs of what belongs to an image.
fn referrers_blobs(
    referrers: &[BillReferrer],
    contents: &HashMap<Digest, ManifestContent>,
) -> HashSet<Digest> {
    let digests = referrers.iter().flat_map(BillReferrer::all_digests);
    let blobs = digests.filter_map(|digest| contents.get(digest)).flat_map(ManifestContent::blobs);
    blobs.map(|blob| blob.digest.clone()).collect()
}

/// Manifests that registries may refuse for what they name.
#[derive(Debug, Default)]
pub(super) struct Touchy {
    /// Indexes of which images were left out.
    pub(super) sparse: HashSet<Digest>,
    /// Manifests with layers that may be had elsewhere, by their `urls`.
    pub(super) with_urls: HashSet<Digest>,
}

impl Touchy {
    fn of(image: &BillImage, contents: &HashMap<Digest, ManifestContent>) -> Self {
        let omitted: HashSet<&Digest> = image.omitted.iter().collect();
        let those = |is_one: &dyn Fn(&ManifestContent) -> bool| {
            let own = image.manifests.iter().map(|manifest| &manifest.digest);
            let digests = own.chain(image.referrers.iter().flat_map(BillReferrer::all_digests));
            digests.filter(|digest| contents.get(digest).is_some_and(is_one)).cloned().collect()
        };
        Self {
            sparse: those(&|content| content.children.iter().any(|child| omitted.contains(&child.digest))),
            with_urls: those(&|content| content.layers.iter().any(|layer| !layer.urls().is_empty())),
        }
    }
}

/// How far an image is.
#[derive(Debug)]
pub(super) enum State {
    /// The payload only names it: it is to be there as a whole.
    Named,
    /// It, or a part of it, is to be pushed.
    Wanted(Part),
    /// It is there, with its tag.
    Present,
    /// Something else has its tag there, and keeps it.
    Kept,
    /// It was declared to be there as a whole, and is not.
    AbsentBase(Failure),
    /// It was pushed.
    Pushed,
    /// It cannot be made whole.
    Failed(Failure),
}

/// What of an image is to be pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// All of it that is not there, and its tag.
    Whole,
    /// All of it that is not there: the tag is right.
    BehindTag,
    /// What belongs to it: the image itself is there, with its tag.
    Referrers,
}

impl Target {
    pub(super) fn has_failed(&self) -> bool {
        matches!(self.state, State::Failed(_))
    }

    /// Whether it is still to be pushed.
    pub(super) fn is_wanted(&self) -> bool {
        matches!(self.state, State::Wanted(_))
    }

    /// Whether it is still to be pushed, and has this blob.
    pub(super) fn wants(&self, digest: &Digest) -> bool {
        self.is_wanted() && self.blobs().contains(digest)
    }

    /// The manifests that are to be there before its tag is.
    pub(super) fn manifests(&self) -> &[BillManifest] {
        match self.state {
            State::Wanted(Part::Referrers) => &[],
            _ => &self.manifests,
        }
    }

    /// The manifests that its tag leads to, beside the root.
    pub(super) fn children(&self) -> &[BillManifest] {
        self.manifests.split_last().map_or(&[], |(_, children)| children)
    }

    /// The blobs that are to be there.
    pub(super) fn blobs(&self) -> &HashSet<Digest> {
        match (&self.state, &self.indexes) {
            (State::Wanted(Part::Referrers), Indexes::Rewritten(rewriting)) => &rewriting.referrers_blobs,
            (State::Wanted(Part::Referrers), _) => &self.referrers_blobs,
            _ => &self.blobs,
        }
    }

    /// What belongs to it as it is at the far side: nobody finds by its subject what belongs to an index that was
    /// written anew.
    pub(super) fn referrers(&self) -> &[BillReferrer] {
        match &self.indexes {
            Indexes::Rewritten(rewriting) => &rewriting.referrers,
            Indexes::Kept | Indexes::Rewritable(_) => &self.referrers,
        }
    }

    /// Why it is not whole at the far side, if it is not.
    pub(super) fn failure(&self) -> Option<&Failure> {
        match &self.state {
            State::Failed(failure) | State::AbsentBase(failure) => Some(failure),
            State::Named | State::Wanted(_) | State::Present | State::Kept | State::Pushed => None,
        }
    }

    /// What was done about it, or would be.
    pub(super) fn fate(&self) -> Fate {
        match &self.state {
            State::Named | State::Present => Fate::Present,
            State::Wanted(_) | State::Pushed => Fate::Pushed,
            State::Kept => Fate::Kept,
            State::AbsentBase(failure) => Fate::AbsentBase(failure.clone()),
            State::Failed(failure) => Fate::Failed(failure.clone()),
        }
    }

    /// The digest of its root manifest with its indexes written anew, if they are so at the far side.
    pub(super) fn rewritten_root(&self) -> Option<&Digest> {
        match &self.indexes {
            Indexes::Rewritten(rewriting) => rewriting.root(),
            Indexes::Kept | Indexes::Rewritable(_) => None,
        }
    }

    /// What it is with its indexes written anew, where that may be done.
    pub(super) fn rewriting(&self) -> Option<&Rewriting> {
        match &self.indexes {
            Indexes::Kept => None,
            Indexes::Rewritable(rewriting) | Indexes::Rewritten(rewriting) => Some(rewriting),
        }
    }

    /// Whether a digest is the one that the image would have with its indexes written anew.
    pub(super) fn would_be(&self, found: &Digest) -> bool {
        self.rewriting().and_then(Rewriting::root) == Some(found)
    }

    /// Its indexes are written anew at the far side, which is told, and so is what belongs to them and
    /// cannot be there.
    pub(super) fn take_rewritten(&mut self, host: &Host) {
        self.indexes = match std::mem::replace(&mut self.indexes, Indexes::Kept) {
            Indexes::Rewritable(rewriting) => Indexes::Rewritten(rewriting),
            other => other,
        };
        let left_out = self.referrers.len() - self.referrers().len();
        if let (Some(now), Some(before)) = (self.rewritten_root(), &self.root) {
            warn!(
                "{}: {host} refuses its index, of which images are left out; it is written anew there without them, and its digest is {now} instead of {before}",
                self.name
            );
            if left_out > 0 {
                let (host, signatures) = (host.as_str(), "signatures, attestations or the like");
                warn!(
                    "{}: what belongs to {before} is left out, {left_out} {signatures}: {host} does not have it",
                    self.name
                );
            }
        }
    }

    /// Its name at the far side.
    pub(super) fn far_name(&self) -> String {
        match (&self.tag, self.rewritten_root().or(self.root.as_ref())) {
            (Some(tag), _) => format!("{}:{tag}", self.repository),
            (None, Some(root)) => format!("{}@{root}", self.repository),
            (None, None) => self.repository.clone(),
        }
    }

    /// What the registry is asked for to learn whether the image is there: its tag, or the digest
    /// where nothing is carried that a tag could be put on.
    pub(super) fn asked(&self) -> String {
        let tag = self.tag.as_deref();
        let root = self.root.as_ref().map(Digest::as_str);
        let asked = if matches!(self.state, State::Named) { root.or(tag) } else { tag.or(root) };
        asked.unwrap_or("latest").to_owned()
    }

    /// The failure that it is that an image is not there which the payload only names.
    pub(super) fn missing_base(&self) -> Failure {
        let message = format!(
            "{} was declared already transferred, but {} has no {}; transfer it first, or build the payload without declaring it",
            self.name,
            self.repository,
            self.asked()
        );
        Failure::new(&self.name, Reason::MissingBase, message)
    }

    pub(super) fn fail(&mut self, reason: Reason, why: &str) {
        if !self.has_failed() {
            let message = format!("{}: {why}", self.name);
            self.state = State::Failed(Failure::new(&self.name, reason, message));
        }
    }

    /// What a registry's error means for this image; an error that is not about the image ends the import.
    pub(super) fn fail_or(&mut self, error: RegistryError) -> Result<(), ImportError> {
        match error.reason() {
            Reason::RegistryUnavailable | Reason::AuthenticationFailed | Reason::RateLimited => {
                Err(error.into())
            }
            reason => {
                if !self.has_failed() {
                    let message = format!("{}: {error}", self.name);
                    self.state = State::Failed(Failure::new(&self.name, reason, message).caused_by(&error));
                }
                Ok(())
            }
        }
    }

    /// Blobs that the payload does not carry are not at the far side either, as far as it may be looked at: `hidden` is
    /// where it may not.
    pub(super) fn lacks(&mut self, missing: &[&Required], hidden: Option<&RegistryError>, host: &Host) {
        let Some(first) = missing.first() else {
            return;
        };
        let sources: BTreeSet<&str> = missing
            .iter()
            .flat_map(|required| required.sources.iter().map(|source| source.name.as_str()))
            .collect();
        let sources = sources.into_iter().collect::<Vec<_>>().join(", ");
        let (count, blobs) = (missing.len(), if missing.len() == 1 { "blob" } else { "blobs" });
        let hidden = hidden
            .map(|error| format!("; they may be where it was refused to look: {error}"))
            .unwrap_or_default();
        let why = format!(
            "{host} lacks {count} {blobs} that the payload leaves out since {sources} had been transferred, {} among them; transfer {sources} first, or build the payload without declaring it{hidden}",
            first.digest
        );
        self.fail(Reason::MissingBase, &why);
    }
}

/// All images of a payload with what they need.
///
/// An image whose name cannot be one at the far side has failed from the start.
pub(super) fn targets(
    bill: &Bill,
    names: &Names,
    sparse_index: SparseIndex,
    manifest: impl Fn(&Digest) -> Result<Bytes, PayloadError>,
) -> Result<Vec<Target>, PayloadError> {
    let contents = bill.check_manifests(&manifest)?;
    // Many names may be of one image, and one index may be carried with these platforms or those.
    let mut blobs_of: HashMap<Vec<&Digest>, Arc<HashSet<Digest>>> = HashMap::new();
    let mut targets = Vec::with_capacity(bill.images.len());
    for image in &bill.images {
        let reference = image.parsed()?;
        let manifests: Vec<&Digest> = image.manifests.iter().map(|manifest| &manifest.digest).collect();
        let blobs = blobs_of.entry(manifests).or_insert_with_key(|manifests| {
            let contents = manifests.iter().filter_map(|digest| contents.get(*digest));
            let blobs = contents.flat_map(ManifestContent::blobs).map(|blob| blob.digest.clone());
            Arc::new(blobs.collect())
        });
        let blobs = Arc::clone(blobs);
        let referrers_blobs = referrers_blobs(&image.referrers, &contents);
        let blobs = if referrers_blobs.is_empty() {
            blobs
        } else {
            Arc::new(blobs.union(&referrers_blobs).cloned().collect())
        };
        let own = image.far_name()?;
        let repository = names.repository(&reference, own.as_ref());
        let is_name = reference::is_repository(&repository);
        let touchy = Touchy::of(image, &contents);
        let indexes = match sparse_index {
            SparseIndex::Rewrite if !touchy.sparse.is_empty() => {
                Indexes::Rewritable(Rewriting::of(image, &contents, &manifest)?)
            }
            SparseIndex::Rewrite | SparseIndex::Keep => Indexes::Kept,
        };
        let mut target = Target {
            name: image.name.clone(),
            tag: names.tag(&reference, own.as_ref(), image.digest.as_ref()),
            root: image.digest.clone(),
            manifests: image.manifests.clone(),
            blobs,
            touchy,
            indexes,
            referrers: image.referrers.clone(),
            referrers_blobs,
            state: if image.carried { State::Wanted(Part::Whole) } else { State::Named },
            repository,
        };
        if !is_name {
            let why = format!("{:?} is no name for a repository; check the prefix", target.repository);
            target.fail(Reason::InvalidSpec, &why);
        }
        targets.push(target);
    }
    refuse_clashes(&mut targets);
    Ok(targets)
}

/// Two images may not become one: none of them is pushed.
fn refuse_clashes(targets: &mut [Target]) {
    let mut by_name: HashMap<String, Vec<(usize, Option<Digest>)>> = HashMap::new();
    for (index, target) in targets.iter().enumerate() {
        let own = target.tag.iter().map(|tag| (tag, target.root.clone()));
        let tags =
            target.referrers.iter().filter_map(|referrer| Some((referrer.tag.as_ref()?, &referrer.digest)));
        for (tag, digest) in own.chain(tags.map(|(tag, digest)| (tag, Some(digest.clone())))) {
            by_name.entry(format!("{}:{tag}", target.repository)).or_default().push((index, digest));
        }
    }
    for (name, clashing) in by_name {
        let digests: HashSet<&Option<Digest>> = clashing.iter().map(|(_, digest)| digest).collect();
        if digests.len() < 2 {
            continue;
        }
        let clashing: Vec<usize> = clashing.iter().map(|(index, _)| *index).collect();
        let names: Vec<&str> = clashing.iter().map(|index| targets[*index].name.as_str()).collect();
        let number = if names.len() == 2 { "both" } else { "all" };
        let why = format!(
            "{} would {number} be {name} here; choose another naming, or build the payload with another name for one (spec.images[].as)",
            names.join(" and ")
        );
        for index in clashing {
            targets[index].fail(Reason::InvalidSpec, &why);
        }
    }
}

/// The bytes of all manifests that a payload carries.
pub(super) fn manifests(
    bill: &Bill,
    manifest: impl Fn(&Digest) -> Result<Bytes, PayloadError>,
) -> Result<HashMap<Digest, Bytes>, PayloadError> {
    let digests: HashSet<&Digest> = bill
        .images
        .iter()
        .flat_map(|image| {
            let own = image.manifests.iter().map(|manifest| &manifest.digest);
            own.chain(image.referrers.iter().flat_map(BillReferrer::all_digests))
        })
        .collect();
    digests.into_iter().map(|digest| Ok((digest.clone(), manifest(digest)?))).collect()
}
