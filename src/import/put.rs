//! Which manifests were put already.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use crate::digest::Digest;

/// A manifest, or what it is the subject of, in a repository.
type Place = (String, Digest);

/// What was put, so that it is put once.
#[derive(Default)]
pub(super) struct Put {
    manifests: Mutex<HashSet<Place>>,
    /// The referrers that the registry, or an index in it, lists, by what they refer to.
    listed: Mutex<HashMap<Place, HashSet<Digest>>>,
}

impl Put {
    pub(super) fn has(&self, repository: &str, digest: &Digest) -> bool {
        let manifests = self.manifests.lock().unwrap_or_else(PoisonError::into_inner);
        manifests.contains(&(repository.to_owned(), digest.clone()))
    }

    pub(super) fn note(&self, repository: &str, digest: &Digest) {
        let mut manifests = self.manifests.lock().unwrap_or_else(PoisonError::into_inner);
        manifests.insert((repository.to_owned(), digest.clone()));
    }

    /// Whether a referrer is listed.
    pub(super) fn lists(&self, repository: &str, subject: &Digest, referrer: &Digest) -> bool {
        let listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        let listed = listed.get(&(repository.to_owned(), subject.clone()));
        listed.is_some_and(|listed| listed.contains(referrer))
    }

    pub(super) fn note_listed(&self, repository: &str, subject: &Digest, referrer: &Digest) {
        let mut listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        listed.entry((repository.to_owned(), subject.clone())).or_default().insert(referrer.clone());
    }
}
