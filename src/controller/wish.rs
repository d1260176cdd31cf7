//! What the two kinds have in common, so that one loop serves both.

use std::fmt::Debug;

use k8s_openapi::NamespaceResourceScope;
use kube::{Resource, ResourceExt as _};
use serde::de::DeserializeOwned;

use super::Subject;
use super::validate::{self, Invalid, Valid};
use crate::api::{PayloadBuild, PayloadImport, REQUESTED_AT};
use crate::worker::contract::cut;

/// The longest value of the annotation that counts.
const REQUESTED_AT_LIMIT: usize = 256;

/// A resource that declares something which a run makes true.
pub(super) trait Wish:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
    /// Its kind.
    const KIND: &'static str;
    /// Tells the kinds apart in the names of Jobs.
    const LETTER: char;

    /// Its spec, checked.
    fn valid(&self) -> Result<Valid, Invalid>;

    /// Who it is.
    fn subject(&self) -> Subject {
        let requested_at = self.annotations().get(REQUESTED_AT).filter(|text| !text.is_empty());
        Subject {
            kind: Self::KIND,
            letter: Self::LETTER,
            name: self.name_any(),
            namespace: self.namespace().unwrap_or_default(),
            uid: self.uid().unwrap_or_default(),
            generation: self.meta().generation.unwrap_or(0),
            created: self.creation_timestamp().map(|time| time.0).unwrap_or_default(),
            requested_at: requested_at.map(|text| cut(text, REQUESTED_AT_LIMIT).to_owned()),
        }
    }
}

impl Wish for PayloadBuild {
    const KIND: &'static str = "PayloadBuild";
    const LETTER: char = 'b';

    fn valid(&self) -> Result<Valid, Invalid> {
        validate::build(&self.spec)
    }
}

impl Wish for PayloadImport {
    const KIND: &'static str = "PayloadImport";
    const LETTER: char = 'i';

    fn valid(&self) -> Result<Valid, Invalid> {
        validate::import(&self.spec)
    }
}
