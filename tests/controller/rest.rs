//! What is at rest costs nothing.

use std::fmt::Debug;

use charon::api::{PayloadBuild, PayloadImport};
use charon::reason::Reason;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::events::v1::Event;
use kube::api::ListParams;
use kube::{Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::outside::Controller;
use crate::world::{World, build_to, import_spec};

/// The versions of all objects of a kind.
async fn versions<K>(world: &World) -> Vec<(String, Option<String>)>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
{
    let objects = world.api::<K>().list(&ListParams::default()).await.unwrap().items;
    objects.iter().map(|object| (object.name_any(), object.resource_version())).collect()
}

async fn all_versions(world: &World) -> Vec<(String, Option<String>)> {
    let mut all = versions::<PayloadBuild>(world).await;
    all.extend(versions::<PayloadImport>(world).await);
    all.extend(versions::<Job>(world).await);
    all.extend(versions::<Event>(world).await);
    all
}

#[tokio::test]
async fn a_controller_that_starts_looks_at_all_that_is_at_rest_and_writes_nothing() {
    let mut world = World::new("rest").await;
    for (name, reason) in [("done", Reason::Succeeded), ("denied", Reason::AccessDenied)] {
        world.create::<PayloadBuild>(name, build_to("python:3", name)).await;
        world.create::<PayloadImport>(name, import_spec()).await;
        let build = world.job_of_attempt::<PayloadBuild>(name, 1).await;
        let import = world.job_of_attempt::<PayloadImport>(name, 1).await;
        for job in [build, import] {
            world.ends_for(&world.pod_of(&job).await, reason).await;
            let name = job.name_any();
            let expires = |found: &Job| {
                let spec = found.spec.as_ref().unwrap();
                found.name_any() == name && spec.ttl_seconds_after_finished.is_some()
            };
            // It is the last that is done about it.
            world.until_any("let go", expires).await;
        }
    }
    world.create::<PayloadBuild>("rival", build_to("python:3", "done")).await;
    world.until_ready::<PayloadBuild>("rival", "False", "OutputConflict").await;
    let mut suspended = import_spec();
    suspended["suspend"] = json!(true);
    world.create::<PayloadImport>("suspended", suspended).await;
    world.until_ready::<PayloadImport>("suspended", "False", "Suspended").await;
    world.stop().await;

    let before = all_versions(&world).await;
    for _ in 0..3 {
        let controller = Controller::start(&world);
        controller
            .until_metrics(&[
                r#"charon_resources{kind="PayloadBuild",state="ready"} 1"#,
                r#"charon_resources{kind="PayloadBuild",state="stalled"} 2"#,
                r#"charon_resources{kind="PayloadImport",state="ready"} 1"#,
                r#"charon_resources{kind="PayloadImport",state="stalled"} 1"#,
                r#"charon_resources{kind="PayloadImport",state="suspended"} 1"#,
            ])
            .await;
        controller.log();
    }
    assert_eq!(all_versions(&world).await, before);
}
