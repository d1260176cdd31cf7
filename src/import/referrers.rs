use std::collections::HashMap;

use bytes::Bytes;
use indexmap::IndexMap;
use tracing::info;

use super::deliver::{Delivery, none_where_hidden};
use super::manifests::{Refusal, listed};
use super::target::Target;
use crate::digest::Digest;
use crate::payload::BillReferrer;
use crate::progress::STEP;
use crate::registry::{Manifest, RegistryError};

impl Delivery {
    /// Whether anything is missing of what belongs to an image that is there.
    pub(super) async fn lacks_referrers(&self, target: &Target) -> Result<bool, RegistryError> {
        let (registry, repository) = (self.registry(), &target.repository);
        let mut by_subject: IndexMap<&Digest, Vec<&Digest>> = IndexMap::new();
        for referrer in target.referrers() {
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
        repository: &str,
        referrers: &[BillReferrer],
        manifests: &HashMap<Digest, Bytes>,
    ) -> Result<(), Refusal> {
        self.put_referrers(repository, referrers, manifests).await.map_err(Refusal::of_referrer)
    }

    async fn put_referrers(
        &self,
        repository: &str,
        referrers: &[BillReferrer],
        manifests: &HashMap<Digest, Bytes>,
    ) -> Result<(), Refusal> {
        let registry = self.registry();
        let mut unlisted: IndexMap<&Digest, Vec<Manifest>> = IndexMap::new();
        let (tagged, untagged): (Vec<_>, Vec<_>) =
            referrers.iter().partition(|referrer| referrer.tag.is_some());
        for referrer in untagged {
            if self.put().lists(repository, &referrer.subject, &referrer.digest) {
                continue;
            }
            self.put_each(repository, &listed(&referrer.manifests, manifests)).await?;
            let bytes = manifests.get(&referrer.digest).cloned().unwrap_or_default();
            let (digest, media_type) = (referrer.digest.clone(), referrer.media_type.clone());
            let manifest = Manifest { bytes, digest, media_type };
            info!(target: STEP, "Pushing {repository}/{}, which refers to {}", referrer.digest, referrer.subject);
            let put = registry.put_referrer(repository, &manifest).await;
            if put.map_err(Refusal::of(&referrer.digest))? {
                self.put().note_listed(repository, &referrer.subject, &referrer.digest);
            } else {
                unlisted.entry(&referrer.subject).or_default().push(manifest);
            }
        }
        for (subject, referrers) in unlisted {
            let refused = Refusal::of(subject);
            match registry.listed_referrers(repository, subject).await {
                Ok(Some(_)) => {}
                Ok(None) => {
                    registry.add_to_fallback(repository, subject, &referrers).await.map_err(refused)?;
                }
                Err(error) => return Err(refused(error)),
            }
            for referrer in &referrers {
                self.put().note_listed(repository, subject, &referrer.digest);
            }
        }
        for referrer in tagged {
            let Some(tag) = &referrer.tag else { continue };
            // A tag that is right already may be one that must not be put again.
            let there = registry.manifest_digest(repository, tag).await.or_else(none_where_hidden);
            if there.map_err(Refusal::of(&referrer.digest))?.as_ref() == Some(&referrer.digest) {
                continue;
            }
            self.put_each(repository, &listed(&referrer.manifests, manifests)).await?;
            info!(target: STEP, "Pushing {repository}:{tag}");
            let bytes = manifests.get(&referrer.digest).cloned().unwrap_or_default();
            let (digest, media_type) = (&referrer.digest, &referrer.media_type);
            let put = registry.tag_manifest(repository, tag, digest, media_type, bytes).await;
            put.map_err(Refusal::of(digest))?;
        }
        Ok(())
    }
}
