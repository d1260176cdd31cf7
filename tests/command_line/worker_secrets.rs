//! What workers know of registries from what is mounted: accounts, authorities, certificates.

use std::fs;
use std::path::Path;

use charon::reason::Reason;
use serde_json::json;

use crate::access::{Locked, PASSWORD};
use crate::pod::{Pod, source};
use crate::program::tool;
use crate::registry::Software;

with_each_registry!(a_secret_may_have_several_hosts_and_another_an_authority_and_a_certificate);

/// A certificate for this machine, and its key; of an authority, if it is given.
fn certificate(folder: &Path, name: &str, authority: Option<&str>) {
    let mut words: Vec<String> =
        ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"].map(str::to_owned).into();
    words.extend([
        "-subj".to_owned(),
        format!("/CN={name}"),
        "-addext".to_owned(),
        "subjectAltName=IP:127.0.0.1".to_owned(),
    ]);
    words.extend(["-keyout".to_owned(), format!("{name}.key"), "-out".to_owned(), format!("{name}.crt")]);
    if let Some(authority) = authority {
        words.extend([
            "-CA".to_owned(),
            format!("{authority}.crt"),
            "-CAkey".to_owned(),
            format!("{authority}.key"),
        ]);
        words.extend(["-addext", "basicConstraints=critical,CA:FALSE"].map(str::to_owned));
    }
    tool("openssl", words).in_folder(folder).run().succeeded();
}

#[test]
fn the_authorities_of_all_are_trusted_beside_those_of_a_secret() {
    let (pod, source) = (Pod::new(), source(Software::Distribution3, &["styx:1"]));
    let keys = tempfile::tempdir().unwrap();
    certificate(keys.path(), "authority", None);
    certificate(keys.path(), "other", None);
    certificate(keys.path(), "server", Some("authority"));
    let at = |name: &str| keys.path().join(name).display().to_string();
    let secure = source.entrance(&[
        ("REGISTRY_HTTP_TLS_CERTIFICATE", &at("server.crt")),
        ("REGISTRY_HTTP_TLS_KEY", &at("server.key")),
    ]);
    let build = json!({ "build": { "images": [{ "name": secure.name("styx:1") }], "path": "out.zip" } });
    let own = json!([{ "host": secure.host(), "certificates": "other" }]);
    let secrets = pod.at("secrets/0");
    fs::create_dir_all(&secrets).unwrap();
    fs::copy(at("other.crt"), secrets.join("ca.crt")).unwrap();

    let mistrusting = pod.works_with("run", &build, &own);
    assert!(mistrusting.message.contains("is not trusted"), "{}", mistrusting.message);
    fs::copy(at("authority.crt"), pod.at("ca-bundle.crt")).unwrap();
    for (run, registries) in [("with", &own), ("without", &json!([]))] {
        let outcome = pod.works_with(run, &build, registries);
        assert_eq!(outcome.reason, Reason::Succeeded, "{outcome:?}");
    }
}

fn a_secret_may_have_several_hosts_and_another_an_authority_and_a_certificate(software: Software) {
    let (pod, locked, source) = (Pod::new(), Locked::new(software), source(software, &["styx:1"]));
    let keys = tempfile::tempdir().unwrap();
    certificate(keys.path(), "authority", None);
    certificate(keys.path(), "server", Some("authority"));
    certificate(keys.path(), "client", Some("authority"));
    let at = |name: &str| keys.path().join(name).display().to_string();
    let secure = source.entrance(&[
        ("REGISTRY_HTTP_TLS_CERTIFICATE", &at("server.crt")),
        ("REGISTRY_HTTP_TLS_KEY", &at("server.key")),
        ("REGISTRY_HTTP_TLS_CLIENTCAS", &format!("[{}]", at("authority.crt"))),
    ]);
    let work = json!({ "build": {
        "images": [{ "name": locked.entrance.name("ferry:1") }, { "name": secure.name("styx:1") }], "path": "out.zip",
    } });
    let registries = json!([
        { "host": locked.entrance.host(), "insecure": true },
        { "host": secure.host(), "certificates": "keys" },
    ]);
    let secrets = pod.at("secrets");
    for index in ["0", "1"] {
        fs::create_dir_all(secrets.join(index)).unwrap();
    }
    let entry = json!({ "username": "charon", "password": PASSWORD });
    let config =
        json!({ "auths": { "other.example": entry, locked.entrance.host(): entry }, "credsStore": "none" });
    fs::write(secrets.join("0/.dockerconfigjson"), config.to_string()).unwrap();
    fs::copy(at("authority.crt"), secrets.join("1/ca.crt")).unwrap();

    // The authority is known; the server wants to know who comes.
    let refused = pod.works_with("run", &work, &registries);
    assert_eq!(refused.reason, Reason::RegistryUnavailable, "{refused:?}");
    assert!(refused.message.contains("wants a client certificate that it trusts"), "{}", refused.message);
    fs::copy(at("client.crt"), secrets.join("1/tls.crt")).unwrap();
    fs::copy(at("client.key"), secrets.join("1/tls.key")).unwrap();
    let built = pod.works_with("run", &work, &registries);
    assert_eq!(built.reason, Reason::Succeeded, "{built:?}");
    fs::remove_file(secrets.join("1/ca.crt")).unwrap();
    let mistrusting = pod.works_with("another", &work, &registries);
    assert!(mistrusting.message.contains("is not trusted"), "{}", mistrusting.message);
}

#[test]
fn a_secret_with_certificates_that_is_not_there_is_waited_for_by_its_name() {
    let registry = source(Software::Distribution3, &["app:1"]);
    let pod = Pod::new();
    let host = registry.host();
    let registries = json!([{ "host": host, "insecure": true, "certificates": "corp-ca" }]);
    let build = json!({ "images": [{ "name": format!("{host}/app:1") }], "path": "app.zip" });
    let outcome = pod.works("r", &json!({ "build": build, "registries": registries }), &registry);
    assert_eq!((outcome.reason, outcome.reason.exit_code()), (Reason::SecretNotFound, 76));
    assert!(outcome.message.contains("\"corp-ca\"") && outcome.message.contains(host), "{}", outcome.message);
}
