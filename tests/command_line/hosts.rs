//! Several registries at once, and registries with TLS.

use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::access::{HTPASSWD, PASSWORD};
use crate::image::{Image, Layer, Types};
use crate::program::{Program, charon, tool};
use crate::registry::{Registry, Software};

with_each_registry!(
    images_of_several_registries_go_into_one_payload_each_with_its_own_access,
    plain_http_is_for_the_registry_that_is_named_and_for_no_other,
    a_registry_with_tls_is_told_where_it_is_asked_in_plain_http,
    a_certificate_that_nobody_vouches_for_is_told,
    authorities_are_those_that_ssl_cert_file_names_or_else_the_variables_of_docker_charon,
    a_registry_that_asks_for_a_certificate_is_shown_one_and_without_it_that_is_told,
);

/// A registry with the image `secure:1` behind TLS, and the folder with its certificate.
pub(crate) struct Secure {
    registry: Registry,
    pub(crate) entrance: Registry,
    folder: TempDir,
}

impl Secure {
    pub(crate) fn new(software: Software) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let request =
            ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=far side", "-days", "2"];
        let extensions = ["subjectAltName=IP:127.0.0.1", "basicConstraints=critical,CA:FALSE"];
        let request =
            tool("openssl", request).arguments(extensions.iter().flat_map(|text| ["-addext", text]));
        let request = request.arguments(["-keyout", "key.pem", "-out", "certificate.pem"]);
        request.in_folder(folder.path()).run().succeeded();
        fs::write(folder.path().join("htpasswd"), HTPASSWD).unwrap();
        let registry = Registry::start(software);
        let file = |name| folder.path().join(name).to_str().unwrap().to_owned();
        let entrance = registry.entrance(&[
            ("REGISTRY_HTTP_TLS_CERTIFICATE", &file("certificate.pem")),
            ("REGISTRY_HTTP_TLS_KEY", &file("key.pem")),
            ("REGISTRY_AUTH", "htpasswd"),
            ("REGISTRY_AUTH_HTPASSWD_REALM", "ferry"),
            ("REGISTRY_AUTH_HTPASSWD_PATH", &file("htpasswd")),
        ]);
        Image::new(Types::Oci, &[Layer::new("secure", 2000)]).push(&registry, "secure:1");
        Self { registry, entrance, folder }
    }

    /// Lets a program trust the certificate and find the password.
    pub(crate) fn known_to(&self, program: Program) -> Program {
        fs::write(self.folder.path().join("config.json"), self.docker_config().to_string()).unwrap();
        let program = program.variable("SSL_CERT_FILE", self.certificate());
        program.variable("DOCKER_CONFIG", self.folder.path())
    }

    /// What holds the password.
    pub(crate) fn docker_config(&self) -> Value {
        let auth = STANDARD.encode(format!("charon:{PASSWORD}"));
        json!({ "auths": { self.entrance.host(): { "auth": auth } } })
    }

    /// Another entrance, for those who have the certificate, too.
    fn guarded(&self) -> Registry {
        let (certificate, key) = (self.certificate(), self.key());
        let authorities = format!("[{}]", certificate.display());
        self.registry.entrance(&[
            ("REGISTRY_HTTP_TLS_CERTIFICATE", certificate.to_str().unwrap()),
            ("REGISTRY_HTTP_TLS_KEY", key.to_str().unwrap()),
            ("REGISTRY_HTTP_TLS_CLIENTCAS", &authorities),
        ])
    }

    pub(crate) fn certificate(&self) -> PathBuf {
        self.folder.path().join("certificate.pem")
    }

    pub(crate) fn key(&self) -> PathBuf {
        self.folder.path().join("key.pem")
    }
}

/// A registry with the image `plain:1`.
fn plain(software: Software) -> Registry {
    let registry = Registry::start(software);
    Image::new(Types::Docker, &[Layer::new("plain", 2000)]).push(&registry, "plain:1");
    registry
}

fn images_of_several_registries_go_into_one_payload_each_with_its_own_access(software: Software) {
    let (plain, secure, target) = (plain(software), Secure::new(software), Registry::start(software));
    let other = secure.entrance.name("secure:1");
    // The options are for the registry that is named, which does not mind them. The other has a user of its own.
    let made = charon(["make-payload", "plain:1", &other, "-i", "-u", "somebody", "-p", "else", "-r"]);
    let made = secure.known_to(made.arguments([plain.host()])).run().succeeded();
    let pushed = charon(["push-payload", "-i", "-r", target.host()]).fed(made.stdout).run().succeeded();
    assert_eq!(pushed.text(), format!("plain:1\n{other}\n"));
    assert_eq!((target.tags("plain"), target.tags("secure")), (vec!["1".to_owned()], vec!["1".to_owned()]));
}

fn plain_http_is_for_the_registry_that_is_named_and_for_no_other(software: Software) {
    let (named, other) = (plain(software), plain(software));
    let before = other.requests();
    let made = charon(["make-payload", "plain:1", &other.name("plain:1"), "-q", "-i", "-r", named.host()]);
    let host = other.host();
    assert_eq!(
        made.run().ended_with(1).stderr,
        format!(
            "error: cannot read {host}/plain:1: {host} does not speak TLS; if it is meant to, use --insecure or insecure: true\n"
        )
    );
    let after = other.requests();
    assert!(!after[before.len()..].iter().any(|request| request.contains("/plain/")), "{after:#?}");
}

fn a_registry_with_tls_is_told_where_it_is_asked_in_plain_http(software: Software) {
    let secure = Secure::new(software);
    let made = charon(["make-payload", "secure:1", "-q", "-i", "-r", secure.entrance.host()]);
    let host = secure.entrance.host();
    assert_eq!(
        secure.known_to(made).run().ended_with(1).stderr,
        format!(
            "error: cannot read {host}/secure:1: {host} answered 400 Bad Request (Client sent an HTTP request to an HTTPS server.); \
             it speaks TLS: leave out --insecure or insecure: true\n"
        )
    );
}

fn a_certificate_that_nobody_vouches_for_is_told(software: Software) {
    let secure = Secure::new(software);
    let made = charon(["make-payload", "secure:1", "-q", "-r", secure.entrance.host()]);
    let host = secure.entrance.host();
    assert_eq!(
        made.run().ended_with(1).stderr,
        format!(
            "error: cannot read {host}/secure:1: the certificate of {host} is not trusted: invalid peer certificate: UnknownIssuer; \
             give the certificate authority that signed it, by --ca-file, SSL_CERT_FILE, REQUESTS_CA_BUNDLE or certSecretRef\n"
        )
    );
}

fn authorities_are_those_that_ssl_cert_file_names_or_else_the_variables_of_docker_charon(software: Software) {
    let secure = Secure::new(software);
    let host = secure.entrance.host();
    let (right, wrong) =
        (secure.folder.path().join("certificate.pem"), secure.folder.path().join("htpasswd"));
    let made = |variables: &[(&str, &Path)]| {
        let made = charon(["make-payload", "secure:1", "-q", "-r", host, "-u", "charon", "-p", PASSWORD]);
        variables.iter().fold(made, |made, (name, file)| made.variable(name, file)).run()
    };
    for name in ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"] {
        made(&[(name, &right)]).succeeded();
    }
    made(&[("REQUESTS_CA_BUNDLE", secure.folder.path())]).succeeded();
    made(&[("SSL_CERT_FILE", &right), ("REQUESTS_CA_BUNDLE", &wrong)]).succeeded();
    made(&[("REQUESTS_CA_BUNDLE", &right), ("CURL_CA_BUNDLE", &wrong)]).succeeded();
    assert_eq!(
        made(&[("REQUESTS_CA_BUNDLE", &wrong)]).ended_with(1).stderr,
        format!(
            "error: cannot set up a client for {host}: the certificate authorities in {} cannot be read: \
             there is no PEM certificate in it\n",
            wrong.display()
        )
    );
}

fn a_registry_that_asks_for_a_certificate_is_shown_one_and_without_it_that_is_told(software: Software) {
    let secure = Secure::new(software);
    let guarded = secure.guarded();
    let authority = ["--ca-file".into(), secure.certificate()];
    let certificate = ["--cert-file".into(), secure.certificate()];
    let key = ["--key-file".into(), secure.key()];
    let make = || charon(["make-payload", "secure:1", "-q", "-r", guarded.host()]).arguments(&authority);
    let payload = make().arguments(&certificate).arguments(&key).run().succeeded().stdout;
    let push = charon(["push-payload", "-q", "--prefix", "far", "-r", guarded.host()]).fed(payload);
    push.arguments(&authority).arguments(&certificate).arguments(&key).run().succeeded();
    assert_eq!(secure.registry.tags("far/secure"), ["1"]);

    let host = guarded.host();
    let said = make().run().ended_with(1).stderr;
    let wants =
        format!("error: cannot read {host}/secure:1: {host} wants a client certificate that it trusts: ");
    assert!(said.starts_with(&wants), "{said}");
    assert!(
        said.contains("give one with its key, by --cert-file and --key-file or by certSecretRef"),
        "{said}"
    );

    // It is for one registry, and for nobody whom the names happen to lead to.
    let several =
        charon(["make-payload", "a.example/x:1,b.example/x:1"]).arguments(&certificate).arguments(&key);
    let said = several.run().ended_with(2).stderr;
    assert!(said.contains("say by --registry which one"), "{said}");
    let said = make().arguments(&certificate).run().ended_with(2).stderr;
    assert!(said.contains("--key-file"), "{said}");
    let said =
        make().arguments(&certificate).arguments(["--key-file", "/gone.pem"]).run().ended_with(1).stderr;
    assert_eq!(said, "error: /gone.pem: No such file or directory (os error 2)\n");
}
