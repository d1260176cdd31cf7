use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};
use tokio::io::AsyncRead;
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::target::{State, Target};
use super::{Counts, Payload};
use crate::digest::Digest;
use crate::payload::{Bill, BillEntry, PayloadError, StreamPayload, Verified};
use crate::progress::{Progress, STEP};
use crate::reason::Reason;
use crate::reference::Host;
use crate::registry::{Registry, RegistryError};

/// So many pieces of a streamed blob wait between the payload and the registry.
const PIECES: usize = 4;

/// Why a blob is not in a repository, in one word and in a sentence.
type Why = (Reason, String);

/// Brings blobs and manifests into the registry, and remembers what is there: presence is a fact
/// about a repository and a digest, and is asked for once.
pub(super) struct Delivery<'a> {
    registry: &'a Registry,
    progress: &'a Arc<Progress>,
    present: HashMap<Digest, BTreeMap<String, bool>>,
    manifests: HashSet<(String, Digest)>,
    counts: Counts,
}

impl<'a> Delivery<'a> {
    pub(super) fn new(registry: &'a Registry, progress: &'a Arc<Progress>) -> Self {
        let (present, manifests) = (HashMap::new(), HashSet::new());
        Self { registry, progress, present, manifests, counts: Counts::default() }
    }

    pub(super) fn host(&self) -> &'a Host {
        self.registry.host()
    }

    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    pub(super) async fn manifest_digest(
        &self,
        repository: &str,
        tag_or_digest: &str,
    ) -> Result<Option<Digest>, RegistryError> {
        self.registry.manifest_digest(repository, tag_or_digest).await
    }

    /// Whether any of the repositories has a blob.
    pub(super) async fn find(
        &mut self,
        digest: &Digest,
        repositories: &[String],
    ) -> Result<bool, RegistryError> {
        for repository in repositories {
            if self.has(repository, digest).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn has(&mut self, repository: &str, digest: &Digest) -> Result<bool, RegistryError> {
        if let Some(known) = self.present.get(digest).and_then(|known| known.get(repository)) {
            return Ok(*known);
        }
        let found = self.registry.has_blob(repository, digest).await?;
        self.learn(repository, digest, found);
        Ok(found)
    }

    fn learn(&mut self, repository: &str, digest: &Digest, present: bool) {
        self.present.entry(digest.clone()).or_default().insert(repository.to_owned(), present);
    }

    /// A repository that is known to have a blob.
    fn holder(&self, digest: &Digest) -> Option<String> {
        let known = self.present.get(digest)?;
        known.iter().find(|(_, present)| **present).map(|(repository, _)| repository.clone())
    }

    /// Brings all carried blobs to the images that want them, in the order of the payload.
    ///
    /// What cannot be brought fails its images; a payload that cannot be read on is an error.
    pub(super) async fn blobs(
        &mut self,
        bill: &Bill,
        targets: &mut [Target],
        payload: &mut Payload,
    ) -> Result<(), PayloadError> {
        let wanted = bill.blobs().filter(|entry| targets.iter().any(|target| target.wants(&entry.digest)));
        let (count, size) = wanted.fold((0, 0), |(count, size), entry| (count + 1, size + entry.size));
        self.progress.expect(count, size);
        for entry in bill.blobs() {
            let repositories = wanting(targets, &entry.digest);
            let is_wanted = !repositories.is_empty();
            for (repository, (reason, why)) in self.blob(entry, repositories, payload).await? {
                self.progress.failed(&why);
                warn!("{why}");
                let targets = targets.iter_mut().filter(|target| target.repository == repository);
                for target in targets.filter(|target| target.wants(&entry.digest)) {
                    target.fail(reason, &why);
                }
            }
            if is_wanted {
                self.progress.blob_done();
            }
        }
        Ok(())
    }

    /// Brings one blob into repositories: where it is not there, it is mounted from one that has it,
    /// else uploaded. Gives the repositories where that failed.
    async fn blob(
        &mut self,
        entry: &BillEntry,
        repositories: Vec<String>,
        payload: &mut Payload,
    ) -> Result<Vec<(String, Why)>, PayloadError> {
        let mut failed: Vec<(String, Why)> = Vec::new();
        let mut absent = Vec::new();
        for repository in repositories {
            match self.has(&repository, &entry.digest).await {
                Ok(true) => self.counts.blobs_present += 1,
                Ok(false) => absent.push(repository),
                Err(error) => failed.push((repository, tell(&error))),
            }
        }
        let meter = Meter::new(self.progress, entry.size);
        let mut has_passed = false;
        for repository in absent {
            let corrupt = failed.iter().find(|(_, (reason, _))| *reason == Reason::PayloadCorrupt);
            let brought = match (self.holder(&entry.digest), &mut *payload) {
                // Bytes that were wrong once are not read again for the next repository.
                _ if corrupt.is_some() => corrupt.map_or(Ok(()), |(_, why)| Err(why.clone())),
                (Some(holder), _) => self.copy(&entry.digest, entry.size, &holder, &repository).await,
                (None, Payload::File(payload)) => {
                    let body = || meter.pass(payload.blob(&entry.digest));
                    self.push(entry, &repository, body).await
                }
                (None, Payload::Stream(payload)) if !has_passed => {
                    has_passed = true;
                    let (read, pushed) = self.push_passing(payload, entry, &repository, &meter).await;
                    survivable(read)?;
                    pushed
                }
                // A stream gives a blob once.
                (None, Payload::Stream(_)) => Err(failed.last().map_or_else(
                    || (Reason::RegistryUnavailable, format!("{} could not be pushed", entry.digest)),
                    |(_, why)| why.clone(),
                )),
            };
            if let Err(why) = brought {
                failed.push((repository, why));
            }
        }
        if let (false, Payload::Stream(payload)) = (has_passed, payload) {
            survivable(payload.next_blob(None).await)?;
        }
        if self.holder(&entry.digest).is_some() {
            meter.complete();
        }
        Ok(failed)
    }

    async fn push<S: Stream<Item = io::Result<Bytes>> + Send + 'static>(
        &mut self,
        entry: &BillEntry,
        repository: &str,
        body: impl Fn() -> S,
    ) -> Result<(), Why> {
        info!(target: STEP, "Pushing {repository}/{}", entry.digest);
        let pushed = self.registry.push_blob(repository, &entry.digest, entry.size, body).await;
        pushed.map_err(|error| tell(&error))?;
        self.learn(repository, &entry.digest, true);
        self.counts.blobs_pushed += 1;
        self.counts.bytes_pushed += entry.size;
        Ok(())
    }

    /// Pushes a blob while it passes by. Gives whether the stream can be read on, and whether the
    /// blob arrived.
    async fn push_passing(
        &mut self,
        payload: &mut StreamPayload<Box<dyn AsyncRead + Send + Unpin>>,
        entry: &BillEntry,
        repository: &str,
        meter: &Meter,
    ) -> (Result<(), PayloadError>, Result<(), Why>) {
        let (sender, receiver) = mpsc::channel(PIECES);
        let receiver = Mutex::new(Some(receiver));
        let body = || {
            let receiver = receiver.lock().ok().and_then(|mut receiver| receiver.take());
            let pieces = futures::stream::unfold(receiver, |receiver| async move {
                if let Some(mut receiver) = receiver {
                    return receiver.recv().await.map(|piece| (piece, Some(receiver)));
                }
                Some((Err(io::Error::other("the stream has passed, and cannot be sent again")), None))
            });
            meter.pass(pieces.boxed())
        };
        let push = async {
            let pushed = self.push(entry, repository, body).await;
            // A push that ended early must not hold up the stream.
            drop(receiver.lock().ok().and_then(|mut receiver| receiver.take()));
            pushed
        };
        futures::join!(payload.next_blob(Some(sender)), push)
    }

    /// Brings a blob from one repository into another: by a mount, or where that is refused by
    /// reading it there and pushing it here.
    async fn copy(&mut self, digest: &Digest, size: u64, from: &str, to: &str) -> Result<(), Why> {
        let mounted = self.registry.mount_blob(to, digest, from).await.map_err(|error| tell(&error))?;
        if mounted {
            info!(target: STEP, "Mounted {from}/{digest} to {to}");
            self.counts.blobs_mounted += 1;
        } else {
            info!(target: STEP, "Copying {from}/{digest} to {to}");
            let body = || {
                let bytes = self.registry.blob(from, digest, size).map_err(io::Error::other);
                Verified::new(bytes.boxed(), digest.clone())
            };
            let pushed = self.registry.push_blob(to, digest, size, body).await;
            pushed.map_err(|error| tell(&error))?;
            self.counts.blobs_pushed += 1;
            self.counts.bytes_pushed += size;
        }
        self.learn(to, digest, true);
        Ok(())
    }

    /// Brings the blobs that the payload leaves out to the images that want them.
    pub(super) async fn required(&mut self, bill: &Bill, targets: &mut [Target]) {
        for required in &bill.required {
            for repository in wanting(targets, &required.digest) {
                let brought = match self.has(&repository, &required.digest).await {
                    Ok(true) => {
                        self.counts.blobs_present += 1;
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
                if let Err((reason, why)) = brought {
                    warn!("{why}");
                    let targets = targets.iter_mut().filter(|target| target.repository == repository);
                    for target in targets.filter(|target| target.wants(&required.digest)) {
                        target.fail(reason, &why);
                    }
                }
            }
        }
    }

    /// Pushes the manifests of an image whose blobs are all there, the tag last.
    pub(super) async fn manifests(&mut self, target: &mut Target, manifests: &HashMap<Digest, Bytes>) {
        if !target.is_wanted() {
            return;
        }
        if let Err((reason, why)) = self.put_manifests(target, manifests).await {
            warn!("{why}");
            target.fail(reason, &why);
            return;
        }
        info!(target: STEP, "Pushed {}", target.far_name());
        target.state = State::Pushed;
    }

    async fn put_manifests(
        &mut self,
        target: &Target,
        manifests: &HashMap<Digest, Bytes>,
    ) -> Result<(), Why> {
        let Target { repository, tag, .. } = target;
        for manifest in &target.manifests {
            let bytes = manifests.get(&manifest.digest).cloned().unwrap_or_default();
            if self.manifests.insert((repository.clone(), manifest.digest.clone())) {
                let digest = manifest.digest.as_str();
                let put = self.registry.put_manifest(repository, digest, &manifest.media_type, bytes.clone());
                put.await.map_err(|error| tell(&error))?;
            }
            if let Some(tag) = tag.as_ref().filter(|_| Some(&manifest.digest) == target.root.as_ref()) {
                let put = self.registry.put_manifest(repository, tag, &manifest.media_type, bytes);
                put.await.map_err(|error| tell(&error))?;
            }
        }
        Ok(())
    }
}

/// The repositories of the images that want a blob, each once.
fn wanting(targets: &[Target], digest: &Digest) -> Vec<String> {
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
        None => (error.reason(), error.to_string()),
    }
}

/// A blob with the wrong bytes fails its images, but the stream can be read on.
fn survivable(read: Result<(), PayloadError>) -> Result<(), PayloadError> {
    match read {
        Err(PayloadError::WrongDigest { .. }) => Ok(()),
        other => other,
    }
}

/// Tells the progress of a blob, each byte once however often it is sent.
struct Meter {
    progress: Arc<Progress>,
    size: u64,
    told: Arc<AtomicU64>,
}

impl Meter {
    fn new(progress: &Arc<Progress>, size: u64) -> Self {
        Self { progress: Arc::clone(progress), size, told: Arc::default() }
    }

    /// Passes one sending of the blob on.
    fn pass<S: Stream<Item = io::Result<Bytes>>>(
        &self,
        body: S,
    ) -> impl Stream<Item = io::Result<Bytes>> + use<S> {
        let (progress, told, mut sent) = (Arc::clone(&self.progress), Arc::clone(&self.told), 0);
        body.inspect_ok(move |piece| {
            sent += piece.len() as u64;
            progress.moved(sent.saturating_sub(told.fetch_max(sent, Ordering::Relaxed)));
        })
    }

    /// The blob is there, whichever way it came.
    fn complete(&self) {
        self.progress.moved(self.size.saturating_sub(self.told.swap(self.size, Ordering::Relaxed)));
    }
}
