use crate::digest::Digest;
use crate::reason::Reason;

/// Why a payload cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    /// The file is no payload of Charon's.
    #[error("this is no payload: {0}; was it made by charon make-payload?")]
    NotAPayload(String),
    /// The file ends too early, or does not begin yet: a copy may be in progress.
    #[error("the payload is not complete: {0}; copy it again, or wait until the copy is done")]
    Incomplete(String),
    /// The file contradicts itself.
    #[error("the payload is corrupt: {0}; copy it again from where it was made")]
    Corrupt(String),
    /// Bytes that are not what their digest says.
    #[error("the payload is corrupt: {digest} has the digest {found}; copy it again from where it was made")]
    WrongDigest {
        /// What was promised.
        digest: Digest,
        /// What the bytes have.
        found: Digest,
    },
    /// A bill of a version that this program does not read.
    #[error(
        "the payload has format version {found}, this charon reads version {}; update charon at this side",
        super::FORMAT_VERSION
    )]
    UnsupportedVersion {
        /// The version in the bill.
        found: u64,
    },
    /// An entry whose encoding this program does not know.
    #[error(
        "the payload holds {digest} in the encoding {encoding:?}, which this charon does not read; update charon at this side"
    )]
    UnsupportedEncoding {
        /// The entry.
        digest: Digest,
        /// Its encoding.
        encoding: String,
    },
    /// More than the format carries.
    #[error("{0}; split the images over several payloads")]
    TooLarge(String),
    /// A manifest that cannot be read as one.
    #[error(
        "{digest} is no image manifest or index that charon can carry: {why}; leave the image out, or push it anew where it comes from"
    )]
    Manifest {
        /// The manifest.
        digest: Digest,
        /// What is wrong with it.
        why: String,
    },
    /// What would be refused where it is imported.
    #[error("a payload of these images would be refused where it is imported: {0}; leave the image out")]
    Unsound(String),
    /// Two descriptors give one digest different sizes.
    #[error(
        "{digest} is said to have {one} and {other} bytes, and one of the manifests that name it lies; leave the image out, or push it anew where it comes from"
    )]
    Sizes {
        /// The blob.
        digest: Digest,
        /// One size.
        one: u64,
        /// The other.
        other: u64,
    },
    /// The bytes could not be read or written.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// What came back.
        source: std::io::Error,
    },
}

impl PayloadError {
    /// The bytes could not be moved: what was being done, and what came back.
    pub(crate) fn io(doing: &'static str, source: impl Into<std::io::Error>) -> Self {
        Self::Io { doing, source: source.into() }
    }

    /// The payload could not be read.
    pub(crate) fn reading(source: impl Into<std::io::Error>) -> Self {
        Self::io("reading the payload", source)
    }

    /// The payload could not be written.
    pub(crate) fn writing(source: impl Into<std::io::Error>) -> Self {
        Self::io("writing the payload", source)
    }

    /// Why, in one word.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::NotAPayload(_) | Self::Corrupt(_) | Self::WrongDigest { .. } => Reason::PayloadCorrupt,
            Self::Incomplete(_) => Reason::SourceIncomplete,
            Self::UnsupportedVersion { .. } | Self::UnsupportedEncoding { .. } => {
                Reason::UnsupportedFormatVersion
            }
            Self::TooLarge(_) => Reason::InvalidSpec,
            Self::Manifest { .. } | Self::Unsound(_) => Reason::UnsupportedImage,
            Self::Sizes { .. } => Reason::DigestMismatch,
            Self::Io { source, .. } => source.into(),
        }
    }
}
