//! Who a machine or a pod is in its cloud: without a Secret a worker asks for the keys of that.

use std::fs;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use charon::reason::Reason;
use charon::worker::contract::Outcome;
use serde_json::{Value, json};

use crate::objects::certificate;
use crate::proxies::tls_before;
use crate::registry::{RUNTIME, Registry, Software};
use crate::s3::{ACCESS, S3, SECRET};
use crate::worker::{Pod, source};

/// What the kubelet mounts, and what proves who the pod is.
const TOKEN: &str = "this pod is the ferry";
const EXPIRES: &str = "2999-01-01T00:00:00Z";

/// A stand-in for the services of clouds that know who somebody is.
struct Desk {
    address: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Desk {
    fn open() -> Self {
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let notes = Arc::clone(&asked);
        let app = Router::new().fallback(async move |request: Request| {
            let path = format!("{} {}", request.method(), request.uri().path());
            let response = answer(&path, &request);
            notes.lock().unwrap().push(path);
            response
        });
        let listener = RUNTIME.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        RUNTIME.spawn(async move { axum::serve(listener, app).await });
        Self { address, asked }
    }

    /// What was asked since the last time, each once.
    fn asked(&self) -> Vec<String> {
        let mut asked = std::mem::take(&mut *self.asked.lock().unwrap());
        asked.dedup();
        asked
    }
}

fn answer(path: &str, request: &Request) -> Response {
    let has = |name: &str, value: &str| request.headers().get(name).is_some_and(|found| found == value);
    let keys = || {
        let keys =
            json!({ "AccessKeyId": ACCESS, "SecretAccessKey": SECRET, "Token": "", "Expiration": EXPIRES });
        keys.to_string().into_response()
    };
    match path {
        "GET /pod" if has("authorization", TOKEN) => keys(),
        "PUT /latest/api/token" => "a session".into_response(),
        "GET /latest/meta-data/iam/security-credentials/" if has("x-aws-ec2-metadata-token", "a session") => {
            "ferryman".into_response()
        }
        "GET /latest/meta-data/iam/security-credentials/ferryman"
            if has("x-aws-ec2-metadata-token", "a session") =>
        {
            keys()
        }
        "POST /" => {
            let query = request.uri().query().unwrap_or_default().as_bytes();
            let has = |name: &str, value: &str| {
                url::form_urlencoded::parse(query).any(|pair| pair == (name.into(), value.into()))
            };
            if !(has("Action", "AssumeRoleWithWebIdentity")
                && has("RoleArn", "arn:ferry")
                && has("WebIdentityToken", TOKEN))
            {
                return StatusCode::FORBIDDEN.into_response();
            }
            format!(
                "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>\
                 <AccessKeyId>{ACCESS}</AccessKeyId><SecretAccessKey>{SECRET}</SecretAccessKey>\
                 <SessionToken></SessionToken><Expiration>{EXPIRES}</Expiration>\
                 </Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
            )
            .into_response()
        }
        _ => StatusCode::FORBIDDEN.into_response(),
    }
}

/// A build into the object of a store without a Secret, by a worker with these variables.
fn build(source: &Registry, object: &Value, variables: &[(&str, String)]) -> Outcome {
    let images = json!([{ "name": source.name("ferry:1") }]);
    let work = json!({ "build": { "images": images, "objectStore": object } });
    let registries = json!([{ "host": source.host(), "insecure": true }]);
    let pod = Pod::new();
    let mut worker = pod.worker("run", &work, &registries).arguments(["--progress-port", "0"]);
    for (name, value) in variables {
        worker = worker.variable(name, value);
    }
    pod.outcome(worker.start())
}

#[test]
fn a_worker_without_a_secret_gets_the_keys_of_a_store_from_its_clouds_identity() {
    let (source, store, desk) = (source(Software::Distribution3, &["ferry:1"]), S3::start(), Desk::open());
    let folder = tempfile::tempdir().unwrap();
    let [certificate, key] = certificate(folder.path());
    let secure = tls_before(&desk.address, &certificate, &key);
    let token = |name: &str, text: &str| {
        let file = folder.path().join(name);
        fs::write(&file, text).unwrap();
        file.display().to_string()
    };
    let (right, wrong) = (token("right", TOKEN), token("wrong", "this pod is the ferryman's dog"));
    let role = "GET /latest/meta-data/iam/security-credentials/";
    let pod = |token: &String| {
        [
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("http://{}/pod", desk.address)),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token.clone()),
        ]
    };
    let web = |token: &String| {
        [
            ("AWS_ROLE_ARN", "arn:ferry".to_owned()),
            ("AWS_WEB_IDENTITY_TOKEN_FILE", token.clone()),
            ("AWS_ENDPOINT_URL_STS", format!("https://{secure}")),
            ("SSL_CERT_FILE", certificate.display().to_string()),
        ]
    };
    let machine = [("AWS_METADATA_ENDPOINT", format!("http://{}", desk.address))];
    let object = |key: &str| json!({ "bucket": "transfer", "key": key, "endpoint": format!("http://{}", store.host()) });
    for (name, variables, asked) in [
        ("pod.zip", &pod(&right)[..], &["GET /pod"][..]),
        ("web.zip", &web(&right), &["POST /"]),
        ("machine.zip", &machine, &["PUT /latest/api/token", role, &format!("{role}ferryman")]),
    ] {
        let outcome = build(&source, &object(name), variables);
        assert_eq!(outcome.reason, Reason::Succeeded, "{name}: {outcome:?}");
        assert!(store.file(name).exists(), "{name}");
        assert_eq!(desk.asked(), asked, "{name}: once for all that it does");
    }
    for variables in [&pod(&wrong)[..], &web(&wrong)] {
        let outcome = build(&source, &object("refused.zip"), variables);
        assert_eq!(outcome.reason, Reason::StorageAccessDenied, "{outcome:?}");
        assert!(!outcome.message.contains("dog"), "{}", outcome.message);
    }
}
