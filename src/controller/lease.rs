//! One controller at a time, where there are several: the one that holds the Lease works.
//!
//! What happens where two of them believe to hold it for a moment is bounded elsewhere: a Job has the
//! name of its attempt, and a status is written only on the one that was looked at.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use tokio::time::Instant;

/// The name of the Lease.
const NAME: &str = "charon-controller";

/// How long a Lease counts.
#[derive(Clone, Copy, Debug)]
pub struct LeaseTiming {
    /// A Lease that nobody has renewed for so long is free, in whole seconds of at least one.
    pub duration: Duration,
    /// Its holder renews it so often, and the others look at it so often.
    pub renewal: Duration,
}

impl Default for LeaseTiming {
    /// After a kill another one works within 15 + 2 seconds.
    fn default() -> Self {
        Self { duration: Duration::from_secs(15), renewal: Duration::from_secs(2) }
    }
}

/// The wish to be the one that works.
pub(super) struct Candidate {
    leases: Api<Lease>,
    identity: String,
    timing: LeaseTiming,
    /// The Lease as it was seen last, and since when it has not changed by our own clock: clocks of
    /// other machines may be wrong.
    seen: Option<(Lease, Instant)>,
}

impl Candidate {
    /// A candidate with a name of its own, for the Lease in the namespace that the client is at home in.
    pub(super) fn new(client: Client, timing: LeaseTiming) -> Self {
        let host = std::env::var("HOSTNAME").unwrap_or_else(|_| "charon".into());
        let identity = format!("{host}_{:016x}", fastrand::u64(..));
        Self { leases: Api::default_namespaced(client), identity, timing, seen: None }
    }

    /// Waits until the Lease is ours.
    pub(super) async fn lead(&mut self) {
        loop {
            match self.take().await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => tracing::warn!("cannot take the Lease {NAME}: {error}"),
            }
            tokio::time::sleep(self.timing.renewal).await;
        }
    }

    /// Keeps the Lease; ends when it is lost, or may be.
    pub(super) async fn keep(&mut self) {
        let mut renewed = Instant::now();
        // Whoever waits for it counts from when he saw the renewal, which is later.
        while renewed.elapsed() + self.timing.renewal < self.timing.duration {
            tokio::time::sleep(self.timing.renewal).await;
            let asked = Instant::now();
            let rest = self.timing.duration.saturating_sub(renewed.elapsed());
            match tokio::time::timeout(rest, self.take()).await {
                Ok(Ok(true)) => renewed = asked,
                Ok(Ok(false)) => return,
                Ok(Err(error)) => tracing::warn!("cannot renew the Lease {NAME}: {error}"),
                Err(_) => tracing::warn!("cannot renew the Lease {NAME}: the API server does not answer"),
            }
        }
    }

    /// Lets the next one work at once.
    pub(super) async fn release(&mut self) {
        let Some((lease, _)) = self.seen.take().filter(|(lease, _)| self.is_ours(lease)) else { return };
        let spec = LeaseSpec { holder_identity: None, ..lease.spec.unwrap_or_default() };
        let free = Lease { spec: Some(spec), ..lease };
        if let Err(error) = self.leases.replace(NAME, &PostParams::default(), &free).await {
            tracing::debug!("cannot release the Lease {NAME}: {error}");
        }
    }

    fn is_ours(&self, lease: &Lease) -> bool {
        holder(lease) == Some(self.identity.as_str())
    }

    /// Takes or renews the Lease if it is ours or free; gives whether it is ours then.
    async fn take(&mut self) -> Result<bool, kube::Error> {
        let Some(lease) = self.leases.get_opt(NAME).await? else {
            let lease = Lease {
                metadata: ObjectMeta { name: Some(NAME.into()), ..ObjectMeta::default() },
                spec: Some(self.spec(None)),
            };
            return self.written(self.leases.create(&PostParams::default(), &lease).await);
        };
        if !self.is_ours(&lease) && !self.is_free(&lease) {
            return Ok(false);
        }
        let spec = self.spec(lease.spec.as_ref());
        // It has the resourceVersion that was read: of two that try, one is refused.
        let lease = Lease { spec: Some(spec), ..lease };
        self.written(self.leases.replace(NAME, &PostParams::default(), &lease).await)
    }

    /// What the API server made of a write of ours.
    fn written(&mut self, result: Result<Lease, kube::Error>) -> Result<bool, kube::Error> {
        match result {
            Ok(lease) => {
                self.seen = Some((lease, Instant::now()));
                Ok(true)
            }
            // Another one was faster.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether nobody holds it, or its holder has not renewed it for as long as it counts.
    fn is_free(&mut self, lease: &Lease) -> bool {
        if holder(lease).is_none() {
            return true;
        }
        match &self.seen {
            Some((seen, since)) if seen.metadata.resource_version == lease.metadata.resource_version => {
                let duration = lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds);
                let told = duration.and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
                since.elapsed() >= told.unwrap_or(self.timing.duration)
            }
            _ => {
                self.seen = Some((lease.clone(), Instant::now()));
                false
            }
        }
    }

    fn spec(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let is_renewal = before.is_some_and(|before| before.holder_identity.as_ref() == Some(&self.identity));
        let transitions = before.and_then(|before| before.lease_transitions);
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(self.timing.duration.as_secs().max(1)).ok(),
            acquire_time: match before {
                Some(before) if is_renewal => before.acquire_time.clone(),
                _ => Some(now.clone()),
            },
            renew_time: Some(now),
            lease_transitions: match before {
                Some(_) if !is_renewal => Some(transitions.unwrap_or(0).saturating_add(1)),
                _ => transitions,
            },
            ..LeaseSpec::default()
        }
    }
}

fn holder(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref().filter(|holder| !holder.is_empty())
}
