//! A way to a registry that can be made to stand still.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

/// Passes bytes on in both directions; from the registry only so many until it is opened.
pub(crate) struct Proxy {
    pub(crate) host: String,
    gate: Arc<Gate>,
    limit: usize,
}

/// How many bytes may still pass; `None`: all.
struct Gate {
    left: Mutex<Option<usize>>,
    opened: Condvar,
}

impl Gate {
    /// Waits until some bytes may pass; gives how many of `wanted`.
    fn pass(&self, wanted: usize) -> usize {
        let left = self.left.lock().unwrap();
        let mut left = self.opened.wait_while(left, |left| *left == Some(0)).unwrap();
        let passed = left.map_or(wanted, |left| left.min(wanted));
        *left = left.map(|left| left - passed);
        passed
    }
}

impl Proxy {
    /// Listens at `host` and passes to `registry`, which may answer `bytes` bytes for now.
    pub(crate) fn start(host: &str, registry: &str, bytes: usize) -> Self {
        let gate = Arc::new(Gate { left: Mutex::new(Some(bytes)), opened: Condvar::new() });
        let listener = TcpListener::bind(host).unwrap();
        let (registry, shared) = (registry.to_owned(), Arc::clone(&gate));
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(&registry) else { continue };
                let (client_again, server_again) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                let gate = Arc::clone(&shared);
                thread::spawn(move || copy(client, server, |wanted| wanted));
                thread::spawn(move || copy(server_again, client_again, |wanted| gate.pass(wanted)));
            }
        });
        Self { host: host.to_owned(), gate, limit: bytes }
    }

    /// How many bytes have passed, unless everything may.
    pub(crate) fn passed(&self) -> usize {
        self.limit - self.gate.left.lock().unwrap().expect("it is not opened")
    }

    /// Lets everything pass.
    pub(crate) fn open(&self) {
        *self.gate.left.lock().unwrap() = None;
        self.gate.opened.notify_all();
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream, pass: impl Fn(usize) -> usize) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let mut sent = 0;
        while sent < length {
            let passed = pass(length - sent);
            if to.write_all(&buffer[sent..sent + passed]).is_err() {
                return;
            }
            sent += passed;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Write);
}
