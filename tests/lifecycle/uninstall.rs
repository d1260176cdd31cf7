//! Nothing holds anything up: there are no finalizers and no webhooks.

use crate::release::{CHART, DEFINITIONS, Release, Standing};
use crate::world::{run, until};

/// No worker is left in any namespace.
fn until_no_worker_is_left() {
    until("the workers to be gone", || {
        let workers = ["get", "pods", "-A", "-l", "app.kubernetes.io/component=worker", "-o", "name"];
        let left = run("kubectl", &workers, None);
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
}

#[test]
fn a_namespace_with_a_run_goes_within_a_minute_before_and_after_charon_was_uninstalled() {
    let release = Release::install(CHART, &[]);
    release.until_ready();
    let first = Standing::in_namespace("goes-first", [5123, 5124]);
    let second = Standing::in_namespace("goes-second", [5125, 5126]);
    let work = second.work();
    first.delete_namespace();

    release.uninstall();
    // What people wished for, and who works at it, stay: crds.keep.
    second.world.get("pbuild", "app");
    assert_eq!(second.work(), work);
    second.delete_namespace();
    until_no_worker_is_left();
}

#[test]
fn a_release_that_keeps_no_definitions_goes_within_a_minute_with_its_runs() {
    let release = Release::install(CHART, &["--set", "crds.keep=false"]);
    release.until_ready();
    let build = Standing::in_namespace("goes-along", [5127, 5128]);
    release.uninstall();
    for name in DEFINITIONS {
        run("kubectl", &["wait", "--for=delete", &format!("crd/{name}"), "--timeout=60s"], None);
    }
    until_no_worker_is_left();
    assert!(build.work().is_empty());
    build.delete_namespace();
}
