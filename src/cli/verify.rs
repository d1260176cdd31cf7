use std::path::{Path, PathBuf};

use clap::Args;
use futures::TryStreamExt;

use super::{CliError, Context, output};
use crate::payload::{FilePayload, PayloadError, StreamPayload};
use crate::progress::Stage;
use crate::storage::open_source;

/// Read every byte of a payload and tell whether it is whole
#[derive(Debug, Args)]
pub(super) struct Verify {
    /// The payload
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

impl Verify {
    pub(super) async fn run(self, context: &Context) -> Result<(), CliError> {
        let failed = |error: PayloadError| CliError::of_file(&self.file, &error);
        let open = || open_source(&self.file).map_err(|error| CliError::Failed(error.to_string()));
        let payload = FilePayload::open(open()?).map_err(failed)?;
        let images = output::count(payload.bill().images.len(), "image");
        payload.bill().check_manifests(|digest| payload.manifest(digest)).map_err(failed)?;
        let blobs = payload.bill().blobs().count();
        let size = payload.bill().blobs().fold(0_u64, |size, blob| size.saturating_add(blob.size));
        context.progress().expect(u32::try_from(blobs).unwrap_or(u32::MAX), size);
        context.progress().enter(Stage::Transferring);
        let digest = payload.digest().map_or_else(String::new, |digest| format!(", payload digest {digest}"));
        match payload.digest() {
            // In sequence, so that the headers between the entries are read as well.
            Some(_) => verify_charons(open()?, context).await.map_err(failed)?,
            None => verify_docker_charons(payload, &self.file, context).await?,
        }
        let blobs = output::count(blobs, "blob");
        output::line(&format!("{} is whole: {images}, {blobs}{digest}", self.file.display()))
    }
}

async fn verify_charons(file: std::fs::File, context: &Context) -> Result<(), PayloadError> {
    let mut payload = StreamPayload::open(tokio::fs::File::from_std(file)).await?;
    let sizes: Vec<u64> = payload.bill().blobs().map(|blob| blob.size).collect();
    for size in sizes {
        payload.next_blob(None).await?;
        context.progress().moved(size);
        context.progress().blob_done();
    }
    payload.finish().await
}

async fn verify_docker_charons(payload: FilePayload, file: &Path, context: &Context) -> Result<(), CliError> {
    for blob in payload.bill().blobs() {
        let read = payload.blob(&blob.digest).try_for_each(|piece| {
            context.progress().moved(piece.len() as u64);
            std::future::ready(Ok(()))
        });
        read.await.map_err(|error| CliError::of_file(file, &error))?;
        context.progress().blob_done();
    }
    let checked = tokio::task::spawn_blocking(move || payload.check_entries()).await;
    let checked = checked.map_err(|error| CliError::of_file(file, &error))?;
    checked.map_err(|error| CliError::of_file(file, &error))
}
