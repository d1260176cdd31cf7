//! What is in a payload and in a registry, in a form in which two can be compared.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{Cursor, Read};

use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::Value;

use crate::image::digest;
use crate::registry::{RUNTIME, Registry};

/// What a payload says in docker-charon's terms, with the bytes behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Payload {
    /// The images in their order; the digest of the manifest, or none if the image is only named.
    pub(crate) images: Vec<(String, Option<String>)>,
    /// The digests of the blobs that it carries.
    pub(crate) carried: Vec<String>,
    /// The blobs that the far side has, with the repository there.
    pub(crate) left: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Descriptor {
    manifests_paths: IndexMap<String, Option<String>>,
    blobs_paths: BTreeMap<String, BTreeMap<String, String>>,
}

impl Payload {
    /// Reads either's payload, or tells why it is none. Whatever it carries has the digest that it is said to have.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, String> {
        let mut zip = zip::ZipArchive::new(Cursor::new(bytes)).map_err(|error| error.to_string())?;
        let mut entry = |name: &str| {
            let mut content = Vec::new();
            let read = zip.by_name(name).map(|mut entry| entry.read_to_end(&mut content));
            match read {
                Ok(Ok(_)) => Ok(content),
                Ok(Err(error)) => Err(format!("{name}: {error}")),
                Err(error) => Err(format!("{name}: {error}")),
            }
        };
        let Ok(descriptor) = entry("payload_descriptor.json") else {
            return Self::of_bill(&entry("charon.json")?);
        };
        let descriptor: Descriptor =
            serde_json::from_slice(&descriptor).map_err(|error| error.to_string())?;
        let mut images = Vec::new();
        for (name, path) in descriptor.manifests_paths {
            let manifest = path.map(|path| entry(&path).map(|manifest| digest(&manifest))).transpose()?;
            images.push((name, manifest));
        }
        let mut carried = Vec::new();
        let mut left = BTreeMap::new();
        for (blob, place) in descriptor.blobs_paths {
            if let Some(path) = place.get("zip_path") {
                let found = digest(&entry(path)?);
                if found != blob {
                    return Err(format!("{blob} is {found}"));
                }
                carried.push(blob);
            } else {
                left.insert(blob, place["repository"].clone());
            }
        }
        Ok(Self { images, carried, left })
    }

    /// Of a payload that docker-charon could not push, what its bill says.
    fn of_bill(bill: &[u8]) -> Result<Self, String> {
        let bill: Value = serde_json::from_slice(bill).map_err(|error| error.to_string())?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let images = list(&bill["images"]).into_iter().map(|image| {
            let digest = image["carried"].as_bool().unwrap_or_default().then(|| text(&image["digest"]));
            (text(&image["name"]), digest)
        });
        let is_blob = |entry: &Value| entry["kind"] == "blob";
        Ok(Self {
            images: images.collect(),
            carried: list(&bill["entries"])
                .iter()
                .filter(|entry| is_blob(entry))
                .map(|entry| text(&entry["digest"]))
                .collect(),
            left: list(&bill["required"])
                .iter()
                .map(|blob| (text(&blob["digest"]), text(&blob["sources"][0]["name"])))
                .collect(),
        })
    }
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |is_carried| {
            let images = self.images.iter().filter(|(_, digest)| digest.is_some() == is_carried);
            let name = |(name, digest): &(String, Option<String>)| match digest {
                // The tables have a word for it.
                Some(digest) => format!("`{}`", name.replace(digest, "DIGEST")),
                None => format!("`{name}`"),
            };
            images.map(name).collect::<Vec<_>>()
        };
        let mut parts = Vec::new();
        if let carried @ [_, ..] = names(true).as_slice() {
            parts.push(format!("{} with {} blobs", carried.join(", "), self.carried.len()));
        }
        if let named @ [_, ..] = names(false).as_slice() {
            parts.push(format!("{} only named", named.join(", ")));
        }
        let repositories: std::collections::BTreeSet<&String> = self.left.values().collect();
        for repository in repositories {
            let count = self.left.values().filter(|other| *other == repository).count();
            parts.push(format!("{count} blobs left to `{repository}`"));
        }
        f.write_str(&parts.join("; "))
    }
}

/// The names of a registry's images, with the digests that their tags mean.
pub(crate) fn images(registry: &Registry) -> BTreeMap<String, String> {
    let ask = |path: &str| {
        let answer = RUNTIME.block_on(async {
            reqwest::get(format!("http://{}/v2/{path}", registry.host())).await?.bytes().await
        });
        let bytes = answer.unwrap_or_else(|error| panic!("{}: {error}", registry.host()));
        serde_json::from_slice::<Value>(&bytes).expect("it answers JSON")
    };
    let mut images = BTreeMap::new();
    for repository in ask("_catalog?n=1000")["repositories"].as_array().into_iter().flatten() {
        let repository = repository.as_str().expect("a repository has a name");
        for tag in registry.tags(repository) {
            let (_, manifest) = registry.manifest(repository, &tag).expect("a tag means a manifest");
            images.insert(format!("{repository}:{tag}"), digest(&manifest));
        }
    }
    images
}
