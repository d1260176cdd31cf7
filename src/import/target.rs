use std::collections::{BTreeSet, HashMap, HashSet};

use bytes::Bytes;

use super::ImportError;
use crate::digest::Digest;
use crate::payload::{Bill, BillManifest, ManifestContent, PayloadError, Required};
use crate::reason::{Failure, Reason};
use crate::reference::{self, Host, Reference};
use crate::registry::RegistryError;

/// An image of the payload, and what is to become of it at the far side.
#[derive(Debug)]
pub(super) struct Target {
    /// Its name, as whoever built the payload wrote it.
    pub(super) name: String,
    /// Where it goes.
    pub(super) repository: String,
    pub(super) tag: String,
    /// The digest of its root manifest, where it is known: see [`crate::payload::BillImage`].
    pub(super) root: Option<Digest>,
    /// Whether the payload carries anything of it.
    pub(super) carried: bool,
    /// Its manifests in push order, the root last.
    pub(super) manifests: Vec<BillManifest>,
    /// Every blob that its manifests name.
    pub(super) blobs: HashSet<Digest>,
    pub(super) state: State,
}

/// How far an image is.
#[derive(Debug)]
pub(super) enum State {
    /// It is to be pushed.
    Wanted,
    /// It is there, with its tag.
    Present,
    /// It was declared to be there as a whole, and is not.
    AbsentBase,
    /// It was pushed.
    Pushed,
    /// It cannot be made whole.
    Failed(Failure),
}

impl Target {
    pub(super) fn has_failed(&self) -> bool {
        matches!(self.state, State::Failed(_))
    }

    /// Whether it is still to be pushed.
    pub(super) fn is_wanted(&self) -> bool {
        self.carried && matches!(self.state, State::Wanted)
    }

    /// Whether it is still to be pushed, and has this blob.
    pub(super) fn wants(&self, digest: &Digest) -> bool {
        self.is_wanted() && self.blobs.contains(digest)
    }

    pub(super) fn failure(&self) -> Option<&Failure> {
        match &self.state {
            State::Failed(failure) => Some(failure),
            _ => None,
        }
    }

    /// The failure that an absent base is where everything is wanted.
    pub(super) fn missing_base(&self) -> Option<Failure> {
        matches!(self.state, State::AbsentBase).then(|| Failure {
            item: self.name.clone(),
            reason: Reason::MissingBase,
            message: format!(
                "{} was declared already transferred, but {} has no {}; transfer it first, or build the payload without declaring it",
                self.name,
                self.repository,
                self.root.as_ref().map_or(self.tag.as_str(), Digest::as_str)
            ),
        })
    }

    pub(super) fn fail(&mut self, reason: Reason, why: &str) {
        if !self.has_failed() {
            let message = format!("{}: {why}", self.name);
            self.state = State::Failed(Failure { item: self.name.clone(), reason, message });
        }
    }

    /// What a registry's error means for this image; an error that is not about the image ends the import.
    pub(super) fn fail_or(&mut self, error: RegistryError) -> Result<(), ImportError> {
        match error.reason() {
            Reason::RegistryUnavailable | Reason::AuthenticationFailed | Reason::RateLimited => {
                Err(error.into())
            }
            reason => {
                self.fail(reason, &error.to_string());
                Ok(())
            }
        }
    }

    /// Blobs that the payload does not carry are not at the far side either.
    pub(super) fn lacks(&mut self, missing: &[&Required], host: &Host) {
        let Some(first) = missing.first() else {
            return;
        };
        let sources: BTreeSet<&str> = missing
            .iter()
            .flat_map(|required| required.sources.iter().map(|source| source.name.as_str()))
            .collect();
        let sources = sources.into_iter().collect::<Vec<_>>().join(", ");
        let (count, blobs) = (missing.len(), if missing.len() == 1 { "blob" } else { "blobs" });
        let why = format!(
            "{host} lacks {count} {blobs} that the payload leaves out since {sources} had been transferred, {} among them; transfer {sources} first, or build the payload without declaring it",
            first.digest
        );
        self.fail(Reason::MissingBase, &why);
    }
}

/// The name of an image's repository at the far side.
pub(super) fn far_repository(name: &str, target: &Host, prefix: Option<&str>) -> Result<String, String> {
    let reference = Reference::parse(name, &Host::docker_hub()).map_err(|error| error.to_string())?;
    Ok(prefixed(&reference, target, prefix))
}

fn prefixed(reference: &Reference, target: &Host, prefix: Option<&str>) -> String {
    let repository = reference.far_repository();
    let repository = match prefix.map(|prefix| prefix.trim_matches('/')).filter(|prefix| !prefix.is_empty()) {
        Some(prefix) => format!("{prefix}/{repository}"),
        None => repository.to_owned(),
    };
    if target.is_docker_hub() && !repository.contains('/') {
        format!("library/{repository}")
    } else {
        repository
    }
}

/// All images of a payload with what they need.
///
/// An image whose name cannot be one at the far side has failed from the start.
pub(super) fn targets(
    bill: &Bill,
    host: &Host,
    prefix: Option<&str>,
    manifest: impl Fn(&Digest) -> Result<Bytes, PayloadError>,
) -> Result<Vec<Target>, PayloadError> {
    let accounted: HashSet<&Digest> = bill
        .entries
        .iter()
        .map(|entry| &entry.digest)
        .chain(bill.required.iter().map(|required| &required.digest))
        .collect();
    let mut targets = Vec::with_capacity(bill.images.len());
    for image in &bill.images {
        let reference = Reference::parse(&image.name, &Host::docker_hub()).map_err(|error| {
            PayloadError::Corrupt(format!("its bill names the image {:?}: {error}", image.name))
        })?;
        let mut blobs = HashSet::new();
        for described in &image.manifests {
            let content = ManifestContent::parse(&described.digest, &manifest(&described.digest)?)?;
            blobs.extend(content.blobs().map(|blob| blob.digest.clone()));
        }
        if let Some(lost) = blobs.iter().find(|digest| !accounted.contains(digest)) {
            return Err(PayloadError::Corrupt(format!(
                "{} needs {lost}, which its bill neither carries nor requires",
                image.name
            )));
        }
        let repository = prefixed(&reference, host, prefix);
        let is_name = reference::is_repository(&repository);
        let mut target = Target {
            name: image.name.clone(),
            tag: tag(&reference, image.digest.as_ref()),
            root: image.digest.clone(),
            carried: image.carried,
            manifests: image.manifests.clone(),
            blobs,
            state: State::Wanted,
            repository,
        };
        if !is_name {
            let why = format!("{:?} is no name for a repository; check the prefix", target.repository);
            target.fail(Reason::InvalidSpec, &why);
        }
        targets.push(target);
    }
    Ok(targets)
}

/// The image's tag; a reference by digest alone gets one, since registries collect what has none.
fn tag(reference: &Reference, root: Option<&Digest>) -> String {
    match (reference.tag(), reference.digest().or(root)) {
        (None, Some(digest)) => format!("charon-{}", &digest.hex()[..32]),
        (tag, _) => tag.unwrap_or("latest").to_owned(),
    }
}

/// The bytes of all manifests that a payload carries.
pub(super) fn manifests(
    bill: &Bill,
    manifest: impl Fn(&Digest) -> Result<Bytes, PayloadError>,
) -> Result<HashMap<Digest, Bytes>, PayloadError> {
    let digests: HashSet<&Digest> = bill
        .images
        .iter()
        .flat_map(|image| image.manifests.iter().map(|manifest| &manifest.digest))
        .collect();
    digests.into_iter().map(|digest| Ok((digest.clone(), manifest(digest)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_at_the_far_side_are_as_written_behind_the_prefix() {
        let far: Host = "registry.infra:5000".parse().unwrap();
        for (name, prefix, expected) in [
            ("python:3", None, "python"),
            ("library/python:3", None, "library/python"),
            (
                "quay.io/a/b@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
                None,
                "a/b",
            ),
            ("python", Some("mirror/"), "mirror/python"),
            ("python", Some("mirror"), "mirror/python"),
            ("a/b", Some("/x/y/"), "x/y/a/b"),
            ("a/b", Some("/"), "a/b"),
        ] {
            assert_eq!(far_repository(name, &far, prefix).unwrap(), expected, "{name} {prefix:?}");
        }
        assert_eq!(far_repository("python", &Host::docker_hub(), None).unwrap(), "library/python");
        assert_eq!(far_repository("python", &Host::docker_hub(), Some("me")).unwrap(), "me/python");
    }

    #[test]
    fn a_reference_by_digest_alone_gets_a_tag_that_keeps_it() {
        let digest = Digest::sha256(b"");
        let reference = |text: String| Reference::parse(&text, &Host::docker_hub()).unwrap();
        assert_eq!(
            tag(&reference(format!("a@{digest}")), Some(&digest)),
            "charon-e3b0c44298fc1c149afbf4c8996fb924"
        );
        assert_eq!(tag(&reference(format!("a:1@{digest}")), Some(&digest)), "1");
    }
}
