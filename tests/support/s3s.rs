//! A small S3 server in the process of the test, s3s-fs over a folder, for as long as the test lasts.

use std::path::PathBuf;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s_fs::FileSystem;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use crate::program::Program;
use crate::s3::{ACCESS, SECRET, lets_at};

/// A server with one bucket, `transfer`.
pub(crate) struct S3s {
    address: String,
    folder: TempDir,
    _runtime: Runtime,
}

impl S3s {
    pub(crate) fn start() -> Self {
        Self::serve(true)
    }

    /// A server that refuses to write under a condition.
    pub(crate) fn without_conditions() -> Self {
        Self::serve(false)
    }

    fn serve(knows_conditions: bool) -> Self {
        let folder = tempfile::tempdir().expect("a folder for the server");
        std::fs::create_dir(folder.path().join("transfer")).expect("a folder can be made");
        let mut service = S3ServiceBuilder::new(FileSystem::new(folder.path()).expect("the folder is there"));
        service.set_auth(SimpleAuth::from_single(ACCESS, SECRET));
        let service = service.build();
        let runtime = Runtime::new().expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port is free");
        let address = listener.local_addr().expect("it is bound").to_string();
        let answer = move |request| answer(service.clone(), knows_conditions, request);
        runtime.spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
        Self { address, folder, _runtime: runtime }
    }

    /// `127.0.0.1:port`.
    pub(crate) fn host(&self) -> &str {
        &self.address
    }

    /// A program that may use the server.
    pub(crate) fn lets(&self, program: Program) -> Program {
        lets_at(program, &format!("http://{}", self.address))
    }

    /// The file that an object of the bucket is.
    pub(crate) fn file(&self, key: &str) -> PathBuf {
        self.folder.path().join("transfer").join(key)
    }

    /// The keys in the bucket.
    pub(crate) fn keys(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.file("")).expect("the bucket can be read");
        let names =
            entries.map(|file| file.expect("it can be read").file_name().to_string_lossy().into_owned());
        let mut names: Vec<String> = names.filter(|name| !name.starts_with('.')).collect();
        names.sort();
        names
    }
}

async fn answer(service: S3Service, knows_conditions: bool, request: Request) -> Response {
    let is_conditional =
        ["if-match", "if-none-match"].iter().any(|name| request.headers().contains_key(*name));
    if !knows_conditions && is_conditional && request.method() == Method::PUT {
        let words = "<Error><Code>NotImplemented</Code><Message>No conditions.</Message></Error>";
        return (StatusCode::NOT_IMPLEMENTED, words).into_response();
    }
    match service.call(request.map(s3s::Body::http_body_unsync)).await {
        Ok(answer) => answer.map(Body::new),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:?}")).into_response(),
    }
}
