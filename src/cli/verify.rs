use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use futures::TryStreamExt;
use tokio_util::io::StreamReader;

use super::{CliError, Context, open, open_payload, output};
use crate::payload::{FilePayload, PayloadError, StreamPayload};
use crate::progress::Stage;
use crate::read_at::ReadAt;

/// Read every byte of a payload and tell whether it is whole
// The docstrings are the help that people read at a terminal.
#[allow(clippy::doc_markdown)]
#[derive(Debug, Args)]
pub(super) struct Verify {
    /// The payload: a file, or an object such as s3://BUCKET/KEY
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

impl Verify {
    pub(super) async fn run(self, context: &Context) -> Result<(), CliError> {
        let failed = |error: PayloadError| CliError::of_file(&self.file, &error);
        let source = open(&self.file).await?;
        let payload = open_payload(&self.file, Arc::clone(&source)).await?;
        let images = output::count(payload.bill().images.len(), "image");
        payload.bill().check_manifests(|digest| payload.manifest(digest)).map_err(failed)?;
        let blobs = payload.bill().blobs().count();
        let size = payload.bill().blobs().fold(0_u64, |size, blob| size.saturating_add(blob.size));
        context.progress().expect(u32::try_from(blobs).unwrap_or(u32::MAX), size);
        context.progress().enter(Stage::Transferring);
        let digest = payload.digest().map_or_else(String::new, |digest| format!(", payload digest {digest}"));
        match payload.digest() {
            // In sequence, so that the headers between the entries are read as well.
            Some(_) => verify_charons(&*source, context).await.map_err(failed)?,
            None => verify_docker_charons(payload, &self.file, context).await?,
        }
        let blobs = output::count(blobs, "blob");
        output::line(&format!("{} is whole: {images}, {blobs}{digest}", self.file.display()))
    }
}

async fn verify_charons(source: &dyn ReadAt, context: &Context) -> Result<(), PayloadError> {
    let bytes = StreamReader::new(source.stream(0..source.size()));
    let read = |size| {
        context.progress().moved(size);
        context.progress().blob_done();
    };
    StreamPayload::open(bytes).await?.verify(read).await
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
