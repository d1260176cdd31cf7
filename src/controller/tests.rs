use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::body::Body;
use axum::extract::RawQuery;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use futures::stream;
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::*;

/// A list of `items`, to whoever lists; `event` and no more to whoever watches.
fn served(
    query: Option<String>,
    items: Value,
    event: impl Future<Output = Option<Value>> + Send + 'static,
) -> Response {
    if !query.unwrap_or_default().contains("watch=true") {
        let metadata = json!({ "resourceVersion": "1" });
        return axum::Json(json!({ "metadata": metadata, "items": items })).into_response();
    }
    let first = stream::once(event).filter_map(std::future::ready);
    let lines = first.map(|event| Ok::<_, Infallible>(format!("{event}\n"))).chain(stream::pending());
    Body::from_stream(lines).into_response()
}

#[tokio::test]
async fn the_errors_of_what_is_gone_are_forgotten() {
    let build = json!({
        "apiVersion": "charon.dev/v1alpha1", "kind": "PayloadBuild",
        "metadata": { "name": "app", "namespace": "team", "uid": "u", "resourceVersion": "1" },
    });
    let (was_refused, is_gone) = (Arc::new(Notify::new()), Arc::new(AtomicBool::new(false)));
    let (told, refused, gone) = (was_refused.clone(), was_refused, is_gone.clone());
    let builds = async move |RawQuery(query): RawQuery| {
        let event = json!({ "type": "DELETED", "object": build });
        let deleted = async move {
            refused.notified().await;
            gone.store(true, Ordering::Relaxed);
            Some(event)
        };
        served(query, json!([build]), deleted)
    };
    let none = async |RawQuery(query): RawQuery| served(query, json!([]), std::future::ready(None));
    let refusal = async move || {
        told.notify_one();
        let status = json!({ "kind": "Status", "status": "Failure", "reason": "Forbidden", "code": 403 });
        (StatusCode::FORBIDDEN, axum::Json(status))
    };
    let api_server = Router::new()
        .route("/apis/charon.dev/v1alpha1/payloadbuilds", get(builds))
        .route("/apis/charon.dev/v1alpha1/namespaces/team/payloadbuilds/app", get(refusal))
        .route("/apis/batch/v1/jobs", get(none))
        .route("/api/v1/pods", get(none));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let serve = async { axum::serve(listener, api_server).await.unwrap() };

    let client = Client::try_from(kube::Config::new(url)).unwrap();
    let settings = Settings {
        worker: WorkerDefaults::with_image("i"),
        namespace: None,
        concurrency: 1,
        pace: Pace::default(),
        lease: None,
        health_address: None,
    };
    let context = Arc::new(Context::new(client, settings, Arc::new(Metrics::new())).unwrap());
    let errors = || context.errors.lock().unwrap().clone();
    let forgotten = async {
        // It is counted, and when it is to be looked at again it is not there any more.
        while !is_gone.load(Ordering::Relaxed) || errors().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(errors(), [("PayloadBuild/team/app".to_owned(), 1)].into());
        while !errors().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        () = serve => {}
        () = control::<PayloadBuild>(context.clone(), CancellationToken::new()) => panic!("the loop ended"),
        end = tokio::time::timeout(Duration::from_secs(30), forgotten) => end.expect("they are kept"),
    }
}
