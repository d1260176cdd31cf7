use std::fmt;
use std::path::{Path, PathBuf};

use crate::object_location::{LocationError, ObjectLocation};

/// Where a payload lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// In a file.
    File(PathBuf),
    /// In an object of a store.
    Object(ObjectLocation),
}

impl Location {
    /// What is meant by a file's name on the command line: a URL of a store, else a file.
    pub fn parse(path: &Path) -> Result<Self, LocationError> {
        let text = path.to_str().filter(|text| ObjectLocation::is_meant_by(text));
        text.map_or_else(|| Ok(Self::File(path.to_owned())), |text| Ok(Self::Object(text.parse()?)))
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Object(object) => object.fmt(f),
        }
    }
}
