use std::collections::HashMap;

use bytes::Bytes;
use indexmap::IndexMap;
use tracing::info;

use super::deliver::{Delivery, Refused};
use super::target::Target;
use crate::digest::Digest;
use crate::payload::{BillManifest, BillReferrer};
use crate::progress::STEP;
use crate::registry::{Manifest, RegistryError};

impl Delivery {
    /// Whether anything is missing of what belongs to an image that is there.
    pub(super) async fn lacks_referrers(&self, target: &Target) -> Result<bool, RegistryError> {
        let (registry, repository) = (self.registry(), &target.repository);
        let mut by_subject: IndexMap<&Digest, Vec<&Digest>> = IndexMap::new();
        for referrer in &target.referrers {
            match &referrer.tag {
                None => by_subject.entry(&referrer.subject).or_default().push(&referrer.digest),
                Some(tag)
                    if registry.manifest_digest(repository, tag).await?.as_ref()
                        != Some(&referrer.digest) =>
                {
                    return Ok(true);
                }
                Some(_) => {}
            }
        }
        for (subject, referrers) in by_subject {
            let listed = registry.referrers(repository, subject).await?;
            if referrers.into_iter().any(|referrer| !listed.contains(referrer)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Pushes the manifests of what belongs to an image, cosign's tags last. Where the registry does not list referrers,
    /// they are put into the index that does.
    pub(super) async fn referrers(
        &self,
        target: &Target,
        manifests: &HashMap<Digest, Bytes>,
    ) -> Result<(), Refused> {
        self.put_referrers(target, manifests).await.map_err(Refused::of_referrer)
    }

    async fn put_referrers(
        &self,
        target: &Target,
        manifests: &HashMap<Digest, Bytes>,
    ) -> Result<(), RegistryError> {
        let (registry, repository) = (self.registry(), &target.repository);
        let mut unlisted: IndexMap<&Digest, Vec<Manifest>> = IndexMap::new();
        let (tagged, untagged): (Vec<_>, Vec<_>) =
            target.referrers.iter().partition(|referrer| referrer.tag.is_some());
        for referrer in untagged {
            if self.knows_listed(repository, referrer) {
                continue;
            }
            self.put_each(repository, &referrer.manifests, manifests).await?;
            let bytes = manifests.get(&referrer.digest).cloned().unwrap_or_default();
            let (digest, media_type) = (referrer.digest.clone(), referrer.media_type.clone());
            let manifest = Manifest { bytes, digest, media_type };
            info!(target: STEP, "Pushing {repository}/{}, which refers to {}", referrer.digest, referrer.subject);
            if registry.put_referrer(repository, &manifest).await? {
                self.note_listed(repository, &referrer.subject, &referrer.digest);
            } else {
                unlisted.entry(&referrer.subject).or_default().push(manifest);
            }
        }
        for (subject, referrers) in unlisted {
            if registry.listed_referrers(repository, subject).await?.is_none() {
                registry.add_to_fallback(repository, subject, &referrers).await?;
            }
            for referrer in &referrers {
                self.note_listed(repository, subject, &referrer.digest);
            }
        }
        for referrer in tagged {
            let Some(tag) = &referrer.tag else { continue };
            // A tag that is right already may be one that must not be put again.
            if registry.manifest_digest(repository, tag).await?.as_ref() == Some(&referrer.digest) {
                continue;
            }
            self.put_each(repository, &referrer.manifests, manifests).await?;
            info!(target: STEP, "Pushing {repository}:{tag}");
            let bytes = manifests.get(&referrer.digest).cloned().unwrap_or_default();
            registry.put_manifest(repository, tag, &referrer.media_type, bytes).await?;
        }
        Ok(())
    }

    /// Pushes manifests by their digests, each once.
    pub(super) async fn put_each(
        &self,
        repository: &str,
        described: &[BillManifest],
        manifests: &HashMap<Digest, Bytes>,
    ) -> Result<(), RegistryError> {
        for manifest in described {
            let key = (repository.to_owned(), manifest.digest.clone());
            if self.known().manifests.contains(&key) {
                continue;
            }
            let bytes = manifests.get(&manifest.digest).cloned().unwrap_or_default();
            let digest = manifest.digest.as_str();
            self.registry().put_manifest(repository, digest, &manifest.media_type, bytes).await?;
            self.known().manifests.insert(key);
        }
        Ok(())
    }

    fn knows_listed(&self, repository: &str, referrer: &BillReferrer) -> bool {
        let known = self.known();
        let listed = known.listed.get(&(repository.to_owned(), referrer.subject.clone()));
        listed.is_some_and(|listed| listed.contains(&referrer.digest))
    }

    fn note_listed(&self, repository: &str, subject: &Digest, referrer: &Digest) {
        let key = (repository.to_owned(), subject.clone());
        self.known().listed.entry(key).or_default().insert(referrer.clone());
    }
}
