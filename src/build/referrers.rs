//! What belongs to an image without being a part of it: signatures, attestations, SBOMs.

use std::collections::HashSet;

use futures::{StreamExt, TryStreamExt};
use tracing::{debug, warn};

use super::choice::Choice;
use super::resolve::{Found, ResolveError, Resolver};
use crate::digest::Digest;
use crate::payload::{ManifestContent, REFERRERS_DEPTH, ReferrerPlan, cosign_tags};
use crate::reference::{Host, Reference};
use crate::registry::{Meaning, Registry, RegistryError, fallback_tag};

/// So many manifests are asked about at once.
const ASKED_AT_ONCE: usize = 8;

/// A manifest in a repository.
pub(super) type Place = (Host, String, Digest);

/// What a registry answers when it is asked what refers to one manifest.
#[derive(Debug, Default)]
struct Answer {
    /// What it lists by itself.
    listed: Vec<Digest>,
    /// Where it lists nothing by itself: the tag of the index that does.
    fallback: Option<(String, Meaning)>,
    /// What cosign's tags mean.
    tagged: Vec<(String, Meaning)>,
}

/// What a registry told of one manifest.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    /// What it lists as referrers.
    listed: Vec<Digest>,
    /// What cosign's tags mean.
    tagged: Vec<(String, Digest)>,
}

impl Resolver<'_> {
    /// The referrers of all that is carried of an image, and theirs, level by level; those of one manifest sorted by digest,
    /// cosign's tags behind them.
    pub(super) async fn referrers(
        &mut self,
        reference: &Reference,
        image: &Found,
    ) -> Result<Vec<ReferrerPlan>, ResolveError> {
        let attestations = attestations(image);
        let mut subjects: Vec<Digest> =
            image.manifests.iter().map(|manifest| manifest.digest.clone()).collect();
        let mut known: HashSet<Digest> = subjects.iter().cloned().collect();
        let mut referrers = Vec::new();
        for _ in 0..REFERRERS_DEPTH {
            let mut next = Vec::new();
            self.ask(reference, &subjects, &attestations).await?;
            for subject in subjects {
                let place = place(reference, &subject);
                let Told { listed, tagged } = self.told.get(&place).cloned().unwrap_or_default();
                let untagged = listed.into_iter().map(|digest| (None, digest));
                let tagged = tagged.into_iter().map(|(tag, digest)| (Some(tag), digest));
                for (tag, digest) in untagged.chain(tagged) {
                    let Some(referrer) = self.referrer(reference, &subject, tag, &digest).await? else {
                        continue;
                    };
                    referrers.push(referrer);
                    if known.insert(digest.clone()) {
                        next.push(digest);
                    }
                }
            }
            subjects = next;
        }
        self.ask(reference, &subjects, &attestations).await?;
        for subject in subjects {
            let told = self.told.get(&place(reference, &subject)).cloned().unwrap_or_default();
            let mut deeper = told.listed.iter().chain(told.tagged.iter().map(|(_, digest)| digest));
            if deeper.any(|digest| !known.contains(digest)) {
                warn!(
                    "{}: what refers to {subject} is left out: {REFERRERS_DEPTH} others lie between that and the image already",
                    reference.written()
                );
            }
        }
        Ok(referrers)
    }

    /// Asks what refers to each of `subjects`, unless that is known. The first is asked for alone: whether the registry
    /// can list referrers at all need not be found out several times.
    async fn ask(
        &mut self,
        reference: &Reference,
        subjects: &[Digest],
        attestations: &HashSet<Digest>,
    ) -> Result<(), ResolveError> {
        let registry = self.registry(reference)?.clone();
        let repository = reference.repository();
        let mut unknown: Vec<&Digest> =
            subjects.iter().filter(|subject| !self.told.contains_key(&place(reference, subject))).collect();
        let rest = unknown.split_off(unknown.len().min(1));
        for subjects in [unknown, rest] {
            let asked = futures::stream::iter(subjects).map(async |subject| {
                let answer = ask(&registry, repository, subject, attestations.contains(subject)).await;
                answer.map(|answer| (subject, answer))
            });
            let answers: Vec<(&Digest, Answer)> = asked.buffered(ASKED_AT_ONCE).try_collect().await?;
            for (subject, answer) in answers {
                let told = self.understand(reference, subject, answer).await?;
                self.told.insert(place(reference, subject), told);
            }
        }
        Ok(())
    }

    /// What an answer means. An index that lists referrers is a manifest like others, read and noted once.
    async fn understand(
        &mut self,
        reference: &Reference,
        subject: &Digest,
        Answer { mut listed, fallback, tagged }: Answer,
    ) -> Result<Told, ResolveError> {
        if let Some((tag, meaning)) = fallback {
            let digest = self.take(reference, meaning)?;
            match self.read_tag(reference, &tag, &digest).await {
                Ok(index) => {
                    let registry = self.registry(reference)?;
                    listed.extend(
                        registry.listed_in(reference.repository(), subject, &index).unwrap_or_default(),
                    );
                }
                // It was there a moment ago.
                Err(ResolveError::Registry(error)) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        let tagged = tagged.into_iter().map(|(tag, meaning)| Ok((tag, self.take(reference, meaning)?)));
        let tagged = tagged.collect::<Result<_, ResolveError>>()?;
        Ok(Told { listed, tagged })
    }

    /// The digest that a tag means; its manifest counts as read, if it was.
    fn take(&mut self, reference: &Reference, meaning: Meaning) -> Result<Digest, ResolveError> {
        if let Some(manifest) = meaning.read {
            self.was_read(reference, manifest)?;
        }
        Ok(meaning.digest)
    }

    /// A referrer with all that it names; none if it is not one, or is gone.
    async fn referrer(
        &mut self,
        reference: &Reference,
        subject: &Digest,
        tag: Option<String>,
        digest: &Digest,
    ) -> Result<Option<ReferrerPlan>, ResolveError> {
        let manifest = match self.read(reference, digest.as_str()).await {
            Ok(manifest) => manifest,
            // Lists outlive what they name.
            Err(ResolveError::Registry(error)) if error.is_not_found() => {
                warn!("{digest} is said to refer to {subject} of {reference}, and is gone");
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        if tag.is_none() {
            let content = ManifestContent::parse(digest, &manifest.bytes);
            if content.is_ok_and(|content| content.subject.as_ref() != Some(subject)) {
                debug!("{digest} is listed, and does not refer to {subject}");
                return Ok(None);
            }
        }
        let mut found = Found::default();
        self.visit(reference, manifest, &mut Choice::new(&[], true), 0, &mut found).await?;
        let mut manifests = found.manifests;
        Ok(manifests.pop().map(|manifest| ReferrerPlan {
            manifest,
            subject: subject.clone(),
            tag,
            children: manifests,
        }))
    }
}

fn place(reference: &Reference, subject: &Digest) -> Place {
    (reference.host().clone(), reference.repository().to_owned(), subject.clone())
}

/// Asks a registry what refers to one manifest. No tags are looked for that belong to what `BuildKit` attests: nobody makes them.
async fn ask(
    registry: &Registry,
    repository: &str,
    subject: &Digest,
    is_attestation: bool,
) -> Result<Answer, RegistryError> {
    let listed = registry.listed_referrers(repository, subject).await?;
    let lists = listed.is_some();
    let mut answer = Answer { listed: listed.unwrap_or_default(), ..Answer::default() };
    if is_attestation {
        return Ok(answer);
    }
    // A tag that begins with a digest may be taken for that digest.
    let meaning = async |tag: String| {
        let meaning = registry.meaning(repository, &tag).await?.filter(|found| found.digest != *subject);
        Ok::<_, RegistryError>(meaning.map(|meaning| (tag, meaning)))
    };
    if !lists {
        answer.fallback = meaning(fallback_tag(subject)).await?;
    }
    for tag in cosign_tags(subject) {
        answer.tagged.extend(meaning(tag).await?);
    }
    Ok(answer)
}

/// What `BuildKit` attests of the images of an index stands beside them, as if it were an image.
fn attestations(image: &Found) -> HashSet<Digest> {
    let children = image.indexes.iter().flat_map(|index| &index.children);
    children.filter(|child| child.attested().is_some()).map(|child| child.digest.clone()).collect()
}
