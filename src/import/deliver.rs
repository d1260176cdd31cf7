//! Blobs on their way into the registry.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::{FutureExt, Stream, StreamExt, TryFutureExt, TryStreamExt, stream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinError;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info};

use super::bases::Bases;
use super::meter::Meter;
use super::presence::Presence;
use super::put::Put;
use super::target::Target;
use super::turn::Turn;
use super::why::{Why, reading, tell};
use super::{Counts, Passing, Payload};
use crate::digest::Digest;
use crate::payload::{Bill, BillEntry, BillManifest, EntryKind, FilePayload, PayloadError, Verified};
use crate::progress::{Progress, STEP};
use crate::reason::Reason;
use crate::reference::Host;
use crate::registry::{Registry, RegistryError};

/// So many small questions and answers are under way at once.
pub(super) const ASKED_AT_ONCE: usize = 8;
/// With a blob up to this size the answers are what is waited for, more than its bytes.
const SMALL: u64 = 64 << 10;
/// So many pieces of a streamed blob wait between the payload and the registry.
const PIECES: usize = 4;

/// The repositories that a blob could not be brought into.
type Failed = Vec<(String, Why)>;

/// Brings blobs and manifests into the registry, and remembers what is there.
pub(super) struct Delivery {
    registry: Registry,
    progress: Arc<Progress>,
    presence: Presence,
    /// The same of manifests that are behind a tag.
    manifests: Presence,
    put: Put,
    counts: Mutex<Counts>,
    /// Bounds the mounts that are under way, of whichever blobs.
    mounts: Semaphore,
}

impl Delivery {
    pub(super) fn new(registry: Registry, progress: Arc<Progress>) -> Self {
        Self {
            registry,
            progress,
            presence: Presence::default(),
            manifests: Presence::default(),
            put: Put::default(),
            counts: Mutex::default(),
            mounts: Semaphore::new(ASKED_AT_ONCE),
        }
    }

    pub(super) fn host(&self) -> &Host {
        self.registry.host()
    }

    pub(super) fn registry(&self) -> &Registry {
        &self.registry
    }

    pub(super) fn put(&self) -> &Put {
        &self.put
    }

    /// What was moved so far.
    pub(super) fn counts(&self) -> Counts {
        *self.count()
    }

    pub(super) fn count(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first of the repositories that has a blob. Where none is known to have it, and one may not be looked into, that
    /// refusal is the error.
    pub(super) async fn find<'a>(
        &self,
        digest: &Digest,
        repositories: impl Iterator<Item = &'a str>,
    ) -> Result<Option<&'a str>, RegistryError> {
        let mut hidden = None;
        for repository in repositories {
            match self.look(repository, digest).await {
                Ok(true) => return Ok(Some(repository)),
                Ok(false) => {}
                Err(error) if error.is_hidden() => hidden = hidden.or(Some(error)),
                Err(error) => return Err(error),
            }
        }
        hidden.map_or(Ok(None), Err)
    }

    /// Whether a repository that is to be written has a blob.
    pub(super) async fn has(&self, repository: &str, digest: &Digest) -> Result<bool, RegistryError> {
        let found = self.look(repository, digest).await;
        if found.as_ref().is_err_and(RegistryError::is_hidden) {
            // It is not asked for again.
            self.presence.learn(repository, digest, false);
        }
        found.or_else(none_where_hidden)
    }

    async fn look(&self, repository: &str, digest: &Digest) -> Result<bool, RegistryError> {
        self.presence.has(repository, digest, self.registry.has_blob(repository, digest)).await
    }

    /// Whether the registry lacks anything of what the tag of an image leads to. One that takes indexes of which images
    /// were left out may have the index, and not what a payload brings of it now.
    pub(super) async fn lacks_children(&self, target: &Target) -> Result<bool, RegistryError> {
        let (registry, repository) = (&self.registry, &target.repository);
        let asked = stream::iter(target.children()).map(async |BillManifest { digest, .. }| {
            let found = registry.manifest_digest(repository, digest.as_str()).map_ok(|found| found.is_some());
            self.manifests.has(repository, digest, found.boxed()).await
        });
        let mut asked = pin!(asked.buffered(ASKED_AT_ONCE));
        while let Some(is_there) = asked.next().await {
            if !is_there? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A repository that is known to have a blob.
    pub(super) fn holder(&self, digest: &Digest) -> Option<String> {
        self.presence.holder(digest)
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
        let pairs = wanted.iter().flat_map(|entry| {
            wanting(targets, &entry.digest).into_iter().map(move |repository| (*entry, repository))
        });
        let asked = stream::iter(pairs)
            .map(async |(entry, repository)| (entry, self.has(&repository, &entry.digest).await));
        let mut asked = pin!(asked.buffered(ASKED_AT_ONCE));
        let mut everywhere: HashMap<&Digest, bool> = HashMap::new();
        while let Some((entry, answer)) = asked.next().await {
            *everywhere.entry(&entry.digest).or_insert(true) &= matches!(answer, Ok(true));
            // Where the registry does not say, all that is left counts; it is asked again when that is to be brought.
            if answer.is_err() {
                break;
            }
        }
        let (mut count, mut size, mut present) = (0, 0_u64, 0);
        for entry in &wanted {
            count += usize::from(everywhere.get(&entry.digest) != Some(&true));
            if self.holder(&entry.digest).is_some() {
                present += entry.size;
            } else {
                size = size.saturating_add(entry.size);
            }
        }
        self.progress.expect(u32::try_from(count).unwrap_or(u32::MAX), size);
        present
    }

    /// What is to move of a blob: nothing where the registry has it, in whatever repository.
    fn meter(&self, entry: &BillEntry) -> Meter {
        let expected = if self.holder(&entry.digest).is_some() { 0 } else { entry.size };
        Meter::new(&self.progress, expected)
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
        let mut work: Vec<(&BillEntry, Vec<String>)> = bill
            .entries
            .iter()
            .map(|entry| (entry, wanting(targets, &entry.digest)))
            .filter(|(_, repositories)| !repositories.is_empty())
            .collect();
        work.sort_by_key(|(entry, _)| std::cmp::Reverse(entry.size));
        // Large ones wait for the link, small ones for answers: neither for the other. Where requests are bounded, small
        // uploads that were begun would wait for their places behind large ones.
        let is_bounded = self.registry.is_narrow();
        let small = work.split_off(work.partition_point(|(entry, _)| is_bounded || entry.size > SMALL));
        let mut brought = stream::select(self.bring(work, payload), self.bring(small, payload));
        while let Some(joined) = brought.next().await {
            let (digest, failed) = joined.map_err(|error| PayloadError::io("pushing the payload", error))?;
            self.fail(targets, &digest, failed);
        }
        Ok(())
    }

    /// Brings blobs of a file, as many at once as one may.
    fn bring(
        self: &Arc<Self>,
        work: Vec<(&BillEntry, Vec<String>)>,
        payload: &Arc<FilePayload>,
    ) -> impl Stream<Item = Result<(Digest, Failed), JoinError>> {
        let at_once = self.registry.blobs_at_once();
        let turns = Arc::new(Semaphore::new(at_once));
        let brought = stream::iter(work).map(move |(entry, repositories)| {
            let (entry, turn) = (entry.clone(), Turn::of(&turns));
            let (delivery, payload) = (Arc::clone(self), Arc::clone(payload));
            AbortOnDropHandle::new(tokio::spawn(async move {
                let failed = delivery.blob_of_file(&entry, repositories, &payload, &turn).await;
                (entry.digest, failed)
            }))
        });
        // A registry may take a while to write down what was sent: meanwhile the next ones have their turn.
        brought.buffer_unordered(2 * at_once)
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
                let body = || stream::iter([Ok(bytes.clone())]);
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

    /// Brings one blob into repositories: where it is not there, it is mounted from one that has it, else uploaded. It
    /// is not copied inside the registry, which would move it twice.
    async fn blob_of_file(
        &self,
        entry: &BillEntry,
        repositories: Vec<String>,
        payload: &FilePayload,
        turn: &Turn,
    ) -> Failed {
        let (mut absent, mut failed) = self.absent(entry, repositories).await;
        let (meter, is_lacking) = (self.meter(entry), !absent.is_empty());
        if let Some(holder) = self.holder(&entry.digest) {
            absent = self.mount_everywhere(&entry.digest, &holder, absent, &mut failed).await;
        }
        let (mut absent, mut was_pushed) = (VecDeque::from(absent), false);
        while let Some(repository) = absent.pop_front() {
            // Bytes that were wrong once are not read again for the next repository.
            if let Some((_, why)) = failed.iter().find(|(_, (reason, _))| *reason == Reason::PayloadCorrupt) {
                let why = why.clone();
                failed.push((repository, why));
                continue;
            }
            turn.take().await;
            let body = || turn.until_sent(entry.size, meter.pass(payload.blob(&entry.digest)));
            match self.push(entry, &repository, body).await {
                // Now there is one that has it for sure. Who refuses to mount from there is not asked again.
                Ok(()) if !was_pushed => {
                    was_pushed = true;
                    let rest = absent.into();
                    absent =
                        self.mount_everywhere(&entry.digest, &repository, rest, &mut failed).await.into();
                }
                Ok(()) => {}
                Err(why) => failed.push((repository, why)),
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
            let brought = loop {
                match self.holder(&entry.digest) {
                    Some(holder) => match self.copy(&entry.digest, entry.size, &holder, &repository).await {
                        Ok(false) => {}
                        copied => break copied.map(|_| ()),
                    },
                    None if !has_passed => {
                        has_passed = true;
                        let (read, pushed) = self.push_passing(payload, entry, &repository, &meter).await;
                        survivable(read)?;
                        break pushed;
                    }
                    None => {
                        break Err(failed.last().map_or_else(
                            || (Reason::RegistryUnavailable, format!("{} could not be pushed", entry.digest)),
                            |(_, why)| why.clone(),
                        ));
                    }
                }
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
                Ok(true) => self.count().blobs_present += 1,
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
        self.presence.learn(repository, digest, true);
        let mut counts = self.count();
        counts.blobs_pushed += 1;
        counts.bytes_pushed += size;
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
        let pieces = stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|piece| (piece, receiver))
        });
        let push = async {
            let body = meter.pass(pieces);
            let pushed = self.registry.push_passing_blob(repository, &entry.digest, entry.size, body).await;
            self.uploaded(repository, &entry.digest, entry.size, pushed)
        };
        futures::join!(payload.next_blob(Some(sender)), push)
    }

    /// Lets the registry take a blob from one of its repositories into others, all at once. Gives those into which it did
    /// not.
    async fn mount_everywhere(
        &self,
        digest: &Digest,
        from: &str,
        to: Vec<String>,
        failed: &mut Failed,
    ) -> Vec<String> {
        let mounts = stream::iter(to).map(async |to| {
            // A semaphore that nobody closes gives what it has.
            let _place = self.mounts.acquire().await;
            (self.mount(digest, from, &to).await, to)
        });
        let mut refused = Vec::new();
        // None is left in the middle while something else is waited for.
        for (mounted, to) in mounts.buffered(ASKED_AT_ONCE).collect::<Vec<_>>().await {
            match mounted {
                Ok(true) => {}
                Ok(false) => refused.push(to),
                Err(why) => failed.push((to, why)),
            }
        }
        refused
    }

    async fn mount(&self, digest: &Digest, from: &str, to: &str) -> Result<bool, Why> {
        let mounted = self.registry.mount_blob(to, digest, from).await.map_err(|error| tell(&error))?;
        if mounted {
            info!(target: STEP, "Mounted {from}/{digest} to {to}");
            self.count().blobs_mounted += 1;
            self.presence.learn(to, digest, true);
        }
        Ok(mounted)
    }

    /// Brings a blob that is not at hand from one repository into another: by a mount, or where that is refused by
    /// reading it there and pushing it here. Gives whether it was there at all: a registry may have said so of what it
    /// does not have.
    pub(super) async fn copy(&self, digest: &Digest, size: u64, from: &str, to: &str) -> Result<bool, Why> {
        if self.mount(digest, from, to).await? {
            return Ok(true);
        }
        info!(target: STEP, "Copying {from}/{digest} to {to}");
        let registry = self.registry.for_copying().await;
        let body = || {
            let bytes = registry.blob(from, digest, size).map_err(io::Error::other);
            Verified::new(bytes.boxed(), digest.clone())
        };
        let pushed = registry.push_blob(to, digest, size, body).await;
        if pushed.as_ref().is_err_and(|error| reading(error).is_some_and(RegistryError::is_not_found)) {
            self.presence.learn(from, digest, false);
            return Ok(false);
        }
        self.uploaded(to, digest, size, pushed).map(|()| true)
    }

    /// Brings the blobs of an image whether its repository is said to have them or not: those that are at hand, and those
    /// that the payload leaves out. Gives why one of these is nowhere else: its repository may have it after all.
    pub(super) async fn bring_unasked(
        &self,
        target: &Target,
        bill: &Bill,
        bases: &Bases,
        file: Option<&FilePayload>,
    ) -> Result<Option<Why>, Why> {
        let (repository, mut gone) = (&target.repository, None);
        if let Some(file) = file {
            for entry in bill.blobs().filter(|entry| target.blobs().contains(&entry.digest)) {
                self.push(entry, repository, || file.blob(&entry.digest)).await?;
            }
        }
        for required in bill.required.iter().filter(|required| target.blobs().contains(&required.digest)) {
            self.presence.learn(repository, &required.digest, false);
            match self.bring_required(required, repository, bases).await {
                Err(why) if why.0 == Reason::MissingBase => {
                    self.presence.learn(repository, &required.digest, true);
                    gone = Some(why);
                }
                brought => brought?,
            }
        }
        Ok(gone)
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

/// What a repository that is to be written hides is taken for absent: some registries hide what the first push makes, and
/// whether it may be pushed to is asked for itself.
pub(super) fn none_where_hidden<T: Default>(error: RegistryError) -> Result<T, RegistryError> {
    if error.is_hidden() { Ok(T::default()) } else { Err(error) }
}

/// A blob with the wrong bytes fails its images, but the stream can be read on.
fn survivable(read: Result<(), PayloadError>) -> Result<(), PayloadError> {
    match read {
        Err(PayloadError::WrongDigest { .. }) => Ok(()),
        other => other,
    }
}
