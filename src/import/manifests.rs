//! Manifests on their way into the registry: children first, then what refers to an image, the tag last.

use std::collections::HashMap;

use bytes::Bytes;
use tracing::{debug, info};

use super::bases::Bases;
use super::deliver::Delivery;
use super::target::{Part, State, Target};
use super::why::{Why, tell};
use crate::digest::Digest;
use crate::payload::{Bill, BillManifest, BillReferrer, FilePayload};
use crate::progress::STEP;
use crate::reason::Reason;
use crate::reference::Host;
use crate::registry::RegistryError;

impl Delivery {
    /// Pushes the manifests of an image whose blobs are all there, the tag last. Images of one repository are to be
    /// pushed one after the other.
    ///
    /// A registry may have said that it has a blob and not have it (its garbage was collected
    /// meanwhile). Then the blobs that `file` carries are uploaded without asking, once, and those that the payload leaves
    /// out are looked for elsewhere.
    pub(super) async fn manifests(
        &self,
        target: &mut Target,
        (bill, bases): (&Bill, &Bases),
        manifests: &HashMap<Digest, Bytes>,
        file: Option<&FilePayload>,
    ) {
        let State::Wanted(part) = target.state else { return };
        let list = listed(target.manifests(), manifests);
        let mut put = self.put_manifests(target, &list, target.referrers(), manifests).await;
        if let Err(refusal) = &put
            && (file.is_some() || !bill.required.is_empty())
            && refusal.error.is_blob_unknown()
            && !refusal.is_of_sparse_index(target)
        {
            info!("{}; bringing the blobs of {} without asking", refusal.error, target.name);
            put = match self.bring_unasked(target, bill, bases, file).await {
                Ok(gone) => {
                    let again = self.put_manifests(target, &list, target.referrers(), manifests).await;
                    if let (Err(refusal), Some((reason, why))) = (&again, &gone)
                        && refusal.error.is_blob_unknown()
                    {
                        return target.fail(*reason, why);
                    }
                    again
                }
                Err((reason, why)) => return target.fail(reason, &why),
            };
        }
        if let (Err(refusal), Some(rewriting)) = (&put, target.rewriting())
            && refusal.is_of_sparse_index(target)
        {
            debug!("{}", refusal.error);
            put = self.put_manifests(target, &rewriting.manifests, &rewriting.referrers, manifests).await;
            if put.is_ok() {
                target.take_rewritten(self.host());
            }
        }
        if let Err(refusal) = put {
            let (reason, why) = refusal.tell(target, self.host());
            debug!("{why}");
            target.fail(reason, &why);
            return;
        }
        let what = match part {
            Part::Whole => "",
            Part::BehindTag => "what is behind ",
            Part::Referrers => "what belongs to ",
        };
        info!(target: STEP, "Pushed {what}{}", target.far_name());
        target.state = State::Pushed;
    }

    /// Puts the manifests of an image in their order, then what belongs to it, and last its tag.
    async fn put_manifests(
        &self,
        target: &Target,
        list: &[(BillManifest, Bytes)],
        referrers: &[BillReferrer],
        manifests: &HashMap<Digest, Bytes>,
    ) -> Result<(), Refusal> {
        let repository = &target.repository;
        self.put_each(repository, list).await?;
        self.referrers(repository, referrers, manifests).await?;
        // Nobody sees a tag without the signature.
        if let (Some(tag), Some((root, bytes))) = (&target.tag, list.last()) {
            // One that is right already may be one that must not be put again.
            if matches!(target.state, State::Wanted(Part::BehindTag))
                && target.root.as_ref() == Some(&root.digest)
            {
                return Ok(());
            }
            let (digest, media_type) = (&root.digest, &root.media_type);
            let put = self.registry().tag_manifest(repository, tag, digest, media_type, bytes.clone());
            put.await.map_err(Refusal::of(digest))?;
        }
        Ok(())
    }

    /// Puts manifests by their digests, in their order, each once.
    pub(super) async fn put_each(
        &self,
        repository: &str,
        list: &[(BillManifest, Bytes)],
    ) -> Result<(), Refusal> {
        for (BillManifest { digest, media_type, .. }, bytes) in list {
            if self.put().has(repository, digest) {
                continue;
            }
            let put = self.registry().put_manifest(repository, digest.as_str(), media_type, bytes.clone());
            put.await.map_err(Refusal::of(digest))?;
            self.put().note(repository, digest);
        }
        Ok(())
    }
}

/// Manifests with their bytes.
pub(super) fn listed(
    described: &[BillManifest],
    manifests: &HashMap<Digest, Bytes>,
) -> Vec<(BillManifest, Bytes)> {
    let bytes = |manifest: &BillManifest| manifests.get(&manifest.digest).cloned().unwrap_or_default();
    described.iter().map(|manifest| (manifest.clone(), bytes(manifest))).collect()
}

/// A manifest that the registry did not take.
pub(super) struct Refusal {
    manifest: Digest,
    error: RegistryError,
    /// Whether it is one that belongs to the image, and not a part of it.
    is_referrer: bool,
}

impl Refusal {
    pub(super) fn of(manifest: &Digest) -> impl FnOnce(RegistryError) -> Self {
        |error| Self { manifest: manifest.clone(), error, is_referrer: false }
    }

    pub(super) fn of_referrer(self) -> Self {
        Self { is_referrer: true, ..self }
    }

    /// Whether it is about an index of which images were left out, and because of them.
    fn is_of_sparse_index(&self, target: &Target) -> bool {
        !self.is_referrer
            && target.touchy.sparse.contains(&self.manifest)
            && (self.error.is_blob_unknown() || self.error.is_manifest_invalid())
    }

    /// Why, in one word and in a sentence that says what to do.
    fn tell(&self, target: &Target, host: &Host) -> Why {
        let (reason, why) = self.tell_manifest(target, host);
        if self.is_referrer {
            let why = format!(
                "{why}; it is a signature, an attestation or the like, without which no tag is pushed"
            );
            return (reason, why);
        }
        (reason, why)
    }

    fn tell_manifest(&self, target: &Target, host: &Host) -> Why {
        let error = &self.error;
        if self.is_of_sparse_index(target) && target.rewriting().is_none() {
            let why = format!(
                "{error}; images of other platforms were left out of this index: carry all of them, let the registry take such an index (distribution: validation.manifests.indexes.platforms: none), or have it written anew, which changes its digest (registry.sparseIndex: Rewrite, --sparse-index rewrite)"
            );
            return (Reason::UnsupportedImage, why);
        }
        if target.touchy.with_urls.contains(&self.manifest) && error.is_manifest_unacceptable() {
            let why = format!(
                "{error}; it names layers by urls, and {host} takes no manifest that does: allow them there (distribution: validation.manifests.urls.allow), or leave the image out"
            );
            return (Reason::UnsupportedImage, why);
        }
        let algorithm = self.manifest.algorithm();
        if algorithm != "sha256" && error.reason() == Reason::DigestMismatch {
            let why =
                format!("{error}; {host} keeps no manifest by its {algorithm} digest: leave the image out");
            return (Reason::UnsupportedImage, why);
        }
        tell(error)
    }
}
