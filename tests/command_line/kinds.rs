//! Every kind of image arrives with every byte of what it names.

use crate::image::{Image, Layer, Types};
use crate::program::{charon, crane_validates};
use crate::registry::{Registry, Software};

with_each_registry!(
    single_images_arrive_with_dockers_and_with_ocis_types,
    an_index_arrives_with_the_images_of_all_its_platforms,
    an_index_arrives_with_the_attestations_of_its_images,
    an_index_of_indexes_arrives,
    layers_without_files_and_without_bytes_arrive,
    an_image_named_by_digest_arrives_with_a_tag_that_keeps_it,
    a_tag_beside_a_digest_is_the_tag_at_the_far_side,
);

fn layers(names: &[&str]) -> Vec<Layer> {
    names.iter().map(|name| Layer::new(name, 2000)).collect()
}

/// A source and a target, and what push-payload prints of a payload with these images.
struct Crossing {
    source: Registry,
    target: Registry,
}

impl Crossing {
    fn new(software: Software) -> Self {
        Self { source: Registry::start(software), target: Registry::start(software) }
    }

    fn carry(&self, image: &str) -> String {
        let made = charon(["make-payload", "-i", "-r", self.source.host(), image]).run().succeeded();
        let pushed = charon(["push-payload", "-i", "-r", self.target.host()]).fed(made.stdout).run();
        pushed.succeeded().text()
    }
}

fn single_images_arrive_with_dockers_and_with_ocis_types(software: Software) {
    let crossing = Crossing::new(software);
    for (types, name) in [(Types::Docker, "ferry:docker"), (Types::Oci, "ferry:oci")] {
        let image = Image::new(types, &layers(&["oar", name]));
        image.push(&crossing.source, name);
        assert_eq!(crossing.carry(name), format!("{name}\n"));
        image.assert_is_whole_in(&crossing.target, name);
        crane_validates(&crossing.target.name(name));
    }
}

fn an_index_arrives_with_the_images_of_all_its_platforms(software: Software) {
    let crossing = Crossing::new(software);
    for (types, name) in [(Types::Docker, "ferry:docker"), (Types::Oci, "ferry:oci")] {
        let children = ["amd64", "arm64", "s390x"]
            .map(|architecture| Image::for_platform(types, architecture, &layers(&["common", architecture])));
        let index = Image::index(types, &children);
        index.push(&crossing.source, name);
        assert_eq!(crossing.carry(name), format!("{name}\n"));
        index.assert_is_whole_in(&crossing.target, name);
        crane_validates(&crossing.target.name(name));
    }
}

fn an_index_arrives_with_the_attestations_of_its_images(software: Software) {
    let crossing = Crossing::new(software);
    let image = Image::new(Types::Oci, &layers(&["oar"]));
    let index = Image::index(Types::Oci, &[image.clone(), Image::attestation(&image)]);
    index.push(&crossing.source, "ferry:1");
    crossing.carry("ferry:1");
    index.assert_is_whole_in(&crossing.target, "ferry:1");
}

fn an_index_of_indexes_arrives(software: Software) {
    let crossing = Crossing::new(software);
    let deep = Image::index(Types::Docker, &[Image::new(Types::Docker, &layers(&["deep"]))]);
    let index = Image::index(
        Types::Oci,
        &[Image::index(Types::Oci, &[Image::new(Types::Oci, &layers(&["a"]))]), deep],
    );
    index.push(&crossing.source, "ferry:1");
    crossing.carry("ferry:1");
    index.assert_is_whole_in(&crossing.target, "ferry:1");
    crane_validates(&crossing.target.name("ferry:1"));
}

fn layers_without_files_and_without_bytes_arrive(software: Software) {
    let crossing = Crossing::new(software);
    let [first, last] = [Layer::new("a", 10), Layer::new("b", 10)];
    let empty = Layer::without_files();
    let image = Image::new(Types::Docker, &[first, empty.clone(), empty, Layer::of_no_bytes(), last]);
    image.push(&crossing.source, "ferry:1");
    crossing.carry("ferry:1");
    image.assert_is_whole_in(&crossing.target, "ferry:1");
}

fn an_image_named_by_digest_arrives_with_a_tag_that_keeps_it(software: Software) {
    let crossing = Crossing::new(software);
    let image = Image::new(Types::Oci, &layers(&["oar"]));
    let index = Image::index(Types::Oci, std::slice::from_ref(&image));
    index.push(&crossing.source, "ferry:1");
    // A child of an index has no tag anywhere.
    for image in [&image, &index] {
        let name = format!("ferry@{}", image.digest);
        assert_eq!(crossing.carry(&name), format!("{name}\n"));
        let tag = format!("charon-{}", &image.digest["sha256:".len()..][..32]);
        image.assert_is_whole_in(&crossing.target, &format!("ferry:{tag}"));
    }
}

fn a_tag_beside_a_digest_is_the_tag_at_the_far_side(software: Software) {
    let crossing = Crossing::new(software);
    let (pinned, later) =
        (Image::new(Types::Docker, &layers(&["a"])), Image::new(Types::Docker, &layers(&["b"])));
    pinned.push(&crossing.source, "ferry:1");
    later.push(&crossing.source, "ferry:1");
    let name = format!("ferry:1@{}", pinned.digest);
    assert_eq!(crossing.carry(&name), format!("{name}\n"));
    pinned.assert_is_whole_in(&crossing.target, "ferry:1");
    assert_eq!(crossing.target.tags("ferry"), ["1"]);
}
