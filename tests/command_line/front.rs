//! A server that stands before a registry, passes on what it is asked, and answers some of it itself.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Method, Response, Uri};

use crate::registry::{RUNTIME, Registry};

/// A status and headers.
pub(crate) type Answer = (u16, Vec<(&'static str, String)>);

/// A server before a registry.
pub(crate) struct Front {
    address: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Front {
    /// `answer` is given each request, as `METHOD path`; what it has no answer to goes to the registry.
    pub(crate) fn before(
        registry: &Registry,
        answer: impl Fn(&str) -> Option<Answer> + Send + Sync + 'static,
    ) -> Self {
        let requests = Arc::<Mutex<Vec<String>>>::default();
        let (behind, log, answer) = (registry.host().to_owned(), requests.clone(), Arc::new(answer));
        let client = reqwest::Client::builder().tls_certs_only([]).build().expect("a client without TLS");
        let app =
            Router::new().fallback(async move |method: Method, uri: Uri, headers: HeaderMap, body: Bytes| {
                let request = format!("{method} {}", uri.path());
                log.lock().expect("nobody panicked").push(request.clone());
                if let Some((status, headers)) = answer(&request) {
                    let mut response = Response::builder().status(status);
                    for (name, value) in headers {
                        response = response.header(name, value);
                    }
                    return response.body(Body::empty()).expect("it is an answer");
                }
                let url = format!("http://{behind}{uri}");
                let passed = client.request(method, url).headers(headers).body(body).send().await;
                let passed = passed.expect("the registry answers");
                let mut response = Response::builder().status(passed.status());
                *response.headers_mut().expect("it is an answer") = passed.headers().clone();
                response.body(Body::from(passed.bytes().await.expect("a body"))).expect("it is an answer")
            });
        let listener =
            RUNTIME.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a port is free");
        let address = listener.local_addr().expect("it is bound").to_string();
        RUNTIME.spawn(async move { axum::serve(listener, app.into_make_service()).await });
        Self { address, requests }
    }

    /// `127.0.0.1:port`.
    pub(crate) fn host(&self) -> &str {
        &self.address
    }

    /// What was asked so far, `METHOD path`.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.requests.lock().expect("nobody panicked").clone()
    }
}
