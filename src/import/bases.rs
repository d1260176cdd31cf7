//! Where the blobs may be that the payload leaves out.

use std::collections::HashMap;

use indexmap::IndexSet;

use super::names::Names;
use super::target::Target;
use crate::digest::Digest;
use crate::payload::Bill;

/// The repositories that are looked through for what a payload requires, each once.
pub(super) struct Bases {
    /// Those of the images that had brought a blob.
    sources: HashMap<Digest, IndexSet<String>>,
    /// Those that this payload writes, and those that whoever imports it gave.
    elsewhere: IndexSet<String>,
}

impl Bases {
    pub(super) fn new(bill: &Bill, names: &Names, targets: &[Target], given: Vec<String>) -> Self {
        let sources = bill.required.iter().map(|required| {
            let repositories = required.sources.iter().filter_map(|source| {
                let (reference, own) = (source.parsed().ok()?, source.far_name().ok()?);
                Some(names.repository(&reference, own.as_ref()))
            });
            (required.digest.clone(), repositories.collect())
        });
        let written = targets.iter().map(|target| target.repository.clone());
        Self { sources: sources.collect(), elsewhere: written.chain(given).collect() }
    }

    /// Where a blob may be, the likeliest first.
    pub(super) fn places(&self, digest: &Digest) -> impl Iterator<Item = &str> {
        self.sources.get(digest).into_iter().flatten().chain(&self.elsewhere).map(String::as_str)
    }
}
