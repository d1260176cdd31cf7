//! The end of a transfer on the user's machine.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};

use super::wire::{
    CHUNK, Found, Offer, Prefix, Request, Sink, Start, Sum, VERSION, Wire, Wish, hash, not_understood, ticks,
};
use crate::digest::{Digest, Hasher};
use crate::progress::{Progress, Stage};
use crate::read_at::{LocalFile, ReadAt};
use crate::storage::{FileTarget, Needs, StorageError};

/// Why a transfer did not come to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum NearError {
    /// The connection broke: another one goes on where this one was.
    #[error("{0}")]
    Lost(io::Error),
    /// Another try would fail in the same way.
    #[error("{0}")]
    Refused(String),
}

impl From<io::Error> for NearError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // Another version of these words would say the same again.
            io::ErrorKind::InvalidData => Self::Refused(error.to_string()),
            _ => Self::Lost(error),
        }
    }
}

impl From<StorageError> for NearError {
    fn from(error: StorageError) -> Self {
        Self::Refused(error.to_string())
    }
}

/// What must be true of a payload that is got.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Expected {
    pub size: u64,
    /// The payload digest.
    pub digest: Option<Digest>,
    /// The sha256 of the whole file, where the build was asked for it.
    pub file_digest: Option<Digest>,
}

/// A file that a payload goes into. It outlives the connections that fill it.
#[derive(Debug)]
pub(super) struct Incoming {
    path: PathBuf,
    target: FileTarget,
    sink: Sink,
    expected: Expected,
}

impl Incoming {
    /// Opens `<path>.partial`, and reads what an earlier attempt left in it.
    pub(super) async fn open(path: PathBuf, expected: Expected) -> Result<Self, StorageError> {
        let of = path.clone();
        let opened = tokio::task::spawn_blocking(move || {
            let target = FileTarget::open(&of)?;
            let sink = Sink::open(Arc::clone(target.file())).map_err(|error| target.error(error))?;
            Ok((target, sink))
        });
        let opened = opened.await.map_err(|error| StorageError::io("read", &path, error.into()))?;
        let (target, sink) = opened?;
        Ok(Self { path, target, sink, expected })
    }

    /// Gets the payload at `from` in the volume; gives its sha256.
    pub(super) async fn get<R, W>(
        &mut self,
        wire: &mut Wire<R, W>,
        from: &str,
        progress: &Progress,
    ) -> Result<Digest, NearError>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let wish = Wish::Get(self.sink.prefix());
        wire.say(&Request { version: VERSION, path: from.to_owned(), wish }).await?;
        let offer: Offer = wire.hear().await?;
        self.check(&offer, from)?;
        let failed = |error| StorageError::io("write", &self.path, error);
        match offer.from {
            0 => self.sink.clear().map_err(failed)?,
            from if from == self.sink.offset => {}
            from => return Err(not_understood(format!("bytes from {from} on")).into()),
        }
        self.target.check_room(Needs { payload: offer.size, beside: 0 })?;
        expect(progress, offer.size - offer.from);
        let mut ticks = ticks();
        while self.sink.offset < offer.size {
            let bytes = wire.bytes(offer.size - self.sink.offset, &mut ticks).await?;
            let length = bytes.len() as u64;
            let written = self.sink.write(bytes).await;
            written.map_err(|error| self.target.error(error))?;
            progress.moved(length);
        }
        progress.enter(Stage::Finishing);
        let Sum { sha256 } = wire.hear().await?;
        let found = self.sink.prefix().sha256;
        let file_digest = self.expected.file_digest.as_ref();
        if found != sha256 || file_digest.is_some_and(|expected| *expected != found) {
            let expected = file_digest.unwrap_or(&sha256);
            let message =
                format!("{from} arrived as {found} and should be {expected}; it was thrown away: try again");
            self.sink.clear().map_err(failed)?;
            return Err(NearError::Refused(message));
        }
        Ok(found)
    }

    /// That the file is the payload that the resource tells of.
    fn check(&self, offer: &Offer, from: &str) -> Result<(), NearError> {
        let expected = &self.expected;
        if (offer.size, &offer.digest) == (expected.size, &expected.digest) {
            return Ok(());
        }
        let name = |digest: &Option<Digest>| digest.as_ref().map_or("none".to_owned(), ToString::to_string);
        Err(NearError::Refused(format!(
            "{from} is another payload by now (digest {}, {} bytes) than the status tells of (digest {}, {} bytes); \
             ask for a new run by spec.trigger",
            name(&offer.digest),
            offer.size,
            name(&expected.digest),
            expected.size
        )))
    }

    /// How large the payload is.
    pub(super) fn size(&self) -> u64 {
        self.expected.size
    }

    /// Gives the file its name.
    pub(super) async fn finish(self) -> Result<(), StorageError> {
        let Self { path, target, .. } = self;
        let finished = tokio::task::spawn_blocking(move || target.finish()).await;
        finished.map_err(|error| StorageError::io("write", &path, error.into()))?
    }
}

/// What became of a payload that was put.
#[derive(Debug, PartialEq)]
pub(super) enum Placed {
    /// It is there now.
    Sent(Digest),
    /// The very same file was there.
    AlreadyThere(Digest),
}

/// Puts the payload of a file to `path` in the volume.
pub(super) async fn put<R, W>(
    wire: &mut Wire<R, W>,
    source: &LocalFile,
    path: &str,
    replace: bool,
    progress: &Progress,
) -> Result<Placed, NearError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let size = source.size();
    let wish = Wish::Put { size, replace };
    wire.say(&Request { version: VERSION, path: path.to_owned(), wish }).await?;
    let Found { whole, partial } = wire.hear().await?;
    if let Some(whole) = whole {
        if same(wire, source, &whole).await?.is_some() {
            return Ok(Placed::AlreadyThere(whole.sha256));
        }
        if !replace {
            return Err(NearError::Refused(format!(
                "{path} is there, and is another payload; name another --path, or replace it with --replace"
            )));
        }
    }
    let begun = match partial {
        Some(partial) => same(wire, source, &partial).await?.map(|hasher| (partial.bytes, hasher)),
        None => None,
    };
    let (from, mut hasher) = begun.unwrap_or_else(|| (0, Digest::sha256(b"").hasher()));
    wire.say(&Start { from }).await?;
    expect(progress, size - from);
    let mut offset = from;
    while offset < size {
        let length = (CHUNK as u64).min(size - offset);
        let source = source.clone();
        let read = tokio::task::spawn_blocking(move || {
            let mut chunk = vec![0; usize::try_from(length).unwrap_or(CHUNK)];
            source.read_exact_at(&mut chunk, offset)?;
            hasher.update(&chunk);
            Ok::<_, io::Error>((chunk, hasher))
        });
        let chunk;
        (chunk, hasher) = read.await.map_err(io::Error::from)?.map_err(|error| cannot_read(&error))?;
        wire.send(&chunk).await?;
        offset += length;
        progress.moved(length);
    }
    progress.enter(Stage::Finishing);
    let sha256 = hasher.finish();
    wire.say(&Sum { sha256: sha256.clone() }).await?;
    let sum: Sum = wire.hear().await?;
    if sum.sha256 != sha256 {
        return Err(not_understood(format!("{} instead of {sha256}", sum.sha256)).into());
    }
    Ok(Placed::Sent(sha256))
}

/// The digest of the file's first bytes so far, if they are the same as the far end's.
async fn same<R, W>(
    wire: &mut Wire<R, W>,
    source: &LocalFile,
    far: &Prefix,
) -> Result<Option<Hasher>, NearError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let (source, bytes) = (source.clone(), far.bytes.min(source.size()));
    let hasher = wire.meanwhile(move || hash(&source, bytes)).await?.map_err(|error| cannot_read(&error))?;
    Ok((bytes == far.bytes && hasher.clone().finish() == far.sha256).then_some(hasher))
}

fn cannot_read(error: &io::Error) -> NearError {
    NearError::Refused(format!("cannot read the payload: {error}; is it still being written?"))
}

/// Whether the payload at `from` in the volume is a file that is here already.
pub(super) async fn is_same<R, W>(wire: &mut Wire<R, W>, from: &str, here: &Prefix) -> Result<bool, NearError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let wish = Wish::Get(here.clone());
    wire.say(&Request { version: VERSION, path: from.to_owned(), wish }).await?;
    let offer: Offer = wire.hear().await?;
    Ok((offer.size, offer.from) == (here.bytes, here.bytes))
}

/// The first byte is about to move; so many are left.
fn expect(progress: &Progress, left: u64) {
    progress.expect(1, progress.snapshot().bytes_done + left);
    progress.enter(Stage::Transferring);
}
