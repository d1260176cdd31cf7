//! Blobs on their way up: mounted, uploaded, and uploads given up.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use reqwest::header::{CONTENT_LENGTH, HeaderValue};
use reqwest::{Method, StatusCode};
use tokio::runtime::Handle;
use tokio_util::task::task_tracker::TaskTrackerToken;
use url::Url;

use super::auth::Scopes;
use super::client::{Call, Registry};
use super::error::{Asked, RegistryError};
use super::feed::{Feed, exactly};
use super::retry::Traffic;
use super::upload::{PASSING_PIECE, Upload};
use crate::digest::Digest;

/// A run that is to end waits no longer for registries to forget its uploads.
const SETTLING: Duration = Duration::from_secs(10);
/// So often a registry that fails at a mount is asked for it: the blob can be sent.
const MOUNT_TRIES: u32 = 3;
/// The pause after which an upload that still grew may have ended.
const GROWING: Duration = Duration::from_millis(100);

impl Traffic {
    /// Waits until the uploads of the run that were given up are cancelled: a process that ends before leaves them in the
    /// registry.
    pub async fn settle(&self) {
        let open = self.open_uploads();
        open.close();
        // Whether all were cancelled or time was up: there is nothing more that can be done.
        let _ = tokio::time::timeout(SETTLING, open.wait()).await;
    }
}

impl Registry {
    /// Waits until the uploads to the registries of its run that were given up are cancelled, as [`Traffic::settle`] does.
    pub async fn settle(&self) {
        self.traffic().settle().await;
    }

    /// Asks the registry to take a blob from another of its repositories: whether it did.
    pub async fn mount_blob(
        &self,
        repository: &str,
        digest: &Digest,
        from_repository: &str,
    ) -> Result<bool, RegistryError> {
        let (here, from) = (self.remote(repository), self.remote(from_repository));
        let asked = Asked::pushing_blob(self.host(), repository, digest);
        let mut call = self.upload_call(repository, Scopes::mount(&here, &from), asked)?;
        call.url.query_pairs_mut().append_pair("mount", digest.as_str()).append_pair("from", &from);
        let reply = match self.send(&call, &mut self.retry().at_most(MOUNT_TRIES)).await {
            // No token for both repositories: an upload needs only the one. And one that cannot mount may be sent it.
            Err(
                RegistryError::Authentication { .. }
                | RegistryError::Denied { .. }
                | RegistryError::Refused { .. },
            ) => return Ok(false),
            result => result?,
        };
        match reply.status() {
            StatusCode::CREATED => Ok(true),
            StatusCode::ACCEPTED => {
                // An upload was begun instead. It is not used: whether the caller has the bytes at hand is its affair.
                let upload = self.location(&call.asked, &reply.url, reply.response.headers());
                drop(reply);
                if let Ok(upload) = upload {
                    self.cancel(cancelling(&call, upload)).await;
                }
                Ok(false)
            }
            _ => Ok(false),
        }
    }

    /// That the registry takes uploads to a repository: one is begun, and given up.
    pub async fn check_push(&self, repository: &str) -> Result<(), RegistryError> {
        let asked = Asked::pushing_to(self.host(), repository);
        let call = self.upload_call(repository, Scopes::push(&self.remote(repository)), asked)?;
        let reply = self.send(&call, &mut self.retry()).await?;
        if !reply.status().is_success() {
            return Err(self.refused(&call, reply).await);
        }
        let upload = self.location(&call.asked, &reply.url, reply.response.headers());
        drop(reply);
        if let Ok(upload) = upload {
            Begun::new(self, &call, upload).give_up().await;
        }
        Ok(())
    }

    /// The call that begins an upload.
    pub(super) fn upload_call(
        &self,
        repository: &str,
        scopes: Scopes,
        asked: Asked,
    ) -> Result<Call, RegistryError> {
        let url = self.url(repository, &["blobs", "uploads", ""])?;
        let call = Call::new(Method::POST, url, scopes, asked);
        Ok(call.header(CONTENT_LENGTH, HeaderValue::from_static("0")))
    }

    /// Uploads a blob of exactly `size` bytes; `body` makes a fresh stream of them.
    ///
    /// They go in one request. Where that breaks the registry is asked how far it got, and gets the rest from there;
    /// where it takes no request of that size it gets them in pieces.
    ///
    /// If the body fails, nothing is committed, nothing is tried again, and the error has the body's as its source
    /// ([`RegistryError::body_error`]). The last bytes are held back until the body has ended well, so that it may
    /// fail even after its last byte: when the hash turns out wrong.
    pub async fn push_blob<F, S>(
        &self,
        repository: &str,
        digest: &Digest,
        size: u64,
        body: F,
    ) -> Result<(), RegistryError>
    where
        F: Fn() -> S + Sync,
        S: Stream<Item = io::Result<Bytes>> + Send + 'static,
    {
        let open = || Some(exactly(body(), size));
        Upload::new(self, repository, digest, size, Feed::repeatable(), &open)?.run().await
    }

    /// The same with a body that passes once: it goes in pieces, each of which is held in memory until the registry
    /// has it.
    pub async fn push_passing_blob<S>(
        &self,
        repository: &str,
        digest: &Digest,
        size: u64,
        body: S,
    ) -> Result<(), RegistryError>
    where
        S: Stream<Item = io::Result<Bytes>> + Send + 'static,
    {
        let feed = Feed::passing(exactly(body, size));
        let mut upload = Upload::new(self, repository, digest, size, feed, &|| None)?;
        upload.piece = Some(PASSING_PIECE).filter(|piece| size > *piece);
        upload.run().await
    }

    /// Ends an upload that will not be committed. Registries sweep what is left, so a failure is of no account.
    async fn cancel(&self, call: Call) {
        let limit = self.patience().connect;
        match tokio::time::timeout(limit, self.try_to_cancel(call)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "an upload was left behind"),
            Err(_) => tracing::debug!("an upload was left behind: the registry went silent"),
        }
    }

    async fn try_to_cancel(&self, mut call: Call) -> Result<(), RegistryError> {
        let mut tries = 3_u32;
        loop {
            let reply = self.attempt(&call, self.place().await, || None).await?;
            // What is on its way, through a proxy perhaps, still arrives: then no address fits for long.
            let grows = reply.status() == StatusCode::RANGE_NOT_SATISFIABLE;
            tries -= u32::from(!grows);
            if reply.status().is_success() || reply.status() == StatusCode::NOT_FOUND {
                return Ok(());
            }
            if tries == 0 {
                return Err(self.refused(&call, reply).await);
            }
            drop(reply);
            if grows {
                tokio::time::sleep(GROWING).await;
            }
            // The distribution registry wants the address that fits the bytes it has (tried: 416 for the first one,
            // once any arrived), which it tells to who asks for the upload's progress.
            let progress = Call::new(Method::GET, call.url.clone(), call.scopes.clone(), call.asked.clone());
            let reply = self.attempt(&progress, self.place().await, || None).await?;
            call.url = self.location(&call.asked, &reply.url, reply.response.headers())?;
        }
    }
}

fn cancelling(begin: &Call, url: Url) -> Call {
    Call::new(Method::DELETE, url, begin.scopes.clone(), begin.asked.clone())
}

/// An upload that was begun. Whoever stops waiting for it leaves none behind.
pub(super) struct Begun {
    registry: Registry,
    cancel: Option<Call>,
    /// Until this and its clones are dropped the upload is open.
    open: TaskTrackerToken,
}

impl Begun {
    pub(super) fn new(registry: &Registry, begin: &Call, url: Url) -> Self {
        let open = registry.traffic().open_uploads().token();
        Self { registry: registry.clone(), cancel: Some(cancelling(begin, url)), open }
    }

    /// The upload goes on there.
    pub(super) fn moved(&mut self, url: Url) {
        if let Some(call) = &mut self.cancel {
            call.url = url;
        }
    }

    pub(super) fn committed(mut self) {
        self.cancel = None;
    }

    pub(super) async fn give_up(mut self) {
        if let Some(call) = self.cancel.take() {
            self.registry.cancel(call).await;
        }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if let (Some(call), Ok(runtime)) = (self.cancel.take(), Handle::try_current()) {
            let (registry, open) = (self.registry.clone(), self.open.clone());
            runtime.spawn(async move {
                registry.cancel(call).await;
                drop(open);
            });
        }
    }
}
