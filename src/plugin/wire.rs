//! What both ends of an exec say to each other.
//!
//! Messages are JSON, one a line; a payload's bytes follow their announcement as they are. An empty line says nothing but that its
//! writer is still at work: what stands between the ends may close a connection that is silent.
//!
//! ```text
//! get: near Get → far Offer, bytes, Sum
//! put: near Put → far Found → near Start, bytes, Sum → far Sum
//! ```

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Instant, Interval, MissedTickBehavior};

use crate::digest::{Digest, Hasher};
use crate::read_at::{LocalFile, ReadAt};

/// The version of these words. The far end refuses another one.
pub(super) const VERSION: u32 = 1;
/// After so long without a byte nobody is there any more.
pub(super) const IDLE: Duration = Duration::from_secs(45);
/// Who works in silence says so this often.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// The payload's bytes are read and written in pieces of this size.
pub(super) const CHUNK: usize = 256 << 10;
/// The exit status of a far end whose connection broke (sysexits' `EX_TEMPFAIL`): another one may come through.
pub const TRY_AGAIN: u8 = 75;
/// The longest message.
const LINE_LIMIT: usize = 16 << 10;

/// What the near end wants.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Request {
    /// [`VERSION`].
    pub version: u32,
    /// The payload's path in the volume.
    pub path: String,
    #[serde(flatten)]
    pub wish: Wish,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Wish {
    /// The payload, but for what is there already.
    Get(Prefix),
    /// A payload of so many bytes is to go there.
    Put {
        size: u64,
        /// Another payload gives way to it.
        replace: bool,
    },
}

/// So many bytes from the beginning, and their digest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Prefix {
    pub bytes: u64,
    pub sha256: Digest,
}

/// The payload that the far end has.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Offer {
    pub size: u64,
    /// The payload digest; docker-charon's payloads have none.
    pub digest: Option<Digest>,
    /// Bytes come from here on: what the near end has is the same up to here.
    pub from: u64,
}

/// What the far end has of the payload.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Found {
    /// A payload of the same size has the name already.
    pub whole: Option<Prefix>,
    /// What an earlier attempt left.
    pub partial: Option<Prefix>,
}

/// Bytes come from here on.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Start {
    pub from: u64,
}

/// The digest of the whole file.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Sum {
    pub sha256: Digest,
}

/// When the last byte came or went.
#[derive(Debug)]
pub(super) struct Pulse(Mutex<Instant>);

impl Pulse {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Instant::now())))
    }

    pub(super) fn beat(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Waits until nothing has moved for [`IDLE`].
    pub(super) async fn stops(&self) {
        loop {
            let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if last.elapsed() >= IDLE {
                return;
            }
            tokio::time::sleep_until(last + IDLE).await;
        }
    }
}

/// One end of a connection.
#[derive(Debug)]
pub(super) struct Wire<R, W> {
    input: R,
    output: W,
    /// What was read and not taken yet.
    buffer: BytesMut,
    pub pulse: Arc<Pulse>,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Wire<R, W> {
    pub(super) fn new(input: R, output: W, pulse: Arc<Pulse>) -> Self {
        Self { input, output, buffer: BytesMut::with_capacity(CHUNK), pulse }
    }

    pub(super) async fn say(&mut self, message: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        self.output.write_all(&line).await?;
        self.output.flush().await
    }

    /// The next message.
    pub(super) async fn hear<T: DeserializeOwned>(&mut self) -> io::Result<T> {
        loop {
            let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') else {
                if self.buffer.len() > LINE_LIMIT {
                    return Err(not_understood("a message without an end"));
                }
                self.read().await?;
                continue;
            };
            let line = self.buffer.split_to(end + 1);
            if !line.trim_ascii().is_empty() {
                return serde_json::from_slice(&line).map_err(not_understood);
            }
        }
    }

    /// Reads what comes next; cancelled, it has taken nothing.
    async fn read(&mut self) -> io::Result<()> {
        self.buffer.reserve(CHUNK);
        if self.input.read_buf(&mut self.buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.pulse.beat();
        Ok(())
    }

    /// The next bytes, at most `limit`, while the other end is told that they are waited for.
    pub(super) async fn bytes(&mut self, limit: u64, ticks: &mut Interval) -> io::Result<Bytes> {
        let wanted = CHUNK.min(usize::try_from(limit).unwrap_or(CHUNK));
        while self.buffer.len() < wanted {
            tokio::select! {
                read = self.read() => read?,
                _ = ticks.tick() => self.nudge().await?,
            }
        }
        Ok(self.buffer.split_to(wanted).freeze())
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.output.write_all(bytes).await?;
        self.pulse.beat();
        Ok(())
    }

    /// Says that somebody is still at work here.
    async fn nudge(&mut self) -> io::Result<()> {
        self.output.write_all(b"\n").await?;
        self.output.flush().await
    }

    /// Does what takes long on a thread of its own, and says meanwhile that it is done.
    pub(super) async fn meanwhile<T: Send + 'static>(
        &mut self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let mut work = tokio::task::spawn_blocking(work);
        let mut ticks = ticks();
        loop {
            tokio::select! {
                done = &mut work => {
                    self.pulse.beat();
                    return done.map_err(io::Error::from);
                }
                _ = ticks.tick() => {
                    self.pulse.beat();
                    self.nudge().await?;
                }
            }
        }
    }
}

/// When to say that somebody is still at work.
pub(super) fn ticks() -> Interval {
    let mut ticks = tokio::time::interval_at(Instant::now() + KEEP_ALIVE, KEEP_ALIVE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// The digest of the first bytes, so far. It waits for the disk.
pub(super) fn hash(source: &dyn ReadAt, bytes: u64) -> io::Result<Hasher> {
    let mut hasher = Digest::sha256(b"").hasher();
    let (mut chunk, mut offset) = (vec![0; CHUNK], 0);
    while offset < bytes {
        let length = CHUNK.min(usize::try_from(bytes - offset).unwrap_or(CHUNK));
        source.read_exact_at(&mut chunk[..length], offset)?;
        hasher.update(&chunk[..length]);
        offset += length as u64;
    }
    Ok(hasher)
}

/// What the other end said is none of these words.
pub(super) fn not_understood(what: impl std::fmt::Display) -> io::Error {
    let message =
        format!("the other end says what is not understood here ({what}); are both of one version?");
    io::Error::new(io::ErrorKind::InvalidData, message)
}

/// Takes a payload's bytes into a file, and their digest on the way.
#[derive(Debug)]
pub(super) struct Sink {
    file: Arc<File>,
    /// The digest of the bytes up to `offset`, so far.
    pub hasher: Hasher,
    pub offset: u64,
}

impl Sink {
    /// Goes on with what is in the file.
    pub(super) fn open(file: Arc<File>) -> io::Result<Self> {
        let local = LocalFile::new(Arc::clone(&file))?;
        let offset = local.size();
        Ok(Self { file, hasher: hash(&local, offset)?, offset })
    }

    pub(super) fn prefix(&self) -> Prefix {
        Prefix { bytes: self.offset, sha256: self.hasher.clone().finish() }
    }

    /// Begins at the beginning.
    pub(super) fn clear(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        (self.hasher, self.offset) = (Digest::sha256(b"").hasher(), 0);
        Ok(())
    }

    pub(super) async fn write(&mut self, bytes: Bytes) -> io::Result<()> {
        let (file, offset, mut hasher) = (Arc::clone(&self.file), self.offset, self.hasher.clone());
        let length = bytes.len() as u64;
        let write = move || {
            file.write_all_at(&bytes, offset)?;
            hasher.update(&bytes);
            Ok::<_, io::Error>(hasher)
        };
        self.hasher = tokio::task::spawn_blocking(write).await.map_err(io::Error::from)??;
        self.offset += length;
        Ok(())
    }
}
