#!/usr/bin/env python3
"""Measures the controller beside a real API server: what it takes at rest, how soon it acts, how much it writes.

    tests/cluster/cluster run --name bench --control-plane -- benches/cluster.py [--resources N] [--burst N] [--rounds N]
        [--running SECONDS] [--rest SECONDS] [--charon FILE] [--image FILE]

The cluster is a control plane alone: this script is the kubelet and the workers. The controller is the program that the
image has, with the rights that the chart gives it.
"""

import argparse
import copy
import hashlib
import json
import math
import os
import queue
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import urllib.error
import urllib.request
import zlib
from pathlib import Path

from kube import GROUP, WRITES, ApiServer, Watch, Workers, each, path_of, until
from measure import Goals

ROOT = Path(__file__).resolve().parent.parent
HEALTH = "127.0.0.1:8081"
CONCURRENCY = 32  # the controller's, by default
SAMPLES = 5  # runs of each kind
IMAGES = 10  # a build


def build(namespace, name):
    images = [{"image": f"registry.example/team/application-{index}:1.{index}"} for index in range(IMAGES)]
    claim = {"claimName": "transfer", "path": f"out/{name}.zip"}
    return resource("PayloadBuild", namespace, name, images=images, output={"persistentVolumeClaim": claim})


def import_(namespace, name):
    claim = {"claimName": "inbox", "path": f"in/{name}.zip"}
    return resource(
        "PayloadImport", namespace, name, source={"persistentVolumeClaim": claim}, registry={"host": "registry.infra:5000"}
    )


def resource(kind, namespace, name, **spec):
    meta = {"name": name, "namespace": namespace}
    return {"apiVersion": "charon.dev/v1alpha1", "kind": kind, "metadata": meta, "spec": spec}


def run_id(spec):
    """As the controller names the run of such a spec; sample() holds it against one that it named."""
    text = json.dumps(spec, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def location(spec):
    claim = (spec.get("output") or spec.get("source"))["persistentVolumeClaim"]
    return f"{claim['claimName']}/{claim['path']}"


class Controller:
    """The program as a process of its own, until the block ends."""

    def __init__(self, charon, kubeconfig, folder):
        self.command = [charon, "controller", "--worker-image", "registry.example/charon:bench"]
        self.command += ["--health-address", HEALTH]
        self.environment = os.environ | {"KUBECONFIG": str(kubeconfig)}
        self.log = folder / "controller.log"

    def __enter__(self):
        self.began = time.monotonic()
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self.command, env=self.environment, stdout=log, stderr=log)
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()

    def ask(self, path):
        if self.process.poll() is not None:
            raise SystemExit(f"the controller ended:\n{self.log.read_text()[-2000:]}")
        try:
            with urllib.request.urlopen(f"http://{HEALTH}{path}", timeout=10) as response:
                return response.read().decode()
        except urllib.error.URLError:
            return ""

    def looks(self):
        """How many resources it has looked at since its start."""
        lines = self.ask("/metrics").splitlines()
        name = "charon_reconcile_duration_seconds_count"
        return sum(int(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))

    def until_looks(self, count, pause):
        """Waits until it has looked at `count`; gives the seconds since its start."""
        while self.looks() < count:
            if time.monotonic() - self.began > 600:
                raise SystemExit(f"the controller has not looked at {count} resources:\n{self.log.read_text()[-2000:]}")
            time.sleep(pause)
        return time.monotonic() - self.began

    def memory(self, name):
        """A figure of /proc in MiB."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024

    def cpu(self):
        """Seconds of processor time so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def install(server, folder):
    """Definitions and rights as the chart gives them; gives the kubeconfig of the controller's service account."""
    for command in ["apply", "--server-side"], ["wait", "--for", "condition=Established"]:
        subprocess.run(["kubectl", *command, "-f", ROOT / "crds"], check=True, stdout=subprocess.DEVNULL)
    server.make_namespace("charon")
    render = ["helm", "template", "charon", ROOT / "charts/charon", "--namespace", "charon"]
    render += ["--show-only", "templates/rbac.yaml", "--show-only", "templates/serviceaccount.yaml"]
    rights = subprocess.run(render, check=True, capture_output=True).stdout
    apply = ["kubectl", "apply", "--namespace", "charon", "-f", "-"]
    subprocess.run(apply, input=rights, check=True, stdout=subprocess.DEVNULL)
    token = server.post("/api/v1/namespaces/charon/serviceaccounts/charon/token", {"spec": {"expirationSeconds": 86400}})
    config = copy.deepcopy(server.config)
    config["users"][0]["user"] = {"token": token["status"]["token"]}
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(json.dumps(config))
    return kubeconfig


def create(server, resource):
    return server.post(path_of(resource).rsplit("/", 1)[0], resource)


class Samples:
    """Runs of both kinds from their beginning to their end, and what became of their statuses meanwhile."""

    def __init__(self, server, seconds):
        space = "/namespaces/samples"
        server.make_namespace("samples")
        self.resources = [kind("samples", f"sample-{index}") for kind in (build, import_) for index in range(SAMPLES)]
        watches = [Watch(server, f"{GROUP}{space}/{kind}s") for kind in ("payloadbuild", "payloadimport")]
        before = server.requests()
        for resource in self.resources:
            create(server, resource)
        pods = until("pods", lambda: self.all(server.get(f"/api/v1{space}/pods")["items"]))
        self.job = server.get(f"/apis/batch/v1{space}/jobs")["items"][0]
        events = server.get(f"/apis/events.k8s.io/v1{space}/events")["items"]
        self.event = next(event for event in events if event["reportingController"] == "charon")
        workers = Workers(server)
        each(workers.start, pods)
        time.sleep(seconds)
        each(workers.end, pods)
        until("the end of all runs", lambda: self.all(list(filter(is_ready, self.read(server)))))
        self.minutes = seconds / 60
        # The last writes, if there were any more, would come now.
        time.sleep(5)
        after = server.requests()
        self.statuses = {}
        for watch in watches:
            for _, _, found in watch.events:
                self.statuses.setdefault((found["kind"], found["metadata"]["name"]), []).append(found.get("status", {}))
        changes = sum(len(statuses) - 1 for statuses in self.statuses.values())
        written = [name for name in after if name[0] in WRITES and (name[1], name[3]) == ("charon.dev", "status")]
        writes = sum(after[name] - before.get(name, 0) for name in written)
        if writes != changes:
            raise SystemExit(f"{writes} writes of statuses changed them {changes} times")
        self.done = {kind.__name__: next(r for r in self.read(server) if r["kind"] == of) for kind, of in KINDS.items()}
        for resource in self.done.values():
            if resource["status"]["run"]["id"] != run_id(resource["spec"]):
                raise SystemExit("the controller names runs in another way than this script")

    def all(self, found):
        return found if len(found) == len(self.resources) else None

    def read(self, server):
        return [server.get(path_of(resource)) for resource in self.resources]

    def writes(self):
        """Of the run with the most of them: writes of progress alone, a minute, and all others."""
        of_progress, others = 0, 0
        for statuses in self.statuses.values():
            without = [{key: value for key, value in status.items() if key != "progress"} for status in statuses]
            same = [
                before == after and "progress" in status
                for before, after, status in zip(without, without[1:], statuses)
            ]
            of_progress, others = max(of_progress, sum(same)), max(others, len(same) - sum(same))
        return of_progress / self.minutes, others


KINDS = {build: "PayloadBuild", import_: "PayloadImport"}


def is_ready(resource):
    conditions = resource.get("status", {}).get("conditions", [])
    return any((condition["type"], condition["status"]) == ("Ready", "True") for condition in conditions)


def make_done(server, samples, count):
    """`count` resources, half of each kind, whose runs are done."""
    server.make_namespace("done")

    def make(index):
        kind = (build, import_)[index % 2]
        resource, sample = kind("done", f"app-{index:05}"), samples.done[kind.__name__]
        status = json.dumps(sample["status"])
        status = status.replace(location(sample["spec"]), location(resource["spec"]))
        status = status.replace(sample["status"]["run"]["id"], run_id(resource["spec"]))
        create(server, resource)
        server.apply_status(resource, json.loads(status))

    each(make, range(count))


class Burst:
    """Builds that are applied at once, each in a namespace of its own: from when it was applied until its Job existed."""

    def __init__(self, server, namespace, count):
        self.server, self.namespace, self.count = server, namespace, count
        server.make_namespace(namespace)
        self.jobs = Watch(server, f"/apis/batch/v1/namespaces/{namespace}/jobs")
        self.applied = {}

    def apply(self, created):
        """Applies all; hands each to `created` when it is there."""

        def apply(index):
            resource = build(self.namespace, f"app-{index}")
            self.applied[resource["metadata"]["name"]] = time.monotonic()
            created(create(self.server, resource))

        each(apply, range(self.count), threads=32)

    def p99(self):
        """Of the times, in seconds."""
        found = {}

        def exist():
            for when, type_, job in list(self.jobs.events):
                if type_ == "ADDED":
                    found.setdefault(job["metadata"]["annotations"]["charon.dev/name"], when)
            return len(found) == self.count

        until("all Jobs", exist, 300)
        times = sorted(found[name] - begin for name, begin in self.applied.items())
        self.server.delete_namespace(self.namespace)
        return times[math.ceil(0.99 * len(times)) - 1]


def burst_without(server, samples, index, count):
    """What the controller writes, written by as many threads as it looks with: the status, its event, the Job, the status."""
    burst = Burst(server, f"without-{index}", count)
    begin, made = samples.statuses["PayloadBuild", "sample-0"][1:3]
    waiting = queue.Queue()

    def follow():
        while (resource := waiting.get()) is not None:
            meta = resource["metadata"]
            space = f"namespaces/{burst.namespace}"
            server.apply_status(resource, begin)
            server.post(f"/apis/events.k8s.io/v1/{space}/events", event_of(samples.event, meta))
            server.post(f"/apis/batch/v1/{space}/jobs", job_of(samples.job, meta))
            server.apply_status(resource, made)

    threads = [threading.Thread(target=follow) for _ in range(CONCURRENCY)]
    for thread in threads:
        thread.start()
    burst.apply(waiting.put)
    for thread in threads:
        waiting.put(None)
    for thread in threads:
        thread.join()
    return burst.p99()


def burst_with(server, index, count):
    burst = Burst(server, f"with-{index}", count)
    burst.apply(lambda _: None)
    return burst.p99()


def event_of(event, meta):
    event = {key: copy.deepcopy(value) for key, value in event.items() if not key.startswith("deprecated")}
    event["metadata"] = {"name": f"{meta['name']}.1", "namespace": meta["namespace"]}
    event["regarding"] |= {"name": meta["name"], "namespace": meta["namespace"], "uid": meta["uid"]}
    return event


def job_of(job, meta):
    """The Job of a sample, for another resource."""
    job = copy.deepcopy(job)
    job.pop("status", None)
    job["spec"].pop("selector", None)
    mine, theirs = job["metadata"], job["spec"]["template"]["metadata"]
    for labels in (mine["labels"], theirs["labels"]):
        for label in ("controller-uid", "job-name", "batch.kubernetes.io/controller-uid", "batch.kubernetes.io/job-name"):
            labels.pop(label, None)
        labels["charon.dev/uid"] = meta["uid"]
    for annotations in (mine["annotations"], theirs["annotations"]):
        annotations["charon.dev/name"] = meta["name"]
    owner = mine["ownerReferences"][0] | {"name": meta["name"], "uid": meta["uid"]}
    job["metadata"] = {
        "name": f"charon-b-{meta['name']}",
        "labels": mine["labels"],
        "annotations": mine["annotations"],
        "ownerReferences": [owner],
    }
    return job


def at_rest(server, controller, seconds):
    """The controller's part of a core, and the API server's writes a minute, while only probes and Prometheus ask."""
    cpu, writes, looks, begin = controller.cpu(), server.writes(), controller.looks(), time.monotonic()
    for second in range(seconds):
        if second % 10 == 0:
            controller.ask("/readyz"), controller.ask("/healthz")
        if second % 30 == 0:
            controller.ask("/metrics")
        time.sleep(max(0, begin + second + 1 - time.monotonic()))
    took = time.monotonic() - begin
    print(f"at rest it looked at {controller.looks() - looks} resources in {took:.0f} s")
    return (controller.cpu() - cpu) / took, (server.writes() - writes) * 60 / took


def image_size(image):
    """Of the image as a registry keeps it, in MB."""
    size = 0
    with tarfile.open(image) as tar:
        manifest = json.load(tar.extractfile("manifest.json"))[0]
        for name in [manifest["Config"], *manifest["Layers"]]:
            data = tar.extractfile(name).read()
            size += len(data) if name == manifest["Config"] else len(zlib.compress(data, wbits=31))
    return size / 1e6


def say(what):
    print(what, file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resources", type=int, default=10_000)
    parser.add_argument("--burst", type=int, default=200, help="builds that are applied at once")
    parser.add_argument("--rounds", type=int, default=3, help="of them")
    parser.add_argument("--running", type=int, default=150, help="seconds that the workers of the samples work")
    parser.add_argument("--rest", type=int, default=180, help="seconds for which the controller is watched at rest")
    parser.add_argument("--charon", default=str(ROOT / "target/x86_64-unknown-linux-gnu/release/charon"))
    parser.add_argument("--image", default=str(ROOT / "target/charon.tar"))
    options = parser.parse_args()
    goals, server = Goals(), ApiServer()
    with tempfile.TemporaryDirectory(prefix="charon-bench-") as name:
        folder = Path(name)
        charon = Controller(options.charon, install(server, folder), folder)
        say(f"{2 * SAMPLES} runs of {options.running} s")
        with charon:
            samples = Samples(server, options.running)
        server.delete_namespace("samples")
        say(f"{options.resources} resources whose runs are done")
        make_done(server, samples, options.resources)
        rounds = range(options.rounds)
        without = statistics.median(burst_without(server, samples, index, options.burst) for index in rounds)
        with charon:
            first = charon.until_looks(1, 0.02)
            everything = charon.until_looks(options.resources, 0.5)
            peak = charon.memory("VmHWM")
            print(f"cold start: all looked at after {everything:.1f} s, {charon.cpu():.1f} s cpu, {peak:.0f} MiB at most")
            time.sleep(10)
            part, writes = at_rest(server, charon, options.rest)
            memory = charon.memory("VmRSS")
            with_charon = statistics.median(burst_with(server, index, options.burst) for index in rounds)
            print(f"{options.burst} at once: p99 {with_charon:.2f} s, without Charon {without:.2f} s")
            print(f"memory at the end: {charon.memory('VmRSS'):.0f} MiB, at most {charon.memory('VmHWM'):.0f} MiB\n")
    many = f"{options.resources:,} resources"
    goals.add(f"{many} at rest, MiB of memory", memory, 64, "{:.0f}")
    goals.add(f"{many}, MiB of memory at most, the cold start included", peak, 64, "{:.0f}")
    goals.add(f"{many} at rest, % of a core", 100 * part, 1)
    goals.add(f"{many} at rest, API writes a minute", writes, 0, "{:.0f}")
    goals.add(f"{many}, cold start to first reconcile, seconds", first, 5)
    goals.add(f"{options.burst} at once, apply to Job, p99, of that without Charon", with_charon / without, 2)
    progress, others = samples.writes()
    goals.add("status writes of a run, a minute while running", progress, 4)
    goals.add("status writes of a run, beyond that", others, 6, "{:.0f}")
    goals.add("image, compressed, MB", image_size(options.image), 15, "{:.1f}")
    print(goals.table())


if __name__ == "__main__":
    main()
