//! Registries that want to know who comes.

use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tempfile::TempDir;

use crate::gate::{Gate, wait_until};
use crate::image::{Image, Layer, Types};
use crate::program::{Program, charon};
use crate::registry::{Registry, Software};
use crate::token_service::{Asked, TokenService};

with_each_registry!(
    a_password_opens_a_registry_with_basic_access,
    a_password_opens_a_registry_with_tokens_and_each_request_asks_for_what_it_needs,
    whoever_comes_without_a_password_gets_a_token_for_what_is_open,
    a_token_that_ended_on_the_way_is_replaced,
    a_wrong_password_is_told,
    an_account_that_may_only_read_cannot_push,
    an_image_that_an_account_may_not_read_is_no_wrong_password,
    a_repository_that_an_account_may_not_read_fails_its_own_images,
);

pub(crate) const PASSWORD: &str = "the boatman wants 1 obol";
/// What htpasswd -B writes for charon and that password.
pub(crate) const HTPASSWD: &str = "charon:$2b$04$CharonCharonCharonChaeA8XkliGL7/dEiT/RtFIvTpGMaSWHCTi\n";

/// A registry with the image `ferry:1`, and an entrance to it that is locked.
pub(crate) struct Locked {
    pub(crate) registry: Registry,
    pub(crate) entrance: Registry,
    _keys: TempDir,
}

impl Locked {
    pub(crate) fn new(software: Software) -> Self {
        let keys = tempfile::tempdir().unwrap();
        let file = keys.path().join("htpasswd");
        fs::write(&file, HTPASSWD).unwrap();
        let registry = Registry::start(software);
        let entrance = registry.entrance(&[
            ("REGISTRY_AUTH", "htpasswd"),
            ("REGISTRY_AUTH_HTPASSWD_REALM", "ferry"),
            ("REGISTRY_AUTH_HTPASSWD_PATH", file.to_str().unwrap()),
        ]);
        Image::new(Types::Docker, &[Layer::new("oar", 2000)]).push(&registry, "ferry:1");
        Self { registry, entrance, _keys: keys }
    }

    pub(crate) fn make(&self) -> Program {
        charon(["make-payload", "ferry:1", "-q", "-i", "-r", self.entrance.host()])
    }
}

/// An entrance for whoever has a token of the service.
pub(crate) fn with_tokens(registry: &Registry, service: &TokenService) -> Registry {
    registry.entrance(&[
        ("REGISTRY_AUTH", "token"),
        ("REGISTRY_AUTH_TOKEN_REALM", &service.realm()),
        ("REGISTRY_AUTH_TOKEN_SERVICE", "ferry"),
        ("REGISTRY_AUTH_TOKEN_ISSUER", "ferryman"),
        ("REGISTRY_AUTH_TOKEN_ROOTCERTBUNDLE", service.certificate().to_str().unwrap()),
    ])
}

fn push(registry: &Registry) -> Program {
    charon(["push-payload", "-q", "-i", "-r", registry.host()])
}

fn signed_in(program: Program) -> Program {
    program.arguments(["-u", "charon", "-p", PASSWORD])
}

fn a_password_opens_a_registry_with_basic_access(software: Software) {
    let (source, target) = (Locked::new(software), Locked::new(software));
    Image::new(Types::Oci, &[Layer::new("water", 3000)]).push(&source.registry, "styx:1");
    let made = signed_in(source.make()).arguments(["styx:1"]).run().succeeded();
    let pushed = signed_in(push(&target.entrance)).fed(made.stdout).run().succeeded();
    assert_eq!(pushed.text(), "ferry:1\nstyx:1\n");
    assert_eq!(target.registry.tags("styx"), ["1"]);
}

fn a_password_opens_a_registry_with_tokens_and_each_request_asks_for_what_it_needs(software: Software) {
    let (source, target) = (Registry::start(software), Registry::start(software));
    let service = TokenService::start(PASSWORD, 3600);
    let base = Image::new(Types::Docker, &[Layer::new("base", 3000)]);
    let top = Image::new(Types::Docker, &[Layer::new("base", 3000), Layer::new("top", 1000)]);
    base.push(&source, "base:1");
    base.push(&target, "base:1");
    top.push(&source, "top:1");
    let (from, to) = (with_tokens(&source, &service), with_tokens(&target, &service));

    let made = charon(["make-payload", "top:1", "-a", "base:1", "-q", "-i", "-r", from.host()]);
    let made = signed_in(made).run().succeeded();
    let of = |scopes: &[&str]| Asked {
        user: Some("charon".to_owned()),
        scopes: scopes.iter().map(|&scope| scope.to_owned()).collect(),
    };
    assert_eq!(service.asked(), [of(&["repository:base:pull"]), of(&["repository:top:pull"])]);

    let pushed = signed_in(push(&to)).fed(made.stdout).run().succeeded();
    assert_eq!(pushed.text(), "top:1\n");
    top.assert_is_whole_in(&target, "top:1");
    let mut asked = service.asked().split_off(2);
    asked.sort_by_key(|asked| asked.scopes.clone());
    let mount = of(&["repository:top:pull,push", "repository:base:pull"]);
    let expected = [
        of(&["repository:base:pull"]),
        of(&["repository:top:pull"]),
        of(&["repository:top:pull,push"]),
        // distribution wants another right of who gives up an upload.
        of(&["repository:top:pull,push"]),
        mount,
    ];
    assert_eq!(asked, expected);
}

fn whoever_comes_without_a_password_gets_a_token_for_what_is_open(software: Software) {
    let source = Registry::start(software);
    let service = TokenService::start(PASSWORD, 3600);
    let image = Image::new(Types::Docker, &[Layer::new("oar", 2000)]);
    image.push(&source, "open/ferry:1");
    image.push(&source, "ferry:1");
    let entrance = with_tokens(&source, &service);
    let make = |image| charon(["make-payload", image, "-q", "-i", "-r", entrance.host()]).run();

    make("open/ferry:1").succeeded();
    assert_eq!(
        service.asked(),
        [Asked { user: None, scopes: vec!["repository:open/ferry:pull".to_owned()] }]
    );
    let host = entrance.host();
    assert_eq!(
        make("ferry:1").ended_with(1).stderr,
        format!(
            "error: cannot read {host}/ferry:1: {host} answered 401 Unauthorized (UNAUTHORIZED: authentication required); \
             the image does not exist, or credentials for this registry are needed\n"
        )
    );
}

fn a_token_that_ended_on_the_way_is_replaced(software: Software) {
    const LIFE: u64 = 6;
    let source = Registry::start(software);
    let service = TokenService::start(PASSWORD, LIFE);
    // More than are asked for at once.
    let layers = [("a", 100_000), ("b", 1), ("c", 1), ("d", 1), ("e", 1), ("f", 1)];
    let layers = layers.map(|(name, size)| Layer::new(name, size));
    Image::new(Types::Docker, &layers).push(&source, "ferry:1");
    let entrance = with_tokens(&source, &service);
    let gate = Gate::before(&entrance, 50_000);
    let made = charon(["make-payload", "ferry:1", "-q", "-i", "-r", gate.host()]);
    let made = signed_in(made).start();
    gate.wait_until_shut();
    // Nothing tells when a token ends but the clock.
    std::thread::sleep(std::time::Duration::from_secs(LIFE + 1));
    gate.open();
    made.end().succeeded();
    let asked = Asked { user: Some("charon".to_owned()), scopes: vec!["repository:ferry:pull".to_owned()] };
    assert_eq!(service.asked(), [asked.clone(), asked]);
}

fn a_wrong_password_is_told(software: Software) {
    let locked = Locked::new(software);
    let payload = charon(["make-payload", "ferry:1", "-i", "-r", locked.registry.host()]).run().succeeded();
    let said = |program: Program| {
        let ended = program.arguments(["-u", "charon", "-p", "2 obols"]).run().ended_with(1);
        assert!(ended.stdout.is_empty());
        ended.stderr
    };
    let advice = "check the credentials for this registry and what they allow";
    let host = locked.entrance.host();
    // What a tag means is asked for by HEAD, and the answer to that has no words.
    let first = format!("cannot read {host}/ferry:1: {host} answered 401 Unauthorized; {advice}");
    assert_eq!(
        said(locked.make().arguments(["styx:1"])),
        format!("error: {first}\nerror: styx:1 was not asked for: {first}\n")
    );
    // The registry is not asked again and again with what it has refused: accounts are locked for that.
    let refused = locked.entrance.requests().iter().filter(|request| request.ends_with(" 401")).count();
    assert_eq!(refused, 2);
    assert_eq!(
        said(push(&locked.entrance).fed(payload.stdout)),
        // It was a HEAD, whose answer has no words.
        format!("error: cannot read {host}/ferry:1: {host} answered 401 Unauthorized; {advice}\n")
    );

    let service = TokenService::start(PASSWORD, 3600);
    let entrance = with_tokens(&locked.registry, &service);
    let (host, desk) = (entrance.host(), service.host());
    assert_eq!(
        said(charon(["make-payload", "ferry:1", "-q", "-i", "-r", host])),
        format!(
            "error: cannot read {host}/ferry:1: {desk} answered 401 Unauthorized (UNAUTHORIZED: no such user or password); {advice}\n"
        )
    );
}

fn an_account_that_may_only_read_cannot_push(software: Software) {
    let (source, target) = (Registry::start(software), Registry::start(software));
    let image = Image::new(Types::Docker, &[Layer::new("oar", 2000)]);
    image.push(&source, "ferry:1");
    let service = TokenService::start(PASSWORD, 3600);
    let entrance = with_tokens(&target, &service);
    let made = charon(["make-payload", "ferry:1", "-i", "-r", source.host()]).run().succeeded();
    let pushed = push(&entrance).arguments(["-u", "reader", "-p", PASSWORD]).fed(made.stdout).run();
    let pushed = pushed.ended_with(1);
    let host = entrance.host();
    let why = format!(
        "cannot push to {host}/ferry: {host} answered 401 Unauthorized (UNAUTHORIZED: authentication required); \
         check that the account may push to this repository"
    );
    assert_eq!(pushed.stderr, format!("error: ferry:1: {why}\n"));
    assert_eq!(pushed.text(), "");
    assert!(target.is_empty());
}

fn an_image_that_an_account_may_not_read_is_no_wrong_password(software: Software) {
    let source = Registry::start(software);
    let service = TokenService::start(PASSWORD, 3600);
    let image = Image::new(Types::Docker, &[Layer::new("oar", 2000)]);
    image.push(&source, "secret/ferry:1");
    image.push(&source, "open/ferry:1");
    let entrance = with_tokens(&source, &service);
    let host = entrance.host();
    let make = |options: &[&str]| {
        let make =
            charon(["make-payload", "secret/ferry:1,open/ferry:1,secret/gone:1", "-q", "-i", "-r", host]);
        make.arguments(["-u", "guest", "-p", PASSWORD]).arguments(options).run()
    };
    let why = |image: &str| {
        format!(
            "cannot read {host}/{image}: {host} answered 401 Unauthorized; the image does not exist, or the account may not pull it"
        )
    };
    let (ferry, gone) = (why("secret/ferry:1"), why("secret/gone:1"));
    assert_eq!(make(&[]).ended_with(1).stderr, format!("error: {ferry}\nerror: {gone}\n"));
    let without_them = make(&["--allow-missing"]).succeeded();
    let without = "; the payload is made without it";
    assert_eq!(without_them.stderr, format!("warning: {ferry}{without}\nwarning: {gone}{without}\n"));
    let target = Registry::start(software);
    let pushed = push(&target).fed(without_them.stdout).run().succeeded();
    assert_eq!(pushed.text(), "open/ferry:1\n");
}

fn a_repository_that_an_account_may_not_read_fails_its_own_images(software: Software) {
    let (source, target) = (Registry::start(software), Registry::start(software));
    let image = Image::new(Types::Docker, &[Layer::new("oar", 2000)]);
    image.push(&source, "secret/ferry:1");
    image.push(&source, "open/ferry:1");
    let made = charon(["make-payload", "secret/ferry:1,open/ferry:1", "-i", "-r", source.host()]);
    let payload = made.run().succeeded().stdout;
    // What is there already needs no right to push.
    image.push(&target, "open/ferry:1");
    let service = TokenService::start(PASSWORD, 3600);
    let entrance = with_tokens(&target, &service);
    let pushed = push(&entrance).arguments(["-u", "guest", "-p", PASSWORD]).fed(payload).run();
    let pushed = pushed.ended_with(1);
    let host = entrance.host();
    assert_eq!(
        pushed.stderr,
        format!(
            "warning: cannot read {host}/secret/ferry:1: {host} answered 401 Unauthorized; the image does not \
             exist, or the account may not pull it; some registries say so of what is not there yet, and it is taken \
             for that\n\
             error: secret/ferry:1: cannot push to {host}/secret/ferry: {host} answered 401 Unauthorized \
             (UNAUTHORIZED: authentication required); check that the account may push to this repository\n"
        )
    );
    assert_eq!(pushed.text(), "open/ferry:1\n");
}

/// Writes Docker's configuration with credentials for a registry.
pub(crate) fn docker_config(folder: &Path, host: &str, password: &str) {
    let auth = STANDARD.encode(format!("charon:{password}"));
    let config = serde_json::json!({"auths": {host: {"auth": auth}}});
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
}

#[test]
fn credentials_come_by_options_by_variables_on_standard_input_and_from_dockers_configuration() {
    let locked = Locked::new(Software::Distribution3);
    let folder = tempfile::tempdir().unwrap();
    docker_config(folder.path(), locked.entrance.host(), PASSWORD);
    let payload = locked.make().variable("DOCKER_CONFIG", folder.path()).run().succeeded().stdout;
    let file = folder.path().join("payload.zip");
    fs::write(&file, payload).unwrap();
    let config = folder.path().join("config.json");

    let ways: [(&str, &dyn Fn(Program) -> Program); 7] = [
        ("options", &|program| program.arguments(["--username", "charon", "--password", PASSWORD])),
        ("our variables", &|program| {
            program.variable("CHARON_USERNAME", "charon").variable("CHARON_PASSWORD", PASSWORD)
        }),
        ("docker-charon's variables", &|program| {
            program.variable("DOCKER_CHARON_USERNAME", "charon").variable("DOCKER_CHARON_PASSWORD", PASSWORD)
        }),
        ("standard input", &|program| {
            program.arguments(["-u", "charon", "--password-stdin"]).fed(format!("{PASSWORD}\n"))
        }),
        ("an option and a variable", &|program| {
            program.arguments(["-u", "charon"]).variable("DOCKER_CHARON_PASSWORD", PASSWORD)
        }),
        ("DOCKER_CONFIG", &|program| program.variable("DOCKER_CONFIG", folder.path())),
        ("REGISTRY_AUTH_FILE", &|program| program.variable("REGISTRY_AUTH_FILE", &config)),
    ];
    for (way, with) in ways {
        for program in [locked.make(), push(&locked.entrance).arguments(["-f"]).arguments([&file])] {
            let ended = with(program).run();
            assert_eq!(ended.status, Some(0), "by {way}: {}", ended.stderr);
        }
    }
    locked.make().run().ended_with(1);
}

#[test]
fn a_password_that_nobody_types_is_not_waited_for_after_a_signal() {
    let (reader, writer) = std::io::pipe().unwrap();
    let made = charon(["make-payload", "ferry:1", "-r", "127.0.0.1:1", "-u", "charon", "--password-stdin"]);
    let made = made.reading(reader).start();
    // Since then it listens for signals.
    wait_until("it reads", || {
        let status = fs::read_to_string(format!("/proc/{}/status", made.id())).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:\t")).unwrap_or_default();
        u64::from_str_radix(caught, 16).unwrap_or(0) & (1 << (15 - 1)) != 0
    });
    made.terminate();
    assert_eq!(made.end().ended_with(128 + 15).stderr, "error: interrupted\n");
    drop(writer);
}

#[test]
fn an_option_goes_before_a_variable_and_a_variable_before_dockers_configuration() {
    let locked = Locked::new(Software::Distribution3);
    let folder = tempfile::tempdir().unwrap();
    let with = |option: Option<&str>, variable: Option<&str>, configured: &str| {
        docker_config(folder.path(), locked.entrance.host(), configured);
        let mut program = locked.make().variable("DOCKER_CONFIG", folder.path());
        if let Some(password) = option {
            program = program.arguments(["-u", "charon", "-p", password]);
        }
        if let Some(password) = variable {
            program = program.variable("CHARON_USERNAME", "charon").variable("CHARON_PASSWORD", password);
        }
        program.run().status
    };
    assert_eq!(with(Some(PASSWORD), Some("wrong"), "wrong"), Some(0));
    assert_eq!(with(Some("wrong"), Some(PASSWORD), PASSWORD), Some(1));
    assert_eq!(with(None, Some(PASSWORD), "wrong"), Some(0));
    assert_eq!(with(None, Some("wrong"), PASSWORD), Some(1));
    let fed = locked.make().arguments(["-u", "charon", "--password-stdin"]).fed(PASSWORD);
    fed.variable("CHARON_PASSWORD", "wrong").run().succeeded();
}

#[test]
fn a_configuration_of_dockers_that_cannot_be_read_is_told_of_and_not_needed_where_credentials_are_given() {
    let locked = Locked::new(Software::Distribution3);
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), "{").unwrap();
    let with = |program: Program| program.variable("DOCKER_CONFIG", folder.path()).run();
    let made = with(locked.make().arguments(["-u", "charon", "-p", PASSWORD])).succeeded();
    assert!(made.stderr.contains("warning: ") && made.stderr.contains("config.json"), "{}", made.stderr);
    let refused = with(locked.make()).ended_with(1);
    assert!(refused.stderr.contains("config.json") && refused.stderr.contains("401"), "{}", refused.stderr);
}

#[test]
fn neither_passwords_nor_tokens_are_ever_said() {
    let locked = Locked::new(Software::Distribution3);
    let service = TokenService::start(PASSWORD, 3600);
    let entrance = with_tokens(&locked.registry, &service);
    let target = Locked::new(Software::Distribution3);
    let mut said = String::new();
    for from in [&locked.entrance, &entrance] {
        let made = charon(["make-payload", "ferry:1", "-vv", "-i", "-r", from.host()]);
        let made = signed_in(made).variable("CHARON_LOG", "trace").run().succeeded();
        said += &made.stderr;
        let pushed = charon(["push-payload", "-vv", "-i", "-r", target.entrance.host()]).fed(made.stdout);
        let pushed = signed_in(pushed).variable("CHARON_LOG", "trace").run().succeeded();
        said += &(pushed.stderr.clone() + &pushed.text());
    }
    let wrong = charon(["make-payload", "ferry:1", "-vv", "-i", "-r", entrance.host(), "-u", "nobody", "-p"]);
    said += &wrong.arguments([PASSWORD]).run().ended_with(1).stderr;

    assert!(said.contains("put; add idle connection"), "it says all it knows: {said}");
    let pairs = ["charon", "nobody"].map(|user| STANDARD.encode(format!("{user}:{PASSWORD}")));
    let secrets = [PASSWORD.to_owned()].into_iter().chain(pairs).chain(service.tokens());
    for secret in secrets {
        assert!(!said.contains(&secret), "{secret} in {said}");
    }
}
