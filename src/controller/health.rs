//! `/healthz` says that the process lives, `/readyz` that it can work, or what is missing; `/metrics`
//! says how it does.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderName, Request, StatusCode};
use axum::routing::get;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Client;
use serde_json::Value;
use tokio::sync::watch;

use super::metrics::Metrics;
use crate::api::{GROUP, VERSION, crds};

/// How often a missing definition is looked for.
const INTERVAL: Duration = Duration::from_secs(2);
/// How often it is looked whether they are still there.
const CALM_INTERVAL: Duration = Duration::from_secs(30);

/// What is missing, in a sentence; nothing if all is there.
pub(super) type Missing = Option<String>;

/// What is answered.
#[derive(Clone)]
pub(super) struct Answers {
    pub missing: watch::Receiver<Missing>,
    pub metrics: Arc<Metrics>,
}

/// Which of the definitions the API server does not serve, or in an older form than this program knows.
///
/// An older one would drop fields that people write, and fields of the status, without a word.
pub(super) async fn missing(client: &Client) -> Missing {
    let group = format!("{GROUP}/{VERSION}");
    let served = match client.list_api_group_resources(&group).await {
        Ok(list) => list.resources.into_iter().map(|resource| resource.kind).collect(),
        Err(kube::Error::Api(status)) if status.code == 404 => Vec::new(),
        Err(error) => return Some(format!("the API server does not tell what it serves: {error}")),
    };
    let names = crds().into_iter().filter(|crd| !served.contains(&crd.spec.names.kind));
    let names: Vec<String> = names.filter_map(|crd| crd.metadata.name).collect();
    if !names.is_empty() {
        return Some(format!(
            "not installed in version {VERSION}: CustomResourceDefinition {}; apply the files in crds/",
            names.join(", ")
        ));
    }
    // Open to whoever has signed in, which the definitions themselves are not.
    let path = format!("/openapi/v3/apis/{group}");
    let described = match Request::get(path).body(Vec::new()) {
        Ok(request) => client.request::<Value>(request).await,
        Err(error) => Err(kube::Error::HttpError(error)),
    };
    match described {
        Ok(described) => crds().iter().find_map(|crd| too_old(crd, &described)),
        Err(error) => Some(format!("the API server does not describe {group}: {error}")),
    }
}

/// The first field that `crd` has and the definition in `described` lacks.
fn too_old(crd: &CustomResourceDefinition, described: &Value) -> Missing {
    let (kind, name) = (&crd.spec.names.kind, crd.metadata.name.as_deref().unwrap_or_default());
    let ours = serde_json::to_value(&crd.spec.versions).unwrap_or_default();
    let ours = ours.pointer("/0/schema/openAPIV3Schema")?;
    let schemas = described.pointer("/components/schemas").and_then(Value::as_object);
    let is_it = |schema: &&Value| {
        schema.pointer("/x-kubernetes-group-version-kind/0/kind").and_then(Value::as_str) == Some(kind)
    };
    let Some(theirs) = schemas.and_then(|schemas| schemas.values().find(is_it)) else {
        return Some(format!("the API server does not describe {kind} yet"));
    };
    lacking(ours, theirs, "").map(|field| {
        format!(
            "too old: CustomResourceDefinition {name} has no {}; apply the files in crds/",
            field.trim_start_matches('.')
        )
    })
}

/// The path of the first field of the schema `ours`, at `path`, that `theirs` does not have.
fn lacking(ours: &Value, theirs: &Value, path: &str) -> Option<String> {
    let properties = ours.get("properties").and_then(Value::as_object);
    let of_fields = properties.into_iter().flatten().find_map(|(name, ours)| {
        let path = format!("{path}.{name}");
        match theirs.get("properties").and_then(|properties| properties.get(name)) {
            Some(theirs) => lacking(ours, theirs, &path),
            None => Some(path),
        }
    });
    of_fields.or_else(|| lacking(ours.get("items")?, theirs.get("items")?, &format!("{path}[]")))
}

/// Looks for the definitions, for as long as it is polled, and tells each finding.
pub(super) async fn look_for_definitions(client: &Client, tell: &watch::Sender<Missing>) {
    loop {
        let found = missing(client).await;
        if let Some(missing) = found.as_ref().filter(|_| *tell.borrow() != found) {
            tracing::warn!("{missing}");
        }
        let pause = if found.is_some() { INTERVAL } else { CALM_INTERVAL };
        tell.send_replace(found);
        tokio::time::sleep(pause).await;
    }
}

/// Answers on `address` until it is dropped.
pub(super) async fn serve(address: SocketAddr, answers: Answers) -> std::io::Result<()> {
    let listener = match tokio::net::TcpListener::bind(address).await {
        // `[::]` is every address of both kinds, but not where the kernel has no IPv6.
        Err(_) if address.ip() == Ipv6Addr::UNSPECIFIED => {
            tokio::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await?
        }
        listener => listener?,
    };
    axum::serve(listener, router(answers)).await
}

fn router(answers: Answers) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(answers)
}

async fn ready(State(answers): State<Answers>) -> (StatusCode, String) {
    match &*answers.missing.borrow() {
        None => (StatusCode::OK, "ok\n".into()),
        Some(missing) => (StatusCode::SERVICE_UNAVAILABLE, format!("{missing}\n")),
    }
}

async fn metrics(State(answers): State<Answers>) -> (StatusCode, [(HeaderName, &'static str); 1], String) {
    let (code, text) = match answers.metrics.text() {
        Ok(text) => (StatusCode::OK, text),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("cannot write the metrics: {error}\n")),
    };
    (code, [(CONTENT_TYPE, prometheus::TEXT_FORMAT)], text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A server that is gone when the test is.
    async fn served(router: Router) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        address
    }

    #[tokio::test]
    async fn it_lives_while_it_is_not_ready_and_says_what_is_missing() {
        let (tell, missing) = watch::channel(Some("not installed: x".to_owned()));
        let address = served(router(Answers { missing, metrics: Arc::new(Metrics::new()) })).await;
        let get = async |path: &str| {
            let answer = reqwest::get(format!("http://{address}{path}")).await.unwrap();
            (answer.status().as_u16(), answer.text().await.unwrap())
        };
        assert_eq!(get("/healthz").await, (200, "ok\n".into()));
        assert_eq!(get("/readyz").await, (503, "not installed: x\n".into()));
        tell.send_replace(None);
        assert_eq!(get("/readyz").await, (200, "ok\n".into()));
        let (code, text) = get("/metrics").await;
        assert!(code == 200 && text.contains("charon_leader 0"), "{code} {text}");
    }

    /// What is said to be missing where the API server serves `kinds` and describes them by `schemas`.
    async fn found(kinds: &[&str], schemas: Value) -> Missing {
        let group = format!("/apis/{GROUP}/{VERSION}");
        let resource = |kind: &&str| json!({ "name": kind, "singularName": "", "namespaced": true, "kind": kind, "verbs": [] });
        let resources: Vec<Value> = kinds.iter().map(resource).collect();
        let list = json!({ "kind": "APIResourceList", "groupVersion": format!("{GROUP}/{VERSION}"), "resources": resources });
        let description = json!({ "components": { "schemas": schemas } });
        let api_server = Router::new()
            .route(&group, get(|| async { axum::Json(list) }))
            .route(&format!("/openapi/v3{group}"), get(|| async { axum::Json(description) }));
        let url = format!("http://{}", served(api_server).await).parse().unwrap();
        missing(&Client::try_from(kube::Config::new(url)).unwrap()).await
    }

    /// The descriptions of both kinds, as the API server gives them, after `change`.
    fn schemas(change: impl Fn(&mut Value)) -> Value {
        let mut schemas = serde_json::Map::new();
        for crd in crds() {
            let mut schema =
                serde_json::to_value(&crd.spec.versions[0].schema).unwrap()["openAPIV3Schema"].take();
            schema["x-kubernetes-group-version-kind"] = json!([{ "kind": crd.spec.names.kind }]);
            schemas.insert(crd.spec.names.kind, schema);
        }
        let mut schemas = Value::Object(schemas);
        change(&mut schemas);
        schemas
    }

    fn without(pointer: &'static str, field: &'static str) -> impl Fn(&mut Value) {
        move |schemas| {
            let properties = schemas.pointer_mut(pointer).unwrap().as_object_mut().unwrap();
            properties.remove(field).unwrap_or_else(|| panic!("there is no {field}"));
        }
    }

    #[tokio::test]
    async fn a_definition_that_is_missing_or_older_than_the_program_is_named() {
        const BOTH: [&str; 2] = ["PayloadBuild", "PayloadImport"];
        assert_eq!(found(&BOTH, schemas(|_| {})).await, None);
        assert_eq!(
            found(&["PayloadBuild"], json!({})).await.unwrap(),
            "not installed in version v1alpha1: CustomResourceDefinition payloadimports.charon.dev; apply the files in crds/"
        );
        let older = without("/PayloadBuild/properties/spec/properties/images/items/properties", "as");
        assert_eq!(
            found(&BOTH, schemas(older)).await.unwrap(),
            "too old: CustomResourceDefinition payloadbuilds.charon.dev has no spec.images[].as; apply the files in crds/"
        );
        let older = without("/PayloadImport/properties/status/properties/run/properties", "ended");
        let said = found(&BOTH, schemas(older)).await.unwrap();
        assert!(said.contains("payloadimports.charon.dev has no status.run.ended;"), "{said}");
        let newer = |schemas: &mut Value| {
            schemas["PayloadBuild"]["properties"]["spec"]["properties"]["new"] = json!({ "type": "string" });
        };
        assert_eq!(found(&BOTH, schemas(newer)).await, None);
        let said = found(&BOTH, json!({})).await.unwrap();
        assert_eq!(said, "the API server does not describe PayloadBuild yet");
    }
}
