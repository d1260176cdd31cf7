//! What is known of where blobs, or manifests, are: presence is a fact about a repository and a digest, and is asked for once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OnceCell;

use crate::digest::Digest;
use crate::registry::RegistryError;

/// Whether a repository has something; whoever wants to know it while it is asked for waits for the one answer.
type Answer = Arc<OnceCell<bool>>;

/// The repositories that were asked for something: few, of thousands of blobs.
type Answers = HashMap<Digest, Vec<(String, Answer)>>;

#[derive(Default)]
pub(super) struct Presence {
    answers: Mutex<Answers>,
}

impl Presence {
    /// Whether a repository has something, which `ask` finds out.
    pub(super) async fn has(
        &self,
        repository: &str,
        digest: &Digest,
        ask: impl Future<Output = Result<bool, RegistryError>>,
    ) -> Result<bool, RegistryError> {
        let answer = Arc::clone(of(&mut self.answers(), repository, digest));
        answer.get_or_try_init(|| ask).await.copied()
    }

    /// What was found out otherwise, whatever the registry may have answered.
    pub(super) fn learn(&self, repository: &str, digest: &Digest, is_there: bool) {
        *of(&mut self.answers(), repository, digest) = Arc::new(OnceCell::new_with(Some(is_there)));
    }

    /// A repository that is known to have a blob.
    pub(super) fn holder(&self, digest: &Digest) -> Option<String> {
        let answers = self.answers();
        let holders = answers.get(digest)?.iter().filter(|(_, answer)| answer.get() == Some(&true));
        holders.map(|(repository, _)| repository).min().cloned()
    }

    /// Nothing in it is ever half known: a writer that panicked does not spoil it.
    fn answers(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn of<'a>(answers: &'a mut Answers, repository: &str, digest: &Digest) -> &'a mut Answer {
    let answers = answers.entry(digest.clone()).or_default();
    let place = answers.iter().position(|(asked, _)| asked == repository).unwrap_or_else(|| {
        // Most blobs are wanted in one place.
        answers.reserve_exact(1);
        answers.push((repository.to_owned(), Answer::default()));
        answers.len() - 1
    });
    &mut answers[place].1
}
