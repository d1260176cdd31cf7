//! A payload of either is pushed by the other.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread;

use tempfile::TempDir;

use crate::content;
use crate::image::digest;
use crate::program::{charon, tool};
use crate::registry::{Registry, Software};
use crate::stage::{Who, images};

with_each_registry!(
    docker_charon_pushes_a_payload_of_charons_from_a_file_and_from_a_pipe,
    docker_charon_pushes_the_images_of_a_payload_with_signatures_without_these,
    docker_charon_mounts_what_a_payload_of_charons_leaves_out,
    charon_pushes_a_payload_of_docker_charons_from_a_file_and_from_a_redirected_file_and_from_a_pipe,
    charon_mounts_what_a_payload_of_docker_charons_leaves_out_from_a_file_and_from_a_pipe,
    strict_finds_what_is_missing_whoever_made_the_payload,
);

/// The images of the stage in a registry, and a folder.
struct Near {
    source: Registry,
    folder: TempDir,
}

impl Near {
    fn new(software: Software) -> Self {
        let (source, folder) = (Registry::start(software), tempfile::tempdir().unwrap());
        for (name, image) in &images() {
            image.push(&source, name);
        }
        Self { source, folder }
    }

    fn payload(&self, who: Who, arguments: &[&str]) -> PathBuf {
        let file = self.folder.path().join("payload.zip");
        who.makes(&self.source, arguments, &file);
        file
    }
}

/// A registry with some of the images of the stage.
fn far(software: Software, names: &[&str]) -> Registry {
    let target = Registry::start(software);
    for name in names {
        images()[name].push(&target, name);
    }
    target
}

fn assert_whole(target: &Registry, names: &[&str]) {
    for name in names {
        images()[name].assert_is_whole_in(target, name);
    }
    let found: Vec<String> = content::images(target).into_keys().collect();
    let mut names = names.to_vec();
    names.sort_unstable();
    assert_eq!(found, names);
}

/// The layers of `base:1` came into the repository `top` by a mount each.
fn assert_mounted(target: &Registry) {
    let requests = target.requests();
    for layer in &images()["base:1"].blobs[1..] {
        let digest = digest(layer).replace(':', "%3A");
        let mounts = requests.iter().filter(|request| {
            request.starts_with("POST /v2/top/blobs/uploads/?")
                && request.contains(&digest)
                && request.contains("from=base")
                && request.ends_with(" 201")
        });
        assert_eq!(mounts.count(), 1, "{requests:#?}");
    }
}

/// Pushes a payload through a pipe.
fn piped(who: Who, file: &Path, target: &Registry) -> String {
    let program = who.program(&["push-payload", "-i", "-r", target.host()]);
    program.fed(fs::read(file).unwrap()).run().succeeded().text()
}

fn docker_charon_pushes_a_payload_of_charons_from_a_file_and_from_a_pipe(software: Software) {
    let near = Near::new(software);
    let file = near.payload(Who::Charon, &["top:1,base:1,team/other:1"]);
    for is_piped in [false, true] {
        let target = far(software, &[]);
        let printed = if is_piped {
            piped(Who::DockerCharon, &file, &target)
        } else {
            Who::DockerCharon.pushes(&file, &target).run().succeeded().text()
        };
        assert_eq!(printed, "top:1\nbase:1\nteam/other:1\n");
        assert_whole(&target, &["top:1", "base:1", "team/other:1"]);
    }
}

fn docker_charon_pushes_the_images_of_a_payload_with_signatures_without_these(software: Software) {
    let near = Near::new(software);
    fs::write(near.folder.path().join("sbom.json"), "{}").unwrap();
    let attach = tool("oras", ["attach", "--plain-http", "--artifact-type", "application/spdx+json"]);
    let attach = attach.arguments([&near.source.name("top:1"), "sbom.json:application/json"]);
    attach.in_folder(near.folder.path()).run().succeeded();
    let file = near.payload(Who::Charon, &["top:1"]);
    let told = charon(["inspect"]).arguments([&file]).run().succeeded().text();
    assert!(told.contains("one manifest, 1 referrer") && told.contains("without their referrers"), "{told}");
    let target = far(software, &[]);
    Who::DockerCharon.pushes(&file, &target).run().succeeded();
    assert_whole(&target, &["top:1"]);
    assert!(!target.stores(&digest(b"{}")), "the SBOM was pushed");
}

fn docker_charon_mounts_what_a_payload_of_charons_leaves_out(software: Software) {
    let near = Near::new(software);
    let file = near.payload(Who::Charon, &["top:1,base:1", "-a", "base:1"]);
    let target = far(software, &["base:1"]);
    let pushed = Who::DockerCharon.pushes(&file, &target).run().succeeded();
    assert_eq!(pushed.text(), "top:1\nbase:1\n");
    assert_whole(&target, &["top:1", "base:1"]);
    assert_mounted(&target);
}

fn charon_pushes_a_payload_of_docker_charons_from_a_file_and_from_a_redirected_file_and_from_a_pipe(
    software: Software,
) {
    let near = Near::new(software);
    let file = near.payload(Who::DockerCharon, &["top:1,base:1,team/other:1"]);
    let push = |target: &Registry| charon(["push-payload", "-i", "-r", target.host()]);
    let ways = [
        |program: crate::program::Program, file: &Path| program.arguments([Path::new("-f"), file]),
        |program: crate::program::Program, file: &Path| program.reading(File::open(file).unwrap()),
        |program: crate::program::Program, file: &Path| program.fed(fs::read(file).unwrap()),
    ];
    for (way, is_stored) in ways.into_iter().zip([false, false, true]) {
        let target = far(software, &[]);
        let pushed = way(push(&target), &file).variable("TMPDIR", near.folder.path()).run().succeeded();
        assert_eq!(pushed.text(), "top:1\nbase:1\nteam/other:1\n");
        assert_whole(&target, &["top:1", "base:1", "team/other:1"]);
        let said = format!(
            "Storing standard input in {}: a docker-charon payload cannot be read as it comes\n",
            near.folder.path().display()
        );
        assert_eq!(pushed.stderr.contains(&said), is_stored, "{}", pushed.stderr);
    }
}

fn charon_mounts_what_a_payload_of_docker_charons_leaves_out_from_a_file_and_from_a_pipe(software: Software) {
    let near = Near::new(software);
    let file = near.payload(Who::DockerCharon, &["top:1,base:1", "-a", "base:1"]);
    for is_piped in [false, true] {
        let target = far(software, &["base:1"]);
        let printed = if is_piped {
            piped(Who::Charon, &file, &target)
        } else {
            Who::Charon.pushes(&file, &target).run().succeeded().text()
        };
        assert_eq!(printed, "top:1\nbase:1\n");
        assert_whole(&target, &["top:1", "base:1"]);
        assert_mounted(&target);
    }
}

fn strict_finds_what_is_missing_whoever_made_the_payload(software: Software) {
    let near = Near::new(software);
    for maker in Who::BOTH {
        let file = near.payload(maker, &["base:1", "-a", "base:1"]);
        for pusher in Who::BOTH {
            let target = far(software, &[]);
            let refused = pusher.pushes(&file, &target).arguments(["--strict"]).run().ended_with(1);
            assert_eq!(refused.text(), "", "{maker:?} made it, {pusher:?} pushed it");
            let pushed = pusher.pushes(&file, &target).run().succeeded();
            assert_eq!(pushed.text(), "base:1\n", "{maker:?} made it, {pusher:?} pushed it");
            assert!(pushed.stderr.contains("base:1"), "{maker:?} made it, {pusher:?} pushed it");
        }
    }
}

#[test]
fn blanks_that_docker_charon_keeps_in_names_do_not_keep_its_payload_from_being_pushed() {
    let near = Near::new(Software::Distribution3);
    let file = near.payload(Who::DockerCharon, &["team/other:1, top:1", "-a", "list:1, base:1"]);
    let target = far(Software::Distribution3, &["base:1"]);
    let pushed = Who::Charon.pushes(&file, &target).run().succeeded();
    assert_eq!(pushed.text(), "team/other:1\n top:1\n");
    assert_whole(&target, &["base:1", "team/other:1", "top:1"]);
    assert_mounted(&target);
}

#[test]
fn a_payload_of_docker_charons_has_no_digest_that_could_be_expected() {
    let near = Near::new(Software::Distribution3);
    let file = near.payload(Who::DockerCharon, &["top:1"]);
    let (target, expected) = (far(Software::Distribution3, &[]), digest(&fs::read(&file).unwrap()));
    let push = Who::Charon.pushes(&file, &target).arguments(["-q", "--expected-digest", &expected]);
    let refused = push.run().ended_with(1);
    assert_eq!(
        refused.stderr,
        format!(
            "error: the payload has the digest none, since docker-charon made it, expected was {expected}; \
             nothing was pushed: check which file was carried over\n"
        )
    );
    assert_whole(&target, &[]);
}

#[test]
fn a_piped_payload_of_docker_charons_is_stored_in_a_file_that_has_no_name() {
    let near = Near::new(Software::Distribution3);
    let payload = fs::read(near.payload(Who::DockerCharon, &["top:1"])).unwrap();
    let (target, spool) = (far(Software::Distribution3, &[]), tempfile::tempdir().unwrap());
    let (reader, mut writer) = std::io::pipe().unwrap();
    let push = charon(["push-payload", "-i", "-r", target.host()]).reading(reader);
    let running = push.variable("TMPDIR", spool.path()).start();
    let (some, rest) = payload.split_at(payload.len() / 2);
    writer.write_all(some).unwrap();
    // It is stored as it comes: the file is open before the pipe is at its end, and the folder is empty all the same.
    let files = PathBuf::from(format!("/proc/{}/fd", running.id()));
    let is_stored =
        |link: fs::DirEntry| fs::read_link(link.path()).is_ok_and(|file| file.starts_with(spool.path()));
    while !fs::read_dir(&files).unwrap().map_while(Result::ok).any(is_stored) {
        thread::yield_now();
    }
    assert_eq!(fs::read_dir(spool.path()).unwrap().count(), 0);
    writer.write_all(rest).unwrap();
    drop(writer);
    assert_eq!(running.end().succeeded().text(), "top:1\n");
    assert_whole(&target, &["top:1"]);
}

#[test]
fn where_standard_input_cannot_be_stored_the_folder_is_named() {
    let near = Near::new(Software::Distribution3);
    let payload = fs::read(near.payload(Who::DockerCharon, &["top:1"])).unwrap();
    let target = far(Software::Distribution3, &[]);
    let push = charon(["push-payload", "-q", "-i", "-r", target.host()]).fed(payload);
    let refused = push.variable("TMPDIR", "/nonexistent/spool").run().ended_with(1);
    assert!(
        refused.stderr.starts_with("error: cannot store standard input in /nonexistent/spool: "),
        "{}",
        refused.stderr
    );
}
