//! A gate before a registry: it lets some bytes through to whoever reads, then none until it is opened.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use crate::registry::Registry;

/// A gate that stands in a server's way.
pub(crate) struct Gate {
    address: String,
    state: Arc<State>,
}

struct State {
    allowance: Mutex<Allowance>,
    changed: Condvar,
}

struct Allowance {
    /// So many bytes may still pass, or all.
    left: Option<usize>,
    is_shut: bool,
    /// So many bytes have passed.
    passed: usize,
    /// Whose connections began before is not let through any more.
    era: usize,
}

impl Gate {
    /// `bytes` of what the registry answers pass.
    pub(crate) fn before(registry: &Registry, bytes: usize) -> Self {
        Self::to(registry.host(), bytes)
    }

    /// `bytes` of what `server` answers pass.
    pub(crate) fn to(server: &str, bytes: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("it is bound").to_string();
        let allowance = Mutex::new(Allowance { left: Some(bytes), is_shut: false, passed: 0, era: 0 });
        let state = Arc::new(State { allowance, changed: Condvar::new() });
        let (behind, keeper) = (server.to_owned(), state.clone());
        thread::spawn(move || {
            for outside in listener.incoming().map_while(Result::ok) {
                let inside = TcpStream::connect(&behind).expect("the server is there");
                let both = outside.try_clone().and_then(|outside| Ok((outside, inside.try_clone()?)));
                let (asking, asked) = both.expect("a connection can be shared");
                let (keeper, era) = (keeper.clone(), keeper.allowance().era);
                thread::spawn(move || pass(asking, asked, |length| length));
                thread::spawn(move || pass(inside, outside, |length| keeper.take(era, length)));
            }
        });
        Self { address, state }
    }

    /// `127.0.0.1:port`.
    pub(crate) fn host(&self) -> &str {
        &self.address
    }

    /// Waits until somebody stands before the gate.
    pub(crate) fn wait_until_shut(&self) {
        let mut allowance = self.state.allowance();
        while !allowance.is_shut {
            allowance = self.state.changed.wait(allowance).expect("nobody panicked");
        }
    }

    /// How many bytes of what the server answered have passed.
    pub(crate) fn passed(&self) -> usize {
        self.state.allowance().passed
    }

    /// From now on `bytes` of what the server answers pass, to whoever connects from now on.
    pub(crate) fn let_through(&self, bytes: usize) {
        let mut allowance = self.state.allowance();
        *allowance = Allowance { left: Some(bytes), is_shut: false, era: allowance.era + 1, ..*allowance };
        self.state.changed.notify_all();
    }

    /// From now on everything passes.
    pub(crate) fn open(&self) {
        self.state.allowance().left = None;
        self.state.changed.notify_all();
    }
}

impl State {
    fn allowance(&self) -> MutexGuard<'_, Allowance> {
        self.allowance.lock().expect("nobody panicked")
    }

    /// How many of `length` bytes may pass now; waits until some may. None, if they never will.
    fn take(&self, era: usize, length: usize) -> usize {
        let mut allowance = self.allowance();
        loop {
            if allowance.era != era {
                return 0;
            }
            match &mut allowance.left {
                None => {
                    allowance.passed += length;
                    return length;
                }
                Some(0) => {
                    allowance.is_shut = true;
                    self.changed.notify_all();
                    allowance = self.changed.wait(allowance).expect("nobody panicked");
                }
                Some(left) => {
                    let taken = length.min(*left);
                    *left -= taken;
                    allowance.passed += taken;
                    return taken;
                }
            }
        }
    }
}

/// Passes bytes on until either side ends.
fn pass(mut from: TcpStream, mut to: TcpStream, mut allowed: impl FnMut(usize) -> usize) {
    let mut buffer = [0; 16 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let mut rest = &buffer[..length];
        while !rest.is_empty() {
            let (passing, later) = rest.split_at(allowed(rest.len()));
            if passing.is_empty() || to.write_all(passing).is_err() {
                let _ = from.shutdown(Shutdown::Both);
                return;
            }
            rest = later;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// Waits until something is so; what should be so and is not for a minute never will be.
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_mins(1), "never: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}
