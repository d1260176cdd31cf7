//! The same by the library.

#[allow(dead_code)] // its main
#[path = "../../examples/carry.rs"]
mod carry;

use charon::{MakePayload, PushPayload, RegistryOptions, make_payload, push_payload};

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
async fn the_example_of_the_documentation_carries_an_image() {
    let (source, target, image) = tokio::task::spawn_blocking(|| {
        let source = Registry::start(Software::Distribution3);
        let image = Image::new(Types::Docker, &[Layer::new("a", 1000)]);
        image.push(&source, "river/ferry:1");
        (source, Registry::start(Software::Distribution3), image)
    })
    .await
    .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("carried.zip");
    let arrived = carry::carry(source.host(), target.host(), "river/ferry:1", file).await.unwrap();
    assert_eq!(arrived, ["river/ferry:1"]);
    tokio::task::spawn_blocking(move || image.assert_is_whole_in(&target, "river/ferry:1")).await.unwrap();
}
