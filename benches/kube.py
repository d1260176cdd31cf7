"""A test cluster's API server as a script sees it, and the kubelet and the workers that a mere control plane lacks."""

import base64
import hashlib
import http.client
import http.server
import json
import re
import ssl
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

GROUP = "/apis/charon.dev/v1alpha1"
APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
IDLE = 60  # seconds for which a connection is kept
WRITES = {"POST", "PUT", "PATCH", "APPLY", "DELETE", "DELETECOLLECTION"}
SERIES = re.compile(r"^apiserver_request_total\{(.*)\} (\S+)$", re.MULTILINE)
LABEL = re.compile(r'(\w+)="([^"]*)"')


class ApiServer:
    """The API server, for its administrator. Each thread has a connection of its own."""

    def __init__(self):
        view = ["kubectl", "config", "view", "--raw", "--flatten", "--minify", "-o", "json"]
        self.config = json.loads(subprocess.run(view, check=True, capture_output=True, text=True).stdout)
        cluster = self.config["clusters"][0]["cluster"]
        self.address = urlsplit(cluster["server"])
        self.headers = {"Authorization": f"Bearer {self.config['users'][0]['user']['token']}"}
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        self.tls = ssl.create_default_context(cadata=authority)
        self.local = threading.local()

    def connect(self):
        return http.client.HTTPSConnection(self.address.hostname, self.address.port, context=self.tls)

    def request(self, method, path, body=None, kind="application/json", text=False):
        """What it answers, read as JSON."""
        # The API server closes what was idle for 90 seconds.
        if time.monotonic() > getattr(self.local, "until", 0):
            self.local.connection = self.connect()
        self.local.until = time.monotonic() + IDLE
        data = None if body is None else json.dumps(body).encode()
        self.local.connection.request(method, path, data, self.headers | {"Content-Type": kind})
        response = self.local.connection.getresponse()
        answer = response.read()
        if response.status == 429:
            # It is not ready, and says when to ask again.
            time.sleep(int(response.headers["Retry-After"]))
            return self.request(method, path, body, kind, text)
        if response.status >= 300:
            raise SystemExit(f"{method} {path}: {response.status} {answer.decode()}")
        return answer.decode() if text else json.loads(answer)

    def get(self, path):
        return self.request("GET", path)

    def post(self, path, body):
        return self.request("POST", path, body)

    def patch(self, path, body, kind=MERGE):
        return self.request("PATCH", path, body, kind)

    def apply_status(self, resource, status):
        """Writes the status as Charon does."""
        body = {key: resource[key] for key in ("apiVersion", "kind")} | {"status": status}
        body["metadata"] = {"name": resource["metadata"]["name"]}
        self.patch(f"{path_of(resource)}/status?fieldManager=charon&force=true", body, APPLY)

    def requests(self):
        """How many of what it has answered, {(verb, group, resource, subresource): count}."""
        counts = {}
        for labels, value in SERIES.findall(self.request("GET", "/metrics", text=True)):
            labels = dict(LABEL.findall(labels))
            name = tuple(labels.get(label, "") for label in ("verb", "group", "resource", "subresource"))
            counts[name] = counts.get(name, 0) + int(float(value))
        return counts

    def writes(self):
        """How many writes it has answered, but for Leases: its own it renews all the time."""
        counts = self.requests().items()
        return sum(count for (verb, _, resource, _), count in counts if verb in WRITES and resource != "leases")

    def make_namespace(self, name):
        """A namespace in which pods can be created."""
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        self.post("/api/v1/namespaces", {"metadata": {"name": name, "labels": labels}})
        accounts = f"/api/v1/namespaces/{name}/serviceaccounts"
        until("the default service account", lambda: self.get(accounts)["items"])

    def delete_namespace(self, name):
        self.request("DELETE", f"/api/v1/namespaces/{name}")
        selector = f"?fieldSelector=metadata.name%3D{name}"
        until(f"the end of {name}", lambda: not self.get(f"/api/v1/namespaces{selector}")["items"], 300)


def path_of(resource):
    meta = resource["metadata"]
    return f"{GROUP}/namespaces/{meta['namespace']}/{resource['kind'].lower()}s/{meta['name']}"


def until(what, holds, seconds=60):
    """Waits until `holds` of something that is true, and gives that."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := holds():
            return found
        time.sleep(0.1)
    raise SystemExit(f"waited in vain for {what}")


def each(function, items, threads=16):
    """Calls `function` with each item, several at once."""
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, items))


class Watch(threading.Thread):
    """Keeps every event of `path` from now on, [(time, type, object)]."""

    def __init__(self, server, path):
        super().__init__(daemon=True)
        version = server.get(path)["metadata"]["resourceVersion"]
        self.events = []
        self.connection = server.connect()
        query = f"watch=true&resourceVersion={version}&timeoutSeconds=3600"
        self.connection.request("GET", f"{path}?{query}", headers=server.headers)
        self.response = self.connection.getresponse()
        self.start()

    def run(self):
        for line in self.response:
            event = json.loads(line)
            self.events.append((time.monotonic(), event["type"], event["object"]))


class Workers(http.server.ThreadingHTTPServer):
    """The kubelet of all pods, and the workers in them: each moves a little more whenever it is asked how far it is."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, server):
        super().__init__(("0.0.0.0", 8080), Worker)
        self.api, self.runs = server, {}
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def start(self, pod):
        """Takes the pod through what a pod goes through until it is at work, but for a node: there is none."""
        self.say(pod, "Pending", {"waiting": {"reason": "ContainerCreating"}})
        address = f"127.0.8.{len(self.runs) + 1}"
        config = json.loads(pod["metadata"]["annotations"]["charon.dev/run"])
        self.runs[address] = {"runId": config["runId"], "nonce": config["nonce"], "bytesDone": 0}
        # A pull and a mount take their time.
        time.sleep(2)
        self.say(pod, "Running", {"running": {"startedAt": now()}}, podIP=address, podIPs=[{"ip": address}])

    def end(self, pod):
        """The worker ends well."""
        config = pod["metadata"]["annotations"]["charon.dev/run"]
        payload = {
            "digest": f"sha256:{hashlib.sha256(b'a bill').hexdigest()}",
            "sizeBytes": 1 << 30,
            "formatVersion": 1,
            "images": 10,
            "blobs": 60,
            "blobsReused": 0,
        }
        outcome = {
            "version": 1,
            "runId": json.loads(config)["runId"],
            "inputDigest": hashlib.sha256(config.encode()).hexdigest(),
            "reason": "Succeeded",
            "message": "done",
            "payload": payload,
        }
        end = {"exitCode": 0, "reason": "Completed", "message": json.dumps(outcome), "finishedAt": now()}
        self.say(pod, "Succeeded", {"terminated": end})

    def say(self, pod, phase, state, **more):
        meta = pod["metadata"]
        container = {"name": "worker", "image": "worker", "imageID": "", "ready": False, "restartCount": 0, "state": state}
        status = {"phase": phase, "containerStatuses": [container]} | more
        self.api.patch(f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}/status", {"status": status})


class Worker(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        run = self.server.runs[self.connection.getsockname()[0]]
        run["bytesDone"] += 1 << 20
        rest = {"stage": "Transferring", "bytesTotal": 1 << 30, "blobsDone": 1, "blobsTotal": 60}
        answer = json.dumps(run | rest).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


def now():
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
