//! A worker by the proxy that its Secret tells of.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use charon::reason::Reason;
use serde_json::{Value, json};

use crate::hosts::Secure;
use crate::image::{Image, Layer, Types};
use crate::pod::Pod;
use crate::proxies::{Http, Socks, tls_before};
use crate::registry::{Registry, Software};
use crate::s3::{ACCESS, S3, SECRET};

const PASSWORD: &str = "an obol: 100%@/";

/// A proxy of plain HTTP that alone knows where hosts are, and lets nobody by without the password.
struct Gateway {
    address: String,
    /// The hosts that it was asked for.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Gateway {
    fn to(hosts: &[(&str, &str)]) -> Self {
        let hosts: HashMap<String, String> =
            hosts.iter().map(|(host, at)| ((*host).to_owned(), (*at).to_owned())).collect();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (asked, told) = (Arc::new(Mutex::new(Vec::new())), hosts);
        let notes = Arc::clone(&asked);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let (hosts, notes) = (told.clone(), Arc::clone(&notes));
                thread::spawn(move || forward(client, &hosts, &notes));
            }
        });
        Self { address, asked }
    }

    fn asked(&self) -> Vec<String> {
        let mut asked = self.asked.lock().unwrap().clone();
        asked.dedup();
        asked
    }
}

/// Passes on what comes; the first request of a connection tells for whom all of it is.
fn forward(
    mut client: TcpStream,
    hosts: &HashMap<String, String>,
    asked: &Mutex<Vec<String>>,
) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte)?;
        head.extend(byte);
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    let right = format!("Basic {}", STANDARD.encode(format!("charon:{PASSWORD}")));
    let is_known = text.lines().any(|line| {
        let field =
            line.split_once(": ").filter(|(name, _)| name.eq_ignore_ascii_case("proxy-authorization"));
        field.is_some_and(|(_, value)| value == right)
    });
    let target = text.split(' ').nth(1).and_then(|url| url.strip_prefix("http://")).unwrap_or_default();
    let host = target.split('/').next().unwrap_or_default();
    asked.lock().unwrap().push(host.to_owned());
    let Some(at) = hosts.get(host).filter(|_| is_known) else {
        return client.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n");
    };
    let mut server = TcpStream::connect(at)?;
    server.write_all(&head)?;
    let (mut answers, mut back) = (server.try_clone()?, client.try_clone()?);
    thread::spawn(move || {
        let _ = io::copy(&mut answers, &mut back);
        back.shutdown(Shutdown::Both)
    });
    io::copy(&mut client, &mut server)?;
    server.shutdown(Shutdown::Both)
}

fn mount(pod: &Pod, keys: &[(&str, &str)]) {
    let folder = pod.at("proxy");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    for (key, value) in keys {
        fs::write(folder.join(key), value).unwrap();
    }
}

fn source() -> Registry {
    let source = Registry::start(Software::Distribution3);
    Image::new(Types::Docker, &[Layer::new("oar", 2000)]).push(&source, "ferry:1");
    source
}

fn work(mut work: Value) -> Value {
    work["proxy"] = json!({ "secret": "way-out" });
    work
}

#[test]
fn registries_and_the_object_store_are_reached_by_the_proxy_and_its_password() {
    let (source, target, store) = (source(), Registry::start(Software::Distribution3), S3::start());
    let gateway = Gateway::to(&[
        ("near.example", source.host()),
        ("far.example", target.host()),
        ("store.example", store.host()),
    ]);
    let pod = Pod::new();
    // Who writes a Secret with echo puts a line's end behind it.
    let address = format!("http://{}\n", gateway.address);
    mount(&pod, &[("address", &address), ("username", "charon\n"), ("password", PASSWORD)]);
    let secrets = pod.at("object-store");
    fs::create_dir_all(&secrets).unwrap();
    fs::write(secrets.join("accesskey"), ACCESS).unwrap();
    fs::write(secrets.join("secretkey"), SECRET).unwrap();
    let object = json!({
        "bucket": "transfer", "key": "app.zip", "endpoint": "http://store.example", "credentials": true,
    });

    let registries = json!([{ "host": "near.example", "insecure": true }]);
    let images = json!([{ "name": "near.example/ferry:1" }]);
    let run = work(json!({ "build": { "images": images, "objectStore": object } }));
    let built = pod.works_with("run", &run, &registries);
    assert_eq!(built.reason, Reason::Succeeded, "{built:?}");
    assert!(store.file("app.zip").exists());
    let registries = json!([{ "host": "far.example", "insecure": true }]);
    let import = json!({ "import": { "objectStore": object, "registry": "far.example" } });
    let imported = pod.works_with("import", &work(import), &registries);
    assert_eq!(imported.reason, Reason::Succeeded, "{imported:?}");
    assert_eq!(target.tags("ferry"), ["1"]);
    for host in ["near.example", "far.example", "store.example"] {
        assert!(gateway.asked().iter().any(|asked| asked == host), "{host}");
    }
}

#[test]
fn a_registry_with_tls_is_reached_through_every_kind_of_proxy_by_whom_the_secret_names() {
    let secure = Secure::new(Software::Distribution3);
    let (socks, http) = (Socks::locked(), Http::start());
    let https = tls_before(&http.address, &secure.certificate(), &secure.key());
    let host = secure.entrance.host();
    let pod = Pod::new();
    pod.mount_pull_secret(&secure.docker_config());
    // The same authority vouches for the proxy.
    fs::copy(secure.certificate(), pod.at("secrets/0/ca.crt")).unwrap();
    let registries = json!([{ "host": host, "certificates": "authority" }]);
    let (through, connected) = (host.to_owned(), format!("CONNECT {host}"));
    for (scheme, address, proxy, line) in [
        ("socks5", &socks.address, &socks.went, &through),
        ("socks5h", &socks.address, &socks.went, &through),
        ("http", &http.address, &http.went, &connected),
        ("https", &https, &http.went, &connected),
    ] {
        let built = |password: &str| {
            let address = format!("{scheme}://{address}");
            mount(&pod, &[("address", &address), ("username", "charon"), ("password", password)]);
            let build =
                json!({ "images": [{ "name": secure.entrance.name("secure:1") }], "path": "app.zip" });
            let run = json!({ "build": build, "traffic": { "retryForSeconds": 0 } });
            pod.works_with(&format!("{scheme} {password}"), &work(run), &registries)
        };
        let outcome = built("obolus");
        assert_eq!(outcome.reason, Reason::Succeeded, "{scheme}: {outcome:?}");
        let went: Vec<String> = proxy.try_iter().collect();
        assert!(!went.is_empty() && went.iter().all(|to| to == line), "{scheme}: {went:?}");

        let outcome = built("drachma");
        assert_eq!(outcome.reason, Reason::RegistryUnavailable, "{scheme}: {outcome:?}");
        assert!(!outcome.message.contains("drachma"), "{scheme}: {}", outcome.message);
        assert_eq!(proxy.try_iter().count(), 0, "{scheme}");
    }
}

#[test]
fn hosts_in_no_proxy_are_reached_without_it() {
    let (source, gateway, pod) = (source(), Gateway::to(&[]), Pod::new());
    let address = format!("http://{}", gateway.address);
    mount(&pod, &[("address", &address), ("noProxy", "other.example, 127.0.0.0/8\n")]);
    let images = json!([{ "name": source.name("ferry:1") }]);
    let run = work(json!({ "build": { "images": images, "path": "app.zip" } }));
    let registries = json!([{ "host": source.host(), "insecure": true }]);
    let built = pod.works_with("run", &run, &registries);
    assert_eq!(built.reason, Reason::Succeeded, "{built:?}");
    assert_eq!(gateway.asked(), [""; 0]);
}

#[test]
fn a_proxy_for_all_is_used_without_a_secret_but_for_the_hosts_in_no_proxy() {
    let (source, gateway, pod) = (source(), Gateway::to(&[]), Pod::new());
    let work = |image: &str| {
        let proxy = json!({ "address": format!("http://{}", gateway.address), "noProxy": "127.0.0.0/8" });
        let build = json!({ "images": [{ "name": image }], "path": "app.zip" });
        json!({ "build": build, "proxy": { "open": proxy } })
    };
    let there = json!([{ "host": "near.example", "insecure": true }]);
    let refused = pod.works_with("run", &work("near.example/ferry:1"), &there);
    // This proxy wants a password, and nobody gave one.
    assert!(!refused.reason.is_success(), "{refused:?}");
    assert_eq!(gateway.asked(), ["near.example"]);
    let here = json!([{ "host": source.host(), "insecure": true }]);
    let built = pod.works_with("run", &work(&source.name("ferry:1")), &here);
    assert_eq!(built.reason, Reason::Succeeded, "{built:?}");
    assert_eq!(gateway.asked(), ["near.example"]);
}

#[test]
fn a_secret_of_a_proxy_that_cannot_be_used_is_told_by_its_name_and_nothing_of_it() {
    let pod = Pod::new();
    let build = json!({ "build": { "images": [{ "name": "near.example/ferry:1" }], "path": "app.zip" } });
    for (keys, reason, words) in [
        (&[][..], Reason::SecretNotFound, "has no address"),
        (&[("address", "charon:obolus@proxy")], Reason::InvalidSpec, "does not begin with http://"),
        (&[("address", "http://:obolus@proxy")], Reason::InvalidSpec, "a password without a username"),
    ] {
        mount(&pod, keys);
        let refused = pod.works_with("run", &work(build.clone()), &json!([]));
        assert_eq!(refused.reason, reason, "{refused:?}");
        let message = refused.message;
        assert!(message.contains("\"way-out\"") && message.contains(words), "{message}");
        assert!(!message.contains("obolus"), "{message}");
    }
}
