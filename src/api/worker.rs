//! The pod that does the work: what a person may say of it.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::schema;
use super::shared::SecretRef;

/// The pod that does the work.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Worker {
    /// What the pod asks for and may use. What is absent comes from the controller's defaults.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<WorkerResources>,
    /// The ids that the pod runs with: volumes which ignore fsGroup (NFS, hostPath) need their owner's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub security_context: Option<PodIds>,
    /// The pod's service account, where a cloud identity is bound to one. The pod gets no token of the cluster's API.
    /// Absent: default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(
        validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')")
            .message("serviceAccountName must be the name of a ServiceAccount: lowercase letters, digits, '-' and '.'")
    )]
    pub service_account_name: Option<String>,
    /// Secrets to pull the worker's image with, of the resource's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub image_pull_secrets: Option<Vec<SecretRef>>,
    /// The labels that a node must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::labels")]
    pub node_selector: Option<BTreeMap<String, String>>,
    /// The taints of nodes that the pod bears.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub tolerations: Option<Vec<Toleration>>,
    /// Which nodes and neighbours the pod wants or shuns, as in a pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<WorkerAffinity>,
    /// The pod's priority class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(
        validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')")
            .message("priorityClassName must be the name of a PriorityClass: lowercase letters, digits, '-' and '.'")
    )]
    pub priority_class_name: Option<String>,
    /// Labels and annotations that the pod gets beside Charon's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_metadata: Option<PodMetadata>,
}

/// A taint that a pod bears, as in a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Toleration {
    /// The taint's key. Absent: any, and the operator is Exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 317))]
    pub key: Option<String>,
    /// Whether the taint must have the value too (Equal), or any (Exists). Absent: Equal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::toleration_operator")]
    pub operator: Option<String>,
    /// The taint's value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub value: Option<String>,
    /// The taint's effect. Absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::taint_effect")]
    pub effect: Option<String>,
    /// For how long a taint that evicts is borne. Absent: for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub toleration_seconds: Option<i64>,
}

/// Which nodes and neighbours a pod wants or shuns. Each part is as in a pod; the API server judges it when
/// the Job is made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkerAffinity {
    /// Nodes by their labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::as_in_a_pod")]
    pub node_affinity: Option<Value>,
    /// Pods that should be near.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::as_in_a_pod")]
    pub pod_affinity: Option<Value>,
    /// Pods that should be elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::as_in_a_pod")]
    pub pod_anti_affinity: Option<Value>,
}

/// Labels and annotations of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodMetadata {
    /// Labels, such as a service mesh or a cost report wants.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::labels")]
    #[x_kube(
        validation = Rule::new("self.all(k, !k.startsWith('charon.dev/') && !k.startsWith('batch.kubernetes.io/') && !(k in ['job-name', 'controller-uid', 'app.kubernetes.io/name', 'app.kubernetes.io/component', 'app.kubernetes.io/managed-by']))")
            .message("a worker's labels charon.dev/*, batch.kubernetes.io/*, job-name, controller-uid and app.kubernetes.io/name, component and managed-by are not yours to set")
    )]
    pub labels: Option<BTreeMap<String, String>>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::annotations")]
    #[x_kube(
        validation = Rule::new("self.all(k, !k.startsWith('charon.dev/') && !k.startsWith('batch.kubernetes.io/'))")
            .message("a worker's annotations charon.dev/* and batch.kubernetes.io/* are not yours to set")
    )]
    pub annotations: Option<BTreeMap<String, String>>,
}

/// Requests and limits, as in a container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkerResources {
    /// What is reserved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::quantities")]
    #[x_kube(
        validation = Rule::new("self.all(k, k in ['cpu', 'memory', 'ephemeral-storage'])")
            .message("a worker requests cpu, memory and ephemeral-storage, nothing else")
    )]
    pub requests: Option<BTreeMap<String, IntOrString>>,
    /// What is the most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::quantities")]
    #[x_kube(
        validation = Rule::new("self.all(k, k in ['cpu', 'memory', 'ephemeral-storage'])")
            .message("a worker has limits of cpu, memory and ephemeral-storage, nothing else")
    )]
    pub limits: Option<BTreeMap<String, IntOrString>>,
}

/// The user and groups of the worker's pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodIds {
    /// The user id. Absent: 65532, or what the cluster gives where the controller is told to set none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 2_147_483_647))]
    #[x_kube(
        validation = Rule::new("self > 0")
            .message("runAsUser must be at least 1: the worker never runs as root")
    )]
    pub run_as_user: Option<i64>,
    /// The primary group id. Absent: as runAsUser.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 2_147_483_647))]
    pub run_as_group: Option<i64>,
    /// The group that owns the volume, where its driver honours that. Absent: as runAsUser.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 2_147_483_647))]
    pub fs_group: Option<i64>,
    /// Further groups of the process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), inner(range(min = 0, max = 2_147_483_647)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub supplemental_groups: Option<Vec<i64>>,
}
