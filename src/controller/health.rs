//! `/healthz` says that the process lives, `/readyz` that it can work, or what is missing.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use kube::Client;
use tokio::sync::watch;

use crate::api::{GROUP, VERSION, crds};

/// How often a missing definition is looked for.
const INTERVAL: Duration = Duration::from_secs(2);
/// How often it is looked whether they are still there.
const CALM_INTERVAL: Duration = Duration::from_secs(30);

/// What is missing, in a sentence; nothing if all is there.
pub(super) type Missing = Option<String>;

/// Which of the definitions the API server does not serve.
pub(super) async fn missing(client: &Client) -> Missing {
    let group = format!("{GROUP}/{VERSION}");
    let served = match client.list_api_group_resources(&group).await {
        Ok(list) => list.resources.into_iter().map(|resource| resource.kind).collect(),
        Err(kube::Error::Api(status)) if status.code == 404 => Vec::new(),
        Err(error) => return Some(format!("the API server does not tell what it serves: {error}")),
    };
    let names = crds().into_iter().filter(|crd| !served.contains(&crd.spec.names.kind));
    let names: Vec<String> = names.filter_map(|crd| crd.metadata.name).collect();
    (!names.is_empty()).then(|| {
        format!(
            "not installed in version {VERSION}: CustomResourceDefinition {}; apply the files in crds/",
            names.join(", ")
        )
    })
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
pub(super) async fn serve(address: SocketAddr, missing: watch::Receiver<Missing>) -> std::io::Result<()> {
    let listener = match tokio::net::TcpListener::bind(address).await {
        // `[::]` is every address of both kinds, but not where the kernel has no IPv6.
        Err(_) if address.ip() == Ipv6Addr::UNSPECIFIED => {
            tokio::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await?
        }
        listener => listener?,
    };
    axum::serve(listener, router(missing)).await
}

fn router(missing: watch::Receiver<Missing>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(Arc::new(missing))
}

async fn ready(State(missing): State<Arc<watch::Receiver<Missing>>>) -> (StatusCode, String) {
    match &*missing.borrow() {
        None => (StatusCode::OK, "ok\n".into()),
        Some(missing) => (StatusCode::SERVICE_UNAVAILABLE, format!("{missing}\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_lives_while_it_is_not_ready_and_says_what_is_missing() {
        let (tell, missing) = watch::channel(Some("not installed: x".to_owned()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router(missing)).await });
        let get = async |path: &str| {
            let answer = reqwest::get(format!("http://{address}{path}")).await.unwrap();
            (answer.status().as_u16(), answer.text().await.unwrap())
        };
        assert_eq!(get("/healthz").await, (200, "ok\n".into()));
        assert_eq!(get("/readyz").await, (503, "not installed: x\n".into()));
        tell.send_replace(None);
        assert_eq!(get("/readyz").await, (200, "ok\n".into()));
    }
}
