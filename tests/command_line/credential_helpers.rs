//! Credentials that programs keep, and identity tokens.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::json;
use tempfile::TempDir;

use crate::access::{Locked, PASSWORD, with_tokens};
use crate::gate::wait_until;
use crate::image::{Image, Layer, Types};
use crate::program::{Program, charon};
use crate::registry::{Registry, Software};
use crate::token_service::{IDENTITY_TOKEN, TokenService};

/// A folder with Docker's configuration and a credential helper, which is a shell script.
struct Keeper {
    folder: TempDir,
}

impl Keeper {
    fn new(config: &serde_json::Value, script: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let helper = folder.path().join("docker-credential-ferry");
        fs::write(&helper, format!("#!/bin/sh\nhost=$(cat)\n{script}\n")).unwrap();
        fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
        Self { folder }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn for_(&self, program: Program) -> Program {
        let path = format!("{}:/usr/bin:/bin", self.path().display());
        program.variable("DOCKER_CONFIG", self.path()).variable("PATH", path)
    }
}

/// A script that tells a name and a secret, and notes for whom.
fn telling(name: &str, secret: &str) -> String {
    format!(
        "echo \"$1 $host\" >> \"$(dirname \"$0\")/asked\"\n\
         echo '{{\"ServerURL\":\"x\",\"Username\":\"{name}\",\"Secret\":\"{secret}\"}}'"
    )
}

#[test]
fn a_credential_helper_is_asked_for_its_hosts_once_a_run() {
    let locked = Locked::new(Software::Distribution3);
    let host = locked.entrance.host();
    for config in [
        json!({"credHelpers": {host: "ferry"}}),
        json!({"credsStore": "ferry", "auths": {host: {}}}),
        // The helper goes before what the file has.
        json!({"credHelpers": {format!("https://{host}/v2/"): "ferry"}, "credsStore": "none",
               "auths": {host: {"username": "charon", "password": "wrong"}}}),
    ] {
        let keeper = Keeper::new(&config, &telling("charon", PASSWORD));
        let payload = keeper.for_(locked.make()).run().succeeded().stdout;
        let pushed = charon(["push-payload", "-q", "-i", "-r", host]).fed(payload);
        assert_eq!(keeper.for_(pushed).run().succeeded().text(), "ferry:1\n");
        let asked = fs::read_to_string(keeper.path().join("asked")).unwrap();
        assert_eq!(asked, format!("get {host}\n").repeat(2));
    }
}

#[test]
fn a_helper_that_knows_nothing_of_a_host_leaves_it_to_the_file() {
    let locked = Locked::new(Software::Distribution3);
    let auths = json!({locked.entrance.host(): {"username": "charon", "password": PASSWORD}});
    let config = json!({"credsStore": "ferry", "auths": auths});
    let keeper = Keeper::new(&config, "echo 'credentials not found in native keychain'; exit 1");
    keeper.for_(locked.make()).run().succeeded();
}

#[test]
fn a_helper_that_fails_is_told_with_its_name_and_the_host_and_without_a_secret() {
    let locked = Locked::new(Software::Distribution3);
    let host = locked.entrance.host();
    for (helper, script, problem) in [
        (
            "ferry",
            "echo 'the keychain is locked'; exit 2",
            "it ended with exit status: 2 (the keychain is locked)",
        ),
        ("ferry", "echo '{\"Secret\":\"2 obols\"}'", "its answer is no JSON with Username and Secret"),
        ("ferry", "yes '2 obols'", "its answer is too long"),
        ("absent", "", "No such file or directory (os error 2)"),
        ("../ferry", "", "that is no name of a program"),
    ] {
        let keeper = Keeper::new(&json!({"credsStore": helper}), script);
        let said = keeper.for_(locked.make()).run().ended_with(1).stderr;
        let expected = format!(
            "error: cannot ask docker-credential-{helper} for the credentials of {host}: {problem}; \
             check credHelpers and credsStore in the Docker configuration\n"
        );
        assert_eq!(said, expected);
    }
}

#[test]
fn a_helper_that_does_not_answer_is_not_waited_for_after_a_signal() {
    let locked = Locked::new(Software::Distribution3);
    let script = "echo > \"$(dirname \"$0\")/asked\"\nexec sleep 1000";
    let keeper = Keeper::new(&json!({"credsStore": "ferry"}), script);
    let made = keeper.for_(locked.make()).start();
    wait_until("the helper runs", || keeper.path().join("asked").exists());
    made.terminate();
    assert_eq!(made.end().ended_with(128 + 15).stderr, "error: interrupted\n");
}

#[test]
fn an_identity_token_is_changed_for_others_at_the_token_service() {
    let source = Registry::start(Software::Distribution3);
    let service = TokenService::start(PASSWORD, 3600);
    Image::new(Types::Docker, &[Layer::new("oar", 2000)]).push(&source, "ferry:1");
    let entrance = with_tokens(&source, &service);
    let host = entrance.host();
    for (config, script) in [
        (json!({"auths": {host: {"auth": "", "identitytoken": IDENTITY_TOKEN}}}), String::new()),
        (json!({"credsStore": "ferry"}), telling("<token>", IDENTITY_TOKEN)),
    ] {
        let keeper = Keeper::new(&config, &script);
        let payload =
            keeper.for_(charon(["make-payload", "ferry:1", "-q", "-i", "-r", host])).run().succeeded().stdout;
        let pushed = charon(["push-payload", "-q", "-i", "-r", host, "--prefix", "far"]).fed(payload);
        assert_eq!(keeper.for_(pushed).run().succeeded().text(), "ferry:1\n");
    }
    assert!(service.asked().iter().all(|asked| asked.user.as_deref() == Some("charon")));

    let config = json!({"auths": {host: {"identitytoken": "another"}}});
    let keeper = Keeper::new(&config, "");
    let said =
        keeper.for_(charon(["make-payload", "ferry:1", "-q", "-i", "-r", host])).run().ended_with(1).stderr;
    assert!(said.contains("check the credentials for this registry"), "{said}");
    assert!(!said.contains("another"), "{said}");
}
