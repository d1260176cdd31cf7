//! Where workers find what is theirs, as in a pod, and what they work on.

use std::fs;
use std::path::PathBuf;

use charon::worker::contract::{CONTRACT_VERSION, Outcome};
use serde_json::{Value, json};

use crate::image::{Image, Layer, Types};
use crate::program::{Program, Running, charon};
use crate::registry::{Registry, Software};
use crate::s3::{ACCESS, S3, SECRET};

/// The mounts of one pod.
pub(crate) struct Pod {
    folder: tempfile::TempDir,
}

impl Pod {
    pub(crate) fn new() -> Self {
        let pod = Self { folder: tempfile::tempdir().unwrap() };
        fs::create_dir(pod.folder.path().join("payload")).unwrap();
        pod
    }

    /// Where something is mounted.
    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A file of the volume.
    pub(crate) fn payload(&self, path: &str) -> PathBuf {
        self.folder.path().join("payload").join(path)
    }

    /// The names of the volume's files.
    pub(crate) fn files(&self) -> Vec<String> {
        let files = fs::read_dir(self.payload("")).unwrap();
        let mut names: Vec<_> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Mounts the pull secret of the first registry of the run configuration.
    pub(crate) fn mount_pull_secret(&self, config: &Value) {
        let folder = self.folder.path().join("secrets/0");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(".dockerconfigjson"), config.to_string()).unwrap();
    }

    /// Runs a worker with `work`; its exit code is the one of its outcome.
    pub(crate) fn works(&self, run: &str, work: &Value, registry: &Registry) -> Outcome {
        self.works_with(run, work, &json!([{ "host": registry.host(), "insecure": true }]))
    }

    /// The same with any access to registries.
    pub(crate) fn works_with(&self, run: &str, work: &Value, registries: &Value) -> Outcome {
        self.outcome(self.starts(run, work, registries))
    }

    /// Starts a worker, which nobody asks for its progress.
    pub(crate) fn starts(&self, run: &str, work: &Value, registries: &Value) -> Running {
        self.worker(run, work, registries).arguments(["--progress-port", "0"]).start()
    }

    /// The worker of a run, but for its port.
    pub(crate) fn worker(&self, run: &str, work: &Value, registries: &Value) -> Program {
        let mut config =
            json!({ "version": CONTRACT_VERSION, "runId": run, "nonce": "n", "registries": registries });
        config.as_object_mut().unwrap().extend(work.as_object().unwrap().clone());
        let at = |name: &str| self.folder.path().join(name).display().to_string();
        fs::write(at("run.json"), config.to_string()).unwrap();
        let (config, payloads, secrets, log) = (at("run.json"), at("payload"), at("secrets"), at("outcome"));
        let places = ["--config", &config, "--payloads", &payloads, "--registry-secrets", &secrets];
        let worker = charon(["worker", "--termination-log", &log]).arguments(places);
        let worker = worker.arguments(["--object-store-secrets", &at("object-store")]);
        worker
            .arguments(["--proxy-secrets", &at("proxy"), "--images-list", &at("list")])
            .arguments(["--ca-bundle", &at("ca-bundle.crt")])
    }

    /// How a worker ends.
    pub(crate) fn outcome(&self, worker: Running) -> Outcome {
        let ended = worker.end();
        let log = fs::read(self.folder.path().join("outcome")).unwrap();
        let outcome: Outcome = serde_json::from_slice(&log).unwrap();
        ended.ended_with(outcome.reason.exit_code().into());
        outcome
    }

    pub(crate) fn builds(&self, run: &str, images: &Value, path: &str, registry: &Registry) -> Outcome {
        self.works(run, &json!({ "build": { "images": images, "path": path } }), registry)
    }

    pub(crate) fn imports(&self, fields: &Value, path: &str, registry: &Registry) -> Outcome {
        let mut import = json!({ "path": path, "registry": registry.host() });
        import.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        self.works("import", &json!({ "import": import }), registry)
    }
}

/// What the Secret of a store holds, where the pod has it; and an object of the store.
pub(crate) fn opened(pod: &Pod, store: &S3, key: &str) -> Value {
    let secrets = pod.at("object-store");
    fs::create_dir_all(&secrets).unwrap();
    fs::write(secrets.join("accesskey"), ACCESS).unwrap();
    fs::write(secrets.join("secretkey"), format!("{SECRET}\n")).unwrap();
    let endpoint = format!("http://{}", store.host());
    json!({ "bucket": "transfer", "key": key, "endpoint": endpoint, "credentials": true })
}

/// A registry with small images.
pub(crate) fn source(software: Software, names: &[&str]) -> Registry {
    let source = Registry::start(software);
    for name in names {
        Image::new(Types::Docker, &[Layer::new(name, 100)]).push(&source, name);
    }
    source
}

/// How often a registry was asked for something of a repository.
pub(crate) fn asked_for(registry: &Registry, repository: &str) -> usize {
    registry.requests().iter().filter(|request| request.contains(repository)).count()
}
