//! From a spec to a wish that cannot be nonsense. Pure.
//!
//! The schema has refused most of what is wrong already; what it cannot say, or what an older or
//! relaxed schema let through, is told here. Whatever comes out can be turned into a Job.

mod worker;

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use k8s_openapi::api::core::v1::Affinity;
use serde_json::{Value, json};

use crate::api::{
    BuildImage, Claim, ConfigMapKeyRef, ObjectStore, PayloadBuildSpec, PayloadImportSpec, RegistryAccess,
    Worker,
};
use crate::digest::Digest;
use crate::object_location::ObjectLocation;
use crate::platform::{Platform, PlatformError};
use crate::reference::{Clash, Endpoint, FarName, Host, Reference};
use crate::worker::contract::{self, BuildWork, ImportWork, Work};

/// How often a pod may fail if the spec does not say.
const DEFAULT_BACKOFF_LIMIT: i32 = 6;
/// How long a finished Job, and with it the log of its pod, stays if the spec does not say: a day.
const DEFAULT_JOB_TTL: i32 = 86_400;
/// Its end must have been seen before it goes.
const SHORTEST_JOB_TTL: i32 = 60;

/// What is written beside a payload is called so, and may not be another payload.
const TAKEN_SUFFIXES: [&str; 8] = [
    ".partial",
    ".partial.journal",
    ".partial.manifests",
    ".report.json",
    ".report.partial",
    ".bill.json",
    ".bill.partial",
    ".sha256",
];

/// A wish, checked.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Valid {
    /// What the worker is told.
    pub work: Work,
    /// How registries are reached, an import's target first.
    pub registries: Vec<Registry>,
    /// The Secret of the proxy that they and the object store are reached by.
    pub proxy: Option<String>,
    /// Where the payload goes or lies.
    pub place: Place,
    /// The builds whose payloads this one is built upon; the worker is told of them once they are there.
    pub bases: Vec<String>,
    /// Everything of the spec that the run id is a hash of.
    pub identity: Value,
    /// The pod's settings.
    pub worker: Worker,
    /// What the pod's settings say of nodes and neighbours.
    pub affinity: Option<Affinity>,
    /// How often a pod may fail.
    pub backoff_limit: i32,
    /// How long the run may take.
    pub timeout: Option<Duration>,
    /// How long a finished Job stays, in seconds.
    pub job_ttl: i32,
    /// No worker is wanted for now.
    pub suspended: bool,
}

/// Where a payload goes or lies.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Place {
    /// A file in a claim.
    Claim(Claim),
    /// An object of a store.
    Object(ObjectStore),
}

/// A registry and the Secrets that open it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Registry {
    pub access: contract::RegistryAccess,
    /// Where and how it is reached is left to what is said for all.
    pub is_open: bool,
    /// The Secret with `.dockerconfigjson`.
    pub credentials: Option<String>,
}

/// Why a spec cannot be fulfilled: one sentence, which names the field.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Invalid(pub String);

impl Valid {
    /// Where the payload lies, as a status tells it.
    pub(super) fn location(&self) -> String {
        self.place.to_string()
    }

    /// Whether the volume is only read.
    pub(super) fn read_only(&self) -> bool {
        matches!(self.work, Work::Import(_))
    }
}

impl Place {
    /// The place that `field` of a spec names: exactly one of the two.
    fn of(claim: Option<&Claim>, object: Option<&ObjectStore>, field: &str) -> Result<Self, Invalid> {
        match (claim, object) {
            (Some(claim), None) => {
                Ok(Self::Claim(checked_claim(claim, &format!("{field}.persistentVolumeClaim"))?))
            }
            (None, Some(object)) => {
                let provider = object.provider.unwrap_or_default();
                let location = ObjectLocation::new(provider, &object.bucket, &object.key);
                location.map_err(|error| Invalid(format!("{field}.objectStore: {error}")))?;
                Ok(Self::Object(object.clone()))
            }
            _ => Err(Invalid(format!(
                "{field} must have exactly one of persistentVolumeClaim and objectStore"
            ))),
        }
    }

    /// The payload's name, whose ends some are taken.
    fn name(&self) -> (&'static str, &str) {
        match self {
            Self::Claim(claim) => ("persistentVolumeClaim.path", &claim.path),
            Self::Object(object) => ("objectStore.key", &object.key),
        }
    }

    /// The path in the volume; nothing of an object.
    fn path(&self) -> String {
        match self {
            Self::Claim(claim) => claim.path.clone(),
            Self::Object(_) => String::new(),
        }
    }

    /// The object, as the worker is told of it.
    fn object(&self) -> Option<contract::ObjectStore> {
        let Self::Object(object) = self else { return None };
        Some(contract::ObjectStore {
            provider: object.provider.unwrap_or_default(),
            bucket: object.bucket.clone(),
            key: object.key.clone(),
            endpoint: object.endpoint.clone(),
            region: object.region.clone(),
            credentials: object.secret_ref.is_some(),
            certificates: object.cert_secret_ref.is_some(),
        })
    }

    /// What of it the run id is a hash of: where it is, not what opens it.
    fn identity(&self) -> Value {
        match self {
            Self::Claim(claim) => json!({ "persistentVolumeClaim": claim }),
            Self::Object(object) => {
                let where_it_is = ObjectStore { secret_ref: None, cert_secret_ref: None, ..object.clone() };
                json!({ "objectStore": where_it_is })
            }
        }
    }

    /// The same text for all payloads that would have one place.
    pub(super) fn key(&self) -> String {
        self.identity().to_string()
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Claim(claim) => write!(f, "{}/{}", claim.claim_name, claim.path),
            Self::Object(object) => {
                let provider = object.provider.unwrap_or_default();
                let location = ObjectLocation::new(provider, &object.bucket, &object.key);
                location.map_or(Ok(()), |location| location.fmt(f))
            }
        }
    }
}

/// Checks the spec of a `PayloadBuild`.
pub(super) fn build(spec: &PayloadBuildSpec) -> Result<Valid, Invalid> {
    let names: Vec<String> = spec.images.iter().map(|image| image.image.clone()).collect();
    if names.is_empty() && spec.images_from.is_none() {
        return Err(Invalid("spec has neither images nor imagesFrom; name at least one image".into()));
    }
    let far = spec.already_transferred.as_ref().and_then(|far| far.images.clone()).unwrap_or_default();
    let references = references(&names, |index| format!("spec.images[{index}].image"))?;
    distinct_at_the_far_side(&references, &far_names(spec)?)?;
    self::references(&far, |index| format!("spec.alreadyTransferred.images[{index}]"))?;
    let output = &spec.output;
    let place =
        Place::of(output.persistent_volume_claim.as_ref(), output.object_store.as_ref(), "spec.output")?;
    let (field, name) = place.name();
    if let Some(suffix) = TAKEN_SUFFIXES.into_iter().find(|suffix| name.ends_with(suffix)) {
        return Err(Invalid(format!(
            "spec.output.{field} {name:?} ends in {suffix}, which is for files beside payloads; choose another name"
        )));
    }
    let worker = spec.worker.clone().unwrap_or_default();
    let mut output_identity = place.identity();
    output_identity["fileDigest"] = json!(output.file_digest);
    Ok(Valid {
        identity: json!({
            "images": (!spec.images.is_empty()).then_some(&spec.images),
            "imagesFrom": spec.images_from,
            "platforms": spec.platforms,
            "alreadyTransferred": spec.already_transferred,
            "foreignLayers": spec.foreign_layers,
            "allowMissing": spec.allow_missing,
            "referrers": spec.referrers,
            "output": output_identity,
            "trigger": spec.trigger,
        }),
        work: Work::Build(BuildWork {
            images: images(spec)?,
            images_from: images_from(spec)?,
            already_transferred: far,
            bases: Vec::new(),
            foreign_layers: spec.foreign_layers.unwrap_or(false),
            allow_missing: spec.allow_missing.unwrap_or(false),
            referrers: spec.referrers.unwrap_or(true),
            path: place.path(),
            object_store: place.object(),
            file_digest: spec.output.file_digest.unwrap_or(false),
        }),
        registries: registries(spec.registries.as_deref().unwrap_or_default())?,
        bases: bases(spec)?,
        place,
        proxy: spec.proxy_secret_ref.as_ref().map(|secret| secret.name.clone()),
        affinity: worker::checked(&worker)?,
        worker,
        backoff_limit: spec.backoff_limit.unwrap_or(DEFAULT_BACKOFF_LIMIT),
        timeout: timeout(spec.timeout.as_deref())?,
        job_ttl: job_ttl(spec.ttl_seconds_after_finished),
        suspended: spec.suspend.unwrap_or(false),
    })
}

/// Checks the spec of a `PayloadImport`.
pub(super) fn import(spec: &PayloadImportSpec) -> Result<Valid, Invalid> {
    let source = &spec.source;
    let place =
        Place::of(source.persistent_volume_claim.as_ref(), source.object_store.as_ref(), "spec.source")?;
    let expected_digest = match &spec.expected_digest {
        Some(text) => {
            let digest: Result<Digest, _> = text.parse();
            Some(digest.map_err(|error| Invalid(format!("spec.expectedDigest: {error}")))?)
        }
        None => None,
    };
    let target = RegistryAccess {
        host: spec.registry.host.clone(),
        endpoint: None,
        secret_ref: spec.registry.secret_ref.clone(),
        cert_secret_ref: spec.registry.cert_secret_ref.clone(),
        insecure: spec.registry.insecure,
    };
    let work = ImportWork {
        path: place.path(),
        object_store: place.object(),
        expected_digest,
        registry: spec.registry.host.clone(),
        repository_prefix: spec.registry.repository_prefix.clone(),
        naming: spec.registry.naming.unwrap_or_default(),
        base_repositories: spec.registry.base_repositories.clone().unwrap_or_default(),
        tag_digests: spec.registry.tag_digests.unwrap_or(true),
        sparse_index: spec.registry.sparse_index.unwrap_or_default(),
        strict: spec.strict.unwrap_or(false),
        tag_policy: spec.tag_policy.unwrap_or_default(),
    };
    let worker = spec.worker.clone().unwrap_or_default();
    Ok(Valid {
        identity: json!({
            "source": place.identity(),
            "expectedDigest": spec.expected_digest,
            "registry": {
                "host": spec.registry.host,
                "repositoryPrefix": spec.registry.repository_prefix,
                "naming": spec.registry.naming,
                "baseRepositories": spec.registry.base_repositories,
                "tagDigests": spec.registry.tag_digests,
                "sparseIndex": spec.registry.sparse_index,
            },
            "strict": spec.strict,
            "tagPolicy": spec.tag_policy,
            "trigger": spec.trigger,
        }),
        work: Work::Import(work),
        registries: vec![registry(&target, "spec.registry")?],
        place,
        bases: Vec::new(),
        proxy: spec.proxy_secret_ref.as_ref().map(|secret| secret.name.clone()),
        affinity: worker::checked(&worker)?,
        worker,
        backoff_limit: spec.backoff_limit.unwrap_or(DEFAULT_BACKOFF_LIMIT),
        timeout: timeout(spec.timeout.as_deref())?,
        job_ttl: job_ttl(spec.ttl_seconds_after_finished),
        suspended: spec.suspend.unwrap_or(false),
    })
}

fn job_ttl(seconds: Option<i32>) -> i32 {
    seconds.map_or(DEFAULT_JOB_TTL, |seconds| seconds.max(SHORTEST_JOB_TTL))
}

/// The names of the builds that a build is built upon, each once.
fn bases(spec: &PayloadBuildSpec) -> Result<Vec<String>, Invalid> {
    let far = spec.already_transferred.as_ref();
    let bases = far.and_then(|far| far.payloads.as_deref()).unwrap_or_default();
    let names: Vec<String> = bases.iter().map(|base| base.name.clone()).collect();
    for (index, name) in names.iter().enumerate() {
        if names[..index].contains(name) {
            return Err(Invalid(format!(
                "spec.alreadyTransferred.payloads names {name:?} twice; once is enough"
            )));
        }
    }
    Ok(names)
}

fn references(images: &[String], field: impl Fn(usize) -> String) -> Result<Vec<Reference>, Invalid> {
    let parse = |(index, image): (usize, &String)| {
        Reference::parse(image, &Host::docker_hub())
            .map_err(|error| Invalid(format!("{}: {error}", field(index))))
    };
    images.iter().enumerate().map(parse).collect()
}

/// The images as the worker is told of them: what the spec says of all is said of each.
fn images(spec: &PayloadBuildSpec) -> Result<Vec<contract::Image>, Invalid> {
    let of_all = platforms(spec.platforms.as_deref(), "spec.platforms")?;
    let image = |(index, image): (usize, &BuildImage)| {
        let own = platforms(image.platforms.as_deref(), &format!("spec.images[{index}].platforms"))?;
        Ok(contract::Image {
            name: image.image.clone(),
            far_name: image.far_name.clone(),
            platforms: own.or_else(|| of_all.clone()).unwrap_or_default(),
        })
    };
    spec.images.iter().enumerate().map(image).collect()
}

/// The list that the worker is to read, whose images are carried for the platforms of all.
fn images_from(spec: &PayloadBuildSpec) -> Result<Option<contract::ImageList>, Invalid> {
    let Some(from) = &spec.images_from else { return Ok(None) };
    let platforms = platforms(spec.platforms.as_deref(), "spec.platforms")?.unwrap_or_default();
    let ConfigMapKeyRef { name, key } = from.config_map_key_ref.clone();
    Ok(Some(contract::ImageList { config_map: name, key, platforms }))
}

fn platforms(names: Option<&[String]>, field: &str) -> Result<Option<Vec<Platform>>, Invalid> {
    let refused = |error: PlatformError| Invalid(format!("{field}: {error}"));
    names.map(|names| names.iter().map(|name| name.parse().map_err(refused)).collect()).transpose()
}

/// The names of their own that images are to have at the far side.
fn far_names(spec: &PayloadBuildSpec) -> Result<Vec<Option<FarName>>, Invalid> {
    let parse = |(index, image): (usize, &BuildImage)| {
        let refused = |error| Invalid(format!("spec.images[{index}].as: {error}"));
        image.far_name.as_deref().map(str::parse).transpose().map_err(refused)
    };
    spec.images.iter().enumerate().map(parse).collect()
}

/// Refuses two images that would have one name where they arrive.
fn distinct_at_the_far_side(references: &[Reference], own: &[Option<FarName>]) -> Result<(), Invalid> {
    let images = references.iter().zip(own.iter().map(Option::as_ref));
    match Clash::among(images) {
        Some(clash) => {
            Err(Invalid(format!("spec.images has {clash}; give one of them another name by its field as")))
        }
        None => Ok(()),
    }
}

/// The claim, if its path stays in the volume. The schema has the same rules.
fn checked_claim(claim: &Claim, field: &str) -> Result<Claim, Invalid> {
    let part_is_wrong = |part: &str| matches!(part, "" | "." | "..") || part.chars().any(char::is_control);
    if claim.path.split('/').any(part_is_wrong) {
        return Err(Invalid(format!(
            "{field}.path {:?} must be relative, without '.', '..' and empty parts",
            claim.path
        )));
    }
    Ok(claim.clone())
}

fn registries(registries: &[RegistryAccess]) -> Result<Vec<Registry>, Invalid> {
    let mut hosts: HashMap<Host, usize> = HashMap::new();
    let mut found = Vec::new();
    for (index, access) in registries.iter().enumerate() {
        found.push(registry(access, &format!("spec.registries[{index}]"))?);
        if let Ok(host) = access.host.parse::<Host>()
            && let Some(first) = hosts.insert(host, index)
        {
            return Err(Invalid(format!(
                "spec.registries[{first}].host {:?} and spec.registries[{index}].host {:?} are the same registry",
                registries[first].host, access.host
            )));
        }
    }
    Ok(found)
}

fn registry(access: &RegistryAccess, field: &str) -> Result<Registry, Invalid> {
    let host: Result<Host, _> = access.host.parse();
    host.map_err(|error| Invalid(format!("{field}.host: {error}")))?;
    let endpoint: Result<Option<Endpoint>, _> = access.endpoint.as_deref().map(str::parse).transpose();
    endpoint.map_err(|error| Invalid(format!("{field}.endpoint: {error}")))?;
    Ok(Registry {
        is_open: access.endpoint.is_none() && access.insecure.is_none(),
        access: contract::RegistryAccess {
            host: access.host.clone(),
            endpoint: access.endpoint.clone(),
            insecure: access.insecure.unwrap_or(false),
            certificates: access.cert_secret_ref.as_ref().map(|secret| secret.name.clone()),
        },
        credentials: access.secret_ref.as_ref().map(|secret| secret.name.clone()),
    })
}

/// `72h`, `1h30m`, `90s`.
fn timeout(text: Option<&str>) -> Result<Option<Duration>, Invalid> {
    let Some(text) = text else { return Ok(None) };
    let refused = || {
        Invalid(format!(
            "spec.timeout {text:?} is no duration of hours, minutes and seconds, such as 72h or 1h30m"
        ))
    };
    let mut seconds: u64 = 0;
    let mut digits = String::new();
    for c in text.chars() {
        let unit = match c {
            '0'..='9' => {
                digits.push(c);
                continue;
            }
            'h' => 3600,
            'm' => 60,
            's' => 1,
            _ => return Err(refused()),
        };
        let count: u64 = std::mem::take(&mut digits).parse().map_err(|_| refused())?;
        seconds = count.checked_mul(unit).and_then(|more| seconds.checked_add(more)).ok_or_else(refused)?;
    }
    if seconds == 0 || !digits.is_empty() {
        return Err(refused());
    }
    Ok(Some(Duration::from_secs(seconds)))
}

#[cfg(test)]
mod tests;
