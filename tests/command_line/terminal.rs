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
    assert!(!String::from_utf8_lossy(&seen).contains("Pulling"));

    let made = charon(["make-payload", "ferry:1", "-i", "-r", source.host()]).run().succeeded();
    assert!(made.stderr.contains("] Pulling ferry/sha256:") && !made.stderr.contains("transferring"));
}
