use crate::digest::Digest;
use crate::reference::{FarName, Host, Naming, Reference};

/// The rule by which names at the far side are made.
#[derive(Clone, Debug)]
pub(super) struct Names {
    target: Host,
    prefix: String,
    naming: Naming,
    tags_digests: bool,
}

impl Names {
    pub(super) fn new(target: &Host, prefix: Option<&str>, naming: Naming, tags_digests: bool) -> Self {
        let prefix = match prefix.unwrap_or_default().trim_matches('/') {
            "" => String::new(),
            prefix => format!("{prefix}/"),
        };
        Self { target: target.clone(), prefix, naming, tags_digests }
    }

    /// The repository of an image at the far side. A name of its own goes before every rule but the prefix.
    pub(super) fn repository(&self, image: &Reference, own: Option<&FarName>) -> String {
        let name = match (own, self.naming) {
            (Some(own), _) => own.repository().to_owned(),
            (None, Naming::AsWritten) => image.far_repository().to_owned(),
            (None, Naming::Canonical) => image.repository().to_owned(),
            // A port's colon is no part of a repository's name.
            (None, Naming::WithHost) => {
                format!("{}/{}", image.host().as_str().replace(':', "-"), image.repository())
            }
        };
        let name = format!("{}{name}", self.prefix);
        // Docker Hub has no repository outside a namespace.
        if self.target.is_docker_hub() && !name.contains('/') { format!("library/{name}") } else { name }
    }

    /// The tag of an image at the far side. A reference by digest alone gets one, since registries
    /// collect what has none.
    pub(super) fn tag(
        &self,
        image: &Reference,
        own: Option<&FarName>,
        root: Option<&Digest>,
    ) -> Option<String> {
        let tag = own.and_then(FarName::tag).or_else(|| image.tag());
        match (tag, image.digest().or(root)) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, Some(digest)) if self.tags_digests => Some(format!("charon-{}", &digest.hex()[..32])),
            (None, _) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn reference(text: &str) -> Reference {
        Reference::parse(text, &Host::docker_hub()).unwrap()
    }

    fn repository(name: &str, target: &str, prefix: Option<&str>, naming: Naming) -> String {
        Names::new(&target.parse().unwrap(), prefix, naming, true).repository(&reference(name), None)
    }

    #[test]
    fn names_at_the_far_side_are_as_written_behind_the_prefix() {
        for (name, prefix, expected) in [
            ("python:3", None, "python"),
            ("library/python:3", None, "library/python"),
            (format!("quay.io/a/b@{DIGEST}").as_str(), None, "a/b"),
            ("python", Some("mirror/"), "mirror/python"),
            ("python", Some("mirror"), "mirror/python"),
            ("a/b", Some("/x/y/"), "x/y/a/b"),
            ("a/b", Some("/"), "a/b"),
        ] {
            assert_eq!(
                repository(name, "registry.infra:5000", prefix, Naming::AsWritten),
                expected,
                "{name}"
            );
        }
    }

    #[test]
    fn names_may_be_canonical_or_carry_their_host() {
        let far = "registry.infra:5000";
        assert_eq!(repository("python", far, None, Naming::Canonical), "library/python");
        assert_eq!(repository("python", far, Some("m"), Naming::WithHost), "m/docker.io/library/python");
        assert_eq!(repository("quay.io:443/a/b", far, None, Naming::WithHost), "quay.io-443/a/b");
    }

    #[test]
    fn only_docker_hub_itself_needs_a_namespace() {
        assert_eq!(repository("python", "docker.io", None, Naming::AsWritten), "library/python");
        assert_eq!(repository("python", "docker.io", Some("me"), Naming::AsWritten), "me/python");
    }

    #[test]
    fn a_reference_by_digest_alone_gets_a_tag_that_keeps_it_unless_that_is_not_wanted() {
        let names = |tags| Names::new(&Host::docker_hub(), None, Naming::AsWritten, tags);
        let bare = reference(&format!("a@{DIGEST}"));
        assert_eq!(names(true).tag(&bare, None, None).unwrap(), "charon-e3b0c44298fc1c149afbf4c8996fb924");
        assert_eq!(names(false).tag(&bare, None, None), None);
        assert_eq!(names(false).tag(&reference(&format!("a:1@{DIGEST}")), None, None).unwrap(), "1");
    }

    #[test]
    fn a_name_of_its_own_goes_before_every_rule_but_the_prefix() {
        let own = |text: &str| Some(text.parse::<FarName>().unwrap());
        let image = reference("quay.io/team/app:1");
        for naming in [Naming::AsWritten, Naming::Canonical, Naming::WithHost] {
            let names = Names::new(&"registry.infra:5000".parse().unwrap(), Some("mirror"), naming, true);
            let (full, bare) = (own("base/app:2"), own("base/app"));
            assert_eq!(names.repository(&image, full.as_ref()), "mirror/base/app");
            assert_eq!(names.tag(&image, full.as_ref(), None).unwrap(), "2");
            assert_eq!(names.tag(&image, bare.as_ref(), None).unwrap(), "1", "the image's own");
            let digest = reference(&format!("a@{DIGEST}"));
            assert!(names.tag(&digest, bare.as_ref(), None).unwrap().starts_with("charon-"));
        }
    }
}
