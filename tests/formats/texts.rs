//! Every text that a user reads, as it is read.

use std::fmt::Write as _;
use std::fs;

use charon::payload::{MissingImage, ReferrerPlan};
use charon::reason::Reason;

use crate::golden::file;
use crate::image::{Image, Layer, Types};
use crate::payload::{manifest_of, payload, payload_of, plan};
use crate::program::{Program, charon, tool};
use crate::registry::{Registry, Software};
use crate::verify::{docker_charons, manifest};

/// What a program said, with what is different each time in words of ours.
fn said(program: Program, words: &[(&str, &str)]) -> String {
    let ended = program.run();
    let status = ended.status.map_or("a signal".to_owned(), |status| status.to_string());
    let mut text = format!(
        "exit status {status}\n--- standard output\n{}--- standard error\n{}",
        ended.text(),
        ended.stderr
    );
    for (found, word) in words {
        text = text.replace(found, word);
    }
    text
}

#[test]
fn the_help_of_each_command_says_what_it_does_with_all_its_options() {
    for (name, arguments) in [
        ("help", &["--help"][..]),
        ("help_make_payload", &["make-payload", "--help"]),
        ("help_make_payload_short", &["make-payload", "-h"]),
        ("help_push_payload", &["push-payload", "--help"]),
        ("help_inspect", &["inspect", "--help"]),
        ("help_verify", &["verify", "--help"]),
        ("help_completion", &["completion", "--help"]),
        ("help_man", &["man", "--help"]),
        ("help_controller", &["controller", "--help"]),
        ("help_crds", &["crds", "--help"]),
    ] {
        insta::assert_snapshot!(name, said(charon(arguments), &[]));
    }
}

/// charon as kubectl calls it for `kubectl charon`.
fn plugin(arguments: &[&str]) -> Program {
    let renamed = ["-c", "exec -a kubectl-charon \"$0\" \"$@\"", env!("CARGO_BIN_EXE_charon")];
    tool("bash", renamed).arguments(arguments)
}

#[test]
fn the_help_of_the_plugin_says_what_it_does_and_mistakes_are_told_with_the_way_out() {
    for (name, arguments) in [
        ("help_kubectl", &["--help"][..]),
        ("help_kubectl_get", &["get", "--help"]),
        ("help_kubectl_put", &["put", "--help"]),
        ("help_kubectl_status", &["status", "--help"]),
    ] {
        insta::assert_snapshot!(name, said(plugin(arguments), &[]));
    }
    let mut text = String::new();
    for (arguments, status) in [
        (&["get"][..], 2),
        (&["get", "app-1.4"], 2),
        (&["get", "pimport/app-1.4"], 2),
        (&["put", "app.zip"], 2),
        (&["status", "-q", "-v"], 2),
        (&["status", "--kubeconfig", "nothing"], 1),
    ] {
        let refused = plugin(arguments).run().ended_with(status);
        write!(text, "$ kubectl charon {}\n{}\n", arguments.join(" "), refused.stderr).unwrap();
    }
    insta::assert_snapshot!("mistakes_in_what_the_plugin_is_told", text);
}

#[test]
fn no_argument_at_all_shows_the_help_as_a_usage_error() {
    let shown = charon::<&str>([]).run().ended_with(2);
    assert_eq!(shown.text(), "");
    assert!(shown.stderr.contains("make-payload"), "{}", shown.stderr);
}

#[test]
fn inspect_tells_what_is_in_a_payload_of_each_kind() {
    let folder = tempfile::tempdir().unwrap();
    let image = Image::new(Types::Docker, &[Layer::new("one", 1_500_000)]);
    for (name, bytes) in [
        ("whole.zip", payload(&[("app:1", &image)], None)),
        ("registries.zip", payload(&[("app:1", &image), ("quay.io/app:2", &image)], None)),
        ("digest.zip", payload(&[(&format!("app@{}", image.digest), &image)], None)),
        ("clash.zip", payload(&[("app:1", &image), ("docker.io/app:1", &image)], None)),
        ("named.zip", payload(&[("app:1", &image)], Some(("app:1", &image)))),
        ("docker.zip", fs::read(file("docker.zip")).unwrap()),
        ("oci.zip", fs::read(file("oci.zip")).unwrap()),
        ("docker_charons.zip", docker_charons("blobs/a", b"{}", &manifest())),
    ] {
        fs::write(folder.path().join(name), bytes).unwrap();
        let inspect =
            |options: &[&str]| charon(["inspect", name]).arguments(options).in_folder(folder.path());
        let stem = name.trim_end_matches(".zip");
        insta::assert_snapshot!(format!("inspect_{stem}"), said(inspect(&[]), &[]));
        if name == "docker.zip" {
            insta::assert_snapshot!("inspect_json", said(inspect(&["--json"]), &[]));
        }
    }
}

#[test]
fn inspect_tells_what_belongs_to_images_what_they_are_called_and_what_is_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let image = Image::new(Types::Docker, &[Layer::new("one", 1_500_000)]);
    let signature = Image::attestation(&image);
    let platforms =
        ["amd64", "arm64"].map(|name| Image::for_platform(Types::Oci, name, &[Layer::new(name, 1000)]));
    let index = Image::index(Types::Oci, &platforms);

    let mut signed = plan("app:1", &image, None);
    signed.referrers = vec![ReferrerPlan {
        manifest: manifest_of(&signature),
        subject: image.digest.parse().unwrap(),
        tag: None,
        children: Vec::new(),
    }];
    let mut chosen = plan("app:1", &index, None);
    chosen.platforms = vec!["linux/amd64".parse().unwrap()];
    chosen.omitted = vec![platforms[1].digest.parse().unwrap()];
    chosen.manifests = vec![manifest_of(&platforms[0]), manifest_of(&index)];
    let mut renamed = plan("app:1", &image, None);
    renamed.far_name = Some("river/ferry:2".parse().unwrap());
    let missing = MissingImage {
        name: "gone:1".to_owned(),
        reference: "docker.io/library/gone:1".to_owned(),
        reason: Reason::ImageNotFound.to_string(),
    };
    for (name, bytes) in [
        ("signed", payload_of(&[signed], &[&image, &signature], Vec::new())),
        ("platforms", payload_of(&[chosen], &[&platforms[0]], Vec::new())),
        ("renamed", payload_of(&[renamed], &[&image], Vec::new())),
        ("missing", payload_of(&[plan("app:1", &image, None)], &[&image], vec![missing])),
    ] {
        fs::write(folder.path().join("payload.zip"), bytes).unwrap();
        let inspect = charon(["inspect", "payload.zip"]).in_folder(folder.path());
        insta::assert_snapshot!(format!("inspect_{name}"), said(inspect, &[]));
    }
}

#[test]
fn what_would_be_done_is_told_in_a_table() {
    let [source, target] = [(); 2].map(|()| Registry::start(Software::Distribution3));
    let layers = ["base", "top", "apart", "over"].map(|name| Layer::new(name, 1000));
    let [base, top, apart, over] = [&layers[..1], &layers[..2], &layers[2..3], &layers[2..]]
        .map(|layers| Image::new(Types::Docker, layers));
    for (image, name) in [(&base, "base:1"), (&top, "top:1"), (&apart, "apart:1"), (&over, "over:1")] {
        image.push(&source, name);
    }
    base.push(&target, "base:1");
    let folder = tempfile::tempdir().unwrap();
    let words = [(source.host(), "SOURCE"), (target.host(), "TARGET")];
    let run = |arguments: &[&str]| {
        let text = said(charon(arguments).arguments(["-q"]).in_folder(folder.path()), &words);
        let lines = text.lines().map(|line| {
            // The room that this machine has, and what follows from the port of the source.
            without(&without(line, "room              ", "\n"), "payload digest    ", "\n")
        });
        lines.collect::<Vec<_>>().join("\n")
    };
    let make = [
        "make-payload",
        "base:1,top:1,apart:1,over:1,gone:1",
        "-a",
        "apart:1",
        "--allow-missing",
        "-i",
        "-r",
        source.host(),
        "-f",
        "new.zip",
    ];
    // An attempt that failed at its smallest blob, the last one, leaves the others.
    let lost = Layer::raw("lost", 1);
    let digest = lost.digest();
    Image::new(Types::Docker, &[Layer::new("base", 1000), lost]).push(&source, "lost:1");
    source.lose(&digest);
    let failing =
        ["make-payload", "lost:1", "--parallel", "1", "-q", "-i", "-r", source.host(), "-f", "new.zip"];
    charon(failing).in_folder(folder.path()).run().ended_with(1);
    insta::assert_snapshot!("dry_run_of_make_payload", run(&[&make[..], &["--dry-run"]].concat()));
    charon(make).in_folder(folder.path()).run().succeeded();
    let push = ["push-payload", "-i", "-r", target.host(), "-f", "new.zip", "--dry-run"];
    insta::assert_snapshot!("dry_run_of_push_payload", run(&push));
}

#[test]
fn what_is_said_of_files_that_are_no_payloads_tells_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("letter"), "to the far side").unwrap();
    fs::write(folder.path().join("empty"), "").unwrap();
    let golden = fs::read(file("docker.zip")).unwrap();
    fs::write(folder.path().join("half.zip"), &golden[..golden.len() / 2]).unwrap();
    let mut text = String::new();
    for name in ["nothing.zip", ".", "letter", "empty", "half.zip"] {
        for command in [&["inspect"][..], &["verify"], &["push-payload", "-r", "far.example", "-f"]] {
            let program = charon(command).arguments([name]).in_folder(folder.path());
            write!(text, "$ charon {} {name}\n{}", command.join(" "), program.run().ended_with(1).stderr)
                .unwrap();
        }
    }
    insta::assert_snapshot!(text);
}

#[test]
fn mistakes_in_the_command_line_are_told_with_the_way_out() {
    let mut text = String::new();
    for arguments in [
        &["ferry"][..],
        &["make-payload"],
        &["make-payload", "a", "--fil", "x"],
        &["make-payload", "A:1", "-r", "far.example"],
        &["make-payload", "a:1", "-r", "https://far.example"],
        &["make-payload", "a.example/a,b.example/b", "-i"],
        &["make-payload", "a", "-u", "me"],
        &["make-payload", "a", "-p", "secret", "--password-stdin"],
        &["push-payload", "payload.zip"],
        &["push-payload", "--naming", "short"],
        &["push-payload", "--expected-digest", "12"],
        &["push-payload", "-u", "me", "--password-stdin"],
        &["inspect"],
        &["completion", "tcsh"],
        &["-q", "-v", "inspect", "a.zip"],
        &["--log-format", "xml", "inspect", "a.zip"],
    ] {
        let refused = charon(arguments).run().ended_with(2);
        assert_eq!(refused.text(), "");
        write!(text, "$ charon {}\n{}\n", arguments.join(" "), refused.stderr).unwrap();
    }
    insta::assert_snapshot!(text);
}

#[test]
fn each_step_is_told_as_text_and_as_json() {
    let source = Registry::start(Software::Distribution3);
    let layers = ["one", "two"].map(|name| Layer::new(name, 1000));
    let base = Image::new(Types::Docker, &layers[..1]);
    base.push(&source, "base:1");
    Image::new(Types::Docker, &layers).push(&source, "top:1");
    for format in ["text", "json"] {
        // A payload that lies there already would not be made again.
        let folder = tempfile::tempdir().unwrap();
        let target = Registry::start(Software::Distribution3);
        base.push(&target, "base:1");
        let words = [(source.host(), "SOURCE"), (target.host(), "TARGET")];
        let run = |arguments: &[&str]| {
            let program = charon(arguments).arguments(["--log-format", format]).in_folder(folder.path());
            let text = said(program, &words);
            // The time of each line, and what follows from the port of the source.
            let lines = text
                .lines()
                .map(|line| without(&without(line, "\"timestamp\":\"", "\""), "payload digest ", "\""));
            in_order(&lines.collect::<Vec<_>>()).join("\n")
        };
        let make =
            ["make-payload", "top:1,base:1", "-a", "base:1", "-i", "-r", source.host(), "-f", "new.zip"];
        insta::assert_snapshot!(format!("steps_of_make_payload_as_{format}"), run(&make));
        let push = ["push-payload", "-i", "-r", target.host(), "-f", "new.zip"];
        insta::assert_snapshot!(format!("steps_of_push_payload_as_{format}"), run(&push));
        insta::assert_snapshot!(format!("steps_of_push_payload_again_as_{format}"), run(&push));
        let fails = ["make-payload", "nothing:1", "-i", "-r", source.host(), "-f", "fails.zip"];
        insta::assert_snapshot!(format!("steps_that_fail_as_{format}"), run(&fails));
    }
}

/// Lines with those about blobs, and those about images that are there, in one order: several move or are asked at once.
fn in_order(lines: &[String]) -> Vec<String> {
    let blob = |line: &String| line.find("/sha256:").map(|position| line[position..].to_owned());
    let image = |line: &String| {
        (blob(line).is_none() && line.contains("already in the destination registry")).then(|| line.clone())
    };
    let lines = lines.iter().map(|line| line.replace("[1/2]", "[…/2]").replace("[2/2]", "[…/2]"));
    sorted_among_themselves(sorted_among_themselves(lines.collect(), blob), image)
}

/// Lines with those that have a key in the order of their keys.
fn sorted_among_themselves(lines: Vec<String>, key: impl Fn(&String) -> Option<String>) -> Vec<String> {
    let mut keyed: Vec<String> = lines.iter().filter(|line| key(line).is_some()).cloned().collect();
    keyed.sort_by_key(&key);
    let mut keyed = keyed.into_iter();
    let of_key = |line: String| if key(&line).is_some() { keyed.next().unwrap_or(line) } else { line };
    lines.into_iter().map(of_key).collect()
}

/// A line without what stands between these two.
fn without(line: &str, begin: &str, end: &str) -> String {
    match line.split_once(begin) {
        Some((before, rest)) => {
            let rest = rest.find(end).map_or("", |position| &rest[position..]);
            format!("{before}{begin}…{rest}")
        }
        None => line.to_owned(),
    }
}
