use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info};

use super::meter::Meter;
use super::target::{State, Target};
use super::{Counts, Passing, Payload};
use crate::digest::Digest;
use crate::payload::{
    Bill, BillEntry, BillManifest, BillReferrer, EntryKind, FilePayload, PayloadError, Verified,
};
use crate::progress::{Progress, STEP};
use crate::reason::{Reason, Told};
use crate::reference::Host;
use crate::registry::{Registry, RegistryError};

/// So many small questions and answers are under way at once.
pub(super) const ASKED_AT_ONCE: usize = 8;
/// So many pieces of a streamed blob wait between the payload and the registry.
const PIECES: usize = 4;

/// Why a blob is not in a repository, in one word and in a sentence.
type Why = (Reason, String);
/// The repositories that a blob could not be brought into.
type Failed = Vec<(String, Why)>;

/// Brings blobs and manifests into the registry, and remembers what is there: presence is a fact
/// about a repository and a digest, and is asked for once.
pub(super) struct Delivery {
    registry: Registry,
    progress: Arc<Progress>,
    known: Mutex<Known>,
}

#[derive(Default)]
pub(super) struct Known {
    present: HashMap<Digest, BTreeMap<String, bool>>,
    pub(super) manifests: HashSet<(String, Digest)>,
    /// The referrers that the registry, or an index in it, lists, by repository and subject.
    pub(super) listed: HashMap<(String, Digest), HashSet<Digest>>,
    counts: Counts,
}

impl Delivery {
    pub(super) fn new(registry: Registry, progress: Arc<Progress>) -> Self {
        Self { registry, progress, known: Mutex::default() }
    }

    pub(super) fn host(&self) -> &Host {
        self.registry.host()
    }

    pub(super) fn registry(&self) -> &Registry {
        &self.registry
    }

    pub(super) fn counts(&self) -> Counts {
        self.known().counts
    }

    /// Nothing that is known is ever half known: a writer that panicked does not spoil it.
    pub(super) fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn manifest_digest(
        &self,
        repository: &str,
        tag_or_digest: &str,
    ) -> Result<Option<Digest>, RegistryError> {
        self.registry.manifest_digest(repository, tag_or_digest).await
    }

    /// Whether any of the repositories has a blob.
    pub(super) async fn find(&self, digest: &Digest, repositories: &[String]) -> Result<bool, RegistryError> {
        for repository in repositories {
            if self.has(repository, digest).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub(super) async fn has(&self, repository: &str, digest: &Digest) -> Result<bool, RegistryError> {
        let known = self.known().present.get(digest).and_then(|known| known.get(repository)).copied();
        if let Some(known) = known {
            return Ok(known);
        }
        let found = self.registry.has_blob(repository, digest).await?;
        self.learn(repository, digest, found);
        Ok(found)
    }

    fn learn(&self, repository: &str, digest: &Digest, present: bool) {
        self.known().present.entry(digest.clone()).or_default().insert(repository.to_owned(), present);
    }

    /// A repository that is known to have a blob.
    pub(super) fn holder(&self, digest: &Digest) -> Option<String> {
        let known = self.known();
        let known = known.present.get(digest)?;
        known.iter().find(|(_, present)| **present).map(|(repository, _)| repository.clone())
    }

    /// Finds out how much there is to bring to the images that want it, and tells it. Gives how many bytes the registry
    /// has already.
    pub(super) async fn expect(&self, bill: &Bill, targets: &[Target]) -> u64 {
        // A manifest may be somebody's layer, too.
        let wanted: Vec<&BillEntry> = bill
            .entries
            .iter()
            .filter(|entry| targets.iter().any(|target| target.wants(&entry.digest)))
            .collect();
        let mut count = wanted.len();
        let mut size = wanted.iter().fold(0_u64, |size, entry| size.saturating_add(entry.size));
        let asked = futures::stream::iter(wanted).map(async |entry| {
            let mut is_lacking = false;
            for repository in wanting(targets, &entry.digest) {
                is_lacking |= !self.has(&repository, &entry.digest).await?;
            }
            Ok::<_, RegistryError>((entry, is_lacking))
        });
        let mut told = std::pin::pin!(asked.buffered(ASKED_AT_ONCE));
        let mut present = 0;
        // Where the registry does not say, all that is left counts; it is asked again when that is to be brought.
        while let Some(Ok((entry, is_lacking))) = told.next().await {
            count -= usize::from(!is_lacking);
            if self.holder(&entry.digest).is_some() {
                size -= entry.size;
                present += entry.size;
            }
        }
        self.progress.expect(u32::try_from(count).unwrap_or(u32::MAX), size);
        present
    }

    /// What is to move of a blob: nothing where the registry has it, in whatever repository.
    fn meter(&self, entry: &BillEntry) -> Meter {
        let size = if self.holder(&entry.digest).is_some() { 0 } else { entry.size };
        Meter::new(&self.progress, size)
    }

    /// Brings all carried blobs to the images that want them: from a file several at once, the
    /// largest first; from a stream in its order.
    ///
    /// What cannot be brought fails its images; a payload that cannot be read on is an error.
    pub(super) async fn blobs(
        self: &Arc<Self>,
        bill: &Bill,
        targets: &mut [Target],
        payload: &mut Payload,
    ) -> Result<(), PayloadError> {
        match payload {
            Payload::File(payload) => self.blobs_of_file(bill, targets, payload).await,
            Payload::Stream(payload) => self.blobs_of_stream(bill, targets, payload).await,
        }
    }

    async fn blobs_of_file(
        self: &Arc<Self>,
        bill: &Bill,
        targets: &mut [Target],
        payload: &Arc<FilePayload>,
    ) -> Result<(), PayloadError> {
        let mut work: Vec<(BillEntry, Vec<String>)> = bill
            .entries
            .iter()
            .map(|entry| (entry.clone(), wanting(targets, &entry.digest)))
            .filter(|(_, repositories)| !repositories.is_empty())
            .collect();
        work.sort_by_key(|(entry, _)| std::cmp::Reverse(entry.size));
        let brought = futures::stream::iter(work).map(|(entry, repositories)| {
            let (delivery, payload) = (Arc::clone(self), Arc::clone(payload));
            AbortOnDropHandle::new(tokio::spawn(async move {
                let failed = delivery.blob_of_file(&entry, repositories, &payload).await;
                (entry.digest, failed)
            }))
        });
        let mut brought = brought.buffer_unordered(self.registry.blobs_at_once());
        while let Some(joined) = brought.next().await {
            let (digest, failed) = joined.map_err(|error| PayloadError::io("pushing the payload", error))?;
            self.fail(targets, &digest, failed);
        }
        Ok(())
    }

    async fn blobs_of_stream(
        &self,
        bill: &Bill,
        targets: &mut [Target],
        payload: &mut Passing,
    ) -> Result<(), PayloadError> {
        for entry in bill.entries.iter().filter(|entry| entry.kind == EntryKind::Manifest) {
            let bytes = payload.manifest(&entry.digest)?;
            for repository in wanting(targets, &entry.digest) {
                let body = || futures::stream::iter([Ok(bytes.clone())]);
                if let Err(why) = self.push(entry, &repository, body).await {
                    self.fail(targets, &entry.digest, vec![(repository, why)]);
                }
            }
        }
        for entry in bill.blobs() {
            let repositories = wanting(targets, &entry.digest);
            if repositories.is_empty() {
                survivable(payload.next_blob(None).await)?;
                continue;
            }
            let failed = self.blob_of_stream(entry, repositories, payload).await?;
            self.fail(targets, &entry.digest, failed);
        }
        Ok(())
    }

    /// The images that want a blob where it could not be brought have failed.
    pub(super) fn fail(&self, targets: &mut [Target], digest: &Digest, failed: Failed) {
        for (repository, (reason, why)) in failed {
            self.progress.failed(&why);
            debug!("{why}");
            let targets = targets.iter_mut().filter(|target| target.repository == repository);
            for target in targets.filter(|target| target.wants(digest)) {
                target.fail(reason, &why);
            }
        }
    }

    /// Brings one blob into repositories: where it is not there, it is mounted from one that has it,
    /// else uploaded.
    async fn blob_of_file(
        &self,
        entry: &BillEntry,
        repositories: Vec<String>,
        payload: &FilePayload,
    ) -> Failed {
        let (absent, mut failed) = self.absent(entry, repositories).await;
        let (meter, is_lacking) = (self.meter(entry), !absent.is_empty());
        for repository in absent {
            let corrupt = failed.iter().find(|(_, (reason, _))| *reason == Reason::PayloadCorrupt);
            let brought = match (corrupt, self.holder(&entry.digest)) {
                // Bytes that were wrong once are not read again for the next repository.
                (Some((_, why)), _) => Err(why.clone()),
                (None, Some(holder)) => self.copy(&entry.digest, entry.size, &holder, &repository).await,
                (None, None) => {
                    self.push(entry, &repository, || meter.pass(payload.blob(&entry.digest))).await
                }
            };
            if let Err(why) = brought {
                failed.push((repository, why));
            }
        }
        if self.holder(&entry.digest).is_some() {
            meter.complete();
        }
        if is_lacking {
            self.progress.blob_done();
        }
        failed
    }

    /// The same with a blob that passes by once.
    async fn blob_of_stream(
        &self,
        entry: &BillEntry,
        repositories: Vec<String>,
        payload: &mut Passing,
    ) -> Result<Failed, PayloadError> {
        let (absent, mut failed) = self.absent(entry, repositories).await;
        let (meter, is_lacking) = (self.meter(entry), !absent.is_empty());
        let mut has_passed = false;
        for repository in absent {
            let brought = match self.holder(&entry.digest) {
                Some(holder) => self.copy(&entry.digest, entry.size, &holder, &repository).await,
                None if !has_passed => {
                    has_passed = true;
                    let (read, pushed) = self.push_passing(payload, entry, &repository, &meter).await;
                    survivable(read)?;
                    pushed
                }
                None => Err(failed.last().map_or_else(
                    || (Reason::RegistryUnavailable, format!("{} could not be pushed", entry.digest)),
                    |(_, why)| why.clone(),
                )),
            };
            if let Err(why) = brought {
                failed.push((repository, why));
            }
        }
        if !has_passed {
            survivable(payload.next_blob(None).await)?;
        }
        if self.holder(&entry.digest).is_some() {
            meter.complete();
        }
        if is_lacking {
            self.progress.blob_done();
        }
        Ok(failed)
    }

    /// The repositories that do not have a blob, and those that do not say.
    async fn absent(&self, entry: &BillEntry, repositories: Vec<String>) -> (Vec<String>, Failed) {
        let (mut absent, mut failed) = (Vec::new(), Vec::new());
        for repository in repositories {
            match self.has(&repository, &entry.digest).await {
                Ok(true) => self.known().counts.blobs_present += 1,
                Ok(false) => absent.push(repository),
                Err(error) => failed.push((repository, tell(&error))),
            }
        }
        (absent, failed)
    }

    async fn push<S: Stream<Item = io::Result<Bytes>> + Send + 'static>(
        &self,
        entry: &BillEntry,
        repository: &str,
        body: impl Fn() -> S + Sync,
    ) -> Result<(), Why> {
        info!(target: STEP, "Pushing {repository}/{}", entry.digest);
        let pushed = self.registry.push_blob(repository, &entry.digest, entry.size, body).await;
        self.uploaded(repository, &entry.digest, entry.size, pushed)
    }

    fn uploaded(
        &self,
        repository: &str,
        digest: &Digest,
        size: u64,
        pushed: Result<(), RegistryError>,
    ) -> Result<(), Why> {
        pushed.map_err(|error| tell(&error))?;
        self.learn(repository, digest, true);
        let mut known = self.known();
        known.counts.blobs_pushed += 1;
        known.counts.bytes_pushed += size;
        Ok(())
    }

    /// Pushes a blob while it passes by. Gives whether the stream can be read on, and whether the
    /// blob arrived.
    async fn push_passing(
        &self,
        payload: &mut Passing,
        entry: &BillEntry,
        repository: &str,
        meter: &Meter,
    ) -> (Result<(), PayloadError>, Result<(), Why>) {
        info!(target: STEP, "Pushing {repository}/{}", entry.digest);
        let (sender, receiver) = mpsc::channel(PIECES);
        let pieces = futures::stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|piece| (piece, receiver))
        });
        let push = async {
            let body = meter.pass(pieces);
            let pushed = self.registry.push_passing_blob(repository, &entry.digest, entry.size, body).await;
            self.uploaded(repository, &entry.digest, entry.size, pushed)
        };
        futures::join!(payload.next_blob(Some(sender)), push)
    }

    /// Brings a blob from one repository into another: by a mount, or where that is refused by
    /// reading it there and pushing it here.
    async fn copy(&self, digest: &Digest, size: u64, from: &str, to: &str) -> Result<(), Why> {
        let mounted = self.registry.mount_blob(to, digest, from).await.map_err(|error| tell(&error))?;
        if mounted {
            info!(target: STEP, "Mounted {from}/{digest} to {to}");
            self.known().counts.blobs_mounted += 1;
        } else {
            info!(target: STEP, "Copying {from}/{digest} to {to}");
            let registry = self.registry.for_copying().await;
            let body = || {
                let bytes = registry.blob(from, digest, size).map_err(io::Error::other);
                Verified::new(bytes.boxed(), digest.clone())
            };
            let pushed = registry.push_blob(to, digest, size, body).await;
            return self.uploaded(to, digest, size, pushed);
        }
        self.learn(to, digest, true);
        Ok(())
    }

    /// Brings the blobs that the payload leaves out to the images that want them.
    pub(super) async fn required(&self, bill: &Bill, targets: &mut [Target]) {
        for required in &bill.required {
            for repository in wanting(targets, &required.digest) {
                let brought = match self.has(&repository, &required.digest).await {
                    Ok(true) => {
                        self.known().counts.blobs_present += 1;
                        Ok(())
                    }
                    Ok(false) => match self.holder(&required.digest) {
                        Some(holder) => {
                            self.copy(&required.digest, required.size, &holder, &repository).await
                        }
                        None => Err((Reason::MissingBase, format!("{} is gone", required.digest))),
                    },
                    Err(error) => Err(tell(&error)),
                };
                if let Err(why) = brought {
                    self.fail(targets, &required.digest, vec![(repository, why)]);
                }
            }
        }
    }

    /// Pushes the manifests of an image whose blobs are all there, the tag last. Images of one repository are to be
    /// pushed one after the other.
    ///
    /// A registry may have said that it has a blob and not have it (its garbage was collected
    /// meanwhile). Then the blobs that `file` carries are uploaded without asking, once.
    pub(super) async fn manifests(
        &self,
        target: &mut Target,
        manifests: &HashMap<Digest, Bytes>,
        file: Option<&FilePayload>,
    ) {
        if !target.is_wanted() {
            return;
        }
        let list = listed(&target.manifests, manifests);
        let mut put = self.put_manifests(target, &list, &target.referrers, manifests).await;
        if let (Err(refusal), Some(file)) = (&put, file)
            && refusal.error.is_blob_unknown()
            && !refusal.is_of_sparse_index(target)
        {
            info!("{}; uploading the blobs of {} without asking", refusal.error, target.name);
            put = match self.upload_unasked(target, file).await {
                Ok(()) => self.put_manifests(target, &list, &target.referrers, manifests).await,
                Err(why) => return target.fail(why.0, &why.1),
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
        let what = if target.is_there { "what belongs to " } else { "" };
        info!(target: STEP, "Pushed {what}{}", target.far_name());
        target.state = State::Pushed;
    }

    async fn upload_unasked(&self, target: &Target, file: &FilePayload) -> Result<(), Why> {
        for entry in file.bill().blobs().filter(|entry| target.blobs.contains(&entry.digest)) {
            self.push(entry, &target.repository, || file.blob(&entry.digest)).await?;
        }
        Ok(())
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
            let (digest, media_type) = (&root.digest, &root.media_type);
            let put = self.registry.tag_manifest(repository, tag, digest, media_type, bytes.clone());
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
            let key = (repository.to_owned(), digest.clone());
            if self.known().manifests.contains(&key) {
                continue;
            }
            let put = self.registry.put_manifest(repository, digest.as_str(), media_type, bytes.clone());
            put.await.map_err(Refusal::of(digest))?;
            self.known().manifests.insert(key);
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

/// The repositories of the images that want a blob, each once.
pub(super) fn wanting(targets: &[Target], digest: &Digest) -> Vec<String> {
    let mut repositories: Vec<String> = Vec::new();
    for target in targets.iter().filter(|target| target.wants(digest)) {
        if !repositories.contains(&target.repository) {
            repositories.push(target.repository.clone());
        }
    }
    repositories
}

/// Why a registry's error happened: the payload's own error, if that is what broke the upload.
fn tell(error: &RegistryError) -> Why {
    let payload = error.body_error().and_then(io::Error::get_ref);
    match payload.and_then(|error| error.downcast_ref::<PayloadError>()) {
        Some(payload) => (payload.reason(), payload.to_string()),
        // The store of the payload may have told why.
        None => match error.body_error().filter(|error| Told::is_in(error)) {
            Some(told) => (Reason::from(told), format!("reading the payload: {told}")),
            None => (error.reason(), error.to_string()),
        },
    }
}

/// A blob with the wrong bytes fails its images, but the stream can be read on.
fn survivable(read: Result<(), PayloadError>) -> Result<(), PayloadError> {
    match read {
        Err(PayloadError::WrongDigest { .. }) => Ok(()),
        other => other,
    }
}
