use std::collections::{BTreeMap, HashMap, HashSet};

use indexmap::IndexMap;
use tracing::info;

use super::resolve::{ResolveError, Resolved};
use crate::digest::Digest;
use crate::payload::{
    Base, BillImage, BillManifest, BillReferrer, Descriptor, ImagePlan, ManifestContent, ManifestPlan,
    MissingImage, PayloadError, ReferrerPlan, Remains, Required, RequiredSource,
};
use crate::reason::Failure;
use crate::reference::{Host, Reference};
use crate::registry::Registry;

/// What a payload is to hold, and where each blob of it is to be had.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) images: Vec<ImagePlan>,
    /// The blobs to carry, each once: configs first, then layers, as the images name them.
    pub(super) blobs: Vec<BlobPlan>,
    /// The blobs that the far side has, of those that the images need.
    pub(super) required: Vec<Required>,
    /// The images that cannot be had and are left out.
    pub(super) missing: Vec<MissingImage>,
    /// How many manifests were read for it, by registry.
    pub(super) reads: BTreeMap<Host, usize>,
    /// The blobs of each image, by its place in `images`.
    needs: Vec<HashSet<Digest>>,
}

/// A blob to carry.
#[derive(Clone, Debug)]
pub(super) struct BlobPlan {
    pub(super) digest: Digest,
    pub(super) size: u64,
    /// Where the first image has it that names it.
    pub(super) origin: Origin,
    /// Where other images have it, each once.
    pub(super) others: Vec<Origin>,
    /// Where a layer that may not be distributed may be had if no registry has it.
    pub(super) urls: Vec<String>,
}

/// A repository that should have a blob.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    pub(super) registry: Registry,
    pub(super) repository: String,
}

impl Origin {
    fn is_same(&self, other: &Self) -> bool {
        (self.registry.host(), &self.repository) == (other.registry.host(), &other.repository)
    }
}

impl BlobPlan {
    /// Where it may be had, in the order in which it is looked for.
    pub(super) fn origins(&self) -> impl Iterator<Item = &Origin> {
        std::iter::once(&self.origin).chain(&self.others)
    }

    /// Another image has it, too.
    fn also(&mut self, origin: Origin, urls: &[String]) {
        if !self.origins().any(|known| known.is_same(&origin)) {
            self.others.push(origin);
        }
        for url in urls {
            if !self.urls.contains(url) {
                self.urls.push(url.clone());
            }
        }
    }
}

/// The blobs that the far side has, with the images that brought them.
pub(super) type FarBlobs = HashMap<Digest, Vec<RequiredSource>>;

/// The blobs of an image: its configs, and its layers.
struct Blobs {
    configs: Vec<Descriptor>,
    layers: Vec<Descriptor>,
}

impl Plan {
    /// Plans a payload of all images: a pure function of what the registries said. `registries` has one for each host.
    pub(super) fn new(
        resolved: Resolved,
        bases: &[Base],
        registries: &HashMap<Host, Registry>,
    ) -> Result<Self, Vec<Failure>> {
        let there = far_blobs(&resolved.already_transferred, bases)?;
        let plan = Self::of(resolved.images, &there, registries)?;
        Ok(Self { reads: resolved.reads, ..plan })
    }

    /// Plans what the remains of an earlier run were to become, without asking any registry.
    pub(super) fn of_remains(remains: &Remains, registries: &HashMap<Host, Registry>) -> Option<Self> {
        let plan_of = |digest: &Digest, media_type: &str| {
            let bytes = remains.manifests.get(digest)?.clone();
            Some(ManifestPlan { digest: digest.clone(), media_type: media_type.to_owned(), bytes })
        };
        let manifests_of = |manifests: &[BillManifest]| {
            let plans = manifests.iter().map(|manifest| plan_of(&manifest.digest, &manifest.media_type));
            plans.collect::<Option<Vec<_>>>()
        };
        let referrer_of = |referrer: &BillReferrer| {
            Some(ReferrerPlan {
                manifest: plan_of(&referrer.digest, &referrer.media_type)?,
                subject: referrer.subject.clone(),
                tag: referrer.tag.clone(),
                children: manifests_of(&referrer.manifests)?,
            })
        };
        let image_of = |image: &BillImage| {
            Some(ImagePlan {
                reference: image.parsed().ok()?,
                far_name: image.far_name().ok()?,
                digest: image.digest.clone()?,
                media_type: image.media_type.clone(),
                size: image.size,
                platforms: image.platforms.clone(),
                omitted: image.omitted.clone(),
                manifests: manifests_of(&image.manifests)?,
                referrers: image.referrers.iter().map(referrer_of).collect::<Option<Vec<_>>>()?,
            })
        };
        let images = remains.bill.images.iter().map(image_of).collect::<Option<Vec<_>>>()?;
        let required = remains.bill.required.iter();
        let there = required.map(|blob| (blob.digest.clone(), blob.sources.clone())).collect();
        let plan = Self::of(images, &there, registries).ok()?;
        Some(Self { missing: remains.bill.missing.clone(), ..plan })
    }

    /// Plans a payload of `images`, given what the far side has.
    pub(super) fn of(
        images: Vec<ImagePlan>,
        there: &FarBlobs,
        registries: &HashMap<Host, Registry>,
    ) -> Result<Self, Vec<Failure>> {
        let mut failures = Vec::new();
        let mut blobs_of = |image: &ImagePlan| match Blobs::of(image) {
            Ok(blobs) => blobs,
            Err(error) => {
                failures.push(failure(image, &error));
                Blobs { configs: Vec::new(), layers: Vec::new() }
            }
        };
        let blobs: Vec<Blobs> = images.iter().map(&mut blobs_of).collect();

        // A manifest is carried as such; who has it as a layer finds it there.
        let manifests: HashSet<&Digest> =
            images.iter().flat_map(ImagePlan::all_manifests).map(|manifest| &manifest.digest).collect();
        let mut sizes: HashMap<&Digest, u64> = HashMap::new();
        let mut plans: IndexMap<&Digest, BlobPlan> = IndexMap::new();
        let mut required: BTreeMap<&Digest, Required> = BTreeMap::new();
        let each = |pick: fn(&Blobs) -> &Vec<Descriptor>| {
            let images = images.iter().zip(&blobs);
            images.flat_map(move |(image, blobs)| pick(blobs).iter().map(move |blob| (image, blob)))
        };
        for (image, blob) in each(|blobs| &blobs.configs).chain(each(|blobs| &blobs.layers)) {
            let size = *sizes.entry(&blob.digest).or_insert(blob.size);
            if size != blob.size {
                let (digest, one, other) = (blob.digest.clone(), size, blob.size);
                failures.push(failure(image, &PayloadError::Sizes { digest, one, other }));
                continue;
            }
            if manifests.contains(&blob.digest) || required.contains_key(&blob.digest) {
                continue;
            }
            let repository = image.reference.repository();
            if let Some(sources) = there.get(&blob.digest) {
                info!(
                    "Skipping {repository}/{} because it's already in the destination registry",
                    blob.digest
                );
                let (digest, sources) = (blob.digest.clone(), sources.clone());
                required.insert(&blob.digest, Required { digest, size, sources });
                continue;
            }
            let origin = match origin(&image.reference, registries) {
                Ok(origin) => origin,
                Err(error) => {
                    failures.push(Failure::new(image.reference.written(), error.reason(), error.to_string()));
                    continue;
                }
            };
            let urls = blob.urls();
            plans.entry(&blob.digest).and_modify(|plan| plan.also(origin.clone(), urls)).or_insert_with(
                || {
                    let (digest, urls) = (blob.digest.clone(), urls.to_vec());
                    BlobPlan { digest, size, origin, others: Vec::new(), urls }
                },
            );
        }
        let plans = plans.into_values().collect();
        let required = required.into_values().collect();
        let needs = blobs.iter().map(|blobs| blobs.all().map(|blob| blob.digest.clone()).collect()).collect();
        if !failures.is_empty() {
            return Err(failures);
        }
        Ok(Self { images, blobs: plans, required, missing: Vec::new(), reads: BTreeMap::new(), needs })
    }

    /// The blobs to carry, as the payload names them.
    pub(super) fn blob_sizes(&self) -> Vec<(Digest, u64)> {
        self.blobs.iter().map(|blob| (blob.digest.clone(), blob.size)).collect()
    }

    /// The images that have a blob.
    pub(super) fn images_with(&self, digest: &Digest) -> impl Iterator<Item = &ImagePlan> {
        let images = self.images.iter().zip(&self.needs);
        images.filter(move |(_, needs)| needs.contains(digest)).map(|(image, _)| image)
    }
}

/// What the far side has, of images that it has and of earlier payloads.
pub(super) fn far_blobs(already_transferred: &[ImagePlan], bases: &[Base]) -> Result<FarBlobs, Vec<Failure>> {
    let mut there = FarBlobs::new();
    let mut failures = Vec::new();
    for image in already_transferred {
        let source = RequiredSource {
            name: image.reference.written().to_owned(),
            reference: image.reference.to_string(),
            far_name: None,
        };
        match Blobs::of(image) {
            Ok(blobs) => {
                for digest in blobs.all().map(|blob| blob.digest.clone()).collect::<HashSet<_>>() {
                    there.entry(digest).or_default().push(source.clone());
                }
            }
            Err(error) => failures.push(failure(image, &error)),
        }
    }
    if !failures.is_empty() {
        return Err(failures);
    }
    for (digest, sources) in bases.iter().flat_map(Base::blobs) {
        let known = there.entry(digest.clone()).or_default();
        let fresh: Vec<_> = sources.into_iter().filter(|source| !known.contains(source)).collect();
        known.extend(fresh);
    }
    Ok(there)
}

/// Where an image has its blobs.
fn origin(reference: &Reference, registries: &HashMap<Host, Registry>) -> Result<Origin, ResolveError> {
    let registry = registries.get(reference.host());
    let registry = registry.ok_or_else(|| ResolveError::NoAccess(reference.host().clone()))?.clone();
    Ok(Origin { registry, repository: reference.repository().to_owned() })
}

impl Blobs {
    fn of(image: &ImagePlan) -> Result<Self, PayloadError> {
        let mut blobs = Self { configs: Vec::new(), layers: Vec::new() };
        for manifest in image.all_manifests() {
            let content = ManifestContent::parse(&manifest.digest, &manifest.bytes)?;
            blobs.configs.extend(content.config);
            blobs.layers.extend(content.layers);
        }
        Ok(blobs)
    }

    fn all(&self) -> impl Iterator<Item = &Descriptor> {
        self.configs.iter().chain(&self.layers)
    }
}

fn failure(image: &ImagePlan, error: &PayloadError) -> Failure {
    let name = image.reference.written();
    Failure::new(name, error.reason(), format!("{name}: {error}")).caused_by(error)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::reason::Reason;
    use crate::registry::Access;

    /// An image of one manifest with a config and layers of the sizes given; a blob's content is its name.
    fn image(name: &str, blobs: &[(&str, u64)]) -> ImagePlan {
        let named: Vec<String> = blobs
            .iter()
            .map(|(blob, size)| {
                format!(r#"{{"digest":"{}","size":{size}}}"#, Digest::sha256(blob.as_bytes()))
            })
            .collect();
        let json = format!(r#"{{"config":{},"layers":[{}]}}"#, named[0], named[1..].join(","));
        let (bytes, digest) = (Bytes::from(json.clone()), Digest::sha256(json.as_bytes()));
        let manifest = ManifestPlan { digest: digest.clone(), media_type: "m".into(), bytes };
        ImagePlan {
            reference: Reference::parse(name, &Host::docker_hub()).unwrap(),
            far_name: None,
            digest,
            media_type: "m".into(),
            size: json.len() as u64,
            platforms: Vec::new(),
            omitted: Vec::new(),
            manifests: vec![manifest],
            referrers: Vec::new(),
        }
    }

    fn plan(images: Vec<ImagePlan>, already_transferred: Vec<ImagePlan>) -> Result<Plan, Vec<Failure>> {
        let hosts = [Host::docker_hub(), "quay.io".parse().unwrap()];
        let registry = |host: Host| (host.clone(), Registry::new(host, Access::default()).unwrap());
        let resolved = Resolved { images, already_transferred, missing: Vec::new(), reads: BTreeMap::new() };
        Plan::new(resolved, &[], &hosts.map(registry).into())
    }

    #[test]
    fn no_payload_is_begun_that_its_importer_would_refuse() {
        let child = Digest::sha256(b"a child that is not there");
        let index = format!(r#"{{"manifests":[{{"digest":"{child}","size":1}}]}}"#);
        let mut broken = image("broken", &[("c", 1)]);
        broken.digest = Digest::sha256(index.as_bytes());
        broken.manifests[0] =
            ManifestPlan { digest: broken.digest.clone(), media_type: "m".into(), bytes: index.into() };
        let refused = super::super::contents(&plan(vec![broken], vec![]).unwrap()).unwrap_err();
        assert_eq!(refused.reason(), Reason::UnsupportedImage);
        assert!(refused.to_string().contains(child.as_str()), "{refused}");
        super::super::contents(&plan(vec![image("whole", &[("c", 1)])], vec![]).unwrap()).unwrap();
    }

    fn digests(names: &[&str]) -> Vec<Digest> {
        names.iter().map(|name| Digest::sha256(name.as_bytes())).collect()
    }

    #[test]
    fn each_blob_is_carried_once_configs_first() {
        let plan = plan(
            vec![image("a", &[("ca", 1), ("base", 9), ("la", 2)]), image("b", &[("cb", 1), ("base", 9)])],
            vec![],
        )
        .unwrap();
        let carried: Vec<_> = plan.blobs.iter().map(|blob| blob.digest.clone()).collect();
        assert_eq!(carried, digests(&["ca", "cb", "base", "la"]));
        assert_eq!(plan.images_with(&digests(&["base"])[0]).count(), 2);
    }

    #[test]
    fn a_blob_may_be_had_where_any_image_has_it_that_names_it() {
        let names = ["a:1", "a:2", "quay.io/team/b", "c"];
        let plan = plan(names.map(|name| image(name, &[("c", 1), ("base", 9)])).into(), vec![]).unwrap();
        let origins = plan.blobs[1].origins();
        let origins: Vec<_> =
            origins.map(|origin| format!("{}/{}", origin.registry.host(), origin.repository)).collect();
        assert_eq!(origins, ["docker.io/library/a", "quay.io/team/b", "docker.io/library/c"]);
    }

    #[test]
    fn an_image_of_a_registry_that_there_is_no_client_for_is_refused() {
        let failures = plan(vec![image("ghcr.io/team/a", &[("c", 1)])], vec![]).unwrap_err();
        assert_eq!(failures[0].reason, Reason::InvalidSpec);
        assert_eq!(failures[0].message, "no access to ghcr.io was given");
    }

    #[test]
    fn what_the_far_side_has_is_required_and_not_carried_with_all_images_that_brought_it() {
        let far = vec![image("a:1", &[("c1", 1), ("base", 9)]), image("z:1", &[("cz", 1), ("base", 9)])];
        let plan = plan(vec![image("a:2", &[("c2", 1), ("base", 9), ("new", 3)])], far).unwrap();
        let carried: Vec<_> = plan.blobs.iter().map(|blob| blob.digest.clone()).collect();
        assert_eq!(carried, digests(&["c2", "new"]));
        assert_eq!(plan.required.len(), 1);
        let sources: Vec<_> = plan.required[0].sources.iter().map(|source| source.name.as_str()).collect();
        assert_eq!(sources, ["a:1", "z:1"]);
    }

    #[test]
    fn two_sizes_for_one_digest_refuse_the_image_that_contradicts() {
        let failures =
            plan(vec![image("a", &[("ca", 1), ("x", 9)]), image("b", &[("cb", 1), ("x", 8)])], vec![])
                .unwrap_err();
        assert_eq!(failures.len(), 1);
        assert_eq!((failures[0].item.as_str(), failures[0].reason), ("b", Reason::DigestMismatch));
        let [x] = &digests(&["x"])[..] else { panic!("it is one") };
        assert_eq!(
            failures[0].message,
            format!(
                "b: {x} is said to have 9 and 8 bytes, and one of the manifests that name it lies; \
                 leave the image out, or push it anew where it comes from"
            )
        );
    }
}
