//! Platforms: what an image runs on, and which of an index's images are wanted.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An operating system and an architecture, perhaps with its variant: `linux/arm64`, `linux/arm/v7`.
///
/// Architectures go under Go's names, as in OCI images; what has one meaning has one spelling:
/// `linux/aarch64` and `linux/arm64/v8` are `linux/arm64`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

/// The text is no platform.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{0:?} is no platform; expected os/architecture or os/architecture/variant, such as linux/amd64 or linux/arm/v7"
)]
pub struct PlatformError(String);

/// What becomes of an index that the registry refuses because images of it were left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SparseIndex {
    /// The index keeps its bytes and its digest; its image fails.
    #[default]
    Keep,
    /// The index is written anew without those images: its digest changes.
    Rewrite,
}

impl Platform {
    /// The platform that an image says it is for.
    #[must_use]
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let (architecture, implied) = match architecture {
            "x86_64" | "x86-64" => ("amd64", None),
            "aarch64" => ("arm64", None),
            "i386" | "i486" | "i586" | "i686" => ("386", None),
            "armhf" => ("arm", Some("v7")),
            "armel" => ("arm", Some("v6")),
            other => (other, None),
        };
        let variant = variant.filter(|variant| !variant.is_empty()).or(implied);
        let variant = match (architecture, variant) {
            // The only ones of their architecture that images are made for without saying so.
            ("arm64", Some("v8" | "8")) | ("amd64", Some("v1")) => None,
            ("arm", Some("5" | "6" | "7" | "8")) => variant.map(|variant| format!("v{variant}")),
            (_, variant) => variant.map(str::to_owned),
        };
        Self { os: os.to_owned(), architecture: architecture.to_owned(), variant }
    }

    /// Whether whoever wants this platform wants what is for `found`.
    ///
    /// Without a variant every variant is wanted; with one that variant alone, and an image for `arm`
    /// that tells none is for `v7`, as container runtimes have it.
    #[must_use]
    pub fn wants(&self, found: &Self) -> bool {
        let of_arm = Some("v7").filter(|_| found.architecture == "arm");
        let variant = found.variant.as_deref().or(of_arm);
        self.os == found.os
            && self.architecture == found.architecture
            && (self.variant.is_none() || self.variant.as_deref() == variant)
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let refused = || PlatformError(text.chars().take(100).collect());
        let is_part = |part: &&str| {
            let is_inner =
                |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-');
            !part.is_empty() && part.len() <= 32 && part.chars().all(is_inner)
        };
        let parts: Vec<&str> = text.split('/').collect();
        if !parts.iter().all(is_part) {
            return Err(refused());
        }
        match parts.as_slice() {
            [os, architecture] => Ok(Self::new(os, architecture, None)),
            [os, architecture, variant] => Ok(Self::new(os, architecture, Some(variant))),
            _ => Err(refused()),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

impl Serialize for Platform {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Platform {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Platforms as people list them: `linux/amd64, linux/arm64`.
#[must_use]
pub fn list(platforms: &[Platform]) -> String {
    platforms.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    #[test]
    fn what_has_one_meaning_has_one_spelling() {
        for (text, spelling) in [
            ("linux/amd64", "linux/amd64"),
            ("linux/x86_64", "linux/amd64"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm64/v9", "linux/arm64/v9"),
            ("linux/arm/7", "linux/arm/v7"),
            ("linux/armhf", "linux/arm/v7"),
            ("windows/amd64", "windows/amd64"),
        ] {
            assert_eq!(platform(text).to_string(), spelling);
        }
    }

    #[test]
    fn a_platform_without_a_variant_is_every_variant_and_one_with_it_that_alone() {
        for (wanted, found, is_wanted) in [
            ("linux/amd64", "linux/amd64", true),
            ("linux/amd64", "linux/amd64/v3", true),
            ("linux/amd64/v3", "linux/amd64", false),
            ("linux/arm64/v8", "linux/arm64", true),
            ("linux/arm64", "linux/arm64/v8", true),
            ("linux/arm", "linux/arm/v6", true),
            ("linux/arm/v7", "linux/arm", true),
            ("linux/arm/v6", "linux/arm", false),
            ("linux/arm", "linux/arm64", false),
            ("linux/amd64", "windows/amd64", false),
        ] {
            assert_eq!(platform(wanted).wants(&platform(found)), is_wanted, "{wanted} {found}");
        }
    }

    #[test]
    fn what_is_no_platform_is_refused() {
        for text in
            ["", "linux", "linux/", "/amd64", "a/b/c/d", "Linux/amd64", "linux/amd 64", "linux/\u{1b}"]
        {
            assert!(text.parse::<Platform>().is_err(), "{text:?}");
        }
    }
}
