//! An unpacked payload is an OCI image layout for other programs.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::image::{Image, Layer, Types};
use crate::program::{charon, tool};
use crate::registry::{Registry, Software};

/// A payload made from a registry, unpacked.
struct Unpacked {
    images: Vec<(&'static str, Image)>,
    _source: Registry,
    folder: TempDir,
}

impl Unpacked {
    fn new(types: Types) -> Self {
        let layers = ["one", "two"].map(|name| Layer::new(name, 5000));
        let image = Image::new(types, &layers);
        let platforms = ["amd64", "arm64"].map(|name| Image::for_platform(types, name, &layers));
        let images = vec![("single:1", image), ("team/index:1", Image::index(types, &platforms))];
        let (source, folder) = (Registry::start(Software::Distribution3), tempfile::tempdir().unwrap());
        for (name, image) in &images {
            image.push(&source, name);
        }
        let file = folder.path().join("payload.zip");
        let made = charon(["make-payload", "single:1,team/index:1", "-i", "-r", source.host(), "-f"]);
        made.arguments([&file]).run().succeeded();
        let unpacked = Self { images, _source: source, folder };
        tool("unzip", ["-q", "-d"]).arguments([&unpacked.path(), &file]).run().succeeded();
        unpacked
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("layout")
    }

    /// Lets a program copy each image into a registry, and sees that it is there, byte by byte.
    fn assert_copied(&self, copy: impl Fn(&Path, &str, &Image, &Registry)) {
        let far = Registry::start(Software::Distribution3);
        for (name, image) in &self.images {
            copy(&self.path(), name, image, &far);
            image.assert_is_whole_in(&far, name);
        }
    }
}

#[test]
fn oras_copies_images_of_both_types_out_of_an_unpacked_payload() {
    for types in Types::ALL {
        Unpacked::new(types).assert_copied(|layout, name, image, far| {
            let from = format!("{}@{}", layout.display(), image.digest);
            let copy = tool("oras", ["cp", "--from-oci-layout", &from, "--to-plain-http", &far.name(name)]);
            copy.run().succeeded();
        });
    }
}

#[test]
fn regctl_copies_images_of_both_types_out_of_an_unpacked_payload() {
    for types in Types::ALL {
        Unpacked::new(types).assert_copied(|layout, name, image, far| {
            let host = format!("reg={},tls=disabled", far.host());
            let from = format!("ocidir://{}@{}", layout.display(), image.digest);
            tool("regctl", ["--host", &host, "image", "copy", &from, &far.name(name)]).run().succeeded();
        });
    }
}

#[test]
fn crane_pushes_an_unpacked_payload_as_the_index_that_it_is() {
    for types in Types::ALL {
        let unpacked = Unpacked::new(types);
        let far = Registry::start(Software::Distribution3);
        let push = tool("crane", ["push", "--insecure", "--index"]).arguments([unpacked.path()]);
        push.arguments([far.name("all:1")]).run().succeeded();
        for (_, image) in &unpacked.images {
            let (_, manifest) = far.manifest("all", &image.digest).expect("crane pushed it");
            assert_eq!(manifest, image.manifest);
        }
        tool("crane", ["validate", "--insecure", "--remote", &far.name("all:1")]).run().succeeded();
    }
}

#[test]
fn skopeo_copies_images_of_oci_types_out_of_an_unpacked_payload_by_their_names() {
    Unpacked::new(Types::Oci).assert_copied(|layout, name, image, far| {
        // The names in index.json are full references.
        let index = std::fs::read(layout.join("index.json")).unwrap();
        let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
        let described = index["manifests"].as_array().unwrap().iter();
        let described =
            described.clone().find(|described| described["digest"] == image.digest.as_str()).unwrap();
        let reference = described["annotations"]["org.opencontainers.image.ref.name"].as_str().unwrap();
        let from = format!("oci:{}:{reference}", layout.display());
        let to = format!("docker://{}", far.name(name));
        let copy =
            ["--insecure-policy", "copy", "--all", "--dest-tls-verify=false", "--dest-no-creds", &from, &to];
        tool("skopeo", copy).run().succeeded();
    });
}
