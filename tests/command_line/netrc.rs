//! Logins in the netrc of whoever calls.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use crate::access::{Locked, PASSWORD, docker_config, with_tokens};
use crate::image::{Image, Layer, Types};
use crate::program::{Program, charon};
use crate::registry::{Registry, Software};
use crate::token_service::TokenService;

/// A folder with a netrc.
fn folder(name: &str, netrc: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(name), netrc).unwrap();
    folder
}

fn login(password: &str) -> String {
    format!("machine 127.0.0.1 login charon password \"{password}\"\n")
}

#[test]
fn a_netrc_opens_a_registry_and_is_found_where_pythons_requests_finds_it() {
    let locked = Locked::new(Software::Distribution3);
    let status = |with: &dyn Fn(Program) -> Program| with(locked.make()).run().status;
    for name in [".netrc", "_netrc"] {
        let home = folder(name, &login(PASSWORD));
        assert_eq!(status(&|program| program.variable("HOME", home.path())), Some(0), "{name}");
    }
    let (home, wrong) = (folder("mine", &login(PASSWORD)), folder(".netrc", &login("wrong")));
    let mine = home.path().join("mine");
    assert_eq!(status(&|program| program.variable("NETRC", &mine).variable("HOME", wrong.path())), Some(0));
    assert_eq!(status(&|program| program.variable("NETRC", "~/mine").variable("HOME", home.path())), Some(0));
    // Whoever names another wants none of the home's.
    fs::copy(&mine, home.path().join(".netrc")).unwrap();
    for none in ["".into(), home.path().join("none")] {
        let ended = locked.make().variable("NETRC", none).variable("HOME", home.path()).run();
        let said = ended.ended_with(1).stderr;
        assert!(said.starts_with("error: ") && said.contains("401"), "{said}");
    }

    let payload = locked.make().variable("NETRC", &mine).run().succeeded().stdout;
    let push = charon(["push-payload", "-q", "-i", "-r", locked.entrance.host()]);
    assert_eq!(push.variable("NETRC", &mine).fed(payload).run().succeeded().text(), "ferry:1\n");
}

#[test]
fn a_netrc_opens_what_neither_options_nor_dockers_configuration_do() {
    let locked = Locked::new(Software::Distribution3);
    let (netrc, docker) = (folder("netrc", &login(PASSWORD)), tempfile::tempdir().unwrap());
    let make = |host: &str, password: &str| {
        docker_config(docker.path(), host, password);
        let make = locked.make().variable("DOCKER_CONFIG", docker.path());
        make.variable("NETRC", netrc.path().join("netrc"))
    };
    let host = locked.entrance.host();
    make("other.example", "wrong").run().succeeded();
    make(host, "wrong").run().ended_with(1);
    make("other.example", "wrong").arguments(["-u", "charon", "-p", "wrong"]).run().ended_with(1);
    fs::write(netrc.path().join("netrc"), login("wrong")).unwrap();
    make(host, PASSWORD).run().succeeded();
    make("other.example", "wrong").run().ended_with(1);
}

#[test]
fn a_netrc_gets_tokens_for_the_registry_that_it_names() {
    let registry = Registry::start(Software::Distribution3);
    Image::new(Types::Docker, &[Layer::new("oar", 2000)]).push(&registry, "ferry:1");
    let service = TokenService::start(PASSWORD, 3600);
    let entrance = with_tokens(&registry, &service);
    let netrc = folder("netrc", &login(PASSWORD));
    let make = charon(["make-payload", "ferry:1", "-q", "-i", "-r", entrance.host()]);
    make.variable("NETRC", netrc.path().join("netrc")).run().succeeded();
    let users: Vec<_> = service.asked().into_iter().map(|asked| asked.user).collect();
    assert_eq!(users, [Some("charon".to_owned())]);
}

#[test]
fn a_netrc_that_cannot_be_read_is_told_of_and_gone_on_without() {
    let locked = Locked::new(Software::Distribution3);
    let open = locked.registry.host();
    let folder = folder("netrc", &(login("my obol") + "machine a.b\nlogin u password two obols\n"));
    let make = |path: &Path| {
        let make = charon(["make-payload", "ferry:1", "-q", "-i", "-r", open]);
        make.variable("NETRC", path).run().succeeded().stderr
    };
    let path = folder.path().join("netrc");
    assert_eq!(
        make(&path),
        format!(
            "warning: the netrc {} cannot be read: at line 3, there is a word that has no place in it; \
             a value with spaces goes in quotes; going on without it\n",
            path.display()
        )
    );
    assert_eq!(
        make(folder.path()),
        format!(
            "warning: the netrc {} cannot be read: Is a directory (os error 21); going on without it\n",
            folder.path().display()
        )
    );
}
