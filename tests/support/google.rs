//! A stand-in for Google Cloud Storage's XML interface, and for the metadata server that gives a machine its token. The
//! emulators that there are speak the JSON interface and know no uploads in parts.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, Method, Response, StatusCode};

use crate::registry::RUNTIME;

/// What the metadata server gives, and the store asks for.
const TOKEN: &str = "an-obol-a-soul";
/// Only the last part of an upload may be smaller.
const LEAST_PART: usize = 5 << 20;
const METADATA: &str = "/computeMetadata/v1/instance/service-accounts/default/token";

/// A server with whatever buckets are named.
pub(crate) struct Google {
    address: String,
    shelf: Arc<Mutex<Shelf>>,
}

#[derive(Default)]
struct Shelf {
    /// By the path of an object: its bytes and its generation.
    objects: HashMap<String, (Bytes, u64)>,
    /// By an upload's id: the numbers of its parts, their tags and bytes.
    uploads: HashMap<String, BTreeMap<usize, (String, Bytes)>>,
    count: u64,
}

impl Google {
    pub(crate) fn start() -> Self {
        let shelf = Arc::<Mutex<Shelf>>::default();
        let clerk = Arc::clone(&shelf);
        let app = Router::new().fallback(async move |request: Request| {
            let (head, body) = request.into_parts();
            let body = to_bytes(body, usize::MAX).await.unwrap_or_default();
            let path = head.uri.path();
            if path == METADATA {
                let is_known = head.headers.get("metadata-flavor").is_some_and(|value| value == "Google");
                let token =
                    format!(r#"{{"access_token":"{TOKEN}","expires_in":3600,"token_type":"Bearer"}}"#);
                return if is_known { answer(200).body(token.into()) } else { refusal(403, "NoFlavor") }
                    .unwrap();
            }
            let is_known =
                head.headers.get("authorization").is_some_and(|value| *value == format!("Bearer {TOKEN}"));
            if !is_known {
                return refusal(401, "AuthenticationRequired").unwrap();
            }
            let query = head.uri.query().unwrap_or_default().as_bytes();
            let query: HashMap<String, String> = url::form_urlencoded::parse(query).into_owned().collect();
            clerk.lock().unwrap().serve(&head.method, path, &query, &head.headers, body).unwrap()
        });
        let listener = RUNTIME.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        RUNTIME.spawn(async move { axum::serve(listener, app).await });
        Self { address, shelf }
    }

    /// `127.0.0.1:port`.
    pub(crate) fn host(&self) -> &str {
        &self.address
    }

    /// How many uploads were begun, and are neither complete nor given up.
    pub(crate) fn open_uploads(&self) -> usize {
        self.shelf.lock().unwrap().uploads.len()
    }
}

type Answer = Result<Response<Body>, axum::http::Error>;

fn answer(status: u16) -> axum::http::response::Builder {
    Response::builder().status(status)
}

fn refusal(status: u16, code: &str) -> Answer {
    answer(status).body(format!("<Error><Code>{code}</Code><Message>No.</Message></Error>").into())
}

impl Shelf {
    fn next(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    fn serve(
        &mut self,
        method: &Method,
        path: &str,
        query: &HashMap<String, String>,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Answer {
        let upload = query.get("uploadId");
        match (method.as_str(), upload) {
            ("POST", None) if query.contains_key("uploads") => {
                let id = format!("upload-{}", self.next());
                self.uploads.insert(id.clone(), BTreeMap::new());
                let id = format!("<UploadId>{id}</UploadId>");
                answer(200).body(
                    format!("<InitiateMultipartUploadResult>{id}</InitiateMultipartUploadResult>").into(),
                )
            }
            (_, Some(id)) if !self.uploads.contains_key(id) => refusal(404, "NoSuchUpload"),
            ("PUT", Some(id)) => {
                let (number, tag) =
                    (query["partNumber"].parse().unwrap(), format!("\"part-{}\"", self.next()));
                self.uploads.get_mut(id).unwrap().insert(number, (tag.clone(), body));
                answer(200).header("etag", tag).body(Body::empty())
            }
            ("POST", Some(id)) => self.complete(path, id, &String::from_utf8_lossy(&body)),
            ("DELETE", Some(id)) => {
                self.uploads.remove(id);
                answer(204).body(Body::empty())
            }
            ("PUT", None) => {
                let there = self.objects.get(path).map_or(0, |(_, generation)| *generation);
                let wanted = headers.get("x-goog-if-generation-match");
                if wanted.is_some_and(|wanted| *wanted != there.to_string()) {
                    return refusal(412, "PreconditionFailed");
                }
                let generation = self.put(path, body);
                described(200, generation).body(Body::empty())
            }
            ("DELETE", None) => match self.objects.remove(path) {
                Some(_) => answer(204).body(Body::empty()),
                None => refusal(404, "NoSuchKey"),
            },
            _ => self.read(method, path, headers),
        }
    }

    fn put(&mut self, path: &str, bytes: Bytes) -> u64 {
        let generation = self.next();
        self.objects.insert(path.to_owned(), (bytes, generation));
        generation
    }

    fn complete(&mut self, path: &str, id: &str, wanted: &str) -> Answer {
        let wanted = wanted.replace("&quot;", "\"");
        let tags = wanted.split("<ETag>").skip(1).map(|rest| rest.split('<').next().unwrap().to_owned());
        let parts = &self.uploads[id];
        let is_whole = parts.keys().copied().eq(1..=parts.len())
            && parts.values().map(|(tag, _)| tag.clone()).eq(tags)
            && parts.values().rev().skip(1).all(|(_, bytes)| bytes.len() >= LEAST_PART);
        if !is_whole {
            return refusal(400, "InvalidPart");
        }
        let bytes: Vec<u8> = parts.values().flat_map(|(_, bytes)| bytes.iter().copied()).collect();
        self.uploads.remove(id);
        let generation = self.put(path, bytes.into());
        let tag = format!("<ETag>\"{generation}\"</ETag>");
        let result = format!("<CompleteMultipartUploadResult>{tag}</CompleteMultipartUploadResult>");
        described(200, generation).body(result.into())
    }

    fn read(&self, method: &Method, path: &str, headers: &HeaderMap) -> Answer {
        let Some((bytes, generation)) = self.objects.get(path) else { return refusal(404, "NoSuchKey") };
        let header = |name: &str| headers.get(name).map(|value| value.to_str().unwrap());
        if header("if-match").is_some_and(|tag| tag != format!("\"{generation}\"")) {
            return refusal(412, "PreconditionFailed");
        }
        let size = bytes.len();
        let range = header("range").map(|range| {
            let (start, end) = range.trim_start_matches("bytes=").split_once('-').unwrap();
            match (start.parse::<usize>(), end.parse::<usize>()) {
                (Ok(start), Ok(end)) => start..size.min(end + 1),
                (Ok(start), Err(_)) => start..size,
                (Err(_), end) => size.saturating_sub(end.unwrap())..size,
            }
        });
        let status = if range.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
        let mut response = described(status.as_u16(), *generation);
        let range = range.unwrap_or(0..size);
        if range.is_empty() && size > 0 {
            return refusal(416, "InvalidRange");
        }
        if status == StatusCode::PARTIAL_CONTENT {
            response =
                response.header("content-range", format!("bytes {}-{}/{size}", range.start, range.end - 1));
        }
        let response = response.header("content-length", range.len());
        response.body(if method == Method::HEAD { Body::empty() } else { bytes.slice(range).into() })
    }
}

/// With what tells an object of this generation from others.
fn described(status: u16, generation: u64) -> axum::http::response::Builder {
    answer(status)
        .header("etag", format!("\"{generation}\""))
        .header("x-goog-generation", generation)
        .header("last-modified", "Thu, 01 Jan 1970 00:00:00 GMT")
}
