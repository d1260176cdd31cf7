//! Registries that say that they have what they have not.

use std::collections::HashSet;
use std::io::Write;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::IntoResponse;

use super::*;
use crate::payload::{Contents, ImagePlan, ManifestPlan, PayloadWriter, Required};
use crate::read_at::LocalFile;
use crate::reference::{Host, Reference};
use crate::registry::Access;

const DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";
const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const BLOB: &[u8] = b"{}";

/// A registry whose repositories are called by what they do: what `liar…` says to have it does not have, what `closed…`
/// has it does not give, `hidden…` shows nothing, `new…` nothing before it was uploaded to, and `true…` has everything. It
/// mounts nothing.
#[derive(Default)]
struct Registry {
    /// The repositories that a blob was uploaded to.
    uploaded: Mutex<Vec<String>>,
    tagged: Mutex<HashSet<String>>,
}

/// A manifest is taken only once its blob was really uploaded.
async fn answer(
    State(registry): State<Arc<Registry>>,
    method: Method,
    uri: Uri,
    _: Bytes,
) -> impl IntoResponse {
    let path = uri.path().strip_prefix("/v2/").unwrap_or_default();
    let (repository, rest) = path.split_once('/').unwrap_or_default();
    let is_uploaded = || registry.uploaded.lock().unwrap().iter().any(|uploaded| uploaded == repository);
    let says_so = ["liar", "closed", "true"].iter().any(|name| repository.starts_with(name));
    let mut headers = HeaderMap::new();
    let hides = repository.starts_with("hidden") || repository.starts_with("new") && !is_uploaded();
    let (status, body) = match method {
        Method::HEAD | Method::GET if hides => (StatusCode::FORBIDDEN, ""),
        Method::HEAD if rest.starts_with("blobs/") && (says_so || is_uploaded()) => (StatusCode::OK, ""),
        Method::GET if repository.starts_with("true") || is_uploaded() => (StatusCode::OK, "{}"),
        Method::GET if repository.starts_with("closed") => (StatusCode::FORBIDDEN, ""),
        Method::HEAD | Method::GET => (StatusCode::NOT_FOUND, ""),
        Method::POST => {
            let location = format!("/v2/{repository}/blobs/uploads/1");
            headers.insert(header::LOCATION, location.parse().unwrap());
            (StatusCode::ACCEPTED, "")
        }
        Method::PUT if rest.starts_with("blobs/uploads/") => {
            registry.uploaded.lock().unwrap().push(repository.to_owned());
            (StatusCode::CREATED, "")
        }
        Method::PUT if is_uploaded() => {
            registry.tagged.lock().unwrap().insert(path.to_owned());
            (StatusCode::CREATED, "")
        }
        Method::PUT => {
            let error = r#"{"errors":[{"code":"MANIFEST_BLOB_UNKNOWN","message":"blob unknown"}]}"#;
            (StatusCode::BAD_REQUEST, error)
        }
        _ => (StatusCode::NO_CONTENT, ""),
    };
    (status, headers, body)
}

/// A payload of one image under these names, whose blob it carries or requires.
async fn payload(names: &[&str], carries: bool) -> Vec<u8> {
    payload_upon(None, names, carries).await
}

/// The same, with a layer of `base` that it requires.
async fn payload_upon(base: Option<Digest>, names: &[&str], carries: bool) -> Vec<u8> {
    let digest = Digest::sha256(BLOB);
    let size = BLOB.len() as u64;
    let layer = base.as_ref().map(|base| format!(r#"{{"digest":"{base}","size":{size}}}"#));
    let layers = layer.unwrap_or_default();
    let json = format!(
        r#"{{"schemaVersion":2,"config":{{"digest":"{digest}","size":{size}}},"layers":[{layers}]}}"#
    );
    let (bytes, root) = (Bytes::from(json.clone()), Digest::sha256(json.as_bytes()));
    let image = |name: &&str| ImagePlan {
        reference: Reference::parse(name, &Host::docker_hub()).unwrap(),
        far_name: None,
        digest: root.clone(),
        media_type: DOCKER.into(),
        size: bytes.len() as u64,
        platforms: Vec::new(),
        omitted: Vec::new(),
        manifests: vec![ManifestPlan {
            digest: root.clone(),
            media_type: DOCKER.into(),
            bytes: bytes.clone(),
        }],
        referrers: Vec::new(),
    };
    let images: Vec<ImagePlan> = names.iter().map(image).collect();
    let mut required: Vec<Digest> = base.into_iter().collect();
    let blobs = if carries {
        vec![(digest, size)]
    } else {
        required.push(digest);
        Vec::new()
    };
    let required =
        required.into_iter().map(|digest| Required { digest, size, sources: Vec::new() }).collect();
    let contents = Contents::new(&images, &blobs, required).unwrap();
    let mut writer = PayloadWriter::begin(&contents, Vec::new()).await.unwrap();
    if carries {
        let body = futures::stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(BLOB))]);
        writer.blob(body, |_| ()).await.unwrap();
    }
    writer.finish().await.unwrap()
}

fn file(payload: &[u8]) -> Source {
    Source::At(local(payload))
}

fn local(payload: &[u8]) -> Arc<LocalFile> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(payload).unwrap();
    Arc::new(LocalFile::new(Arc::new(file)).unwrap())
}

/// Pushes a payload; gives what became of it, and the registry.
async fn push(source: Source, bases: &[&str]) -> (ImportReport, Arc<Registry>) {
    push_by(TagPolicy::Overwrite, source, bases).await
}

async fn push_by(tag_policy: TagPolicy, source: Source, bases: &[&str]) -> (ImportReport, Arc<Registry>) {
    let registry = Arc::new(Registry::default());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let router = Router::new().fallback(answer).with_state(Arc::clone(&registry));
    tokio::spawn(async { axum::serve(listener, router).await });
    let access = Access { insecure: true, ..Access::default() };
    let request = ImportRequest {
        source,
        expected_digest: None,
        registry: crate::registry::Registry::new(host.parse().unwrap(), access).unwrap(),
        naming: Naming::AsWritten,
        repository_prefix: None,
        base_repositories: bases.iter().map(|name| (*name).to_owned()).collect(),
        tag_digests: true,
        sparse_index: SparseIndex::Keep,
        strict: false,
        deep: false,
        tag_policy,
    };
    (import(request, &Arc::default()).await.unwrap(), registry)
}

#[tokio::test]
async fn blobs_that_a_registry_only_says_it_has_are_uploaded_without_asking_once() {
    let (report, registry) = push(file(&payload(&["liar:1"], true).await), &[]).await;
    assert!(report.failures().is_empty(), "{:?}", report.failures());
    assert_eq!(*registry.uploaded.lock().unwrap(), ["liar"]);
    assert!(registry.tagged.lock().unwrap().contains("liar/manifests/1"));
}

#[tokio::test]
async fn a_blob_that_one_repository_only_says_it_has_comes_from_the_payload_into_the_others() {
    let payload = payload(&["liar:1", "app:1", "other:1"], true).await;
    let (report, registry) = push(file(&payload), &[]).await;
    assert!(report.failures().is_empty(), "{:?}", report.failures());
    assert_eq!(*registry.uploaded.lock().unwrap(), ["app", "other", "liar"]);

    // What passes by cannot be read again for the one that lied.
    let (report, registry) = push(Source::Stream(Box::new(std::io::Cursor::new(payload))), &[]).await;
    let failed: Vec<String> = report.failures().into_iter().map(|failure| failure.item).collect();
    assert_eq!(failed, ["liar:1"]);
    assert_eq!(*registry.uploaded.lock().unwrap(), ["app", "other"]);
    assert!(registry.tagged.lock().unwrap().contains("other/manifests/1"));
}

#[tokio::test]
async fn what_a_base_only_says_it_has_is_looked_for_in_the_next() {
    let payload = payload(&["app:1"], false).await;
    let (report, registry) = push(file(&payload), &["liar-base", "true-base"]).await;
    assert!(report.failures().is_empty(), "{:?}", report.failures());
    assert_eq!(*registry.uploaded.lock().unwrap(), ["app"]);

    let (report, _) = push(file(&payload), &["liar-base", "liar-mirror"]).await;
    assert_eq!(report.failures()[0].reason, Reason::MissingBase, "{:?}", report.failures());
}

#[tokio::test]
async fn what_a_base_refuses_to_give_is_told_as_the_registry_told_it() {
    let (report, _) = push(file(&payload(&["app:1"], false).await), &["closed-base"]).await;
    let failure = &report.failures()[0];
    assert_eq!(failure.reason, Reason::AccessDenied, "{failure:?}");
    assert!(
        failure.message.contains("cannot read blob") && failure.message.contains("closed-base"),
        "{failure:?}"
    );
}

#[tokio::test]
async fn a_repository_that_is_hidden_until_it_is_pushed_to_is_pushed_to() {
    for carries in [true, false] {
        let payload = payload(&["new:1"], carries).await;
        let (report, registry) = push(file(&payload), &["hidden-base", "true-base"]).await;
        assert!(report.failures().is_empty(), "{:?}", report.failures());
        assert!(registry.tagged.lock().unwrap().contains("new/manifests/1"));
    }
}

#[tokio::test]
async fn a_tag_that_may_not_be_looked_at_is_not_overwritten_where_tags_are_kept() {
    for policy in [TagPolicy::KeepExisting, TagPolicy::Fail] {
        let (report, registry) = push_by(policy, file(&payload(&["new:1"], true).await), &[]).await;
        assert_eq!(report.failures()[0].reason, Reason::AccessDenied, "{:?}", report.failures());
        assert!(registry.tagged.lock().unwrap().is_empty());
    }
}

#[tokio::test]
async fn what_may_be_in_a_repository_that_is_hidden_is_told_so() {
    let (report, _) = push(file(&payload(&["app:1"], false).await), &["hidden-base"]).await;
    let failure = &report.failures()[0];
    assert_eq!(failure.reason, Reason::MissingBase, "{failure:?}");
    let (lacks, hidden) = (failure.message.find("lacks 1 blob"), failure.message.find("refused to look"));
    assert!(lacks < hidden && failure.message.contains("hidden-base"), "{failure:?}");
}

#[tokio::test]
async fn what_an_image_only_says_it_has_of_its_base_is_looked_for_in_the_next() {
    let payload = payload(&["liar:1"], false).await;
    let (report, registry) = push(file(&payload), &["true-base"]).await;
    assert!(report.failures().is_empty(), "{:?}", report.failures());
    assert_eq!(*registry.uploaded.lock().unwrap(), ["liar"]);

    let (report, _) = push(file(&payload), &[]).await;
    assert_eq!(report.failures()[0].reason, Reason::MissingBase, "{:?}", report.failures());
}

#[tokio::test]
async fn what_only_an_images_own_repository_has_of_a_base_is_no_hindrance_to_bring_the_rest_again() {
    let payload = payload_upon(Some(Digest::sha256(b"[]")), &["liar:1"], true).await;
    let (report, registry) = push(file(&payload), &[]).await;
    assert!(report.failures().is_empty(), "{:?}", report.failures());
    assert_eq!(*registry.uploaded.lock().unwrap(), ["liar"]);
}

#[tokio::test]
async fn two_images_of_one_index_have_each_the_blobs_of_their_own_platforms() {
    let called = |tag: &str| Reference::parse(&format!("ferry:{tag}"), &Host::docker_hub()).unwrap();
    let plan = |bytes: String| {
        let (bytes, digest) = (Bytes::from(bytes.clone()), Digest::sha256(bytes.as_bytes()));
        ManifestPlan { digest, media_type: OCI.into(), bytes }
    };
    let configs = [&b"{}"[..], b"[]"].map(Digest::sha256);
    let children = configs.each_ref().map(|config| {
        plan(format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI}","config":{{"digest":"{config}","size":2}},"layers":[]}}"#
        ))
    });
    let named_children = children.each_ref().map(|child| {
        format!(r#"{{"mediaType":"{OCI}","digest":"{}","size":{}}}"#, child.digest, child.bytes.len())
    });
    let index = ManifestPlan {
        media_type: INDEX.into(),
        ..plan(format!(
            r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{}]}}"#,
            named_children.join(",")
        ))
    };
    let images = [0, 1].map(|which: usize| ImagePlan {
        reference: called(&which.to_string()),
        far_name: None,
        digest: index.digest.clone(),
        media_type: INDEX.into(),
        size: index.bytes.len() as u64,
        platforms: Vec::new(),
        omitted: vec![children[1 - which].digest.clone()],
        manifests: vec![children[which].clone(), index.clone()],
        referrers: Vec::new(),
    });
    let blobs = configs.each_ref().map(|config| (config.clone(), 2));
    let contents = Contents::new(&images, &blobs, Vec::new()).unwrap();
    let mut writer = PayloadWriter::begin(&contents, Vec::new()).await.unwrap();
    for bytes in [&b"{}"[..], b"[]"] {
        let body = futures::stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(bytes))]);
        writer.blob(body, |_| ()).await.unwrap();
    }
    let payload = FilePayload::open_at(local(&writer.finish().await.unwrap())).await.unwrap();
    let names = Names::new(&"registry.example".parse().unwrap(), None, Naming::AsWritten, true);
    let manifest = |digest: &Digest| payload.manifest(digest);
    let targets = target::targets(payload.bill(), &names, SparseIndex::Keep, manifest).unwrap();
    for (target, config) in targets.iter().zip(configs) {
        assert_eq!(*target.blobs(), HashSet::from([config]), "{}", target.name);
    }
}
