//! `/healthz` says that the process lives, `/readyz` that it can work, or what is missing; `/metrics`
//! says how it does.

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderName, Request, StatusCode};
use axum::routing::get;
use kube::Client;
use serde::Deserialize;
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
    let served: Vec<String> = match client.list_api_group_resources(&group).await {
        Ok(list) => list.resources.into_iter().map(|resource| resource.kind).collect(),
        Err(kube::Error::Api(status)) if status.code == 404 => Vec::new(),
        Err(error) => return Some(format!("the API server does not tell what it serves: {error}")),
    };
    let missing = DEFINITIONS.iter().filter(|definition| !served.contains(&definition.kind));
    let names: Vec<&str> = missing.map(|definition| definition.name.as_str()).collect();
    if !names.is_empty() {
        return Some(format!(
            "not installed in version {VERSION}: CustomResourceDefinition {}; apply the files in crds/",
            names.join(", ")
        ));
    }
    // Open to whoever has signed in, which the definitions themselves are not.
    let described = match Request::get(format!("/openapi/v3/apis/{group}")).body(Vec::new()) {
        Ok(request) => client.request::<Described>(request).await,
        Err(error) => Err(kube::Error::HttpError(error)),
    };
    match described {
        Ok(described) => {
            DEFINITIONS.iter().find_map(|definition| definition.too_old(&described.components.schemas))
        }
        Err(error) => Some(format!("the API server does not describe {group}: {error}")),
    }
}

/// The definitions as this program knows them.
static DEFINITIONS: LazyLock<Vec<Definition>> = LazyLock::new(|| {
    let definitions = crds().into_iter().map(|crd| {
        let schema = crd.spec.versions.into_iter().find_map(|version| version.schema?.open_api_v3_schema);
        let schema = serde_json::to_value(schema).and_then(serde_json::from_value);
        Definition {
            name: crd.metadata.name.unwrap_or_default(),
            kind: crd.spec.names.kind,
            schema: schema.expect("a definition has a schema"),
        }
    });
    definitions.collect()
});

struct Definition {
    name: String,
    kind: String,
    schema: Schema,
}

/// What the API server says of a group.
#[derive(Deserialize)]
struct Described {
    components: Components,
}

#[derive(Deserialize)]
struct Components {
    schemas: HashMap<String, Schema>,
}

/// Which fields there are.
#[derive(Deserialize)]
struct Schema {
    #[serde(default)]
    properties: BTreeMap<String, Schema>,
    items: Option<Box<Schema>>,
    #[serde(rename = "x-kubernetes-group-version-kind", default)]
    kinds: Vec<Kind>,
}

#[derive(Deserialize)]
struct Kind {
    kind: String,
}

impl Definition {
    /// The first field that it has and the same kind in `schemas` lacks.
    fn too_old(&self, schemas: &HashMap<String, Schema>) -> Missing {
        let is_it = |schema: &&Schema| matches!(&schema.kinds[..], [kind] if kind.kind == self.kind);
        let Some(served) = schemas.values().find(is_it) else {
            return Some(format!("the API server does not describe {} yet", self.kind));
        };
        self.schema.lacking_in(served, "").map(|field| {
            format!(
                "too old: CustomResourceDefinition {} has no {}; apply the files in crds/",
                self.name,
                field.trim_start_matches('.')
            )
        })
    }
}

impl Schema {
    /// The path of the first field of this schema, which is at `path`, that `other` does not have.
    fn lacking_in(&self, other: &Self, path: &str) -> Option<String> {
        let of_fields = self.properties.iter().find_map(|(name, field)| {
            let path = format!("{path}.{name}");
            match other.properties.get(name) {
                Some(other) => field.lacking_in(other, &path),
                None => Some(path),
            }
        });
        of_fields.or_else(|| self.items.as_ref()?.lacking_in(other.items.as_ref()?, &format!("{path}[]")))
    }
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
    use serde_json::{Value, json};

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
