//! Referrers: manifests that say of another one, in `subject`, that they belong to it. Signatures, attestations, SBOMs.
//!
//! A registry either lists them itself (the referrers API of the distribution specification 1.1), or whoever pushes them
//! keeps an index under a tag that is made of the subject's digest, the fallback tag.

use bytes::Bytes;
use reqwest::header::{ACCEPT, HeaderMap, HeaderValue, LINK};
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use url::Url;

use super::auth::Scopes;
use super::client::{Call, CappedError, Registry, Reply};
use super::error::{Asked, RegistryError, plain};
use super::manifests::{MANIFEST_CAP, Manifest, Meaning, content_type};
use super::retry::Retry;
use crate::digest::Digest;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// A list of referrers has no more pages.
const PAGES: usize = 100;
/// Nor more referrers.
const LISTED_LIMIT: usize = 10_000;
/// Others may write the same index: it is read again, and written again where ours is not in it.
const MERGES: usize = 5;

/// An OCI index, as far as lists of referrers are read.
#[derive(Deserialize)]
struct Index {
    manifests: Option<Vec<Value>>,
}

/// What there is under the fallback tag of a manifest.
enum Fallback {
    Absent,
    /// An index, and the digests in it.
    Index(Bytes, Vec<Digest>),
    /// The manifest itself: GitLab takes the tag for the digest.
    Subject,
    /// What is no index: of this media type.
    Other(String),
}

/// One page of a list, and where the next one is.
struct Page {
    listed: Vec<Digest>,
    next: Option<Url>,
}

impl Registry {
    /// The digests of the manifests that the registry lists as referrers of `subject`, sorted, each once: by its
    /// referrers API, or where it has none by the fallback tag.
    ///
    /// What a list names need not be a referrer: that is for the manifest itself to say. A registry that does not tell
    /// is an error, not an empty list.
    pub async fn referrers(&self, repository: &str, subject: &Digest) -> Result<Vec<Digest>, RegistryError> {
        match self.listed_referrers(repository, subject).await? {
            Some(listed) => Ok(listed),
            None => Ok(match self.fallback(repository, subject).await? {
                Fallback::Index(_, listed) => listed,
                Fallback::Absent | Fallback::Subject | Fallback::Other(_) => Vec::new(),
            }),
        }
    }

    /// The same by the registry's referrers API alone; none where it has no such API, which each repository is asked for
    /// until it says so once: behind one host there may be several registries.
    pub async fn listed_referrers(
        &self,
        repository: &str,
        subject: &Digest,
    ) -> Result<Option<Vec<Digest>>, RegistryError> {
        if self.lacks_referrers(repository) {
            return Ok(None);
        }
        let mut retry = self.retry();
        let mut url = self.url(repository, &["referrers", subject.as_str()])?;
        let mut listed = Vec::new();
        for page in 0..PAGES {
            let asked = Asked::listing_referrers(self.host(), repository, subject);
            let mut call = Call::new(Method::GET, url, Scopes::pull(&self.remote(repository)), asked);
            call.stays = true;
            let call = call.header(ACCEPT, HeaderValue::from_static(INDEX));
            let Some(found) = self.page(repository, &call, &mut retry).await? else {
                if page > 0 {
                    return Err(call.asked.protocol(format!("page {} of the list is no list", page + 1)));
                }
                return Ok(None);
            };
            listed.extend(found.listed);
            if listed.len() > LISTED_LIMIT {
                return Err(too_many(&call));
            }
            let Some(next) = found.next else {
                listed.sort();
                listed.dedup();
                return Ok(Some(listed));
            };
            url = next;
        }
        let asked = Asked::listing_referrers(self.host(), repository, subject);
        Err(asked.protocol(format!("the list has more than {PAGES} pages")))
    }

    /// One page of a list; none if the answer is no list of referrers at all.
    async fn page(
        &self,
        repository: &str,
        call: &Call,
        retry: &mut Retry,
    ) -> Result<Option<Page>, RegistryError> {
        loop {
            let reply = self.send(call, retry).await?;
            match reply.status() {
                StatusCode::OK => {}
                StatusCode::NOT_FOUND => {
                    self.note_no_referrers(repository);
                    return Ok(None);
                }
                // GHCR sends whoever asks to a web page.
                status if status.is_redirection() => {
                    self.note_no_referrers(repository);
                    return Ok(None);
                }
                // What says that it cannot do this is not down. Who may not know is told so: there may be some.
                StatusCode::NOT_IMPLEMENTED => return Ok(None),
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                    return Err(self.refused(call, reply).await);
                }
                status if status.is_client_error() => return Ok(None),
                _ => return Err(self.refused(call, reply).await),
            }
            let Reply { response, url, .. } = reply;
            if content_type(response.headers()).as_deref() != Some(INDEX) {
                return Ok(None);
            }
            let next = self.next_page(call, &url, response.headers())?;
            match self.capped(response, MANIFEST_CAP).await {
                Ok(bytes) => return Ok(read(&call.asked, &bytes).map(|listed| Page { listed, next })),
                Err(CappedError::TooLong) => return Err(too_many(call)),
                Err(error) => retry.after(error.of(call, &url)).await?,
            }
        }
    }

    /// Where the list goes on, which must be at the same host: others have no say in it.
    fn next_page(&self, call: &Call, url: &Url, headers: &HeaderMap) -> Result<Option<Url>, RegistryError> {
        let Some(link) = headers.get_all(LINK).iter().find_map(|link| next_link(link.to_str().ok()?)) else {
            return Ok(None);
        };
        match self.join(url, link) {
            Some(next) if self.is_own(&next) => Ok(Some(next)),
            _ => Err(call.asked.protocol("its list goes on at another host, which is not asked")),
        }
    }

    /// What there is under the fallback tag of `subject`.
    async fn fallback(&self, repository: &str, subject: &Digest) -> Result<Fallback, RegistryError> {
        let tag = fallback_tag(subject);
        let found = match self.meaning(repository, &tag).await? {
            None => return Ok(Fallback::Absent),
            Some(meaning) if meaning.digest == *subject => return Ok(Fallback::Subject),
            Some(Meaning { read: Some(found), .. }) => found,
            Some(_) => match self.manifest(repository, &tag).await {
                Ok(found) => found,
                Err(error) if error.is_not_found() => return Ok(Fallback::Absent),
                Err(error) => return Err(error),
            },
        };
        Ok(match self.listed_in(repository, subject, &found) {
            Some(listed) => Fallback::Index(found.bytes, listed),
            None => Fallback::Other(found.media_type),
        })
    }

    /// The digests that what lies under the [fallback tag](fallback_tag) of `subject` lists, sorted, each once; none if it
    /// is no index.
    pub fn listed_in(&self, repository: &str, subject: &Digest, index: &Manifest) -> Option<Vec<Digest>> {
        let asked = Asked::listing_referrers(self.host(), repository, subject);
        (index.media_type == INDEX).then(|| read(&asked, &index.bytes)).flatten()
    }

    /// Stores a manifest that has a subject under its digest. Gives whether the registry lists it by itself from now on.
    pub async fn put_referrer(&self, repository: &str, referrer: &Manifest) -> Result<bool, RegistryError> {
        let Manifest { bytes, digest, media_type } = referrer;
        let headers = self.store_manifest(repository, digest.as_str(), media_type, bytes.clone()).await?;
        Ok(headers.contains_key("oci-subject"))
    }

    /// Sees to it that a registry which does not list `referrers` of `subject` by itself has them in the index under
    /// the fallback tag, beside all that is in there.
    pub async fn add_to_fallback(
        &self,
        repository: &str,
        subject: &Digest,
        referrers: &[Manifest],
    ) -> Result<(), RegistryError> {
        let tag = fallback_tag(subject);
        let asked = Asked::pushing(self.host(), repository, &tag);
        let refused = |problem: String| {
            let advice = "build the payload without referrers (--no-referrers, referrers: false)";
            Err(asked.unsupported_but(problem, advice))
        };
        for _ in 0..MERGES {
            let (mut index, listed) = match self.fallback(repository, subject).await? {
                Fallback::Index(bytes, listed) => {
                    (serde_json::from_slice(&bytes).unwrap_or_default(), listed)
                }
                Fallback::Absent => {
                    (json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}), Vec::new())
                }
                Fallback::Subject => {
                    return refused(
                        "the registry does not list referrers, and takes the tag that would list them for the manifest itself"
                            .to_owned(),
                    );
                }
                Fallback::Other(media_type) => {
                    return refused(format!(
                        "the tag means what is no index of referrers ({}), which is not overwritten: remove the tag, or else",
                        plain(&media_type)
                    ));
                }
            };
            let missing: Vec<&Manifest> =
                referrers.iter().filter(|referrer| !listed.contains(&referrer.digest)).collect();
            if missing.is_empty() {
                return Ok(());
            }
            if index["manifests"].is_null() {
                index["manifests"] = json!([]);
            }
            // What else is in there stays as it is, also what this program does not know.
            if let Some(manifests) = index["manifests"].as_array_mut() {
                manifests.extend(missing.into_iter().map(descriptor));
            }
            self.put_manifest(repository, &tag, INDEX, Bytes::from(index.to_string())).await?;
        }
        Err(asked.protocol("the registry took the index of referrers, and gives another one back"))
    }
}

/// The tag under which the referrers of a manifest are listed where the registry does not list them.
#[must_use]
pub fn fallback_tag(subject: &Digest) -> String {
    let hex = subject.hex();
    format!("{}-{}", subject.algorithm(), hex.get(..64).unwrap_or(hex))
}

/// The digests that an index names, unless it is none. What is named by no digest that is known is passed over, and told
/// of: the others are no less there.
fn read(asked: &Asked, bytes: &[u8]) -> Option<Vec<Digest>> {
    let index: Index = serde_json::from_slice(bytes).ok()?;
    let mut listed = Vec::new();
    for entry in index.manifests.unwrap_or_default() {
        let digest = entry["digest"].as_str().unwrap_or_default();
        match digest.parse() {
            Ok(digest) => listed.push(digest),
            Err(_) => {
                tracing::warn!("cannot {asked}: {:?} is passed over, it is no known digest", plain(digest));
            }
        }
    }
    listed.sort();
    listed.dedup();
    Some(listed)
}

/// What an index of referrers says of one (distribution specification 1.1, listing referrers).
fn descriptor(referrer: &Manifest) -> Value {
    let manifest: Value = serde_json::from_slice(&referrer.bytes).unwrap_or_default();
    let mut descriptor =
        json!({"mediaType": referrer.media_type, "digest": referrer.digest, "size": referrer.bytes.len()});
    let kind = [&manifest["artifactType"], &manifest["config"]["mediaType"]];
    if let Some(kind) = kind.into_iter().find(|kind| kind.as_str().is_some_and(|kind| !kind.is_empty())) {
        descriptor["artifactType"] = kind.clone();
    }
    if manifest["annotations"].is_object() {
        descriptor["annotations"] = manifest["annotations"].clone();
    }
    descriptor
}

/// The target of a `Link` whose relation is `next` (RFC 8288). Targets may have commas in them.
pub(super) fn next_link(mut link: &str) -> Option<&str> {
    loop {
        let (target, rest) = link.split_once('<')?.1.split_once('>')?;
        let end = rest.find(',').unwrap_or(rest.len());
        let is_next = |parameter: &str| {
            let (name, value) = parameter.trim().split_once('=')?;
            Some(
                name.trim().eq_ignore_ascii_case("rel")
                    && value.trim().trim_matches('"').eq_ignore_ascii_case("next"),
            )
        };
        if rest[..end].split(';').any(|parameter| is_next(parameter) == Some(true)) {
            return Some(target);
        }
        link = &rest[end..];
    }
}

fn too_many(call: &Call) -> RegistryError {
    let problem =
        format!("it has more than {LISTED_LIMIT} referrers, or their list more than {MANIFEST_CAP} bytes");
    call.asked.unsupported_but(problem, "delete there what nobody needs of them")
}
