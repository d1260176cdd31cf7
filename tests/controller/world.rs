//! A namespace with a controller in it, and ways to wait for what it does.

use std::fmt::Debug;
use std::time::Duration;

use charon::api::{self, Condition, PayloadBuild, PayloadImport, Run, Status};
use charon::controller::{ControllerError, Pace, Settings, WorkerDefaults};
use futures::StreamExt as _;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Namespace, Pod, ResourceQuota, ServiceAccount};
use k8s_openapi::api::rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::runtime::conditions::is_deleted;
use kube::runtime::wait::await_condition;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Config, Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// Whatever is waited for takes less, or the test fails.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
/// The image of the workers.
pub(crate) const IMAGE: &str = "registry.example/charon:test";
/// Whom the rights are given to.
pub(crate) const USER: &str = "charon-controller-under-test";

/// A namespace and the controller that looks after it.
pub(crate) struct World {
    /// With all rights.
    pub(crate) client: Client,
    pub(crate) namespace: String,
    pub(crate) settings: Settings,
    controller: Option<(CancellationToken, tokio::task::JoinHandle<()>)>,
}

/// A kind of resource that the tests can make.
pub(crate) trait Kind:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + Serialize
    + DeserializeOwned
    + Send
    + 'static
{
    fn status(&self) -> Option<&Status>;
}

impl Kind for PayloadBuild {
    fn status(&self) -> Option<&Status> {
        self.status.as_ref()
    }
}

impl Kind for PayloadImport {
    fn status(&self) -> Option<&Status> {
        self.status.as_ref()
    }
}

/// A pace at which tests are quick.
pub(crate) fn quick() -> Pace {
    Pace {
        wait: Duration::from_secs(1),
        again: Duration::from_secs(1),
        no_pod: Duration::from_secs(1),
        no_mount: Duration::ZERO,
        lost: Duration::from_secs(20),
        progress: Duration::from_millis(200),
        progress_write: Duration::from_secs(1),
    }
}

impl World {
    /// A fresh namespace whose controller is running.
    pub(crate) async fn new(name: &str) -> Self {
        let mut world = Self::without_controller(name).await;
        world.start().await;
        world
    }

    /// A fresh namespace that nobody looks after yet.
    pub(crate) async fn without_controller(name: &str) -> Self {
        assert!(
            std::env::var_os("CHARON_CLUSTER").is_some(),
            "these tests need a cluster: run `make test`, or this program by tests/cluster/cluster run --control-plane -- …"
        );
        let client = Client::try_default().await.unwrap();
        install(&client).await;
        let namespace = format!("{name}-{:06x}", fastrand::u32(..0x100_0000));
        let settings = Settings {
            worker: WorkerDefaults::with_image(IMAGE),
            namespace: Some(namespace.clone()),
            concurrency: 4,
            pace: quick(),
            lease: None,
            health_address: None,
        };
        let world = Self { client, namespace, settings, controller: None };
        world.create_namespace().await;
        world
    }

    async fn create_namespace(&self) {
        let labels = [("pod-security.kubernetes.io/enforce", "restricted")];
        let namespace = Namespace {
            metadata: ObjectMeta {
                name: Some(self.namespace.clone()),
                labels: Some(labels.map(|(key, value)| (key.into(), value.into())).into()),
                ..ObjectMeta::default()
            },
            ..Namespace::default()
        };
        Api::all(self.client.clone()).create(&PostParams::default(), &namespace).await.unwrap();
        let role = Role {
            metadata: ObjectMeta { name: Some("charon".into()), ..ObjectMeta::default() },
            rules: Some(rules()),
        };
        self.api().create(&PostParams::default(), &role).await.unwrap();
        let binding = RoleBinding {
            metadata: ObjectMeta { name: Some("charon".into()), ..ObjectMeta::default() },
            role_ref: RoleRef {
                api_group: "rbac.authorization.k8s.io".into(),
                kind: "Role".into(),
                name: "charon".into(),
            },
            subjects: Some(vec![Subject {
                api_group: Some("rbac.authorization.k8s.io".into()),
                kind: "User".into(),
                name: USER.into(),
                namespace: None,
            }]),
        };
        self.api().create(&PostParams::default(), &binding).await.unwrap();
        // Without it no pod can be created.
        let accounts: Api<ServiceAccount> = self.api();
        let exists =
            await_condition(accounts, "default", |account: Option<&ServiceAccount>| account.is_some());
        tokio::time::timeout(DEADLINE, exists).await.expect("no default service account").unwrap();
    }

    /// Starts a controller with the rights of the Role.
    pub(crate) async fn start(&mut self) {
        assert!(self.controller.is_none(), "there is one already");
        self.controller = Some(self.another().await);
    }

    /// Starts one more controller, which nobody but the caller ends.
    pub(crate) async fn another(&self) -> (CancellationToken, tokio::task::JoinHandle<()>) {
        let mut config = Config::infer().await.unwrap();
        config.default_namespace.clone_from(&self.namespace);
        config.auth_info.impersonate = Some(USER.into());
        config.auth_info.impersonate_groups = Some(vec!["system:authenticated".into()]);
        let client = Client::try_from(config).unwrap();
        let stop = CancellationToken::new();
        let (settings, stopped) = (self.settings.clone(), stop.clone());
        let task = tokio::spawn(async move {
            // A kubelet starts a controller again that has ended since it lost its Lease.
            while let Err(error) =
                charon::controller::run(client.clone(), settings.clone(), stopped.clone()).await
            {
                assert!(matches!(error, ControllerError::LeaseLost), "{error}");
            }
        });
        (stop, task)
    }

    /// Ends the controller as SIGTERM does.
    pub(crate) async fn stop(&mut self) {
        let (stop, task) = self.controller.take().expect("no controller");
        stop.cancel();
        tokio::time::timeout(DEADLINE, task).await.expect("the controller does not stop").unwrap();
    }

    /// Ends the controller as SIGKILL does.
    pub(crate) async fn kill(&mut self) {
        let (_, task) = self.controller.take().expect("no controller");
        task.abort();
        let _ = task.await;
    }

    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Creates the resource `name` with `spec`.
    pub(crate) async fn create<K: Kind>(&self, name: &str, spec: Value) -> K {
        let object = resource::<K>(name, spec);
        self.api::<K>().create(&PostParams::default(), &object).await.unwrap()
    }

    /// Merges `patch` into the resource.
    pub(crate) async fn patch<K: Kind>(&self, name: &str, patch: Value) -> K {
        self.api::<K>().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap()
    }

    /// Waits until `holds` of the resource's status; fails with the last status.
    pub(crate) async fn until<K: Kind>(
        &self,
        name: &str,
        what: &str,
        holds: impl Fn(&Status) -> bool + Send,
    ) -> Status {
        let is_so = |object: Option<&K>| object.and_then(Kind::status).is_some_and(&holds);
        let wait = tokio::time::timeout(DEADLINE, await_condition(self.api::<K>(), name, is_so));
        if let Ok(object) = wait.await {
            return object.unwrap().unwrap().status().unwrap().clone();
        }
        let object = self.api::<K>().get(name).await.unwrap();
        panic!("{name} never was {what}: {}", serde_json::to_string_pretty(&object.status()).unwrap())
    }

    /// Waits until Ready of the present generation has `status` and `reason`.
    pub(crate) async fn until_ready<K: Kind>(&self, name: &str, status: &str, reason: &str) -> Status {
        let generation = self.api::<K>().get(name).await.unwrap().meta().generation;
        self.until::<K>(name, &format!("Ready={status}/{reason}"), |found| {
            found.observed_generation == generation
                && condition(found, "Ready")
                    .is_some_and(|ready| (ready.status.as_str(), ready.reason.as_str()) == (status, reason))
        })
        .await
    }

    /// Waits until attempt `number` has a Job, and gives it.
    pub(crate) async fn job_of_attempt<K: Kind>(&self, name: &str, number: u32) -> Job {
        let has_begun = |status: &Status| status.run.as_ref().is_some_and(|run| run.attempt == number);
        let status = self.until::<K>(name, &format!("in attempt {number}"), has_begun).await;
        self.until_job(&run(&status).job_name.unwrap()).await
    }

    /// Waits until the Job exists.
    pub(crate) async fn until_job(&self, name: &str) -> Job {
        let exists = await_condition(self.api::<Job>(), name, |job: Option<&Job>| job.is_some());
        let job = tokio::time::timeout(DEADLINE, exists).await;
        job.unwrap_or_else(|_| panic!("Job {name} was never made")).unwrap().unwrap()
    }

    /// Waits until this very object is there no more.
    pub(crate) async fn until_gone<K>(&self, object: &K)
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned
            + Send
            + 'static,
    {
        let (name, uid) = (object.name_any(), object.uid().unwrap());
        let gone = await_condition(self.api::<K>(), &name, is_deleted(&uid));
        let gone = tokio::time::timeout(DEADLINE, gone).await;
        gone.unwrap_or_else(|_| panic!("{} {name} is still there", K::kind(&()))).unwrap();
    }

    /// Waits until there is a pod that `pick` picks, and gives it.
    pub(crate) async fn until_pod(&self, what: &str, pick: impl Fn(&Pod) -> bool) -> Pod {
        self.until_any(what, pick).await
    }

    /// Waits until there is an object of the namespace that `pick` picks, and gives it.
    pub(crate) async fn until_any<K>(&self, what: &str, pick: impl Fn(&K) -> bool) -> K
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned
            + Send
            + 'static,
    {
        let found = async {
            let objects = watcher(self.api::<K>(), watcher::Config::default()).applied_objects();
            let mut objects = std::pin::pin!(objects);
            while let Some(object) = objects.next().await {
                if let Some(object) = object.ok().filter(|object| pick(object)) {
                    return object;
                }
            }
            unreachable!("a watch does not end")
        };
        let found = tokio::time::timeout(DEADLINE, found).await;
        found.unwrap_or_else(|_| panic!("no {} was {what}", K::kind(&())))
    }

    /// Lets nobody create any `objects` here, such as `pods`, until [`allow`](Self::allow).
    pub(crate) async fn forbid(&self, objects: &str) {
        let quota = json!({ "metadata": { "name": "none" }, "spec": { "hard": { objects: "0" } } });
        let quota: ResourceQuota = serde_json::from_value(quota).unwrap();
        self.api().create(&PostParams::default(), &quota).await.unwrap();
    }

    pub(crate) async fn allow(&self) {
        self.api::<ResourceQuota>().delete("none", &DeleteParams::default()).await.unwrap();
    }

    /// All Jobs of the namespace.
    pub(crate) async fn jobs(&self) -> Vec<Job> {
        self.api::<Job>().list(&ListParams::default()).await.unwrap().items
    }

    /// The status now.
    pub(crate) async fn status<K: Kind>(&self, name: &str) -> Status {
        self.api::<K>().get(name).await.unwrap().status().cloned().unwrap_or_default()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some((_, task)) = self.controller.take() {
            task.abort();
        }
    }
}

/// Runs kubectl with `input`; gives what it says, and fails if it does not succeed.
pub(crate) fn kubectl(arguments: &[&str], input: &str) -> String {
    let cluster = std::env::var_os("KUBECONFIG").expect("the test cluster gives it");
    let ran = crate::program::tool("kubectl", arguments).variable("KUBECONFIG", cluster).fed(input).run();
    assert_eq!(ran.status, Some(0), "kubectl {}: {}", arguments.join(" "), ran.stderr);
    ran.text()
}

/// The resource `name` with `spec`.
pub(crate) fn resource<K: Kind>(name: &str, spec: Value) -> K {
    serde_json::from_value(json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": { "name": name },
        "spec": spec,
    }))
    .unwrap()
}

/// The spec of a build of one image.
pub(crate) fn build_spec(image: &str) -> Value {
    build_to(image, "out/app.zip")
}

/// The spec of a build of one image to a file: two builds of one namespace need two.
pub(crate) fn build_to(image: &str, path: &str) -> Value {
    json!({
        "images": [{ "image": image }],
        "output": { "persistentVolumeClaim": { "claimName": "transfer", "path": path } },
    })
}

/// The spec of an import.
pub(crate) fn import_spec() -> Value {
    json!({
        "source": { "persistentVolumeClaim": { "claimName": "inbox", "path": "app.zip" } },
        "registry": { "host": "registry.infra:5000", "insecure": true },
    })
}

/// The condition of that type.
pub(crate) fn condition<'a>(status: &'a Status, type_: &str) -> Option<&'a Condition> {
    status.conditions.iter().find(|condition| condition.type_ == type_)
}

/// A condition as `status/reason`, or nothing.
pub(crate) fn brief(status: &Status, type_: &str) -> String {
    condition(status, type_).map(|found| format!("{}/{}", found.status, found.reason)).unwrap_or_default()
}

/// The run of a status.
pub(crate) fn run(status: &Status) -> Run {
    status.run.clone().expect("no run")
}

/// The rights that the chart gives the controller in a namespace, as they were reviewed, and no others.
pub(crate) fn rules() -> Vec<PolicyRule> {
    let reviewed: Vec<Value> =
        serde_saphyr::from_multiple(include_str!("../chart/rbac/namespaced.yaml")).unwrap();
    let roles = reviewed.into_iter().filter(|object| object["kind"] == "Role");
    roles.flat_map(|role| serde_json::from_value::<Role>(role).unwrap().rules.unwrap()).collect()
}

/// Installs the definitions; each test does, and all but the first find them.
async fn install(client: &Client) {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    for crd in api::crds() {
        let name = crd.name_any();
        let apply = PatchParams::apply("tests").force();
        definitions.patch(&name, &apply, &Patch::Apply(&crd)).await.unwrap();
        let established =
            await_condition(definitions.clone(), &name, kube::runtime::conditions::is_crd_established());
        tokio::time::timeout(DEADLINE, established).await.expect("a definition is not established").unwrap();
    }
}
