//! How images are named, and what is refused before anything is asked.

use std::fs;

use crate::image::{Image, Layer, Types};
use crate::program::{charon, path_of, tool};
use crate::registry::{Registry, Software};

with_each_registry!(
    names_come_by_commas_and_by_arguments_are_trimmed_and_count_once,
    a_name_without_a_tag_means_latest,
    a_name_with_a_host_is_read_there_and_arrives_without_it,
    every_option_has_a_variable,
    an_option_counts_more_than_a_variable_and_of_two_the_last,
);

/// Registries with an image of each name.
fn source_with(software: Software, names: &[&str]) -> Registry {
    let source = Registry::start(software);
    for name in names {
        Image::new(Types::Docker, &[Layer::new(name, 100)]).push(&source, name);
    }
    source
}

fn names_come_by_commas_and_by_arguments_are_trimmed_and_count_once(software: Software) {
    let source = source_with(software, &["a:1", "b:1", "c:1", "d:1"]);
    let target = Registry::start(software);
    let made = charon(["make-payload", " a:1 , b:1,,a:1", "c:1,", "d:1", "b:1", "-i", "-r", source.host()]);
    let pushed = charon(["push-payload", "-i", "-r", target.host()]).fed(made.run().succeeded().stdout);
    assert_eq!(pushed.run().succeeded().text(), "a:1\nb:1\nc:1\nd:1\n");
    for repository in ["a", "b", "c", "d"] {
        assert_eq!(target.tags(repository), ["1"]);
    }
}

fn a_name_without_a_tag_means_latest(software: Software) {
    let source = source_with(software, &["ferry:latest", "ferry:1"]);
    let target = Registry::start(software);
    let made = charon(["make-payload", "ferry,ferry:latest", "-i", "-r", source.host()]).run().succeeded();
    let pushed = charon(["push-payload", "-i", "-r", target.host()]).fed(made.stdout).run().succeeded();
    assert_eq!(pushed.text(), "ferry\n");
    assert_eq!(target.tags("ferry"), ["latest"]);
}

fn a_name_with_a_host_is_read_there_and_arrives_without_it(software: Software) {
    let source = source_with(software, &["river/ferry:1"]);
    let target = Registry::start(software);
    let name = source.name("river/ferry:1");
    // One registry is all that is named: it is the one that --insecure is for.
    let made = charon(["make-payload", &name, "-i"]).run().succeeded();
    let pushed = charon(["push-payload", "-i", "-r", target.host()]).fed(made.stdout).run().succeeded();
    assert_eq!(pushed.text(), format!("{name}\n"));
    assert_eq!(target.tags("river/ferry"), ["1"]);
}

fn every_option_has_a_variable(software: Software) {
    let source = source_with(software, &["a:1", "b:1"]);
    let target = Registry::start(software);
    let folder = tempfile::tempdir().unwrap();
    let with = |arguments: &[&str], registry: &Registry| {
        let charon = charon(arguments).variable("CHARON_REGISTRY", registry.host());
        charon.variable("CHARON_INSECURE", "true").variable("CHARON_FILE", folder.path().join("payload.zip"))
    };
    let made = with(&["make-payload", "a:1,b:1"], &source).variable("CHARON_ALREADY_TRANSFERRED", "b:1");
    made.run().succeeded();
    // That nothing is pushed although a:1 could be is what strict means.
    let refused = with(&["push-payload"], &target).variable("CHARON_STRICT", "1").run().ended_with(1);
    assert_eq!(refused.text(), "");
    assert!(target.is_empty());
    let pushed =
        with(&["push-payload"], &target).variable("CHARON_STRICT", "no").variable("CHARON_PREFIX", "p");
    let pushed =
        pushed.variable("CHARON_NAMING", "canonical").variable("CHARON_QUIET", "yes").run().succeeded();
    assert_eq!(pushed.text(), "a:1\nb:1\n");
    assert_eq!(target.tags("p/a"), ["1"]);
    let wrong = format!("sha256:{}", "0".repeat(64));
    let refused =
        with(&["push-payload"], &target).variable("CHARON_EXPECTED_DIGEST", &wrong).run().ended_with(1);
    assert!(refused.stderr.contains(&wrong), "{}", refused.stderr);
    let file = folder.path().join("payload.zip");
    let json = charon(["inspect"]).arguments([&file]).variable("CHARON_JSON", "1").run().succeeded().text();
    assert!(json.starts_with('{'), "{json}");
    let help = charon(["push-payload", "--help"]).run().succeeded().text();
    for option in help.split_whitespace().filter(|word| word.starts_with("--") && word.len() > 2) {
        let name = option.trim_matches(|c: char| !c.is_ascii_alphanumeric()).replace('-', "_").to_uppercase();
        assert!(
            ["HELP", "VERSION"].contains(&name.as_str()) || help.contains(&format!("CHARON_{name}")),
            "{option}"
        );
    }
}

#[test]
fn who_asks_for_more_is_told_what_lies_behind_an_error() {
    let refused = |options: &[&str]| {
        let made = charon(["make-payload", "a:1", "-i", "-r", "127.0.0.1:1", "--retry-for", "1s"]);
        made.arguments(options).run().ended_with(1).stderr
    };
    let told = refused(&["-v"]);
    let lines: Vec<&str> = told.lines().skip_while(|line| !line.starts_with("error: ")).collect();
    assert!(lines.len() > 1 && lines[1].starts_with("  caused by: "), "{told}");
    assert!(!refused(&[]).contains("caused by"));
}

fn an_option_counts_more_than_a_variable_and_of_two_the_last(software: Software) {
    let source = source_with(software, &["a:1"]);
    let made =
        charon(["make-payload", "a:1", "-r", "nowhere.example:1", "-r", source.host(), "-i", "-i", "-v"]);
    let made = made.variable("CHARON_REGISTRY", "elsewhere.example:1").variable("CHARON_QUIET", "1");
    assert!(made.run().succeeded().stderr.contains("Pulling"));
}

/// What charon says about a command line that it does not understand: nothing else is printed, the status is 2.
fn refusal(arguments: &[&str]) -> String {
    let ended = charon(arguments).run().ended_with(2);
    assert_eq!(ended.text(), "");
    ended.stderr
}

#[test]
fn options_that_do_not_fit_together_are_refused() {
    let far = "far.example:5000";
    for (arguments, message) in [
        (&["make-payload", " , ", "-r", far][..], "no image is named"),
        (
            &["make-payload", "a.example/a,b.example/b", "-i"],
            "the images are in several registries (a.example, b.example): say by --registry which one --insecure, --username, --password, --ca-file and --cert-file are for",
        ),
        (
            &["make-payload", "a.example/a,b", "-u", "me", "-p", "secret"],
            "the images are in several registries (a.example, docker.io): say by --registry which one --insecure, --username, --password, --ca-file and --cert-file are for",
        ),
        (
            &["make-payload", "a", "-r", far, "-u", "me"],
            "a username without a password: give one with DOCKER_CHARON_PASSWORD or --password-stdin",
        ),
        (
            &["push-payload", "-r", far, "-u", "me", "-f", "/dev/null"],
            "a username without a password: give one with DOCKER_CHARON_PASSWORD or --password-stdin",
        ),
        (
            &["make-payload", "a", "-r", far, "-p", "secret"],
            "a password without a username: give one with --username",
        ),
        (
            &["push-payload", "-r", far, "-u", "me", "--password-stdin"],
            "standard input cannot carry both the password and the payload: name the payload with --file",
        ),
    ] {
        assert_eq!(refusal(arguments), format!("error: {message}\n"), "{arguments:?}");
    }
}

#[test]
fn names_that_are_none_are_refused_with_the_rule_that_they_break() {
    let repository = "is no image name: a repository has lowercase letters, digits and single separators (. _ __ -), in parts between slashes";
    let tag = "is no image name: a tag has at most 128 letters, digits, '_', '.' and '-', and begins with none of '.' and '-'";
    let host = "is no registry host; expected host or host:port, without a scheme or a path";
    for (arguments, message) in [
        (["make-payload", "a:1,Styx", "-r", "far.example"], format!("\"Styx\" {repository}")),
        (["make-payload", "../a", "-r", "far.example"], format!("\"..\" {host}")),
        (["make-payload", "a:-b", "-r", "far.example"], format!("\"a:-b\" {tag}")),
        (["make-payload", "a", "-a", "a:"], format!("\"a:\" {tag}")),
        (["make-payload", "a", "-r", "http://far.example"], format!("\"http://far.example\" {host}")),
        (["push-payload", "-f/dev/null", "-r", "far.example/x"], format!("\"far.example/x\" {host}")),
    ] {
        assert_eq!(refusal(&arguments), format!("error: {message}\n"), "{arguments:?}");
    }
    let short = refusal(&["make-payload", "a@sha256:12", "-r", "far.example"]);
    assert!(short.starts_with("error: \"a@sha256:12\" is no image name: "), "{short}");
}

#[test]
fn a_command_line_that_cannot_be_parsed_is_refused_with_a_hint() {
    for (arguments, message) in [
        (&["make-payload"][..], "the following required arguments were not provided:\n  <IMAGES>..."),
        (&["make-payload", "a", "--fil", "x"], "unexpected argument '--fil' found"),
        (&["push-payload", "x.zip"], "unexpected argument 'x.zip' found"),
        (
            &["make-payload", "a", "-u", "me", "-p", "secret", "--password-stdin"],
            "the argument '--password' cannot be used with '--password-stdin'",
        ),
        (&["ferry"], "unrecognized subcommand 'ferry'"),
    ] {
        let said = refusal(arguments);
        assert!(said.starts_with(&format!("error: {message}\n")), "{arguments:?}: {said}");
        assert!(said.contains("For more information, try '--help'."), "{arguments:?}: {said}");
        assert!(!said.contains("secret"), "{arguments:?}: {said}");
    }
}

#[test]
fn help_and_version_are_no_failures() {
    let version = charon(["--version"]).run().succeeded();
    assert_eq!(version.text(), concat!("charon ", env!("CARGO_PKG_VERSION"), "\n"));
    for command in [&["--help"][..], &["make-payload", "--help"], &["push-payload", "--help"]] {
        let help = charon(command).variable("CHARON_PASSWORD", "obolus").run().succeeded();
        assert!(help.text().contains("Usage: charon"), "{command:?}");
        assert!(!help.text().contains("obolus"), "{command:?}");
    }
}

#[test]
fn a_terminal_is_neither_given_a_payload_nor_asked_for_one() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    for (command, message) in [
        (
            "make-payload a -r far.example",
            "a payload is no text for a terminal: name a file with --file, or redirect standard output",
        ),
        ("push-payload -r far.example", "no payload: name a file with --file, or redirect standard input"),
    ] {
        // script gives its command a terminal.
        let command = format!("{} {command}", env!("CARGO_BIN_EXE_charon"));
        let ended = tool("script", ["--quiet", "--return", "--command", command.as_str()]).arguments([&log]);
        let ended = ended.variable("SHELL", path_of("sh")).run().ended_with(2);
        assert_eq!(ended.text(), format!("error: {message}\r\n"));
    }
    assert!(fs::exists(log).unwrap());
}
