//! A proxy that lets nobody through and remembers whom they asked for.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::mpsc::{self, Receiver};
use std::thread;

pub(crate) struct Proxy {
    address: String,
    asked: Receiver<String>,
}

impl Proxy {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let (sender, asked) = mpsc::channel();
        // It ends with the process of the test.
        thread::spawn(move || {
            for connection in listener.incoming().map_while(Result::ok) {
                let mut lines = BufReader::new(&connection).lines().map_while(Result::ok);
                let request = lines.next().unwrap_or_default();
                lines.take_while(|line| !line.is_empty()).for_each(drop);
                let _ = (&connection).write_all(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n");
                let _ = sender.send(request);
            }
        });
        Self { address, asked }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Waits until it is asked for a host, and tells which.
    pub(crate) fn host_asked_for(&self) -> String {
        let request = self.asked.recv().expect("the proxy runs");
        request.split(' ').nth(1).unwrap_or_default().to_owned()
    }
}
