//! How far a transfer has got, for whoever wants to show it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// The target of the log lines that tell each step: where a bar shows the progress they are not wanted.
pub const STEP: &str = "charon::step";

/// The stages of a run, in their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum Stage {
    /// References become digests and manifests.
    #[default]
    Resolving,
    /// The payload, the free space or the base is checked.
    Checking,
    /// Blobs move.
    Transferring,
    /// Manifests and tags are pushed, or the file is synced and renamed.
    Finishing,
}

/// What a run is about to move, known before its first byte moves. Blobs and bytes to move are [`Snapshot`]'s.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// The payload digest. docker-charon's payloads have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// The payload's exact size in bytes.
    pub size_bytes: u64,
    /// How many images it names.
    pub images: u32,
    /// How many images cannot be had, or cannot be pushed: the run goes on without them.
    pub images_failed: u32,
    /// How many blobs it carries.
    pub blobs: u32,
    /// How many blobs it leaves out because the far side has them.
    pub blobs_reused: u32,
    /// Bytes of blobs that need not be moved: an earlier attempt left them, or the registry has them.
    pub bytes_present: u64,
    /// What there is room for where a file goes, in bytes. An object and a registry do not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub room_bytes: Option<u64>,
}

/// What a transfer has done so far. The transfer writes it, anybody may read it meanwhile.
#[derive(Debug, Default)]
pub struct Progress {
    stage: AtomicU8,
    bytes_done: AtomicU64,
    bytes_total: AtomicU64,
    blobs_done: AtomicU32,
    blobs_total: AtomicU32,
    last_error: Mutex<Option<String>>,
    plan: Mutex<Option<Plan>>,
}

/// [`Progress`] at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The stage of the work.
    pub stage: Stage,
    /// Bytes of blobs that have arrived.
    pub bytes_done: u64,
    /// Bytes of blobs to move in all; 0 while unknown.
    pub bytes_total: u64,
    /// Blobs that have arrived.
    pub blobs_done: u32,
    /// Blobs to move in all; 0 while unknown.
    pub blobs_total: u32,
    /// The last failure that did not end the transfer.
    pub last_error: Option<String>,
    /// What is to be moved; absent while that is not known.
    pub plan: Option<Plan>,
}

impl Progress {
    /// The work enters a stage.
    pub fn enter(&self, stage: Stage) {
        self.stage.store(stage as u8, Ordering::Relaxed);
    }

    /// It is known how much there is to do.
    pub fn expect(&self, blobs: u32, bytes: u64) {
        self.blobs_total.store(blobs, Ordering::Relaxed);
        self.bytes_total.store(bytes, Ordering::Relaxed);
    }

    /// All is checked, and the first byte is about to move.
    pub fn plan(&self, plan: Plan) {
        if let Ok(mut told) = self.plan.lock() {
            *told = Some(plan);
        }
    }

    /// Bytes have arrived.
    pub fn moved(&self, bytes: u64) {
        self.bytes_done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// A blob has arrived, or was there already.
    pub fn blob_done(&self) {
        self.blobs_done.fetch_add(1, Ordering::Relaxed);
    }

    /// Something failed, and the transfer goes on all the same.
    pub fn failed(&self, message: &str) {
        if let Ok(mut last) = self.last_error.lock() {
            *last = Some(message.to_owned());
        }
    }

    /// How far it has got.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            stage: match self.stage.load(Ordering::Relaxed) {
                0 => Stage::Resolving,
                1 => Stage::Checking,
                2 => Stage::Transferring,
                _ => Stage::Finishing,
            },
            bytes_done: self.bytes_done.load(Ordering::Relaxed),
            bytes_total: self.bytes_total.load(Ordering::Relaxed),
            blobs_done: self.blobs_done.load(Ordering::Relaxed),
            blobs_total: self.blobs_total.load(Ordering::Relaxed),
            last_error: self.last_error.lock().ok().and_then(|last| last.clone()),
            plan: self.plan.lock().ok().and_then(|plan| plan.clone()),
        }
    }
}
