//! Who a machine or a pod is in its cloud: without a Secret a worker asks for the keys of that.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::to_bytes;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse as _, Response};
use charon::reason::Reason;
use charon::worker::contract::Outcome;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::azurite::{ACCOUNT, Azurite};
use crate::objects::certificate;
use crate::pod::{Pod, source};
use crate::proxies::tls_before;
use crate::registry::{RUNTIME, Registry, Software};
use crate::s3::{ACCESS, S3, SECRET};

/// What the kubelet mounts, and what proves who the pod is.
const TOKEN: &str = "this pod is the ferry";
const EXPIRES: &str = "2999-01-01T00:00:00Z";
/// A token for Azure's storage, until the year 3000, that nobody signed: azurite looks at what it says alone.
const BEARER: &str = "eyJhbGciOiJub25lIn0.\
    eyJhdWQiOiJodHRwczovL3N0b3JhZ2UuYXp1cmUuY29tIiwiaXNzIjoiaHR0cHM6Ly9zdHMud2luZG93cy5uZXQvYWNoZXJvbi8iLCJpYXQiOjAsIm5iZiI6MCwiZXhwIjozMjUwMzY4MDAwMH0.";

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
            let (head, body) = request.into_parts();
            let path = format!("{} {}", head.method, head.uri.path());
            let response = answer(&path, &head, &to_bytes(body, 4096).await.unwrap());
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

fn answer(path: &str, head: &Parts, body: &[u8]) -> Response {
    let has = |name: &str, value: &str| head.headers.get(name).is_some_and(|found| found == value);
    let query = head.uri.query().unwrap_or_default().as_bytes();
    let says = |form: &[u8], name: &str, value: &str| {
        url::form_urlencoded::parse(form).any(|pair| pair == (name.into(), value.into()))
    };
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
        "POST /"
            if says(query, "Action", "AssumeRoleWithWebIdentity")
                && says(query, "RoleArn", "arn:ferry")
                && says(query, "WebIdentityToken", TOKEN) =>
        {
            format!(
                "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>\
                 <AccessKeyId>{ACCESS}</AccessKeyId><SecretAccessKey>{SECRET}</SecretAccessKey>\
                 <SessionToken></SessionToken><Expiration>{EXPIRES}</Expiration>\
                 </Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
            )
            .into_response()
        }
        "POST /acheron/oauth2/v2.0/token"
            if says(body, "client_id", "ferry")
                && says(body, "client_assertion", TOKEN)
                && says(body, "scope", "https://storage.azure.com/.default") =>
        {
            json!({ "access_token": BEARER, "expires_in": 3600 }).to_string().into_response()
        }
        "GET /managed"
            if has("metadata", "true")
                && has("x-identity-header", TOKEN)
                && says(query, "resource", "https://storage.azure.com") =>
        {
            json!({ "access_token": BEARER, "expires_on": "32503680000" }).to_string().into_response()
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

/// A registry to build of, a desk, with and without TLS, and what the kubelet mounted.
struct Scene {
    source: Registry,
    desk: Desk,
    /// Of the desk, by TLS.
    secure: String,
    folder: TempDir,
    certificate: PathBuf,
    key: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let (source, desk) = (source(Software::Distribution3, &["ferry:1"]), Desk::open());
        let folder = tempfile::tempdir().unwrap();
        let [certificate, key] = certificate(folder.path());
        let secure = tls_before(&desk.address, &certificate, &key);
        Self { source, desk, secure, folder, certificate, key }
    }

    /// The files of a token that is right and of one that is wrong.
    fn tokens(&self) -> [String; 2] {
        [("right", TOKEN), ("wrong", "this pod is the ferryman's dog")].map(|(name, text)| {
            let file = self.folder.path().join(name);
            fs::write(&file, text).unwrap();
            file.display().to_string()
        })
    }

    fn trusts(&self) -> (&'static str, String) {
        ("SSL_CERT_FILE", self.certificate.display().to_string())
    }

    /// That a worker with these variables builds, and finds what it built, and asks the desk for this, once for all that
    /// it does.
    fn builds(&self, object: &Value, variables: &[(&str, String)], asked: &[&str]) {
        for reason in [Reason::Succeeded, Reason::AlreadyPresent] {
            let outcome = build(&self.source, object, variables);
            assert_eq!(outcome.reason, reason, "{object}: {outcome:?}");
            assert_eq!(self.desk.asked(), asked, "{object}");
        }
    }

    fn is_denied(&self, object: &Value, variables: &[(&str, String)]) {
        let outcome = build(&self.source, object, variables);
        assert_eq!(outcome.reason, Reason::StorageAccessDenied, "{outcome:?}");
        assert!(!outcome.message.contains("dog"), "{}", outcome.message);
    }
}

#[test]
fn a_worker_without_a_secret_gets_the_keys_of_a_store_from_its_clouds_identity() {
    let (scene, store) = (Scene::new(), S3::start());
    let [right, wrong] = scene.tokens();
    let role = "GET /latest/meta-data/iam/security-credentials/";
    let pod = |token: &String| {
        [
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("http://{}/pod", scene.desk.address)),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token.clone()),
        ]
    };
    let web = |token: &String| {
        [
            ("AWS_ROLE_ARN", "arn:ferry".to_owned()),
            ("AWS_WEB_IDENTITY_TOKEN_FILE", token.clone()),
            ("AWS_ENDPOINT_URL_STS", format!("https://{}", scene.secure)),
            scene.trusts(),
        ]
    };
    let machine = [("AWS_METADATA_ENDPOINT", format!("http://{}", scene.desk.address))];
    let object = |key: &str| json!({ "bucket": "transfer", "key": key, "endpoint": format!("http://{}", store.host()) });
    for (name, variables, asked) in [
        ("pod.zip", &pod(&right)[..], &["GET /pod"][..]),
        ("web.zip", &web(&right), &["POST /"]),
        ("machine.zip", &machine, &["PUT /latest/api/token", role, &format!("{role}ferryman")]),
    ] {
        scene.builds(&object(name), variables, asked);
        assert!(store.file(name).exists(), "{name}");
    }
    for variables in [&pod(&wrong)[..], &web(&wrong)] {
        scene.is_denied(&object("refused.zip"), variables);
    }
}

#[test]
fn a_worker_without_a_secret_gets_a_token_for_azure_from_its_workload_identity_or_its_machines() {
    let scene = Scene::new();
    let store = Azurite::with_tokens(&scene.certificate, &scene.key);
    let [right, wrong] = scene.tokens();
    let workload = |token: &String| {
        [
            ("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT.to_owned()),
            ("AZURE_CLIENT_ID", "ferry".to_owned()),
            ("AZURE_TENANT_ID", "acheron".to_owned()),
            ("AZURE_AUTHORITY_HOST", format!("https://{}", scene.secure)),
            ("AZURE_FEDERATED_TOKEN_FILE", token.clone()),
            scene.trusts(),
        ]
    };
    let machine = |secret: &str| {
        [
            ("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT.to_owned()),
            ("IDENTITY_ENDPOINT", format!("http://{}/managed", scene.desk.address)),
            ("IDENTITY_HEADER", secret.to_owned()),
            scene.trusts(),
        ]
    };
    let endpoint = format!("https://{}/{ACCOUNT}", store.host());
    let object =
        |key: &str| json!({ "provider": "Azure", "bucket": "transfer", "key": key, "endpoint": endpoint });
    for (name, variables, asked) in [
        ("workload.zip", &workload(&right)[..], "POST /acheron/oauth2/v2.0/token"),
        ("machine.zip", &machine(TOKEN), "GET /managed"),
    ] {
        scene.builds(&object(name), variables, &[asked]);
    }
    for variables in [&workload(&wrong)[..], &machine("the ferryman's dog")] {
        scene.is_denied(&object("refused.zip"), variables);
    }
}
