use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use secrecy::{ExposeSecret, SecretString};
use tracing::{info, warn};

use super::Refusal;
use super::contract::{
    BasePayload, BuildWork, FAILURES_LIMIT, ImportResult, ImportWork, ObjectStore, Outcome, PayloadSummary,
    ProxyAccess, RegistryAccess, Rewritten, RunConfig, Work,
};
use super::list::images;
use super::place::Place;
use super::report::{self, Report};
use crate::build::{BaseError, BuildRequest, build, open_base};
use crate::digest::Digest;
use crate::import::{Fate, ImportReport, ImportRequest, Source, import};
use crate::payload::Base;
use crate::progress::Progress;
use crate::proxy::Proxy;
use crate::reason::{self, Failure, Reason};
use crate::reference::{Endpoint, Host, Reference};
use crate::registry::{Access, DockerConfig, Logins, Registry, Traffic};

/// Where a worker finds what is mounted for it.
pub(super) struct Folders<'a> {
    /// The volume that payloads are in.
    pub(super) payloads: &'a Path,
    /// What opens registries.
    pub(super) registry_secrets: &'a Path,
    /// What opens the object store.
    pub(super) object_store_secrets: &'a Path,
    /// What tells of the proxy.
    pub(super) proxy_secrets: &'a Path,
    /// Certificates of authorities, if they were given.
    pub(super) ca_bundle: &'a Path,
    /// The list of images.
    pub(super) images_list: &'a Path,
}

/// How registries and stores are reached.
pub(super) struct Way {
    traffic: Traffic,
    pub(super) proxy: Option<Proxy>,
    /// Certificates of authorities, in PEM.
    ca_bundle: Option<Vec<u8>>,
}

impl Way {
    /// Who is trusted where `ca_pem` is what the host's own Secret holds.
    pub(super) fn authorities(&self, ca_pem: Option<Vec<u8>>) -> Option<Vec<u8>> {
        match (ca_pem, self.ca_bundle.clone()) {
            (Some(own), Some(of_all)) => Some([own, b"\n".to_vec(), of_all].concat()),
            (own, of_all) => own.or(of_all),
        }
    }
}

/// Does the work of a run configuration.
pub(super) async fn run(
    config: &RunConfig,
    folders: &Folders<'_>,
    traffic: &Traffic,
    progress: &Arc<Progress>,
) -> Outcome {
    let outcome = work(config, folders, traffic, progress).await;
    outcome.unwrap_or_else(Outcome::from)
}

async fn work(
    config: &RunConfig,
    folders: &Folders<'_>,
    traffic: &Traffic,
    progress: &Arc<Progress>,
) -> Result<Outcome, Refusal> {
    // What is mounted is read from a disk.
    let (given, by, traffic) = (config.registries.clone(), config.proxy.clone(), traffic.clone());
    let (secrets, of_proxy) = (folders.registry_secrets.to_owned(), folders.proxy_secrets.to_owned());
    let ca_bundle = folders.ca_bundle.to_owned();
    let mounted = tokio::task::spawn_blocking(move || {
        let proxy = by.map(|by| proxy(&by, &of_proxy)).transpose()?;
        let way = Way { traffic, proxy, ca_bundle: mounted(&ca_bundle)? };
        Ok((registries(&given, &secrets, &way)?, way))
    });
    let mounted = mounted.await.map_err(|error| Refusal::new(Reason::WorkerFailed, error.to_string()));
    let (registries, way) = mounted.and_then(std::convert::identity)?;
    match &config.work {
        Work::Build(work) => {
            Box::pin(run_build(&config.run_id, work, registries, &way, folders, progress)).await
        }
        Work::Import(work) => Box::pin(run_import(work, registries, &way, folders, progress)).await,
    }
}

/// For how long the registries want to be left alone before the next attempt.
fn rest<'a>(registries: impl IntoIterator<Item = &'a Registry>) -> Option<u32> {
    let rest = registries.into_iter().filter_map(Registry::rest).max()?;
    Some(u32::try_from(rest.as_secs()).unwrap_or(u32::MAX))
}

async fn run_build(
    run_id: &str,
    work: &BuildWork,
    mut registries: HashMap<Host, Registry>,
    way: &Way,
    folders: &Folders<'_>,
    progress: &Arc<Progress>,
) -> Result<Outcome, Refusal> {
    let place = Place::new(&work.path, work.object_store.as_ref(), folders, way)?;
    if let Some((mut payload, failures)) = report::already_present(&place, run_id).await {
        if work.file_digest && payload.file_digest.is_none() {
            payload.file_digest = Some(sum(&place, run_id).await?);
        }
        let message = format!("{place} lies there already, as this run had written it");
        let outcome = Outcome::new(Reason::AlreadyPresent, message).with_failures(failures);
        return Ok(Outcome { payload: Some(payload), ..outcome });
    }
    let images = images(work, folders.images_list).await?;
    let already_transferred = references(&work.already_transferred)?;
    let bases = bases(work, folders, way).await?;
    for reference in images.iter().map(|image| &image.reference).chain(&already_transferred) {
        if !registries.contains_key(reference.host()) {
            let access = Access::default();
            let client = client(reference.host().clone(), access, way)?;
            registries.insert(reference.host().clone(), client);
        }
    }
    place.prepare().await?;
    let asked: Vec<Registry> = registries.values().cloned().collect();
    let request = BuildRequest {
        images,
        already_transferred,
        bases,
        foreign_layers: work.foreign_layers,
        allow_missing: work.allow_missing,
        referrers: work.referrers,
        registries,
        run: with_bases(run_id, &work.bases),
        spares_other_files: true,
    };
    Ok(match Box::pin(build(request, place.output(), progress)).await {
        Ok(built) => {
            // Before the whole file is read for its sum: who is killed meanwhile has no more to do than that.
            report(&place, run_id, None).await;
            let file_digest = if work.file_digest { Some(sum(&place, run_id).await?) } else { None };
            let message = format!("{place} with {} images, {} bytes, was written", built.images, built.size);
            Outcome {
                payload: Some(PayloadSummary {
                    digest: Some(built.digest.clone()),
                    file_digest,
                    size_bytes: built.size,
                    format_version: built.format_version,
                    images: count(built.images),
                    blobs: count(built.blobs),
                    blobs_reused: count(built.blobs_reused),
                }),
                ..Outcome::new(Reason::Succeeded, message).with_failures(built.missing)
            }
        }
        Err(error) => {
            let failures = error.failures().to_vec();
            let message = match failures.as_slice() {
                [] => error.to_string(),
                [only] => only.message.clone(),
                [first, ..] => format!("{} images cannot be had: {}", failures.len(), first.message),
            };
            let outcome = Outcome::new(error.reason(), message).with_failures(failures);
            Outcome { retry_after_seconds: rest(&asked), ..outcome }
        }
    })
}

/// The sha256 of the whole file, which is then in the report, too.
async fn sum(place: &Place, run_id: &str) -> Result<Digest, Refusal> {
    let digest = place.file_digest().await?;
    report(place, run_id, Some(digest.clone())).await;
    Ok(digest)
}

/// Leaves the report. The payload is whole without it: the price is that it may be read, or built, again.
async fn report(place: &Place, run_id: &str, file_digest: Option<Digest>) {
    if let Err(error) = Report::leave(place, run_id, file_digest).await {
        warn!("cannot report on {place}: {error}");
    }
}

async fn run_import(
    work: &ImportWork,
    mut registries: HashMap<Host, Registry>,
    way: &Way,
    folders: &Folders<'_>,
    progress: &Arc<Progress>,
) -> Result<Outcome, Refusal> {
    let host: Host = work.registry.parse()?;
    let registry = match registries.remove(&host) {
        Some(registry) => registry,
        None => client(host, Access::default(), way)?,
    };
    let place = Place::new(&work.path, work.object_store.as_ref(), folders, way)?;
    let source = place.open().await?;
    let request = ImportRequest {
        source: Source::At(source),
        expected_digest: work.expected_digest.clone(),
        registry: registry.clone(),
        naming: work.naming,
        repository_prefix: work.repository_prefix.clone(),
        base_repositories: work.base_repositories.clone(),
        tag_digests: work.tag_digests,
        sparse_index: work.sparse_index,
        strict: work.strict,
        deep: false,
        tag_policy: work.tag_policy,
    };
    let outcome = match import(request, progress).await {
        Ok(report) => imported(&report, &work.registry),
        Err(error) => {
            let failures = error.failures().to_vec();
            let message = match failures.as_slice() {
                [first, _, ..] => {
                    format!("nothing was pushed, {} images cannot be: {}", failures.len(), first.message)
                }
                _ => error.to_string(),
            };
            Outcome::new(error.reason(), message).with_failures(failures)
        }
    };
    let retry_after_seconds = if outcome.reason.is_success() { None } else { rest([&registry]) };
    Ok(Outcome { retry_after_seconds, ..outcome })
}

fn imported(report: &ImportReport, registry: &str) -> Outcome {
    for image in report.images.iter().filter(|image| image.fate.failure().is_none()) {
        let is_kept = matches!(image.fate, Fate::Kept);
        let what = if is_kept { "is not pushed: another image keeps" } else { "is whole as" };
        info!("{} {what} {registry}/{}", image.name, image.target);
    }
    let failures: Vec<Failure> = report.failures();
    let kept = report.images.iter().filter(|image| matches!(image.fate, Fate::Kept)).count();
    let whole = report.images.len() - failures.len() - kept;
    let rewritten = report.images.iter().filter_map(|image| {
        let digest = image.rewritten.clone()?;
        Some(Rewritten { image: image.name.clone(), digest })
    });
    let rewritten: Vec<Rewritten> = rewritten.collect();
    let (reason, message) = match failures.first() {
        None => (Reason::Succeeded, format!("{whole} images are whole in {registry}")),
        Some(first) => (
            reason::of_all(&failures),
            format!(
                "{} of {} images are not whole in {registry}: {}",
                failures.len(),
                report.images.len(),
                first.message
            ),
        ),
    };
    Outcome {
        payload: Some(report::summary(&report.bill, report.digest.as_ref(), report.size)),
        result: Some(ImportResult {
            images: count(whole),
            images_failed: count(failures.len()),
            images_kept: count(kept),
            blobs_pushed: report.counts.blobs_pushed,
            blobs_mounted: report.counts.blobs_mounted,
            blobs_present: report.counts.blobs_present,
            bytes_pushed: report.counts.bytes_pushed,
            images_rewritten: count(rewritten.len()),
            rewritten: rewritten.into_iter().take(FAILURES_LIMIT).collect(),
        }),
        ..Outcome::new(reason, message).with_failures(failures)
    }
}

/// A client for each host of the run configuration, with what its Secrets hold.
fn registries(
    accesses: &[RegistryAccess],
    secrets: &Path,
    way: &Way,
) -> Result<HashMap<Host, Registry>, Refusal> {
    let mut registries = HashMap::new();
    for (index, given) in accesses.iter().enumerate() {
        let host: Host = given.host.parse()?;
        let endpoint: Option<Endpoint> = given.endpoint.as_deref().map(str::parse).transpose()?;
        let folder = secrets.join(index.to_string());
        let credentials = match secret(&folder, ".dockerconfigjson")? {
            None => Logins::default(),
            Some(json) => {
                let config = DockerConfig::parse(&json).map_err(|error| {
                    Refusal::new(
                        Reason::InvalidSpec,
                        format!("the pull secret of {host} cannot be read: {error}"),
                    )
                })?;
                // Credentials of the host that a mirror stands for are not the mirror's to see.
                let contacted = endpoint.as_ref().map_or(&host, Endpoint::host);
                let found = config.credentials(contacted);
                if found.is_empty() && config.credentials(&host).is_empty() {
                    let message = format!(
                        "the pull secret of {host} has no entry for {contacted}; add one to its auths"
                    );
                    return Err(Refusal::new(Reason::InvalidSpec, message));
                }
                found
            }
        };
        let identity = match (secret(&folder, "tls.crt")?, secret(&folder, "tls.key")?) {
            (Some(certificate), Some(key)) => Some([certificate, b"\n".to_vec(), key].concat()),
            (None, None) => None,
            _ => {
                let message = format!(
                    "the certificate secret of {host} has only one of tls.crt and tls.key; it needs both or none"
                );
                return Err(Refusal::new(Reason::InvalidSpec, message));
            }
        };
        let ca_pem = secret(&folder, "ca.crt")?;
        if let Some(name) = &given.certificates
            && ca_pem.is_none()
            && identity.is_none()
        {
            let message = format!(
                "the Secret {name:?} for {host} is not there, or has none of ca.crt, tls.crt and tls.key; create it, or correct certSecretRef"
            );
            return Err(Refusal::new(Reason::SecretNotFound, message));
        }
        let access = Access {
            insecure: given.insecure,
            endpoint,
            credentials,
            ca_pem,
            identity_pem: identity,
            ..Access::default()
        };
        registries.insert(host.clone(), client(host, access, way)?);
    }
    Ok(registries)
}

pub(super) fn secret(folder: &Path, key: &str) -> Result<Option<Vec<u8>>, Refusal> {
    mounted(&folder.join(key))
}

/// What is mounted there, if anything is.
fn mounted(file: &Path) -> Result<Option<Vec<u8>>, Refusal> {
    match std::fs::read(file) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => {
            let message = format!("cannot read {}, which is mounted: {error}", file.display());
            Err(Refusal::new(Reason::WorkerFailed, message))
        }
    }
}

/// The proxy that the run configuration or the mounted Secret tells of.
fn proxy(by: &ProxyAccess, secrets: &Path) -> Result<Proxy, Refusal> {
    match by {
        ProxyAccess::Secret(name) => secret_proxy(name, secrets),
        ProxyAccess::Open { address, no_proxy } => Proxy::new(address, None, None, no_proxy.as_deref())
            .map_err(|error| {
                let message = format!("the address of the proxy for all namespaces is wrong: {error}");
                Refusal::new(Reason::InvalidSpec, message)
            }),
    }
}

/// The proxy that the mounted Secret `name` tells of.
fn secret_proxy(name: &str, secrets: &Path) -> Result<Proxy, Refusal> {
    let text = |key: &str| -> Result<Option<SecretString>, Refusal> {
        let Some(bytes) = secret(secrets, key)? else { return Ok(None) };
        let text = String::from_utf8(bytes).map_err(|_| {
            let message = format!("the proxy's Secret {name:?} has a {key} that is no text");
            Refusal::new(Reason::InvalidSpec, message)
        })?;
        // Who writes a Secret with echo puts a line's end behind it.
        Ok(Some(SecretString::from(text.trim_end_matches(['\r', '\n']))))
    };
    let missing = || {
        let message = format!("the proxy's Secret {name:?} has no address; add it");
        Refusal::new(Reason::SecretNotFound, message)
    };
    let address = text("address")?.ok_or_else(missing)?;
    let (username, password, no_proxy) = (text("username")?, text("password")?, text("noProxy")?);
    let open = |text: &'_ Option<SecretString>| text.as_ref().map(|text| text.expose_secret().to_owned());
    let (username, no_proxy) = (open(&username), open(&no_proxy));
    let proxy =
        Proxy::new(address.expose_secret(), username.as_deref(), password.as_ref(), no_proxy.as_deref());
    proxy.map_err(|error| {
        let message = format!("the address in the proxy's Secret {name:?} is wrong: {error}");
        Refusal::new(Reason::InvalidSpec, message)
    })
}

fn client(host: Host, access: Access, way: &Way) -> Result<Registry, Refusal> {
    let ca_pem = way.authorities(access.ca_pem);
    let access = Access { ca_pem, proxy: way.proxy.clone(), ..access };
    Ok(Registry::with_traffic(host, access, &way.traffic)?)
}

fn references(names: &[String]) -> Result<Vec<Reference>, Refusal> {
    names.iter().map(|name| Ok(Reference::parse(name, &Host::docker_hub())?)).collect()
}

/// The bills of earlier payloads, in the volume or in the bucket that this one goes into.
async fn bases(work: &BuildWork, folders: &Folders<'_>, way: &Way) -> Result<Vec<Base>, Refusal> {
    let mut found = Vec::new();
    for base in &work.bases {
        let object = work.object_store.clone().map(|object| ObjectStore { key: base.path.clone(), ..object });
        let place = Place::new(&base.path, object.as_ref(), folders, way)?;
        let refused =
            |error: BaseError| Refusal::new(error.reason(), format!("PayloadBuild {:?}: {error}", base.name));
        found.push(open_base(&place.payload(), Some(&base.digest)).await.map_err(refused)?);
    }
    Ok(found)
}

/// What a partial file is of: one that was begun upon a base that was built anew since leaves out what
/// the new base may not carry.
fn with_bases(run_id: &str, bases: &[BasePayload]) -> String {
    bases.iter().fold(run_id.to_owned(), |run, base| format!("{run} upon {}", base.digest))
}

pub(super) fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
