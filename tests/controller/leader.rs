//! Several controllers take turns: one works, and where it is killed another one goes on.

use std::collections::HashMap;
use std::time::Duration;

use charon::api::{PayloadBuild, Status};
use charon::controller::LeaseTiming;
use futures::StreamExt as _;
use futures::future::join_all;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::coordination::v1::Lease;
use kube::ResourceExt as _;
use kube::runtime::{WatchStreamExt as _, watcher};

use crate::world::{World, build_to, run};

/// So many namespaces with two controllers each are tried at once, ...
const NAMESPACES: usize = 10;
/// ... and in each of them so often one is killed.
const KILLS: usize = 20;

async fn with_a_lease(name: &str, timing: LeaseTiming) -> World {
    let mut world = World::without_controller(name).await;
    world.settings.lease = Some(timing);
    // Two hundred Jobs wait for pods that never come: who looked at all of them five times a second had no time left.
    world.settings.pace.progress = Duration::from_mins(1);
    world
}

async fn holder(world: &World) -> Option<String> {
    let lease = world.api::<Lease>().get_opt("charon-controller").await.unwrap()?;
    lease.spec?.holder_identity
}

fn has_a_job(status: &Status) -> bool {
    status.run.as_ref().is_some_and(|run| run.job_name.is_some())
}

#[tokio::test]
async fn within_20_seconds_after_the_leader_was_killed_another_controller_works() {
    let world = with_a_lease("failover", LeaseTiming::default()).await;
    let (_, leader) = world.another().await;
    world.create::<PayloadBuild>("first", build_to("python:3", "first.zip")).await;
    world.until::<PayloadBuild>("first", "begun", has_a_job).await;
    let first = holder(&world).await.expect("somebody leads");
    let (stop, other) = world.another().await;
    leader.abort();
    world.create::<PayloadBuild>("second", build_to("python:3", "second.zip")).await;
    let begun = world.until::<PayloadBuild>("second", "begun", has_a_job);
    tokio::time::timeout(Duration::from_secs(20), begun).await.expect("nobody took over");
    assert_ne!(holder(&world).await, Some(first));
    stop.cancel();
    other.await.unwrap();
    // Whoever is told to end leaves the place free.
    assert_eq!(holder(&world).await, None);
}

#[tokio::test]
async fn two_hundred_kills_make_no_second_job_of_an_attempt() {
    let timing = LeaseTiming { duration: Duration::from_secs(2), renewal: Duration::from_millis(200) };
    let worlds = (0..NAMESPACES).map(|index| async move {
        let world = with_a_lease(&format!("kills-{index}"), timing).await;
        // Every Job that there ever was, by the attempt that it is for.
        let mut jobs = watcher(world.api::<Job>(), watcher::Config::default()).applied_objects().boxed();
        let count = tokio::spawn(async move {
            let mut seen: HashMap<String, std::collections::HashSet<String>> = HashMap::new();
            let is_last =
                |job: &Job| job.annotations().get("charon.dev/name").is_some_and(|name| name == "last");
            while let Some(job) = jobs.next().await {
                let Ok(job) = job else { continue };
                let of = job.annotations()["charon.dev/name"].clone();
                seen.entry(of).or_default().insert(job.uid().unwrap());
                if is_last(&job) {
                    break;
                }
            }
            seen
        });
        let mut pair = vec![world.another().await, world.another().await];
        for kill in 0..KILLS {
            let name = format!("app-{kill}");
            world.create::<PayloadBuild>(&name, build_to("python:3", &format!("{name}.zip"))).await;
            // Any moment will do: before the attempt is written down, before its Job is made, after.
            tokio::time::sleep(Duration::from_millis(fastrand::u64(..2400))).await;
            let (_, killed) = pair.remove(fastrand::usize(..2));
            killed.abort();
            let _ = killed.await;
            pair.push(world.another().await);
        }
        for kill in 0..KILLS {
            let status = world.until::<PayloadBuild>(&format!("app-{kill}"), "begun", has_a_job).await;
            world.until_job(&run(&status).job_name.unwrap()).await;
        }
        world.create::<PayloadBuild>("last", build_to("python:3", "last.zip")).await;
        let seen = count.await.unwrap();
        for (_, task) in pair {
            task.abort();
        }
        assert_eq!(seen.len(), KILLS + 1);
        for (name, jobs) in seen {
            assert_eq!(jobs.len(), 1, "{name} had {jobs:?}");
        }
    });
    join_all(worlds).await;
}
