//! The same by the library.

#[expect(dead_code)] // its main
#[path = "../../examples/carry.rs"]
mod carry;

use charon::reason::Reason;
use charon::registry::Credentials;
use charon::{MakePayload, PushPayload, RegistryOptions, make_payload, push_payload};

use crate::access::{Locked, PASSWORD};
use crate::image::{Image, Layer, Types};
use crate::registry::{Registry, Software};

fn registry(registry: &Registry) -> RegistryOptions {
    RegistryOptions {
        registry: Some(registry.host().to_owned()),
        insecure: true,
        ..RegistryOptions::default()
    }
}

#[tokio::test]
async fn the_library_makes_a_payload_pushes_it_and_tells_how_far_it_is() {
    let (source, target, image) = tokio::task::spawn_blocking(|| {
        let source = Registry::start(Software::Distribution3);
        let image = Image::new(Types::Oci, &[Layer::new("a", 100_000)]);
        image.push(&source, "ferry:1");
        (source, Registry::start(Software::Distribution3), image)
    })
    .await
    .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ferry.zip");
    let made = MakePayload {
        images: vec!["ferry:1".to_owned()],
        file: file.clone(),
        registry: registry(&source),
        ..MakePayload::default()
    };
    let report = make_payload(&made).await.unwrap();
    assert_eq!((report.images, report.blobs), (1, 2));
    let progress = made.progress.snapshot();
    assert!(progress.bytes_total > 100_000 && progress.bytes_done == progress.bytes_total);

    let pushed = PushPayload {
        file,
        expected_digest: Some(report.digest),
        registry: registry(&target),
        ..PushPayload::default()
    };
    let report = push_payload(&pushed).await.unwrap();
    assert!(report.failures().is_empty());
    assert_eq!((report.images[0].target.as_str(), report.counts.blobs_pushed), ("ferry:1", 2));
    tokio::task::spawn_blocking(move || image.assert_is_whole_in(&target, "ferry:1")).await.unwrap();

    pushed.cancel.cancel();
    assert_eq!(push_payload(&pushed).await.unwrap_err().to_string(), "cancelled");
}

#[tokio::test]
async fn a_plan_tells_before_the_first_byte_what_is_to_move_and_what_is_there() {
    let (source, target, image) = tokio::task::spawn_blocking(|| {
        let [source, target] = [(); 2].map(|()| Registry::start(Software::Distribution3));
        let layers = [Layer::new("a", 100_000), Layer::new("b", 200_000)];
        Image::new(Types::Oci, &layers[..1]).push(&target, "ferry:0");
        let image = Image::new(Types::Oci, &layers);
        image.push(&source, "ferry:1");
        (source, target, image)
    })
    .await
    .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let made = MakePayload {
        images: vec!["ferry:1".to_owned(), "gone:1".to_owned()],
        allow_missing: true,
        file: folder.path().join("ferry.zip"),
        registry: registry(&source),
        ..MakePayload::default()
    };
    let report = make_payload(&made).await.unwrap();
    let plan = made.progress.snapshot().plan.unwrap();
    assert_eq!((plan.digest.as_ref(), plan.size_bytes), (Some(&report.digest), report.size));
    assert_eq!((plan.images, plan.images_failed, plan.blobs, plan.bytes_present), (1, 1, 3, 0));
    assert!(plan.room_bytes.unwrap() > plan.size_bytes);

    let pushed =
        PushPayload { file: made.file.clone(), registry: registry(&target), ..PushPayload::default() };
    push_payload(&pushed).await.unwrap();
    let progress = pushed.progress.snapshot();
    let plan = progress.plan.unwrap();
    // The config and the second layer are missing, and nothing else counts.
    let [config, first, second] = [0, 1, 2].map(|index: usize| image.blobs[index].len() as u64);
    assert_eq!((progress.bytes_total, progress.blobs_total), (config + second, 2));
    assert_eq!((progress.bytes_done, progress.blobs_done), (config + second, 2));
    assert_eq!((plan.digest, plan.bytes_present), (Some(report.digest), first));
    assert_eq!((plan.images, plan.images_failed, plan.blobs), (1, 0, 3));
}

#[tokio::test]
async fn the_example_of_the_documentation_signs_in_and_carries_an_image() {
    let (source, target, image) = tokio::task::spawn_blocking(|| {
        let source = Locked::new(Software::Distribution3);
        let image = Image::new(Types::Docker, &[Layer::new("a", 1000)]);
        image.push(&source.registry, "river/ferry:1");
        (source, Registry::start(Software::Distribution3), image)
    })
    .await
    .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("carried.zip");
    let carry = async |credentials: Option<Credentials>| {
        let (source, target) = (source.entrance.host(), target.host());
        carry::carry(source, target, "river/ferry:1", credentials.as_ref(), file.clone()).await
    };
    let refused = carry(None).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::AuthenticationFailed);
    let arrived = carry(Some(Credentials::password("charon", PASSWORD))).await.unwrap();
    assert_eq!(arrived, ["river/ferry:1"]);
    tokio::task::spawn_blocking(move || image.assert_is_whole_in(&target, "river/ferry:1")).await.unwrap();
}
