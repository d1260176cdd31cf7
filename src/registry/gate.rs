//! How many requests are under way at one registry.

use std::num::NonZeroUsize;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Lets so many requests through at once, or any number. Clones share the places.
///
/// Whoever has a place must come to an end without another one: bodies are read on by themselves, or by someone who has
/// nothing else open, and what is learned of an answer is taken from it before anything else is asked.
#[derive(Clone)]
pub(super) struct Gate(Option<Arc<Places>>);

struct Places {
    free: Arc<Semaphore>,
    count: usize,
    /// The places of another gate that these are.
    _lent: Option<Place>,
}

/// A place at the registry: a request has it until its answer was read, or is not wanted.
#[derive(Clone)]
pub(super) struct Place {
    _permit: Option<Arc<OwnedSemaphorePermit>>,
    _of: Option<Arc<Places>>,
}

impl Gate {
    pub(super) fn new(at_once: Option<NonZeroUsize>) -> Self {
        Self(at_once.map(|count| Arc::new(Places::new(count.get(), None))))
    }

    /// Whether it lets only so many through.
    pub(super) fn is_narrow(&self) -> bool {
        self.0.is_some()
    }

    /// Waits for a place.
    pub(super) async fn place(&self) -> Place {
        self.places(1).await
    }

    /// Waits for as many of the places as two requests need of which one feeds the other, and gives a gate with them: two
    /// such pairs that got one place each would wait for each other. A gate with a single place lends that to both.
    pub(super) async fn pair(&self) -> Self {
        let Some(places) = &self.0 else { return Self(None) };
        let lent = self.places(places.count.min(2)).await;
        Self(Some(Arc::new(Places::new(2, Some(lent)))))
    }

    async fn places(&self, count: usize) -> Place {
        let Some(places) = &self.0 else { return Place { _permit: None, _of: None } };
        let permit = places.free.clone().acquire_many_owned(u32::try_from(count).unwrap_or(u32::MAX)).await;
        // A semaphore that nobody closes gives what it has.
        Place { _permit: permit.ok().map(Arc::new), _of: Some(places.clone()) }
    }
}

impl Places {
    fn new(count: usize, lent: Option<Place>) -> Self {
        let count = count.min(Semaphore::MAX_PERMITS);
        Self { free: Arc::new(Semaphore::new(count)), count, _lent: lent }
    }
}
