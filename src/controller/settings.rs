//! What the controller is told when it starts.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::LeaseTiming;
use super::reach::Reach;
use crate::api::{PodIds, SecretRef, Toleration, WorkerResources};
use crate::worker::contract::TrafficLimits;

/// What the controller is told when it starts.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What worker pods are like if a resource does not say.
    pub worker: WorkerDefaults,
    /// The one namespace to look after. Absent: all.
    pub namespace: Option<String>,
    /// How many resources of a kind are looked at at once.
    pub concurrency: u16,
    /// How long things are waited for.
    pub pace: Pace,
    /// How long a Lease counts, where several controllers are to take turns. Absent: there is one.
    pub lease: Option<LeaseTiming>,
    /// Where `/healthz`, `/readyz` and `/metrics` answer. Absent: nowhere.
    pub health_address: Option<SocketAddr>,
}

/// What worker pods are like, and how they reach registries, if a resource does not say.
#[derive(Clone, Debug, Default)]
pub struct WorkerDefaults {
    /// The image of the worker: the controller's own.
    pub image: String,
    /// `Always`, `IfNotPresent` or `Never`. Absent: as Kubernetes chooses by the tag.
    pub pull_policy: Option<String>,
    /// Requests and limits.
    pub resources: WorkerResources,
    /// User and groups. Absent: the cluster gives them.
    pub ids: Option<PodIds>,
    /// Secrets to pull the image with; each namespace must have them.
    pub image_pull_secrets: Vec<SecretRef>,
    /// The labels that nodes must have.
    pub node_selector: BTreeMap<String, String>,
    /// The taints of nodes that are borne.
    pub tolerations: Vec<Toleration>,
    /// How workers treat registries.
    pub traffic: TrafficLimits,
    /// How registries and object stores are reached.
    pub reach: Reach,
}

/// How long things are waited for.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// After a failure that time may mend, such as a source that has not arrived.
    pub wait: Duration,
    /// After refused credentials, and after a result that was lost.
    pub again: Duration,
    /// Until a Job without a pod is trouble.
    pub no_pod: Duration,
    /// Until a volume that is not mounted is trouble.
    pub no_mount: Duration,
    /// Until a pod that does not end is lost, after its grace period.
    pub lost: Duration,
    /// Between two looks at a worker's progress.
    pub progress: Duration,
    /// Between two writes of progress to the status.
    pub progress_write: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            wait: Duration::from_mins(5),
            again: Duration::from_mins(1),
            no_pod: Duration::from_secs(30),
            no_mount: Duration::from_secs(15),
            lost: Duration::from_mins(2),
            progress: Duration::from_secs(10),
            progress_write: Duration::from_secs(15),
        }
    }
}

impl WorkerDefaults {
    /// The defaults of a fresh installation, with `image`.
    #[must_use]
    pub fn with_image(image: impl Into<String>) -> Self {
        let amounts = |amounts: [(&str, &str); 2]| {
            let amount =
                |(name, amount): (&str, &str)| (name.to_owned(), IntOrString::String(amount.to_owned()));
            Some(BTreeMap::from(amounts.map(amount)))
        };
        Self {
            image: image.into(),
            pull_policy: None,
            resources: WorkerResources {
                requests: amounts([("cpu", "100m"), ("memory", "128Mi")]),
                limits: amounts([("cpu", "2"), ("memory", "512Mi")]),
            },
            ids: Some(PodIds {
                run_as_user: Some(65532),
                run_as_group: Some(65532),
                fs_group: Some(65532),
                supplemental_groups: None,
            }),
            ..Self::default()
        }
    }
}

/// The ids of a pod: what is `wanted`, and for the rest the defaults. A user id that is given alone
/// stands for the groups too.
pub(super) fn ids(wanted: Option<&PodIds>, defaults: Option<&PodIds>) -> PodIds {
    let (wanted, defaults) = (wanted.cloned().unwrap_or_default(), defaults.cloned().unwrap_or_default());
    PodIds {
        run_as_user: wanted.run_as_user.or(defaults.run_as_user),
        run_as_group: wanted.run_as_group.or(wanted.run_as_user).or(defaults.run_as_group),
        fs_group: wanted.fs_group.or(wanted.run_as_user).or(defaults.fs_group),
        supplemental_groups: wanted.supplemental_groups.or(defaults.supplemental_groups),
    }
}

/// Requests and limits: what is `wanted`, and for the rest the defaults.
///
/// A default gives way where it would contradict: a limit below the request that is wanted becomes
/// that request, and a request above the limit that is wanted becomes that limit.
pub(super) fn resources(
    wanted: Option<&WorkerResources>,
    defaults: &WorkerResources,
) -> ResourceRequirements {
    let given = |amounts: &Option<BTreeMap<String, IntOrString>>| amounts.clone().unwrap_or_default();
    let (wanted_requests, wanted_limits) =
        wanted.map(|wanted| (given(&wanted.requests), given(&wanted.limits))).unwrap_or_default();
    let (mut requests, mut limits) = (given(&defaults.requests), given(&defaults.limits));
    for (name, request) in &wanted_requests {
        if limits.get(name).is_some_and(|limit| amount(limit) < amount(request)) {
            limits.insert(name.clone(), request.clone());
        }
    }
    for (name, limit) in &wanted_limits {
        if requests.get(name).is_some_and(|request| amount(request) > amount(limit)) {
            requests.insert(name.clone(), limit.clone());
        }
    }
    requests.extend(wanted_requests);
    limits.extend(wanted_limits);
    let quantities = |amounts: BTreeMap<String, IntOrString>| {
        let quantity = |(name, amount)| (name, Quantity(text(&amount)));
        Some(amounts.into_iter().map(quantity).collect())
    };
    ResourceRequirements { requests: quantities(requests), limits: quantities(limits), claims: None }
}

fn text(amount: &IntOrString) -> String {
    match amount {
        IntOrString::Int(number) => number.to_string(),
        IntOrString::String(text) => text.clone(),
    }
}

/// The amount as a number, near enough to compare; what is no amount is nothing.
fn amount(amount: &IntOrString) -> f64 {
    let text = text(amount);
    let unit = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, suffix) = text.split_at(unit);
    let power = |base: f64, letter: &str| {
        let exponents = ["k", "M", "G", "T", "P", "E"].into_iter().zip(1..);
        let same = |(known, _): &(&str, i32)| known.eq_ignore_ascii_case(letter);
        exponents.into_iter().find(same).map(|(_, exponent)| base.powi(exponent))
    };
    let factor = match suffix {
        "" => Some(1.0),
        "n" => Some(1e-9),
        "u" => Some(1e-6),
        "m" => Some(1e-3),
        "Ki" => Some(1024.0),
        _ => match suffix.strip_suffix('i') {
            Some(letter) => power(1024.0, letter),
            None if suffix.len() == 1 && suffix != "e" => power(1000.0, suffix),
            // An exponent, such as 1e3.
            None => return text.parse().unwrap_or_default(),
        },
    };
    number.parse::<f64>().unwrap_or_default() * factor.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn merged(wanted: serde_json::Value) -> serde_json::Value {
        let wanted: WorkerResources = serde_json::from_value(wanted).unwrap();
        let defaults = WorkerDefaults::with_image("i").resources;
        serde_json::to_value(resources(Some(&wanted), &defaults)).unwrap()
    }

    #[test]
    fn requests_and_limits_are_always_set() {
        let defaults = json!({
            "requests": { "cpu": "100m", "memory": "128Mi" },
            "limits": { "cpu": "2", "memory": "512Mi" },
        });
        assert_eq!(merged(json!({})), defaults);
    }

    #[test]
    fn a_persons_amounts_win_and_a_default_gives_way_to_them() {
        assert_eq!(
            merged(json!({ "requests": { "memory": "1Gi", "cpu": 1 } })),
            json!({
                "requests": { "cpu": "1", "memory": "1Gi" },
                "limits": { "cpu": "2", "memory": "1Gi" },
            })
        );
        assert_eq!(
            merged(json!({ "limits": { "memory": "64Mi", "ephemeral-storage": "1G" } })),
            json!({
                "requests": { "cpu": "100m", "memory": "64Mi" },
                "limits": { "cpu": "2", "memory": "64Mi", "ephemeral-storage": "1G" },
            })
        );
    }

    #[test]
    fn amounts_are_compared_whatever_their_suffix() {
        let of = |text: &str| amount(&IntOrString::String(text.into()));
        for (less, more) in
            [("100m", "1"), ("1", "1k"), ("1M", "1Mi"), ("1e3", "1Ki"), ("0.5", "501m"), ("1Gi", "2G")]
        {
            assert!(of(less) < of(more), "{less} {more}");
        }
        assert!((amount(&IntOrString::Int(2)) - of("2000m")).abs() < 1e-9);
    }

    #[test]
    fn a_user_that_is_given_alone_stands_for_the_groups() {
        let defaults = WorkerDefaults::with_image("i").ids;
        let user = PodIds { run_as_user: Some(1000), ..PodIds::default() };
        let merged = ids(Some(&user), defaults.as_ref());
        assert_eq!(
            (merged.run_as_user, merged.run_as_group, merged.fs_group),
            (Some(1000), Some(1000), Some(1000))
        );
        let merged = ids(None, defaults.as_ref());
        assert_eq!((merged.run_as_user, merged.fs_group), (Some(65532), Some(65532)));
        assert_eq!(ids(None, None), PodIds::default());
    }
}
