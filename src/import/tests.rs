//! A registry that says that it has what it has not.

use std::collections::HashSet;
use std::io::Write;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::IntoResponse;

use super::*;
use crate::payload::{Contents, ImagePlan, ManifestPlan, PayloadWriter};
use crate::read_at::LocalFile;
use crate::reference::{Host, Reference};
use crate::registry::Access;

const DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";
const BLOB: &[u8] = b"{}";

#[derive(Default)]
struct Registry {
    uploaded: Mutex<HashSet<String>>,
    tagged: Mutex<Vec<String>>,
}

/// Every blob is there, it says; a manifest is taken only once its blob was really uploaded.
async fn answer(
    State(registry): State<Arc<Registry>>,
    method: Method,
    uri: Uri,
    _: Bytes,
) -> impl IntoResponse {
    let (path, query) = (uri.path(), uri.query().unwrap_or_default());
    let mut headers = HeaderMap::new();
    let status = match method {
        Method::HEAD if path.contains("/blobs/") => StatusCode::OK,
        Method::HEAD => StatusCode::NOT_FOUND,
        Method::POST => {
            headers.insert(header::LOCATION, "/v2/app/blobs/uploads/1".parse().unwrap());
            StatusCode::ACCEPTED
        }
        Method::PUT if path.contains("/uploads/") => {
            registry.uploaded.lock().unwrap().insert(query.to_owned());
            StatusCode::CREATED
        }
        Method::PUT if registry.uploaded.lock().unwrap().is_empty() => {
            let error = r#"{"errors":[{"code":"MANIFEST_BLOB_UNKNOWN","message":"blob unknown"}]}"#;
            return (StatusCode::BAD_REQUEST, headers, error);
        }
        Method::PUT => {
            registry.tagged.lock().unwrap().push(path.to_owned());
            StatusCode::CREATED
        }
        _ => StatusCode::METHOD_NOT_ALLOWED,
    };
    (status, headers, "")
}

async fn payload() -> std::fs::File {
    let digest = Digest::sha256(BLOB);
    let json = format!(
        r#"{{"schemaVersion":2,"config":{{"digest":"{digest}","size":{}}},"layers":[]}}"#,
        BLOB.len()
    );
    let (bytes, root) = (Bytes::from(json.clone()), Digest::sha256(json.as_bytes()));
    let image = ImagePlan {
        reference: Reference::parse("app:1", &Host::docker_hub()).unwrap(),
        far_name: None,
        digest: root.clone(),
        media_type: DOCKER.into(),
        size: bytes.len() as u64,
        platforms: Vec::new(),
        omitted: Vec::new(),
        manifests: vec![ManifestPlan { digest: root, media_type: DOCKER.into(), bytes }],
        referrers: Vec::new(),
    };
    let contents = Contents::new(&[image], &[(digest, BLOB.len() as u64)], Vec::new()).unwrap();
    let mut writer = PayloadWriter::begin(&contents, Vec::new()).await.unwrap();
    let body = futures::stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(BLOB))]);
    writer.blob(body, |_| ()).await.unwrap();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&writer.finish().await.unwrap()).unwrap();
    file
}

#[tokio::test]
async fn blobs_that_a_registry_only_says_it_has_are_uploaded_without_asking_once() {
    let registry = Arc::new(Registry::default());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let router = Router::new().fallback(answer).with_state(Arc::clone(&registry));
    tokio::spawn(async { axum::serve(listener, router).await });

    let access = Access { insecure: true, ..Access::default() };
    let request = ImportRequest {
        source: Source::At(Arc::new(LocalFile::new(Arc::new(payload().await)).unwrap())),
        expected_digest: None,
        registry: crate::registry::Registry::new(host.parse().unwrap(), access).unwrap(),
        naming: Naming::AsWritten,
        repository_prefix: None,
        base_repositories: Vec::new(),
        tag_digests: true,
        sparse_index: SparseIndex::Keep,
        strict: true,
        tag_policy: TagPolicy::Overwrite,
    };
    let report = import(request, &Arc::default()).await.unwrap();
    assert!(report.failures().is_empty(), "{:?}", report.failures());
    assert_eq!(registry.uploaded.lock().unwrap().len(), 1);
    assert!(registry.tagged.lock().unwrap().contains(&"/v2/app/manifests/1".to_owned()));
}
