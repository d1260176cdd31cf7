//! Nothing is staged: where no file can be made but the payload, all goes its way.

use std::fs;
use std::path::Path;

use crate::gate::{Gate, wait_until};
use crate::image::{Image, Layer, Types};
use crate::program::{Program, charon, crane_validates};
use crate::registry::{Registry, Software};

/// Wherever temporary files go nothing can be written, and neither where the program starts; `folder`, if any, is at
/// /mnt, with these options.
fn without_scratch(program: Program, folder: Option<(&Path, &str)>) -> Program {
    let bind = folder.map_or_else(String::new, |(folder, options)| {
        format!("mount --bind {0} /mnt && mount -o remount,bind,{options} /mnt && ", folder.display())
    });
    let script = format!(
        "{bind}for place in /tmp /var/tmp /dev/shm; do mount -t tmpfs -o ro tmpfs $place || exit 99; done; cd /tmp && exec \"$@\""
    );
    let program = program.by("unshare", &["--mount", "--propagation", "private", "sh", "-c", &script, "sh"]);
    program.variable("TMPDIR", "/nonexistent")
}

fn source() -> (Registry, Image) {
    let source = Registry::start(Software::Distribution3);
    let layers = ["a", "b", "c"].map(|name| Layer::new(name, 2 << 20));
    let image = Image::new(Types::Oci, &layers);
    image.push(&source, "ferry:1");
    (source, image)
}

fn names(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

#[test]
fn a_payload_goes_through_a_pipe_where_neither_side_can_make_a_file() {
    let (source, image) = source();
    let target = Registry::start(Software::Distribution3);
    let building = charon(["make-payload", "ferry:1", "-q", "-i", "-r", source.host()]);
    let mut made = without_scratch(building, None).start();
    let push = charon(["push-payload", "-q", "-i", "-r", target.host()]).reading(made.output());
    let pushed = without_scratch(push, None).run().succeeded();
    made.end().succeeded();
    assert_eq!(pushed.text(), "ferry:1\n");
    crane_validates(&target.name("ferry:1"));
    image.assert_is_whole_in(&target, "ferry:1");
}

#[test]
fn a_file_is_built_and_pushed_where_no_other_file_can_be_made() {
    let (source, image) = source();
    let target = Registry::start(Software::Distribution3);
    let gate = Gate::before(&source, 3 << 20);
    let folder = tempfile::tempdir().unwrap();
    let building = charon(["make-payload", "ferry:1", "-q", "-i", "-r", gate.host(), "-f", "/mnt/a.zip"]);
    let made = without_scratch(building, Some((folder.path(), "rw"))).start();
    gate.wait_until_shut();
    wait_until("it writes", || !names(folder.path()).is_empty());
    let known = ["a.zip.partial", "a.zip.partial.journal"];
    assert!(
        names(folder.path()).iter().all(|name| known.contains(&name.as_str())),
        "{:?}",
        names(folder.path())
    );
    gate.open();
    made.end().succeeded();
    assert_eq!(names(folder.path()), ["a.zip", "a.zip.bill.json"]);

    let push = charon(["push-payload", "-q", "-i", "-r", target.host(), "-f", "/mnt/a.zip"]);
    let pushed = without_scratch(push, Some((folder.path(), "ro"))).run().succeeded();
    assert_eq!(pushed.text(), "ferry:1\n");
    crane_validates(&target.name("ferry:1"));
    image.assert_is_whole_in(&target, "ferry:1");
}

#[test]
fn who_waits_for_the_other_end_of_a_pipe_hears_a_signal() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    crate::program::tool("mkfifo", [&pipe]).run().succeeded();
    let push = charon(["push-payload", "-i", "-r", "127.0.0.1:1", "-f"]).arguments([&pipe]).start();
    // It listens to signals from its beginning, before it opens anything.
    let caught = || {
        let status = fs::read_to_string(format!("/proc/{}/status", push.id())).unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
    };
    wait_until("it listens to SIGTERM", || caught() & (1 << 14) != 0);
    push.terminate();
    assert_eq!(push.end().ended_with(128 + 15).stderr, "error: interrupted\n");
}
