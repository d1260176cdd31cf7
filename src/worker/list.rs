//! The images of a build: those of the run configuration, and those of the list that it names.

use std::path::Path;

use super::Refusal;
use super::contract::{BuildWork, Image, ImageList};
use crate::build::ImageRequest;
use crate::reason::Reason;
use crate::reference::{Clash, Host, Reference, ReferenceError};

/// All images that `work` names; its list is the file `list`.
pub(super) async fn images(work: &BuildWork, list: &Path) -> Result<Vec<ImageRequest>, Refusal> {
    let given = work.images.iter().map(given).collect::<Result<Vec<_>, _>>();
    let mut images = given?;
    let Some(from) = &work.images_from else { return Ok(images) };
    for reference in listed(from, list).await? {
        // What is named twice is carried once, as spec.images says.
        if images.iter().all(|image| image.reference.to_string() != reference.to_string()) {
            images.push(ImageRequest { reference, far_name: None, platforms: from.platforms.clone() });
        }
    }
    let ImageList { config_map, key, .. } = from;
    if images.is_empty() {
        let message = format!("{key:?} of ConfigMap {config_map:?} names no image; name one a line");
        return Err(Refusal::new(Reason::InvalidSpec, message));
    }
    let named = images.iter().map(|image| (&image.reference, image.far_name.as_ref()));
    match Clash::among(named) {
        Some(clash) => Err(Refusal::new(
            Reason::InvalidSpec,
            format!(
                "{key:?} of ConfigMap {config_map:?}, with spec.images, has {clash}; name one of them in spec.images, with another name by its field as"
            ),
        )),
        None => Ok(images),
    }
}

fn given(image: &Image) -> Result<ImageRequest, ReferenceError> {
    Ok(ImageRequest {
        reference: Reference::parse(&image.name, &Host::docker_hub())?,
        far_name: image.far_name.as_deref().map(str::parse).transpose()?,
        platforms: image.platforms.clone(),
    })
}

async fn listed(from: &ImageList, list: &Path) -> Result<Vec<Reference>, Refusal> {
    let ImageList { config_map, key, .. } = from;
    let text = tokio::fs::read_to_string(list).await.map_err(|error| {
        let reason = match error.kind() {
            std::io::ErrorKind::NotFound => Reason::ConfigMapNotFound,
            std::io::ErrorKind::InvalidData => Reason::InvalidSpec,
            _ => Reason::WorkerFailed,
        };
        Refusal::new(reason, format!("cannot read {key:?} of ConfigMap {config_map:?}: {error}"))
    })?;
    let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let parse = |(number, line): (usize, &str)| {
        Reference::parse(line, &Host::docker_hub()).map_err(|error| {
            let message = format!("line {number} of {key:?} of ConfigMap {config_map:?}: {error}");
            Refusal::new(Reason::InvalidSpec, message)
        })
    };
    lines.map(parse).collect()
}
