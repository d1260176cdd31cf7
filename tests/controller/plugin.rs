//! `kubectl charon status`, which needs no pod.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::symlink;
use std::process::ChildStdout;
use std::time::Instant;

use charon::api::PayloadBuild;
use charon::reason::Reason;
use serde_json::Value;

use crate::program::{Program, tool};
use crate::world::{DEADLINE, World, build_spec};

/// The program under the name that makes it the plugin.
struct Plugin {
    folder: tempfile::TempDir,
    status: String,
}

impl Plugin {
    fn new(world: &World) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("kubectl-charon");
        symlink(env!("CARGO_BIN_EXE_charon"), &program).unwrap();
        let status = format!("{} status -n {}", program.display(), world.namespace);
        Self { folder, status }
    }

    /// It shows all runs of the namespace, with the cluster's kubeconfig.
    fn status(&self) -> Program {
        with_kubeconfig(tool("sh", ["-c", &self.status])).in_folder(self.folder.path())
    }

    /// The same at a terminal: script gives its command one, and passes on what is shown and typed there.
    fn live(&self) -> Program {
        let command = format!("stty cols 100 rows 30; exec {}", self.status);
        let script = ["--quiet", "--return", "--flush", "--command", &command, "/dev/null"];
        with_kubeconfig(tool("script", script)).variable("TERM", "xterm")
    }
}

fn kubeconfig() -> std::ffi::OsString {
    std::env::var_os("KUBECONFIG").expect("the test cluster gives it")
}

fn with_kubeconfig(program: Program) -> Program {
    program.variable("KUBECONFIG", kubeconfig())
}

/// Reads on until `words` are shown; gives the screen, and all that was shown.
async fn until_shown(mut screen: ChildStdout, words: &'static str) -> (ChildStdout, String) {
    let read = move || {
        let (begun, mut seen, mut piece) = (Instant::now(), Vec::new(), [0; 4096]);
        // It is drawn at least every second: no read waits for long.
        loop {
            let length = screen.read(&mut piece).unwrap();
            seen.extend_from_slice(&piece[..length]);
            let text = String::from_utf8_lossy(&seen).into_owned();
            if text.split_whitespace().collect::<Vec<_>>().join(" ").contains(words) {
                return (screen, text);
            }
            assert!(length > 0 && begun.elapsed() < DEADLINE, "{words:?} is not shown: {text}");
        }
    };
    tokio::task::spawn_blocking(read).await.unwrap()
}

#[tokio::test]
async fn at_a_terminal_the_table_of_runs_is_live_until_ctrl_c() {
    let world = World::new("live").await;
    world.create::<PayloadBuild>("app", build_spec("python:3")).await;
    let pod = world.pod_of(&world.job_of_attempt::<PayloadBuild>("app", 1).await).await;
    let plugin = Plugin::new(&world);
    let (keyboard, mut keys) = std::io::pipe().unwrap();
    let mut shown = plugin.live().reading(keyboard).start();
    let (screen, _) = until_shown(shown.output(), "pbuild/app Unknown Progressing").await;
    world.ends_for(&pod, Reason::Succeeded).await;
    let (mut screen, _) = until_shown(screen, "pbuild/app True Succeeded 100%").await;
    keys.write_all(b"\x03").unwrap();
    let mut rest = String::new();
    screen.read_to_string(&mut rest).unwrap();
    // What stood on the terminal before is there again, and the table as it was last below it.
    let (_, left) = rest.split_once("\x1b[?1049l").unwrap_or_else(|| panic!("the screen stays: {rest:?}"));
    assert!(left.starts_with("NAME") && left.contains("pbuild/app"), "{left:?}");
    shown.end().succeeded();
}

#[tokio::test]
async fn the_environments_proxy_leads_to_the_cluster_unless_no_proxy_names_it() {
    let world = World::without_controller("proxies").await;
    world.create::<PayloadBuild>("app", build_spec("python:3")).await;
    let config: Value = serde_saphyr::from_str(&std::fs::read_to_string(kubeconfig()).unwrap()).unwrap();
    let server = config["clusters"][0]["cluster"]["server"].as_str().unwrap();
    let host = server.trim_start_matches("https://").split(':').next().unwrap();
    let plugin = Plugin::new(&world);
    // Nobody listens there.
    let by_the_proxy = || plugin.status().variable("HTTPS_PROXY", "http://127.0.0.1:9");
    let said = by_the_proxy().variable("NO_PROXY", "elsewhere.example").run().ended_with(1).stderr;
    assert!(said.contains("cannot list the payloadbuilds"), "{said}");
    let shown = by_the_proxy().variable("NO_PROXY", host).run().succeeded().text();
    assert!(shown.contains("pbuild/app"), "{shown}");
}
