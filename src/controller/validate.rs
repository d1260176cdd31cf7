//! From a spec to a wish that cannot be nonsense. Pure.
//!
//! The schema has refused most of what is wrong already; what it cannot say, or what an older or
//! relaxed schema let through, is told here. Whatever comes out can be turned into a Job.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

use crate::api::{
    BuildImage, Claim, ObjectStore, PayloadBuildSpec, PayloadImportSpec, RegistryAccess, Worker,
};
use crate::digest::Digest;
use crate::object_location::ObjectLocation;
use crate::platform::{Platform, PlatformError};
use crate::reference::{Endpoint, FarName, Host, Reference};
use crate::worker::contract::{self, BuildWork, ImportWork, Work};

/// How often a pod may fail if the spec does not say.
const DEFAULT_BACKOFF_LIMIT: i32 = 6;
/// How long a finished Job, and with it the log of its pod, stays if the spec does not say: a day.
const DEFAULT_JOB_TTL: i32 = 86_400;
/// Its end must have been seen before it goes.
const SHORTEST_JOB_TTL: i32 = 60;

/// What is written beside a payload is called so, and may not be another payload.
const TAKEN_SUFFIXES: [&str; 6] =
    [".partial", ".partial.journal", ".report.json", ".report.partial", ".bill.json", ".bill.partial"];

/// A wish, checked.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Valid {
    /// What the worker is told.
    pub work: Work,
    /// How registries are reached, an import's target first.
    pub registries: Vec<Registry>,
    /// Where the payload goes or lies.
    pub place: Place,
    /// The builds whose payloads this one is built upon; the worker is told of them once they are there.
    pub bases: Vec<String>,
    /// Everything of the spec that the run id is a hash of.
    pub identity: Value,
    /// The pod's settings.
    pub worker: Worker,
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

    /// Whether two payloads would have one place.
    pub(super) fn is_that_of(&self, other: &Self) -> bool {
        self.identity() == other.identity()
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
    if names.is_empty() {
        return Err(Invalid("spec.images is empty; name at least one image".into()));
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
    Ok(Valid {
        identity: json!({
            "images": spec.images,
            "platforms": spec.platforms,
            "alreadyTransferred": spec.already_transferred,
            "foreignLayers": spec.foreign_layers,
            "allowMissing": spec.allow_missing,
            "referrers": spec.referrers,
            "output": place.identity(),
            "trigger": spec.trigger,
        }),
        work: Work::Build(BuildWork {
            images: images(spec)?,
            already_transferred: far,
            bases: Vec::new(),
            foreign_layers: spec.foreign_layers.unwrap_or(false),
            allow_missing: spec.allow_missing.unwrap_or(false),
            referrers: spec.referrers.unwrap_or(true),
            path: place.path(),
            object_store: place.object(),
        }),
        registries: registries(spec.registries.as_deref().unwrap_or_default())?,
        bases: bases(spec, &place)?,
        place,
        worker: spec.worker.clone().unwrap_or_default(),
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
    };
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
            "trigger": spec.trigger,
        }),
        work: Work::Import(work),
        registries: vec![registry(&target, "spec.registry")?],
        place,
        bases: Vec::new(),
        worker: spec.worker.clone().unwrap_or_default(),
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
fn bases(spec: &PayloadBuildSpec, place: &Place) -> Result<Vec<String>, Invalid> {
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
    if !names.is_empty() && !matches!(place, Place::Claim(_)) {
        return Err(Invalid(
            "spec.alreadyTransferred.payloads are looked for in the claim of spec.output, which is an object store; name the images instead".into(),
        ));
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
    let mut names: HashMap<String, &Reference> = HashMap::new();
    for (reference, own) in references.iter().zip(own) {
        // Without a tag, the far side gets one that is made of the digest.
        let tag = own.as_ref().and_then(FarName::tag).or(reference.tag());
        let tag = tag.unwrap_or_else(|| reference.tag_or_digest());
        let repository = own.as_ref().map_or(reference.far_repository(), FarName::repository);
        let name = format!("{repository}:{tag}");
        match names.get(&name) {
            Some(first) if first.to_string() != reference.to_string() => {
                return Err(Invalid(format!(
                    "spec.images has {} and {}, which would both arrive as {name}; give one of them another name by its field as",
                    first.written(),
                    reference.written()
                )));
            }
            _ => names.insert(name, reference),
        };
    }
    Ok(())
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
mod tests {
    use super::*;

    fn build_of(spec: Value) -> Result<Valid, String> {
        build(&serde_json::from_value(spec).unwrap()).map_err(|invalid| invalid.0)
    }

    fn import_of(spec: Value) -> Result<Valid, String> {
        import(&serde_json::from_value(spec).unwrap()).map_err(|invalid| invalid.0)
    }

    fn spec() -> Value {
        json!({
            "images": [{ "image": "python:3" }],
            "output": { "persistentVolumeClaim": { "claimName": "transfer", "path": "out/app.zip" } },
        })
    }

    fn import_spec() -> Value {
        json!({
            "source": { "persistentVolumeClaim": { "claimName": "inbox", "path": "app.zip" } },
            "registry": { "host": "registry.infra:5000" },
        })
    }

    fn with(mut spec: Value, field: &str, value: Value) -> Value {
        spec[field] = value;
        spec
    }

    #[test]
    fn a_build_carries_referrers_unless_it_says_otherwise() {
        for (given, expected) in [(json!(null), true), (json!(true), true), (json!(false), false)] {
            let Work::Build(work) = build_of(with(spec(), "referrers", given)).unwrap().work else {
                panic!()
            };
            assert_eq!(work.referrers, expected);
        }
    }

    #[test]
    fn a_build_becomes_work_with_the_defaults_filled_in() {
        let valid = build_of(spec()).unwrap();
        let work = BuildWork {
            images: vec!["python:3".into()],
            already_transferred: vec![],
            bases: vec![],
            foreign_layers: false,
            allow_missing: false,
            referrers: true,
            path: "out/app.zip".into(),
            object_store: None,
        };
        assert_eq!(valid.work, Work::Build(work));
        assert_eq!((valid.backoff_limit, valid.timeout), (6, None));
        assert_eq!((valid.location().as_str(), valid.read_only()), ("transfer/out/app.zip", false));
    }

    #[test]
    fn platforms_of_all_images_are_those_of_each_that_has_none_of_its_own() {
        let images = json!([{ "image": "a" }, { "image": "b", "platforms": ["linux/arm64/v8"] }]);
        let valid =
            build_of(with(with(spec(), "images", images), "platforms", json!(["linux/amd64"]))).unwrap();
        let Work::Build(work) = valid.work else { panic!("a build builds") };
        let platforms = work.images.iter().map(|image| crate::platform::list(&image.platforms));
        assert_eq!(platforms.collect::<Vec<_>>(), ["linux/amd64", "linux/arm64"]);
    }

    #[test]
    fn an_import_has_its_target_as_the_first_registry() {
        let spec = with(
            import_spec(),
            "registry",
            json!({ "host": "r:5000", "insecure": true, "secretRef": { "name": "s" }, "certSecretRef": { "name": "c" } }),
        );
        let valid = import_of(spec).unwrap();
        let certificates = Some("c".into());
        let access =
            contract::RegistryAccess { host: "r:5000".into(), endpoint: None, insecure: true, certificates };
        let registry = Registry { access, credentials: Some("s".into()) };
        assert_eq!(valid.registries, [registry]);
        assert!(valid.read_only());
    }

    #[test]
    fn what_the_schema_cannot_see_is_refused_with_its_field() {
        let images = |images: &[&str]| {
            let images: Vec<Value> = images.iter().map(|image| json!({ "image": image })).collect();
            with(spec(), "images", images.into())
        };
        let path = |path: &str| {
            with(spec(), "output", json!({ "persistentVolumeClaim": { "claimName": "c", "path": path } }))
        };
        let registries = |hosts: [&str; 2]| {
            with(spec(), "registries", hosts.map(|host| json!({ "host": host })).to_vec().into())
        };
        for (spec, words) in [
            (images(&[]), "spec.images is empty"),
            (images(&["a", "A"]), "spec.images[1].image: \"A\" is no image name"),
            (
                images(&["q.io/a:1", "g.io/a:1"]),
                "spec.images has q.io/a:1 and g.io/a:1, which would both arrive as a:1",
            ),
            (images(&["a", "q.io/a:latest"]), "both arrive as a:latest"),
            (
                with(spec(), "alreadyTransferred", json!({ "images": ["b:c:d"] })),
                "spec.alreadyTransferred.images[0]",
            ),
            (
                with(spec(), "images", json!([{ "image": "a", "as": "a@b" }])),
                "spec.images[0].as: \"a@b\" is no name for the far side",
            ),
            (with(spec(), "platforms", json!(["linux"])), "spec.platforms: \"linux\" is no platform"),
            (
                with(spec(), "images", json!([{ "image": "a", "platforms": ["linux/amd64", "/"] }])),
                "spec.images[0].platforms: \"/\" is no platform",
            ),
            (
                with(spec(), "registries", json!([{ "host": "a.b", "endpoint": "http://c" }])),
                "spec.registries[0].endpoint: \"http://c\" is no endpoint",
            ),
            (path("../x"), "spec.output.persistentVolumeClaim.path \"../x\""),
            (path("x.zip.partial"), "ends in .partial, which is for files beside payloads"),
            (path("x.zip.report.json"), "ends in .report.json"),
            (path("/x"), "without '.', '..' and empty parts"),
            (
                with(spec(), "output", json!({})),
                "spec.output must have exactly one of persistentVolumeClaim and objectStore",
            ),
            (
                with(spec(), "output", json!({ "objectStore": { "bucket": "b", "key": "a.zip.partial" } })),
                "spec.output.objectStore.key \"a.zip.partial\" ends in .partial",
            ),
            (
                with(spec(), "output", json!({ "objectStore": { "bucket": "b", "key": "a/../b" } })),
                "spec.output.objectStore: \"b/a/../b\" names no object",
            ),
            (registries(["docker.io", "index.docker.io"]), "are the same registry"),
            (registries(["a.b", "a.b/c"]), "spec.registries[1].host"),
            (with(spec(), "timeout", json!("1d")), "spec.timeout \"1d\""),
            (with(spec(), "timeout", json!("0s")), "spec.timeout \"0s\""),
            (with(spec(), "timeout", json!("5")), "spec.timeout \"5\""),
            (with(spec(), "timeout", json!("99999999999999999999h")), "spec.timeout"),
        ] {
            let refusal = build_of(spec.clone()).unwrap_err();
            assert!(refusal.contains(words), "{spec}: {refusal}");
        }
        for (spec, words) in [
            (with(import_spec(), "source", json!({})), "spec.source must have exactly one of"),
            (with(import_spec(), "expectedDigest", json!("sha256:1")), "spec.expectedDigest"),
            (with(import_spec(), "registry", json!({ "host": "a.b/c" })), "spec.registry.host"),
        ] {
            let refusal = import_of(spec.clone()).unwrap_err();
            assert!(refusal.contains(words), "{spec}: {refusal}");
        }
    }

    #[test]
    fn two_images_that_would_arrive_under_one_name_are_told_apart_by_as_or_refused_with_both_names() {
        let images = |images: Value| build_of(with(spec(), "images", images));
        for (first, second, clash) in [
            (json!({ "image": "q.io/a:1" }), json!({ "image": "g.io/a:1" }), Some("a:1")),
            (json!({ "image": "q.io/a:1", "as": "q/a" }), json!({ "image": "g.io/a:1" }), None),
            (
                json!({ "image": "q.io/a:1", "as": "b:1" }),
                json!({ "image": "g.io/a:1", "as": "b:1" }),
                Some("b:1"),
            ),
            (json!({ "image": "q.io/a:1", "as": "b" }), json!({ "image": "g.io/b:1" }), Some("b:1")),
            (json!({ "image": "a:1", "as": "b:2" }), json!({ "image": "docker.io/a:1" }), None),
        ] {
            let (one, other) = (first["image"].clone(), second["image"].clone());
            let refusal = images(json!([first, second])).err();
            match clash {
                None => assert_eq!(refusal, None),
                Some(name) => assert_eq!(
                    refusal.unwrap(),
                    format!(
                        "spec.images has {} and {}, which would both arrive as {name}; give one of them another name by its field as",
                        one.as_str().unwrap(),
                        other.as_str().unwrap()
                    )
                ),
            }
        }
    }

    #[test]
    fn names_and_tuning_reach_the_worker_and_the_job() {
        let images = json!([{ "image": "python:3", "as": "base/python:3" }]);
        let valid = build_of(with(with(spec(), "images", images), "suspend", json!(true))).unwrap();
        let Work::Build(work) = valid.work else { panic!("{:?}", valid.work) };
        assert_eq!(work.images[0].far_name.as_deref(), Some("base/python:3"));
        assert_eq!((valid.suspended, valid.job_ttl), (true, 86_400));
        let registry = json!({
            "host": "r:5000", "naming": "WithHost", "baseRepositories": ["base/a"], "tagDigests": false,
        });
        let spec = with(import_spec(), "registry", registry);
        let valid = import_of(with(spec, "ttlSecondsAfterFinished", json!(1))).unwrap();
        let Work::Import(work) = valid.work else { panic!("{:?}", valid.work) };
        assert_eq!((work.naming, work.tag_digests), (contract::Naming::WithHost, false));
        assert_eq!(work.base_repositories, ["base/a"]);
        assert_eq!((valid.suspended, valid.job_ttl), (false, 60));
    }

    #[test]
    fn one_image_written_in_two_ways_is_no_conflict() {
        let images = json!([{ "image": "python:3" }, { "image": "docker.io/python:3" }]);
        assert!(build_of(with(spec(), "images", images)).is_ok());
    }

    #[test]
    fn a_timeout_is_the_sum_of_its_parts() {
        for (text, seconds) in [("72h", 259_200), ("1h30m", 5400), ("1m1s", 61)] {
            assert_eq!(timeout(Some(text)).unwrap(), Some(Duration::from_secs(seconds)));
        }
    }
}
