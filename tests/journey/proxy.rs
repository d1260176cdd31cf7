//! A way to a registry or to the API server that can be made to stand still, and to break.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

/// Passes bytes on in both directions; from the server only so many until it is opened.
pub(crate) struct Proxy {
    pub(crate) host: String,
    gate: Arc<Gate>,
    connections: Arc<Mutex<Vec<TcpStream>>>,
}

struct Gate {
    count: Mutex<Count>,
    opened: Condvar,
}

/// How many bytes have passed, and how many may.
struct Count {
    passed: usize,
    limit: usize,
}

impl Gate {
    /// Waits until some bytes may pass; gives how many of `wanted`.
    fn pass(&self, wanted: usize) -> usize {
        let count = self.count.lock().unwrap();
        let mut count = self.opened.wait_while(count, |count| count.passed == count.limit).unwrap();
        let passed = wanted.min(count.limit - count.passed);
        count.passed += passed;
        passed
    }
}

impl Proxy {
    /// Listens at `host` and passes to `server`, which may answer `bytes` bytes for now.
    pub(crate) fn start(host: &str, server: &str, bytes: usize) -> Self {
        let count = Mutex::new(Count { passed: 0, limit: bytes });
        let gate = Arc::new(Gate { count, opened: Condvar::new() });
        let connections = Arc::new(Mutex::new(Vec::new()));
        let listener = TcpListener::bind(host).unwrap();
        let (server, shared, open) = (server.to_owned(), Arc::clone(&gate), Arc::clone(&connections));
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(&server) else { continue };
                let (client_again, server_again) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                open.lock().unwrap().extend([client.try_clone().unwrap(), server.try_clone().unwrap()]);
                let gate = Arc::clone(&shared);
                thread::spawn(move || copy(client, server, |wanted| wanted));
                thread::spawn(move || copy(server_again, client_again, |wanted| gate.pass(wanted)));
            }
        });
        Self { host: host.to_owned(), gate, connections }
    }

    /// How many bytes have passed.
    pub(crate) fn passed(&self) -> usize {
        self.gate.count.lock().unwrap().passed
    }

    /// Lets everything pass.
    pub(crate) fn open(&self) {
        self.gate.count.lock().unwrap().limit = usize::MAX;
        self.gate.opened.notify_all();
    }

    /// Breaks all connections, and lets everything pass by those that follow.
    pub(crate) fn cut(&self) {
        for connection in self.connections.lock().unwrap().drain(..) {
            // It may have ended by itself.
            let _ = connection.shutdown(Shutdown::Both);
        }
        self.open();
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
    let _ = to.shutdown(Shutdown::Write);
}
