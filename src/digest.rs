//! Digests of content, as the OCI image specification writes them (`sha256:<hex>`).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Digest as _;
use sha2::digest::common::hazmat::SerializableState;

/// A well-formed digest: a known algorithm and its lowercase hexadecimal value. Clones share the text: there are several of
/// each of a payload's digests, and thousands of those.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(Arc<str>);

/// The text is no digest that Charon can check.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is no digest; expected sha256:<64 hex digits> or sha512:<128 hex digits>")]
pub struct DigestError(String);

impl Digest {
    /// The digest of `bytes` by sha256.
    #[must_use]
    pub fn sha256(bytes: &[u8]) -> Self {
        Self::from_hash("sha256", &sha2::Sha256::digest(bytes))
    }

    /// `sha256` or `sha512`.
    #[must_use]
    pub fn algorithm(&self) -> &str {
        self.split().0
    }

    /// The value alone, in lowercase hexadecimal.
    #[must_use]
    pub fn hex(&self) -> &str {
        self.split().1
    }

    /// The whole text, `algorithm:hex`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A hasher that computes digests of this digest's algorithm.
    #[must_use]
    pub fn hasher(&self) -> Hasher {
        match self.algorithm() {
            "sha512" => Hasher::Sha512(sha2::Sha512::new()),
            _ => Hasher::Sha256(sha2::Sha256::new()),
        }
    }

    /// A hasher that goes on where [`Hasher::state`] was taken; `None` if it was not taken of such a hasher.
    #[must_use]
    pub fn hasher_at(&self, state: &[u8]) -> Option<Hasher> {
        Some(match self.algorithm() {
            "sha512" => Hasher::Sha512(sha2::Sha512::deserialize(state.try_into().ok()?).ok()?),
            _ => Hasher::Sha256(sha2::Sha256::deserialize(state.try_into().ok()?).ok()?),
        })
    }

    /// That `bytes` have this digest; else the one that they have.
    pub fn check(&self, bytes: &[u8]) -> Result<(), Self> {
        let mut hasher = self.hasher();
        hasher.update(bytes);
        let found = hasher.finish();
        if found == *self { Ok(()) } else { Err(found) }
    }

    /// Whether `bytes` have this digest.
    #[must_use]
    pub fn matches(&self, bytes: &[u8]) -> bool {
        self.check(bytes).is_ok()
    }

    fn split(&self) -> (&str, &str) {
        self.0.split_once(':').unwrap_or((&self.0, ""))
    }

    fn from_hash(algorithm: &str, hash: &[u8]) -> Self {
        use fmt::Write;
        let mut text = String::with_capacity(algorithm.len() + 1 + 2 * hash.len());
        text.push_str(algorithm);
        text.push(':');
        for byte in hash {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        Self(text.into())
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let refused = || DigestError(text.chars().take(200).collect());
        let (algorithm, hex) = text.split_once(':').ok_or_else(refused)?;
        let length = match algorithm {
            "sha256" => 64,
            "sha512" => 128,
            _ => return Err(refused()),
        };
        let is_hex = |c: u8| matches!(c, b'0'..=b'9' | b'a'..=b'f');
        if hex.len() != length || !hex.bytes().all(is_hex) {
            return Err(refused());
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Computes a digest from bytes that pass by.
#[derive(Clone)]
pub enum Hasher {
    /// By sha256.
    Sha256(sha2::Sha256),
    /// By sha512.
    Sha512(sha2::Sha512),
}

impl Hasher {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// What was taken so far, so that [`Digest::hasher_at`] can go on with it.
    #[must_use]
    pub fn state(&self) -> Vec<u8> {
        match self {
            Self::Sha256(hasher) => hasher.serialize().to_vec(),
            Self::Sha512(hasher) => hasher.serialize().to_vec(),
        }
    }

    /// The digest of all that was taken.
    #[must_use]
    pub fn finish(self) -> Digest {
        match self {
            Self::Sha256(hasher) => Digest::from_hash("sha256", &hasher.finalize()),
            Self::Sha512(hasher) => Digest::from_hash("sha512", &hasher.finalize()),
        }
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hasher")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn the_digest_of_nothing_is_the_well_known_one() {
        assert_eq!(Digest::sha256(b"").as_str(), EMPTY);
        let long: Digest = format!("sha512:{}", "0".repeat(128)).parse().unwrap();
        assert!(long.hasher().finish().as_str().starts_with("sha512:cf83e1357eefb8bd"));
    }

    #[test]
    fn what_is_no_digest_is_refused() {
        for text in [
            "",
            "sha256",
            "sha256:",
            "sha256:abc",
            "md5:d41d8cd98f00b204e9800998ecf8427e",
            &EMPTY.to_uppercase(),
            &EMPTY.replace("e3b0", "../."),
            &format!("{EMPTY}0"),
        ] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_hasher_goes_on_where_another_one_stopped() {
        for digest in [Digest::sha256(b""), format!("sha512:{}", "0".repeat(128)).parse().unwrap()] {
            let (mut whole, mut first) = (digest.hasher(), digest.hasher());
            whole.update(&[7; 1000]);
            first.update(&[7; 333]);
            let mut second = digest.hasher_at(&first.state()).unwrap();
            second.update(&[7; 667]);
            assert_eq!(second.finish(), whole.finish());
            assert!(digest.hasher_at(b"no state").is_none());
        }
    }

    #[test]
    fn a_digest_tells_its_own_bytes_from_others() {
        let digest = Digest::sha256(b"charon");
        assert!(digest.matches(b"charon"));
        assert!(!digest.matches(b"Charon"));
    }
}
