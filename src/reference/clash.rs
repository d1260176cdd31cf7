use std::collections::HashMap;
use std::fmt;

use super::{FarName, Reference};

/// Two images that would have one name where they arrive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clash {
    first: String,
    second: String,
    name: String,
}

impl Clash {
    /// The first two of `images`, each with the name of its own that it may have, which would both arrive under one.
    pub fn among<'a>(images: impl IntoIterator<Item = (&'a Reference, Option<&'a FarName>)>) -> Option<Self> {
        let mut names: HashMap<String, &Reference> = HashMap::new();
        for (reference, own) in images {
            // Without a tag, the far side gets one that is made of the digest.
            let tag = own.and_then(FarName::tag).or(reference.tag());
            let tag = tag.unwrap_or_else(|| reference.tag_or_digest());
            let repository = own.map_or(reference.far_repository(), FarName::repository);
            let name = format!("{repository}:{tag}");
            match names.get(&name) {
                Some(first) if first.to_string() != reference.to_string() => {
                    let (first, second) = (first.written().to_owned(), reference.written().to_owned());
                    return Some(Self { first, second, name });
                }
                _ => names.insert(name, reference),
            };
        }
        None
    }
}

impl fmt::Display for Clash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, second, name } = self;
        write!(f, "{first} and {second}, which would both arrive as {name}")
    }
}
