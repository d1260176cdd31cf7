use std::sync::Mutex;

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use bytes::Bytes;
use object_store::gcp::GoogleConfigKey;

use super::*;
use crate::reason::Reason;
use crate::storage::StoredObject;

fn at(location: &str) -> ObjectLocation {
    location.parse().unwrap()
}

fn pair() -> ObjectKeys {
    ObjectKeys::S3 { access: "ferryman".into(), secret: "obol".to_owned().into(), session_token: None }
}

/// The key of an account, in base64.
const ACCOUNT_KEY: &str = "b2JvbA==";

fn account() -> ObjectKeys {
    ObjectKeys::Azure { account: "ferry".into(), key: ACCOUNT_KEY.to_owned().into() }
}

fn service_account(more: &str) -> ObjectKeys {
    let json = format!(
        r#"{{"private_key":"key","private_key_id":"id","client_email":"ferry@example","disable_oauth":true{more}}}"#
    );
    ObjectKeys::Gcs(json.into())
}

fn access(keys: ObjectKeys, endpoint: Option<&str>) -> ObjectAccess {
    let endpoint = endpoint.map(|endpoint| endpoint.parse().unwrap());
    ObjectAccess { endpoint, keys: Some(keys), ..ObjectAccess::default() }
}

#[test]
fn a_store_of_s3_is_asked_with_its_keys_at_its_endpoint_in_its_region() {
    use AmazonS3ConfigKey::{AccessKeyId, Bucket, Region, S3Endpoint, SecretAccessKey, Token};
    let location = at("s3://transfer/app.zip");
    let token = Some("passing".to_owned().into());
    let ObjectKeys::S3 { access: key, secret, .. } = pair() else { panic!() };
    let temporary = ObjectKeys::S3 { access: key, secret, session_token: token };
    let region = ObjectAccess { region: Some("eu-1".into()), ..access(pair(), None) };
    let table: [(ObjectAccess, [Option<&str>; 6]); 4] = [
        (access(pair(), None), [Some("ferryman"), Some("obol"), None, Some("transfer"), None, None]),
        (
            access(temporary, None),
            [Some("ferryman"), Some("obol"), Some("passing"), Some("transfer"), None, None],
        ),
        (region, [Some("ferryman"), Some("obol"), None, Some("transfer"), None, Some("eu-1")]),
        (
            access(pair(), Some("https://s3.infra:9000/")),
            [Some("ferryman"), Some("obol"), None, Some("transfer"), Some("https://s3.infra:9000"), None],
        ),
    ];
    for (access, expected) in table {
        let builder = s3(&location, &access).unwrap();
        let keys = [AccessKeyId, SecretAccessKey, Token, Bucket, S3Endpoint, Region];
        assert_eq!(
            keys.map(|key| builder.get_config_value(&key)),
            expected.map(|text| text.map(str::to_owned))
        );
        builder.build().unwrap();
    }
}

#[test]
fn azures_account_comes_from_the_url_or_the_endpoint_or_the_keys() {
    use AzureConfigKey::{AccessKey, AccountName, ContainerName, Endpoint};
    for (location, endpoint, name, shown) in [
        ("az://box/app.zip", None, "ferry", None),
        ("abfss://box@harbour.dfs.core.windows.net/app.zip", None, "harbour", None),
        (
            "az://box/app.zip",
            Some("https://pier.blob.core.windows.net"),
            "pier",
            Some("https://pier.blob.core.windows.net"),
        ),
        (
            "az://box/app.zip",
            Some("http://127.0.0.1:10000/ferry"),
            "ferry",
            Some("http://127.0.0.1:10000/ferry"),
        ),
    ] {
        let builder = azure(&at(location), &access(account(), endpoint)).unwrap();
        let keys = [AccountName, AccessKey, ContainerName, Endpoint];
        let expected = [Some(name), Some(ACCOUNT_KEY), Some("box"), shown];
        assert_eq!(
            keys.map(|key| builder.get_config_value(&key)),
            expected.map(|text| text.map(str::to_owned))
        );
        builder.build().unwrap();
    }
}

#[test]
fn a_service_account_of_googles_is_given_as_its_json() {
    let builder = gcs(&at("gs://box/app.zip"), &access(service_account(""), None)).unwrap();
    let value = |key| builder.get_config_value(&key);
    assert_eq!(value(GoogleConfigKey::Bucket).as_deref(), Some("box"));
    assert!(value(GoogleConfigKey::ServiceAccountKey).is_some_and(|json| json.contains("ferry@example")));
    builder.build().unwrap();
}

#[test]
fn keys_of_another_provider_and_what_is_no_endpoint_are_refused_before_anything_is_asked() {
    let keys: [fn() -> ObjectKeys; 3] = [pair, account, || service_account("")];
    for (index, location) in ["s3://box/a.zip", "az://box/a.zip", "gs://box/a.zip"].into_iter().enumerate() {
        for (other, keys) in keys.iter().enumerate() {
            let connected = connect(&at(location), &access(keys(), None));
            match connected.map(drop) {
                Ok(()) => assert_eq!(index, other, "{location}"),
                Err(error) => {
                    assert_ne!(index, other, "{error}");
                    assert_eq!(error.reason(), Reason::InvalidSpec);
                    let words = "its credentials are those of another provider";
                    assert!(error.to_string().contains(words), "{error}");
                }
            }
        }
    }
    for endpoint in ["ftp://infra", "unix:/run/store", "data:,x"] {
        let refused = connect(&at("s3://box/a.zip"), &access(pair(), Some(endpoint))).map(drop).unwrap_err();
        assert!(refused.to_string().contains("does not begin with https:// or http://"), "{refused}");
    }
    let access = ObjectAccess { ca_pem: Some(b"no certificate".to_vec()), ..access(pair(), None) };
    let refused = connect(&at("s3://box/a.zip"), &access).map(drop).unwrap_err().to_string();
    assert!(refused.contains("the authority's certificate, ca.crt, holds none"), "{refused}");
}

/// A request as a store saw it: its method, its path with the query, and what it was signed with.
type Seen = Arc<Mutex<Vec<[String; 4]>>>;

/// A server that takes everything.
async fn taker() -> (String, Seen) {
    let seen = Seen::default();
    let desk = Arc::clone(&seen);
    let take = move |request: Request| {
        let header = |name: &str| {
            let value = request.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
            value.unwrap_or_default()
        };
        let (method, target) = (request.method().to_string(), request.uri().to_string());
        let row = [method, target, header("authorization"), header("x-amz-security-token")];
        desk.lock().unwrap().push(row);
        async {
            (StatusCode::CREATED, [("etag", "\"1\""), ("last-modified", "Thu, 01 Jan 1970 00:00:00 GMT")])
        }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(take)).await });
    (format!("http://{address}"), seen)
}

#[tokio::test]
async fn each_providers_requests_go_to_the_endpoint_with_the_path_and_the_signature_of_that_provider() {
    let temporary = ObjectKeys::S3 {
        access: "ferryman".into(),
        secret: "obol".to_owned().into(),
        session_token: Some("passing".to_owned().into()),
    };
    for (location, keys, path, signature, token) in [
        (
            "s3://box/a/app.zip",
            temporary,
            "/box/a/app.zip",
            "AWS4-HMAC-SHA256 Credential=ferryman/",
            "passing",
        ),
        ("az://box/a/app.zip", account(), "/box/a/app.zip", "SharedKey ferry:", ""),
        ("gs://box/a/app.zip", service_account(""), "/box/a%2Fapp%2Ezip", "Bearer", ""),
    ] {
        let (endpoint, seen) = taker().await;
        let object = StoredObject::new(at(location), &access(keys, Some(&endpoint))).unwrap();
        object.write(Bytes::from_static(b"payload")).await.unwrap();
        let seen = seen.lock().unwrap().clone();
        let [method, target, authorization, security_token] = &seen[0];
        assert_eq!((method.as_str(), target.as_str(), security_token.as_str()), ("PUT", path, token));
        assert!(authorization.starts_with(signature), "{authorization}");
        assert!(!authorization.contains("obol") && !authorization.contains(ACCOUNT_KEY));
    }
}
