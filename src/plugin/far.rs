//! The end of a transfer in the pod, where the claim is mounted.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::signal::unix::{SignalKind, signal};

use super::wire::{
    CHUNK, Found, Offer, Prefix, Pulse, Request, Sink, Start, Sum, VERSION, Wire, Wish, hash, not_understood,
    ticks,
};
use crate::digest::{Digest, Hasher};
use crate::payload::{FilePayload, is_payload};
use crate::read_at::ReadAt;
use crate::storage::{self, FileTarget, Location, Needs, ObjectAccess, StorageError};
use crate::worker::payload_path;

/// The pod waits so long for a transfer, and after the last one, before it ends.
pub(super) const LINGER: Duration = Duration::from_secs(30);
/// An earlier transfer whose near end is gone holds its file for so long at most.
const LOCK_PATIENCE: Duration = Duration::from_mins(1);

/// Why a transfer came to nothing at this end.
#[derive(Debug, thiserror::Error)]
pub enum FarError {
    /// The volume.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// What is asked for cannot be; the message says why, and what to do.
    #[error("{0}")]
    Refused(String),
    /// The connection.
    #[error("the connection ended: {0}")]
    Io(#[from] io::Error),
    /// The near end is gone.
    #[error("nobody is at the other end any more")]
    Silent,
}

/// Does what the near end wants, with the payloads below `folder`.
pub async fn serve(
    input: impl AsyncRead + Unpin,
    output: impl AsyncWrite + Unpin,
    folder: &Path,
) -> Result<(), FarError> {
    let pulse = Pulse::new();
    let mut wire = Wire::new(input, output, Arc::clone(&pulse));
    tokio::select! {
        served = answer(&mut wire, folder) => served,
        () = pulse.stops() => Err(FarError::Silent),
    }
}

async fn answer<R, W>(wire: &mut Wire<R, W>, folder: &Path) -> Result<(), FarError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let request: Request = wire.hear().await?;
    if request.version != VERSION {
        return Err(FarError::Refused(format!(
            "the pod's image speaks version {VERSION} of the transfer, and this kubectl-charon {}; name an image of its own version with --image",
            request.version
        )));
    }
    let path = payload_path(folder, &request.path).map_err(FarError::Refused)?;
    match request.wish {
        Wish::Get(have) => give(wire, &path, &have).await,
        Wish::Put { size, replace } => take(wire, &path, size, replace).await,
    }
}

async fn give<R, W>(wire: &mut Wire<R, W>, path: &Path, have: &Prefix) -> Result<(), FarError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let source = open(path).await?;
    let size = source.size();
    let payload = FilePayload::open_at(Arc::clone(&source)).await;
    let payload = payload.map_err(|error| FarError::Refused(format!("{}: {error}", path.display())))?;
    let mut from = have.bytes.min(size);
    let same = Arc::clone(&source);
    let mut hasher = wire.meanwhile(move || hash(&*same, from)).await??;
    if from != have.bytes || hasher.clone().finish() != have.sha256 {
        (from, hasher) = (0, Digest::sha256(b"").hasher());
    }
    wire.say(&Offer { size, digest: payload.digest().cloned(), from }).await?;
    while from < size {
        let length = (CHUNK as u64).min(size - from);
        let source = Arc::clone(&source);
        let read = tokio::task::spawn_blocking(move || {
            let mut chunk = vec![0; usize::try_from(length).unwrap_or(CHUNK)];
            source.read_exact_at(&mut chunk, from)?;
            hasher.update(&chunk);
            Ok::<_, io::Error>((chunk, hasher))
        });
        let chunk;
        (chunk, hasher) =
            read.await.map_err(io::Error::from)?.map_err(|error| StorageError::io("read", path, error))?;
        wire.send(&chunk).await?;
        from += length;
    }
    Ok(wire.say(&Sum { sha256: hasher.finish() }).await?)
}

async fn take<R, W>(wire: &mut Wire<R, W>, path: &Path, size: u64, replace: bool) -> Result<(), FarError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    if let Some(folder) = path.parent() {
        let made = tokio::fs::create_dir_all(folder).await;
        made.map_err(|error| StorageError::io("make the folder", folder, error))?;
    }
    let existing = existing(path).await?;
    let has_name = existing.is_some();
    let whole = match existing.filter(|existing| existing.size() == size) {
        Some(existing) => Some(prefix(wire.meanwhile(move || hash(&*existing, size)).await??, size)),
        None if has_name && !replace => {
            return Err(FarError::Refused(format!(
                "{} is there, and is another payload; name another --path, or replace it with --replace",
                path.display()
            )));
        }
        None => None,
    };
    if has_name && !replace {
        // The near end sees whether it is the same.
        return Ok(wire.say(&Found { whole, partial: None }).await?);
    }
    let of = path.to_owned();
    let mut target = wire.meanwhile(move || wait_for_lock(&of)).await??;
    let file = Arc::clone(target.file());
    let mut sink = wire.meanwhile(move || Sink::open(file)).await?.map_err(|error| target.error(error))?;
    let partial = Some(sink.prefix()).filter(|partial| (1..=size).contains(&partial.bytes));
    target.check_room(Needs { payload: size, beside: 0 })?;
    wire.say(&Found { whole, partial }).await?;
    let Start { from } = wire.hear().await?;
    if from == 0 {
        sink.clear().map_err(|error| target.error(error))?;
    } else if from != sink.offset {
        return Err(not_understood(format!("bytes from {from} on")).into());
    }
    let mut ticks = ticks();
    while sink.offset < size {
        let bytes = wire.bytes(size - sink.offset, &mut ticks).await?;
        sink.write(bytes).await.map_err(|error| target.error(error))?;
    }
    let Sum { sha256 } = wire.hear().await?;
    let found = sink.hasher.clone().finish();
    if found != sha256 {
        sink.clear().map_err(|error| target.error(error))?;
        return Err(FarError::Refused(format!(
            "{} arrived as {found} and should be {sha256}; what came was thrown away: try again",
            path.display()
        )));
    }
    wire.meanwhile(move || target.finish()).await??;
    Ok(wire.say(&Sum { sha256: found }).await?)
}

fn prefix(hasher: Hasher, bytes: u64) -> Prefix {
    Prefix { bytes, sha256: hasher.finish() }
}

async fn open(path: &Path) -> Result<Arc<dyn ReadAt>, StorageError> {
    storage::open(&Location::File(path.to_owned()), &ObjectAccess::default()).await
}

/// The payload that has the name already. What is no payload is nobody's to replace.
async fn existing(path: &Path) -> Result<Option<Arc<dyn ReadAt>>, FarError> {
    let source = match open(path).await {
        Err(StorageError::SourceNotFound(_)) => return Ok(None),
        opened => opened?,
    };
    let begins = Arc::clone(&source);
    let begins = tokio::task::spawn_blocking(move || is_payload(&*begins)).await.map_err(io::Error::from)?;
    if begins.unwrap_or(false) || FilePayload::open_at(Arc::clone(&source)).await.is_ok() {
        return Ok(Some(source));
    }
    Err(StorageError::NotOurs(path.display().to_string()).into())
}

/// Opens the partial file. A transfer that broke off may still hold it for a while. It waits.
fn wait_for_lock(path: &Path) -> Result<FileTarget, StorageError> {
    let end = Instant::now() + LOCK_PATIENCE;
    loop {
        match FileTarget::open(path) {
            Err(StorageError::Busy(_)) if Instant::now() < end => std::thread::sleep(Duration::from_secs(1)),
            opened => return opened,
        }
    }
}

/// Keeps the pod until nobody has used it for a while, or it is told to end. This is the first process of its container: transfers
/// are others.
pub async fn wait_for_transfers() -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut last = Instant::now();
    while last.elapsed() < LINGER {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
        if others()? {
            last = Instant::now();
        }
    }
    Ok(())
}

/// Whether there are other processes.
fn others() -> io::Result<bool> {
    let own = std::process::id();
    for entry in std::fs::read_dir("/proc")? {
        let id = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
        if id.is_some_and(|id| id != own) {
            return Ok(true);
        }
    }
    Ok(false)
}
