//! What a person sees who sits at a terminal.

use std::io::Read;

use crate::gate::Gate;
use crate::image::{Image, Layer, Types};
use crate::program::{charon, tool};
use crate::registry::{Registry, Software};

#[test]
fn a_terminal_shows_a_bar_and_elsewhere_each_step_has_a_line() {
    let source = Registry::start(Software::Distribution3);
    Image::new(Types::Oci, &[Layer::new("a", 2 << 20)]).push(&source, "ferry:1");
    let gate = Gate::before(&source, 1 << 20);
    let folder = tempfile::tempdir().unwrap();
    let command = format!(
        "stty cols 100; {} make-payload ferry:1 -i -r {} -f {}",
        env!("CARGO_BIN_EXE_charon"),
        gate.host(),
        folder.path().join("payload.zip").display()
    );
    // script gives its command a terminal, and passes on what is shown there.
    let shown = tool("script", ["--quiet", "--return", "--flush", "--command", &command, "/dev/null"]);
    let mut shown = shown.variable("TERM", "xterm").start();
    let (mut screen, mut seen) = (shown.output(), Vec::new());
    let mut piece = [0; 4096];
    // The registry stands still in the middle, so the bar is there for as long as it takes to see it.
    while !String::from_utf8_lossy(&seen).contains("transferring") {
        let length = screen.read(&mut piece).unwrap();
        assert!(length > 0, "no bar: {}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&piece[..length]);
    }
    gate.open();
    screen.read_to_end(&mut seen).unwrap();
    shown.end().succeeded();
    let seen = String::from_utf8_lossy(&seen).into_owned();
    assert!(!seen.contains("Pulling"));
    // While nothing is known yet, nothing looks done.
    let resolving = seen.split('\r').filter(|drawn| drawn.contains("resolving"));
    assert!(!resolving.into_iter().any(|drawn| drawn.contains('█')), "{seen}");

    let target = Registry::start(Software::Distribution3);
    let push = format!(
        "stty cols 100; {} push-payload -i -r {} -f {}",
        env!("CARGO_BIN_EXE_charon"),
        target.host(),
        folder.path().join("payload.zip").display()
    );
    for (option, has_bar) in [("", true), (" -q", false), (" --log-format json", false)] {
        let shown = format!("{push}{option}");
        let shown = tool("script", ["--quiet", "--return", "--flush", "--command", &shown, "/dev/null"]);
        let shown = shown.variable("TERM", "xterm").run().succeeded().text();
        assert_eq!(shown.contains("\u{1b}["), has_bar, "{option}: {shown}");
    }

    let made = charon(["make-payload", "ferry:1", "-i", "-r", source.host()]).run().succeeded();
    assert!(made.stderr.contains("] Pulling ferry/sha256:") && !made.stderr.contains("transferring"));
}

#[test]
fn who_wants_no_colours_gets_none() {
    let help = |no_color: Option<&str>| {
        let command = format!("{} --help", env!("CARGO_BIN_EXE_charon"));
        let shown = tool("script", ["--quiet", "--return", "--command", &command, "/dev/null"]);
        let shown = shown.variable("TERM", "xterm");
        let shown = if let Some(value) = no_color { shown.variable("NO_COLOR", value) } else { shown };
        shown.run().succeeded().text()
    };
    assert!(help(None).contains('\u{1b}') && !help(Some("1")).contains('\u{1b}'));
}
