//! Proxies that the environment names.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use crate::image::{Image, Layer, Types};
use crate::program::{Program, charon};
use crate::registry::{Registry, Software};

/// A SOCKS5 proxy (RFC 1928) for whoever comes; it tells where they went.
struct Socks {
    address: String,
    went: Receiver<String>,
}

impl Socks {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (sender, went) = mpsc::channel();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let sender = sender.clone();
                thread::spawn(move || serve(client, |to| drop(sender.send(to.to_owned()))));
            }
        });
        Self { address, went }
    }
}

fn serve(mut client: TcpStream, told: impl Fn(&str)) -> io::Result<()> {
    let mut bytes = |count: u8, answer: &[u8]| {
        client.write_all(answer)?;
        let mut bytes = vec![0; count.into()];
        client.read_exact(&mut bytes).map(|()| bytes)
    };
    let methods = bytes(2, &[])?[1];
    bytes(methods, &[])?;
    let is_address = bytes(4, &[5, 0])?[3] == 1;
    let host = if is_address {
        bytes(4, &[])?.iter().map(u8::to_string).collect::<Vec<_>>().join(".")
    } else {
        let length = bytes(1, &[])?[0];
        String::from_utf8_lossy(&bytes(length, &[])?).into_owned()
    };
    let port = bytes(2, &[])?;
    let to = format!("{host}:{}", u16::from_be_bytes([port[0], port[1]]));
    told(&to);
    let mut server = TcpStream::connect(&to)?;
    client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0])?;
    let (mut answers, mut back) = (server.try_clone()?, client.try_clone()?);
    thread::spawn(move || {
        let _ = io::copy(&mut answers, &mut back);
        back.shutdown(Shutdown::Both)
    });
    io::copy(&mut client, &mut server)?;
    server.shutdown(Shutdown::Both)
}

fn make(source: &Registry) -> Program {
    charon(["make-payload", "ferry:1", "-q", "-i", "-r", source.host()])
}

fn source() -> Registry {
    let source = Registry::start(Software::Distribution3);
    Image::new(Types::Docker, &[Layer::new("oar", 2000)]).push(&source, "ferry:1");
    source
}

#[test]
fn a_socks_proxy_leads_to_a_registry_unless_the_host_is_named_in_no_proxy() {
    let (source, proxy) = (source(), Socks::start());
    for (variable, scheme) in [("ALL_PROXY", "socks5"), ("HTTP_PROXY", "socks5h")] {
        let through = make(&source).variable(variable, format!("{scheme}://{}", proxy.address));
        let payload = through.run().succeeded().stdout;
        assert_eq!(proxy.went.recv().unwrap(), source.host());
        assert_eq!(proxy.went.try_iter().filter(|host| host != source.host()).count(), 0);
        let past = make(&source).variable(variable, format!("{scheme}://{}", proxy.address));
        assert!(past.variable("NO_PROXY", "127.0.0.1").run().succeeded().stdout == payload);
        assert_eq!(proxy.went.try_iter().count(), 0);
    }
}

#[test]
fn a_proxy_that_is_not_there_is_named_without_its_credentials() {
    let source = source();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let dead = listener.local_addr().unwrap().to_string();
    drop(listener);
    for scheme in ["http", "socks5"] {
        let through = make(&source).arguments(["--retry-for", "0s"]);
        let through = through.variable("HTTP_PROXY", format!("{scheme}://charon:obolus@{dead}"));
        let said = through.run().ended_with(1).stderr;
        let host = source.host();
        let begin = format!(
            "error: cannot read {host}/ferry:1: cannot connect to {host} by the proxy {scheme}://{dead}: "
        );
        assert!(said.starts_with(&begin), "{said}");
        assert!(said.contains("check the proxy, or name the host in NO_PROXY"), "{said}");
        assert!(!said.contains("obolus"), "{said}");
    }
}
