//! Which of Charon's payloads docker-charon can push.

use std::collections::HashSet;
use std::fmt;

use indexmap::IndexSet;

use super::DOCKER_MANIFEST;
use crate::payload::bill::{Bill, BillImage, DESCRIPTOR_NAME};
use crate::reference::{FarName, Host, Reference};

/// Why docker-charon cannot push a payload: it knows images of one Docker manifest with a tag, all of one registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// An image is of another kind.
    Kind(String),
    /// An image is named by its digest.
    Digest(String),
    /// The images are of several registries.
    Registries,
    /// Two images have one name at the far side.
    Name,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kind(name) => write!(f, "{name} is not one image of Docker's types"),
            Self::Digest(name) => write!(f, "{name} is named by its digest"),
            Self::Registries => f.write_str("its images are of several registries"),
            Self::Name => f.write_str("two of its images have one name there"),
        }
    }
}

/// What counts of an image for docker-charon.
pub(super) struct View {
    pub(super) reference: Reference,
    pub(super) far_name: Option<FarName>,
    /// Whether it is one manifest of Docker's type.
    pub(super) is_dockers: bool,
}

impl View {
    pub(super) fn new(
        reference: Reference,
        far_name: Option<FarName>,
        media_type: &str,
        manifests: usize,
    ) -> Self {
        Self { reference, far_name, is_dockers: media_type == DOCKER_MANIFEST && manifests <= 1 }
    }
}

/// The names that docker-charon would give to images, in their order.
pub(super) fn names(images: &[View]) -> Result<IndexSet<String>, Obstacle> {
    let written = |image: &View| image.reference.written().to_owned();
    if let Some(image) = images.iter().find(|image| !image.is_dockers) {
        return Err(Obstacle::Kind(written(image)));
    }
    let mut tagged = Vec::new();
    for image in images {
        let tag = image.reference.tag().filter(|_| image.reference.digest().is_none());
        tagged.push((image, tag.ok_or_else(|| Obstacle::Digest(written(image)))?));
    }
    let hosts: HashSet<&Host> = images.iter().map(|image| image.reference.host()).collect();
    if hosts.len() > 1 {
        return Err(Obstacle::Registries);
    }
    let name = |(View { reference, far_name, .. }, tag): (&View, &str)| match far_name {
        Some(own) => format!("{}:{}", own.repository(), own.tag().unwrap_or(tag)),
        None => format!("{}:{tag}", reference.far_repository()),
    };
    let names: IndexSet<String> = tagged.into_iter().map(name).collect();
    if names.len() < images.len() { Err(Obstacle::Name) } else { Ok(names) }
}

impl Bill {
    /// Whether the payload has docker-charon's table of contents.
    #[must_use]
    pub fn has_descriptor(&self) -> bool {
        self.files.iter().any(|file| file.path == DESCRIPTOR_NAME)
    }

    /// Why docker-charon cannot push the payload, by the rule that its writer went by.
    #[must_use]
    pub fn obstacle(&self) -> Option<Obstacle> {
        let view = |image: &BillImage| {
            let (reference, far_name) = (image.parsed().ok()?, image.far_name().ok()?);
            Some(View::new(reference, far_name, &image.media_type, image.manifests.len()))
        };
        names(&self.images.iter().map(view).collect::<Option<Vec<_>>>()?).err()
    }
}
