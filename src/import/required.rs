//! What the payload leaves out, because the far side has it.

use super::ImportError;
use super::bases::Bases;
use super::deliver::{Delivery, wanting};
use super::target::Target;
use super::why::{Why, tell};
use crate::payload::{Bill, Required};
use crate::reason::Reason;

impl Delivery {
    /// Whether all is there that an image needs and the payload does not carry.
    pub(super) async fn check_required(
        &self,
        target: &mut Target,
        bill: &Bill,
        bases: &Bases,
    ) -> Result<(), ImportError> {
        let (mut missing, mut hidden) = (Vec::new(), None);
        for required in bill.required.iter().filter(|required| target.blobs().contains(&required.digest)) {
            let digest = &required.digest;
            match self.has(&target.repository, digest).await {
                Ok(true) => continue,
                Ok(false) => {}
                Err(error) => return target.fail_or(error),
            }
            match self.find(digest, bases.places(digest)).await {
                Ok(Some(_)) => {}
                Ok(None) => missing.push(required),
                Err(error) if error.is_hidden() => {
                    missing.push(required);
                    hidden = Some(error);
                }
                Err(error) => return target.fail_or(error),
            }
        }
        target.lacks(&missing, hidden.as_ref(), self.host());
        Ok(())
    }

    /// Brings the blobs that the payload leaves out to the images that want them.
    pub(super) async fn required(&self, bill: &Bill, targets: &mut [Target], bases: &Bases) {
        for required in &bill.required {
            for repository in wanting(targets, &required.digest) {
                if let Err(why) = self.bring_required(required, &repository, bases).await {
                    self.fail(targets, &required.digest, vec![(repository, why)]);
                }
            }
        }
    }

    pub(super) async fn bring_required(
        &self,
        Required { digest, size, .. }: &Required,
        repository: &str,
        bases: &Bases,
    ) -> Result<(), Why> {
        let failed = |error| tell(&error);
        if self.has(repository, digest).await.map_err(failed)? {
            self.count().blobs_present += 1;
            return Ok(());
        }
        loop {
            let holder = match self.holder(digest) {
                None => self.find(digest, bases.places(digest)).await.map_err(failed)?.map(str::to_owned),
                known => known,
            };
            let Some(holder) = holder else {
                return Err((Reason::MissingBase, format!("{digest} is gone")));
            };
            if self.copy(digest, *size, &holder, repository).await? {
                return Ok(());
            }
        }
    }
}
