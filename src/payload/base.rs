//! Payloads as the base of later ones: what a bill alone tells of what the far side has.

use std::collections::HashMap;

use super::bill::{BILL_LIMIT, Bill, BillImage, EntryKind, RequiredSource};
use super::error::PayloadError;
use super::layout::Place;
use super::reader::{Start, read_at, read_bill, read_start};
use crate::digest::Digest;
use crate::read_at::ReadAt;

/// The bill of an earlier payload, all that a build wants of it: what it carries, and what it required,
/// are at the far side by the time that the next one arrives.
#[derive(Clone, Debug)]
pub struct Base {
    bill: Bill,
    digest: Digest,
}

impl Base {
    /// Reads the bill out of a payload, or from a file that holds nothing else. No blob is looked at.
    ///
    /// docker-charon's payloads are none: they have no bill, and no digest by which they could be told apart.
    pub fn read(source: &dyn ReadAt) -> Result<Self, PayloadError> {
        let start = read_start(source)?;
        let bytes = if start.starts_with(b"{") {
            read_whole(source)?
        } else {
            match Start::of(&start)? {
                Start::Bill(bill_size) => read_bill(source, &start, bill_size)?,
                Start::OtherZip => {
                    let why = "it has no bill, as those of docker-charon have none: name its images as already transferred instead";
                    return Err(PayloadError::NotAPayload(why.to_owned()));
                }
            }
        };
        Ok(Self { bill: Bill::parse(&bytes)?, digest: Digest::sha256(&bytes) })
    }

    /// The payload digest.
    #[must_use]
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The blobs that the far side has, each with the images that brought it there.
    pub fn blobs(&self) -> impl Iterator<Item = (&Digest, Vec<RequiredSource>)> {
        let Bill { images, entries, required, .. } = &self.bill;
        let mut images_of: HashMap<usize, Vec<&BillImage>> = HashMap::new();
        for image in images {
            for place in &image.blobs {
                images_of.entry(*place as usize).or_default().push(image);
            }
        }
        let carried = entries.iter().map(|entry| (&entry.digest, entry.kind == EntryKind::Blob, &[][..]));
        let required = required.iter().map(|blob| (&blob.digest, true, blob.sources.as_slice()));
        let all = carried.chain(required).enumerate().filter(|(_, (_, is_blob, _))| *is_blob);
        all.map(move |(place, (digest, _, sources))| {
            let images = images_of.get(&place).into_iter().flatten().map(|image| image.as_source());
            let mut all = sources.to_vec();
            all.extend(images.filter(|image| !sources.contains(image)));
            (digest, all)
        })
        // What no image has, nobody can find.
        .filter(|(_, sources)| !sources.is_empty())
    }
}

impl BillImage {
    fn as_source(&self) -> RequiredSource {
        RequiredSource {
            name: self.name.clone(),
            reference: self.reference.clone(),
            far_name: self.far_name.clone(),
        }
    }
}

fn read_whole(source: &dyn ReadAt) -> Result<Vec<u8>, PayloadError> {
    let size = source.size();
    if size > BILL_LIMIT {
        return Err(PayloadError::NotAPayload(format!("no bill has {size} bytes")));
    }
    read_at(source, &Place { offset: 0, size })
}
