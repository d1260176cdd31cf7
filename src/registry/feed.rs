//! The content of an upload: requests take it piece by piece, and once more where one of them broke.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use futures::{Stream, StreamExt as _, stream};
use tokio::time::Instant;

use super::retry::{Stage, Watch};

/// Content as it is read.
pub(super) type Source = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// The content of one upload. Clones share it.
#[derive(Clone)]
pub(super) struct Feed(Arc<Mutex<State>>);

struct State {
    source: Option<Source>,
    /// The offset of the byte that the source gives next.
    read: u64,
    /// What the source gave and may still be asked for, up to `read`.
    kept: VecDeque<Bytes>,
    /// The offset of the first byte of `kept`.
    kept_from: u64,
    /// Whether the source can be opened anew.
    is_repeatable: bool,
    /// Whether what was given is kept until it is released.
    keeps: bool,
    /// A connection may poll the body of a request that was given up: only the last one gets anything.
    turn: u64,
    failure: Option<io::Error>,
}

impl Feed {
    /// Content that can be read anew.
    pub(super) fn repeatable() -> Self {
        Self::new(None)
    }

    /// Content that passes once: what was given is kept until it is released.
    pub(super) fn passing(source: Source) -> Self {
        Self::new(Some(source))
    }

    fn new(source: Option<Source>) -> Self {
        let is_repeatable = source.is_none();
        Self(Arc::new(Mutex::new(State {
            source,
            read: 0,
            kept: VecDeque::new(),
            kept_from: 0,
            is_repeatable,
            keeps: !is_repeatable,
            turn: 0,
            failure: None,
        })))
    }

    /// Nothing is ever half changed: a reader that panicked does not spoil it.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The offset of the first byte that can still be given.
    pub(super) fn first(&self) -> u64 {
        let state = self.state();
        if state.is_repeatable { 0 } else { state.kept_from }
    }

    /// Whether the content cannot be read anew.
    pub(super) fn passes_once(&self) -> bool {
        !self.state().is_repeatable
    }

    /// The bytes before `offset` are not wanted again.
    pub(super) fn release(&self, offset: u64) {
        self.state().release(offset);
    }

    /// From now on nothing is kept that was given.
    pub(super) fn keep_nothing(&self) {
        self.state().keeps = false;
    }

    /// Whoever fills the source is not kept waiting any more.
    pub(super) fn close(&self) {
        self.state().source = None;
    }

    /// What the source failed with, told once.
    pub(super) fn failure(&self) -> Option<io::Error> {
        self.state().failure.take()
    }

    /// Reads content that has no byte to its end: from `anew`, where it is repeatable.
    pub(super) async fn drain(&self, anew: Option<Source>) {
        let Some(mut source) = anew.or_else(|| self.state().source.take()) else { return };
        while let Some(item) = source.next().await {
            if let Err(error) = item {
                self.state().failure = Some(error);
                return;
            }
        }
    }

    /// The bytes from `start` to `end`; `open` begins repeatable content anew where that is needed.
    pub(super) fn piece(
        &self,
        start: u64,
        end: u64,
        watch: Arc<Watch>,
        open: &dyn Fn() -> Option<Source>,
    ) -> impl Stream<Item = io::Result<Bytes>> + Send + use<> {
        let mut state = self.state();
        state.turn += 1;
        if (start < state.kept_from || state.source.is_none())
            && let Some(source) = open()
        {
            state.source = Some(source);
            (state.read, state.kept_from) = (0, 0);
            state.kept.clear();
        }
        let (turn, feed, mut at) = (state.turn, self.clone(), start);
        stream::poll_fn(move |context| {
            if at == end {
                return Poll::Ready(None);
            }
            let item = ready!(feed.state().poll(turn, at, end, &watch, context));
            if let Ok(bytes) = &item {
                at += bytes.len() as u64;
                let now = Instant::now();
                watch.set(if at == end { Stage::Sent(now) } else { Stage::Sending(now) });
            }
            Poll::Ready(Some(item))
        })
    }
}

impl State {
    /// The next bytes from offset `at`, which is before `end`.
    fn poll(
        &mut self,
        turn: u64,
        at: u64,
        end: u64,
        watch: &Watch,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<Bytes>> {
        if self.turn != turn || at < self.kept_from {
            return Poll::Ready(Err(io::Error::other("these bytes are wanted by another request")));
        }
        while at >= self.read {
            let Some(source) = &mut self.source else {
                return Poll::Ready(Err(io::Error::other("the content is not read any more")));
            };
            watch.set(Stage::Reading);
            match ready!(source.as_mut().poll_next(context)) {
                Some(Ok(bytes)) => {
                    self.read += bytes.len() as u64;
                    self.kept.push_back(bytes);
                    if !self.keeps {
                        self.release(at);
                    }
                }
                Some(Err(error)) => {
                    let told = io::Error::new(error.kind(), error.to_string());
                    self.failure = Some(error);
                    return Poll::Ready(Err(told));
                }
                None => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            }
        }
        let given = self.given(at, end);
        if !self.keeps {
            self.release(at + given.len() as u64);
        }
        Poll::Ready(Ok(given))
    }

    /// Kept bytes from `at`, which is before `read`: at most as many as lie together and before `end`.
    fn given(&self, at: u64, end: u64) -> Bytes {
        let mut from = self.kept_from;
        for bytes in &self.kept {
            let to = from + bytes.len() as u64;
            if at < to {
                let part = |offset: u64| usize::try_from(offset - from).unwrap_or(bytes.len());
                return bytes.slice(part(at)..part(to.min(end)));
            }
            from = to;
        }
        Bytes::new()
    }

    fn release(&mut self, offset: u64) {
        while let Some(bytes) = self.kept.front_mut() {
            let surplus = offset.saturating_sub(self.kept_from);
            let length = bytes.len() as u64;
            if surplus < length {
                bytes.advance(usize::try_from(surplus).unwrap_or(0));
                self.kept_from += surplus;
                return;
            }
            self.kept_from += length;
            self.kept.pop_front();
        }
    }
}

/// `body`, held to `size` bytes. Its last bytes are given when it has ended well.
pub(super) fn exactly<S>(body: S, size: u64) -> Source
where
    S: Stream<Item = io::Result<Bytes>> + Send + 'static,
{
    let start = (Box::pin(body), 0_u64, None::<Bytes>);
    let items = stream::try_unfold(start, move |(mut body, mut seen, mut held)| async move {
        loop {
            match body.next().await.transpose()? {
                Some(chunk) if chunk.is_empty() => {}
                Some(chunk) => {
                    seen += chunk.len() as u64;
                    if seen > size {
                        return Err(wrong_length(size, "more"));
                    }
                    if let Some(ready) = held.replace(chunk) {
                        return Ok(Some((ready, (body, seen, held))));
                    }
                }
                None if seen < size => return Err(wrong_length(size, &seen.to_string())),
                None => return Ok(held.take().map(|last| (last, (body, seen, None)))),
            }
        }
    });
    items.boxed()
}

fn wrong_length(size: u64, found: &str) -> io::Error {
    let problem = format!("the content to push should have {size} bytes and has {found}");
    io::Error::new(io::ErrorKind::InvalidData, problem)
}
