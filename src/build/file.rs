//! A payload into a file, which has its name only once it is whole and synced.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tracing::{debug, info, warn};

use super::fetch::Fetch;
use super::journal::{self, Journal, ManifestNotes, Notes};
use super::left::{Had, Left};
use super::plan::Plan;
use super::resolve::ManifestCache;
use super::{
    BuildError, BuildReport, BuildRequest, base, blocking, expect, fetch, foreign, plan, report, tell_plan,
    whole,
};
use crate::digest::Digest;
use crate::payload::{Contents, PayloadError, PlacedPayload, Remains, is_payload};
use crate::progress::{Progress, Stage};
use crate::read_at::LocalFile;
use crate::reason::{Class, Reason};
use crate::storage::{FileTarget, Needs, StorageError, StoredPayload};

/// Builds a payload into the file `path`.
pub(super) async fn build(
    request: BuildRequest,
    path: PathBuf,
    progress: &Arc<Progress>,
) -> Result<BuildReport, BuildError> {
    let spares_other_files = request.spares_other_files;
    let file = path.clone();
    let open = move || {
        if spares_other_files {
            check_replaceable(&file)?;
        }
        let target = FileTarget::open(&file)?;
        let left = Left::read(Some(target.file()), &target.journal());
        Ok((target, left))
    };
    let (target, left) = blocking(open).await?;
    let planned = match left.adopt(&request) {
        Some(adopted) => Ok(adopted),
        None => plan_anew(&request, &target, &left).await,
    };
    let planned = planned.and_then(|(plan, contents)| {
        let foreign = foreign(request.foreign_layers, &plan)?;
        Ok((plan, contents, foreign))
    });
    let (plan, contents, foreign) = match planned {
        Ok(planned) => planned,
        Err(error) => return blocking(move || Err(not_begun(target, error))).await,
    };
    progress.enter(Stage::Checking);
    let report = report(&plan, &contents);
    // What lies there is looked at, and need not be readable for what takes its place.
    if whole::is_whole(&StoredPayload::File(path.clone()), contents.digest()).await.unwrap_or(false) {
        let there = plan.blobs.iter().map(|blob| blob.size).sum();
        tell_plan(&plan, &contents, there, None, progress);
        let bill = contents.bill_bytes();
        let settle = move || {
            target.discard();
            base::keep_bill(&path, &bill);
            Ok(path)
        };
        let path = blocking(settle).await?;
        info!("{} is payload {} already", path.display(), report.digest);
        return Ok(report);
    }
    expect(&plan, progress);
    let (bill, run) = (contents.bill_bytes(), request.run);
    let had = left.had(contents.digest());
    let there = had.of(&plan.blobs).sum();
    let begun = blocking(move || begin(target, contents, had, &run)).await?;
    let Begun { target, room, payload, journal, have, old } = begun;
    tell_plan(&plan, payload.contents(), there, Some(room), progress);
    let written = fetch::written(payload.contents().layout().total_size());
    let fetch = Fetch { payload, journal, written, have, old, foreign, progress: Arc::clone(progress) };

    progress.enter(Stage::Transferring);
    let fetch = Arc::new(fetch);
    if let Err(error) = fetch::fetch(&plan, &fetch).await {
        return blocking(move || Err(failed(&target, error))).await;
    }
    progress.enter(Stage::Finishing);
    debug!("Syncing {}", path.display());
    let finish = move || {
        fetch.payload.finish().map_err(|error| target.error(error))?;
        if spares_other_files {
            // It may have been put there meanwhile.
            check_replaceable(&path)?;
        }
        target.finish()?;
        // A bill alone is a base: there must be none of a payload that never was whole.
        base::keep_bill(&path, &bill);
        Ok(path)
    };
    let path = blocking(finish).await?;
    info!("Wrote {}, {} bytes, payload digest {}", path.display(), report.size, report.digest);
    Ok(report)
}

/// That what lies at `path`, if anything, is a payload of Charon's.
fn check_replaceable(path: &Path) -> Result<(), StorageError> {
    let failed = |error| StorageError::io("look at", path, error);
    match File::open(path) {
        Ok(file) if file.metadata().map_err(failed)?.is_file() => {
            let file = LocalFile::new(Arc::new(file)).map_err(failed)?;
            let is_ours = is_payload(&file).map_err(failed)?;
            if is_ours { Ok(()) } else { Err(StorageError::NotOurs(path.display().to_string())) }
        }
        Ok(_) => Err(StorageError::NotOurs(path.display().to_string())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

/// Plans a payload. What an earlier attempt read of manifests is not read again, and what is read now is
/// noted for the next.
async fn plan_anew(
    request: &BuildRequest,
    target: &FileTarget,
    left: &Left,
) -> Result<(Plan, Contents), BuildError> {
    let (path, run, goes_on) = (target.journal(), request.run.clone(), left.has_journal());
    let notes = ManifestNotes::Awaited { path, run, goes_on };
    plan(request, ManifestCache { manifests: left.manifests(), notes }).await
}

/// Why a payload was not begun; and what the next attempt has of this one. What may pass comes again, in a cluster by
/// itself, and need not read again what was read: that is kept, and told of, since nobody asked for a file of that name.
fn not_begun(mut target: FileTarget, error: BuildError) -> BuildError {
    let journal = target.journal();
    if error.reason().class() == Class::Final {
        target.forget_journal();
    } else if journal.exists() {
        warn!(
            "the manifests that were read are kept in {}, for the next attempt; remove it if there is to be none",
            journal.display()
        );
    }
    error
}

/// What a payload takes where it is written.
pub(super) fn needs(contents: &Contents) -> Needs {
    let blobs = contents.bill().blobs().map(|blob| (&blob.digest, blob.size));
    let beside = journal::longest(blobs) + contents.bill_bytes().len() as u64;
    Needs { payload: contents.layout().total_size(), beside }
}

/// A payload file that takes blobs.
struct Begun {
    target: FileTarget,
    /// What the file system had for it, in bytes.
    room: u64,
    payload: PlacedPayload,
    journal: Journal,
    have: HashMap<Digest, u64>,
    old: Option<Remains>,
}

/// Begins to write, unless there is no room: then what lies there stays as it is.
fn begin(mut target: FileTarget, contents: Contents, had: Had, run: &str) -> Result<Begun, BuildError> {
    match place(&mut target, contents, had, run) {
        Ok((room, payload, journal, Had { have, elsewhere: old })) => {
            Ok(Begun { target, room, payload, journal, have, old })
        }
        Err(error) => Err(not_begun(target, error)),
    }
}

/// Makes the payload's place: gives the room that there was, and what is there of its blobs.
fn place(
    target: &mut FileTarget,
    contents: Contents,
    mut had: Had,
    run: &str,
) -> Result<(u64, PlacedPayload, Journal, Had), BuildError> {
    let needs = needs(&contents);
    let room = target.check_room(needs)?;
    if had.elsewhere.is_some() && target.has_room_beside(needs)? {
        // What of it is not copied yet when this is killed is lost: it has no name any more, so that no killed run
        // leaves more than one partial file behind.
        target.begin_anew()?;
    } else if had.elsewhere.take().is_some() {
        info!("There is no room to keep what an earlier run left; all is fetched anew");
        had.have.clear();
    }
    let is_same = !had.have.is_empty() && had.elsewhere.is_none();
    let (path, payload) = (target.journal(), contents.digest().clone());
    // Until the manifests are in the file the journal has them.
    let placed = PlacedPayload::begin(contents, Arc::clone(target.file()));
    let placed = placed.map_err(|error| target.error(error))?;
    let journal = if is_same { Journal::go_on(&path) } else { Journal::begin(&path, run, Some(&payload)) };
    let journal = journal.map_err(|error| target.error(error))?;
    Ok((room, placed, journal, had))
}

/// Why not all was fetched; and what the next attempt has to know of it.
fn failed(target: &FileTarget, error: BuildError) -> BuildError {
    match error {
        BuildError::Payload(PayloadError::Io { source, .. }) => target.error(source).into(),
        error if matches!(error.reason(), Reason::ImageNotFound | Reason::DigestMismatch) => {
            // What is gone will not come back: the tags may lead elsewhere by now.
            Notes::disown(&target.journal()).map_or_else(|error| target.error(error).into(), |()| error)
        }
        error => error,
    }
}
