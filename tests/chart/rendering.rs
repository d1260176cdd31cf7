//! The chart as Helm renders it.

use serde_json::Value;

use crate::program::{Ended, Program, tool};

/// The chart.
pub(crate) const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/charon");
/// Where the release goes.
pub(crate) const NAMESPACE: &str = "charon-system";

/// Helm's `command` on the chart with these values, in YAML.
pub(crate) fn helm(command: &[&str], values: &str) -> Program {
    tool("helm", command).arguments(["--values", "-"]).fed(values)
}

/// What `helm template` makes of the values.
pub(crate) fn template(values: &str) -> Ended {
    helm(&["template", "charon", CHART, "--namespace", NAMESPACE], values).run()
}

/// The objects that the chart makes of these values.
pub(crate) fn render(values: &str) -> Vec<Value> {
    objects(&template(values).succeeded().text())
}

/// The objects in a text.
pub(crate) fn objects(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).unwrap()
}

/// The one object of `kind`, if there is one.
pub(crate) fn one<'a>(objects: &'a [Value], kind: &str) -> Option<&'a Value> {
    let mut of_kind = objects.iter().filter(|object| object["kind"] == kind);
    let found = of_kind.next();
    assert!(of_kind.next().is_none(), "there are several of kind {kind}");
    found
}

/// Whether an object with `labels` is selected by `selector`, which has labels alone.
pub(crate) fn selects(selector: &Value, labels: &Value) -> bool {
    let selector = selector.as_object().unwrap();
    assert!(!selector.is_empty(), "all would be selected");
    selector.iter().all(|(name, value)| labels[name] == *value)
}

/// kubeconform on `manifests`, with the schemas of the Kubernetes that the tests run. It knows nothing of
/// the Prometheus operator's kinds.
pub(crate) fn conforms(manifests: &str) -> Ended {
    tool("kubeconform-offline", ["-summary", "-skip", "ServiceMonitor,PrometheusRule"]).fed(manifests).run()
}
