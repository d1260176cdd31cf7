//! What is known of where blobs are: presence is a fact about a repository and a digest, and is asked for once.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OnceCell;

use crate::digest::Digest;
use crate::registry::{Registry, RegistryError};

/// Whether a repository has a blob; whoever wants to know it while it is asked for waits for the one answer.
type Answer = Arc<OnceCell<bool>>;

#[derive(Default)]
pub(super) struct Presence {
    answers: Mutex<HashMap<Digest, BTreeMap<String, Answer>>>,
}

impl Presence {
    /// Whether a repository has a blob.
    pub(super) async fn has(
        &self,
        registry: &Registry,
        repository: &str,
        digest: &Digest,
    ) -> Result<bool, RegistryError> {
        let answer = {
            let mut answers = self.answers();
            Arc::clone(answers.entry(digest.clone()).or_default().entry(repository.to_owned()).or_default())
        };
        answer.get_or_try_init(|| registry.has_blob(repository, digest)).await.copied()
    }

    /// What was found out otherwise, whatever the registry may have answered.
    pub(super) fn learn(&self, repository: &str, digest: &Digest, is_there: bool) {
        let answer = Arc::new(OnceCell::new_with(Some(is_there)));
        self.answers().entry(digest.clone()).or_default().insert(repository.to_owned(), answer);
    }

    /// A repository that is known to have a blob.
    pub(super) fn holder(&self, digest: &Digest) -> Option<String> {
        let answers = self.answers();
        let mut answers = answers.get(digest)?.iter();
        answers.find(|(_, answer)| answer.get() == Some(&true)).map(|(repository, _)| repository.clone())
    }

    /// Nothing in it is ever half known: a writer that panicked does not spoil it.
    fn answers(&self) -> MutexGuard<'_, HashMap<Digest, BTreeMap<String, Answer>>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
