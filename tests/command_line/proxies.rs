//! Proxies that the environment names.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::hosts::Secure;
use crate::image::{Image, Layer, Types};
use crate::program::{Program, charon};
use crate::registry::{RUNTIME, Registry, Software};

/// A SOCKS5 proxy (RFC 1928), which tells where those who came went.
pub(crate) struct Socks {
    pub(crate) address: String,
    pub(crate) went: Receiver<String>,
}

impl Socks {
    /// One for whoever comes.
    fn start() -> Self {
        Self::serve(false)
    }

    /// One for `charon` with the password `obolus` (RFC 1929).
    pub(crate) fn locked() -> Self {
        Self::serve(true)
    }

    fn serve(is_locked: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (sender, went) = mpsc::channel();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let sender = sender.clone();
                thread::spawn(move || serve(client, is_locked, |to| drop(sender.send(to.to_owned()))));
            }
        });
        Self { address, went }
    }
}

fn serve(mut client: TcpStream, is_locked: bool, told: impl Fn(&str)) -> io::Result<()> {
    let mut bytes = |count: u8, answer: &[u8]| {
        client.write_all(answer)?;
        let mut bytes = vec![0; count.into()];
        client.read_exact(&mut bytes).map(|()| bytes)
    };
    let methods = bytes(2, &[])?[1];
    let methods = bytes(methods, &[])?;
    let welcome = if is_locked {
        if !methods.contains(&2) {
            return bytes(0, &[5, 0xff]).map(drop);
        }
        let length = bytes(2, &[5, 2])?[1];
        let username = bytes(length, &[])?;
        let length = bytes(1, &[])?[0];
        if (username.as_slice(), bytes(length, &[])?.as_slice()) != (b"charon", b"obolus") {
            return bytes(0, &[1, 1]).map(drop);
        }
        [1, 0]
    } else {
        [5, 0]
    };
    let is_address = bytes(4, &welcome)?[3] == 1;
    let host = if is_address {
        bytes(4, &[])?.iter().map(u8::to_string).collect::<Vec<_>>().join(".")
    } else {
        let length = bytes(1, &[])?[0];
        String::from_utf8_lossy(&bytes(length, &[])?).into_owned()
    };
    let port = bytes(2, &[])?;
    let to = format!("{host}:{}", u16::from_be_bytes([port[0], port[1]]));
    told(&to);
    let server = TcpStream::connect(&to)?;
    client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0])?;
    let asked = client.try_clone()?;
    join(asked, client, server)
}

/// Brings a client what a server answers, and the server what is `asked` on.
fn join(mut asked: impl Read, mut client: TcpStream, mut server: TcpStream) -> io::Result<()> {
    let mut answers = server.try_clone()?;
    thread::spawn(move || {
        let _ = io::copy(&mut answers, &mut client);
        client.shutdown(Shutdown::Both)
    });
    io::copy(&mut asked, &mut server)?;
    server.shutdown(Shutdown::Both)
}

/// A proxy of HTTP (RFC 9110, section 7.3.2 and 9.3.6) for `charon` with the password `obolus`; it tells what it was
/// asked for.
pub(crate) struct Http {
    pub(crate) address: String,
    pub(crate) went: Receiver<String>,
}

impl Http {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (sender, went) = mpsc::channel();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let sender = sender.clone();
                thread::spawn(move || serve_http(client, |line| drop(sender.send(line.to_owned()))));
            }
        });
        Self { address, went }
    }

    fn url(&self, password: &str) -> String {
        format!("http://charon:{password}@{}", self.address)
    }
}

fn serve_http(mut client: TcpStream, told: impl Fn(&str)) -> io::Result<()> {
    let mut asked = BufReader::new(client.try_clone()?);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        asked.read_line(&mut line)?;
        match line.trim_end() {
            "" => break,
            line => head.push(line.to_owned()),
        }
    }
    let pair = format!("proxy-authorization: basic {}", STANDARD.encode("charon:obolus"));
    if !head.iter().any(|line| line.eq_ignore_ascii_case(&pair)) {
        client.write_all(
            b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        )?;
        return client.shutdown(Shutdown::Both);
    }
    let first = head.remove(0);
    let (method, target) = first.trim_end_matches(" HTTP/1.1").split_once(' ').unwrap_or_default();
    told(&format!("{method} {target}"));
    if method == "CONNECT" {
        let server = TcpStream::connect(target)?;
        client.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
        return join(asked, client, server);
    }
    let (host, path) = target.trim_start_matches("http://").split_once('/').unwrap_or_default();
    let mut server = TcpStream::connect(host)?;
    let is_ours = |line: &&String| {
        let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
        name != "connection" && !name.starts_with("proxy-")
    };
    let rest: Vec<&str> = head.iter().filter(is_ours).map(String::as_str).collect();
    write!(server, "{method} /{path} HTTP/1.1\r\n{}\r\nconnection: close\r\n\r\n", rest.join("\r\n"))?;
    join(asked, client, server)
}

/// Speaks TLS, with the certificate and the key in these files, before a server that does not: its `127.0.0.1:port`.
pub(crate) fn tls_before(server: &str, certificate: &Path, key: &Path) -> String {
    let chain = CertificateDer::pem_file_iter(certificate).unwrap().map(Result::unwrap).collect();
    let config = ServerConfig::builder().with_no_client_auth();
    let config = config.with_single_cert(chain, PrivateKeyDer::from_pem_file(key).unwrap()).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = RUNTIME.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let (address, server) = (listener.local_addr().unwrap().to_string(), server.to_owned());
    RUNTIME.spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (acceptor, server) = (acceptor.clone(), server.clone());
            tokio::spawn(async move {
                let mut client = acceptor.accept(client).await?;
                let mut server = tokio::net::TcpStream::connect(server).await?;
                tokio::io::copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    address
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

#[test]
fn an_http_proxy_brings_bytes_in_both_directions_for_whom_it_knows() {
    let (source, target, proxy) = (source(), Registry::start(Software::Distribution3), Http::start());
    let host = source.host();
    let direct = make(&source).run().succeeded().stdout;
    let made = make(&source).variable("HTTP_PROXY", proxy.url("obolus")).run().succeeded();
    assert!(made.stdout == direct);
    let went: Vec<String> = proxy.went.try_iter().collect();
    assert!(
        went.iter().any(|line| line.starts_with(&format!("GET http://{host}/v2/ferry/blobs/"))),
        "{went:?}"
    );
    let push = charon(["push-payload", "-q", "-i", "-r", target.host()]).fed(direct);
    push.variable("HTTP_PROXY", proxy.url("obolus")).run().succeeded();
    let went: Vec<String> = proxy.went.try_iter().collect();
    assert!(
        went.iter().any(|line| line.starts_with(&format!("PUT http://{}/v2/ferry/", target.host()))),
        "{went:?}"
    );
    assert_eq!(target.tags("ferry"), ["1"]);

    // What is TLS goes through as it is.
    let secure = Secure::new(Software::Distribution3);
    let of_it = |password: &str| {
        let program =
            charon(["make-payload", "secure:1", "-q", "--retry-for", "0s", "-r", secure.entrance.host()]);
        secure.known_to(program).variable("HTTPS_PROXY", proxy.url(password))
    };
    of_it("obolus").run().succeeded();
    let went: Vec<String> = proxy.went.try_iter().collect();
    assert!(!went.is_empty());
    assert!(went.iter().all(|line| *line == format!("CONNECT {}", secure.entrance.host())), "{went:?}");

    for program in [make(&source).variable("HTTP_PROXY", proxy.url("drachma")), of_it("drachma")] {
        let said = program.run().ended_with(1).stderr;
        assert!(!said.contains("drachma"), "{said}");
        assert!(said.contains("407") || said.contains("proxy"), "{said}");
    }
    assert_eq!(proxy.went.try_iter().count(), 0);
}
