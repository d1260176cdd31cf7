"""The registry of both sides, and the images in it."""

import hashlib
import json
import os
import random
import signal
import subprocess
import tarfile
import time
import urllib.request
from contextlib import suppress

SHARED_MEGABYTES = 60
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


class Registry:
    """distribution on a loopback port; stopped when the block ends."""

    def __init__(self, folder, port):
        self.host = f"127.0.0.1:{port}"
        self.folder = folder

    def __enter__(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "registry.yml"
        config.write_text(
            "version: 0.1\n"
            f"storage: {{filesystem: {{rootdirectory: {self.folder}/storage}}}}\n"
            f"http: {{addr: '{self.host}'}}\n"
            "log: {level: error}\n"
        )
        environment = os.environ | {"OTEL_TRACES_EXPORTER": "none"}
        self.log = open(self.folder / "log", "wb")
        self.process = subprocess.Popen(["registry", "serve", config], env=environment, stdout=self.log, stderr=self.log)
        for _ in range(200):
            try:
                urllib.request.urlopen(f"http://{self.host}/v2/", timeout=1)
                return self
            except OSError:
                time.sleep(0.05)
        raise SystemExit(f"the registry at {self.host} did not start")

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()
        self.log.close()

    def requests(self):
        """What it has been asked, as lines of "METHOD /path"."""
        lines = open(self.folder / "log").read().splitlines()
        return [line.split('"')[1].removesuffix(" HTTP/1.1") for line in lines if 'HTTP/1.1"' in line]

    def served(self):
        """How many bytes it has given, of requests that ended."""
        lines = open(self.folder / "log").read().splitlines()
        return sum(int(line.split('"')[2].split()[1]) for line in lines if '"GET ' in line)

    def kept(self):
        """How many bytes of blobs it has, also of those that are on their way."""
        kept = 0
        for folder, _, files in os.walk(self.folder / "storage"):
            if "data" in files:
                # What is on its way may have arrived meanwhile, and be elsewhere.
                with suppress(FileNotFoundError):
                    kept += os.stat(f"{folder}/data").st_size
        return kept

    def put(self, path, data, kind):
        request = urllib.request.Request(f"http://{self.host}{path}", data, {"Content-Type": kind}, method="PUT")
        urllib.request.urlopen(request).close()

    def put_manifest(self, repository, tag, config, layers, **more):
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers} | more
        self.put(f"/v2/{repository}/manifests/{tag}", json.dumps(manifest).encode(), MANIFEST)

    def place(self, repository, number, size):
        """A blob of `number` and zeros, put where the registry keeps it: its zeros take no room on the disk."""
        head, rest = f"{number}\n".encode(), size
        sha256, zeros = hashlib.sha256(head), bytes(1 << 20)
        rest -= len(head)
        while rest > 0:
            sha256.update(zeros[: min(rest, len(zeros))])
            rest -= len(zeros)
        digest = sha256.hexdigest()
        root = self.folder / "storage/docker/registry/v2"
        blob = root / "blobs/sha256" / digest[:2] / digest
        link = root / "repositories" / repository / "_layers/sha256" / digest
        for folder in blob, link:
            folder.mkdir(parents=True)
        with open(blob / "data", "wb") as file:
            file.write(head)
            file.truncate(size)
        (link / "link").write_text(f"sha256:{digest}")
        kind = "application/vnd.oci.image.layer.v1.tar"
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": size}

    def config(self, repository):
        return self.place(repository, "{}", 3) | {"mediaType": "application/vnd.oci.image.config.v1+json"}


def make_images(host, names, megabytes, folder):
    """Images of one shared layer and one of their own, of bytes that do not compress, as most layers are."""
    source = random.Random(1)

    def layer(name, size):
        path = folder / f"{name}.tar.gz"
        content = folder / "content"
        content.write_bytes(source.randbytes(size << 20))
        with tarfile.open(path, "w:gz", compresslevel=1) as tar:
            tar.add(content, arcname=name)
        content.unlink()
        return path

    shared = layer("shared", min(SHARED_MEGABYTES, 3 * megabytes))
    for index, name in enumerate(names):
        own = layer(f"own-{index}", megabytes)
        layers = f"{shared},{own}"
        subprocess.run(["crane", "append", "--insecure", "-f", layers, "-t", f"{host}/{name}"], check=True, capture_output=True)
        own.unlink()


def make_many(registry, images, layers):
    """Tags of images that share small layers."""
    config = registry.config("bench/many")
    blobs = [registry.place("bench/many", index, 1000) for index in range(layers)]
    for index in range(images):
        registry.put_manifest("bench/many", index, config, blobs, annotations={"n": str(index)})


def make_large(registry, gigabytes, entries):
    """Images of 100 layers each, `entries` blobs and manifests in all; the first layer of each shares the gigabytes."""
    names, images = [], entries // 102
    for image in range(images):
        repository = f"bench/large-{gigabytes}-{image}"
        size = (gigabytes << 30) // images
        layers = [registry.place(repository, f"{gigabytes} {image} {index}", 2000) for index in range(1, 100)]
        layers.insert(0, registry.place(repository, f"{gigabytes} {image} 0", size))
        config = registry.place(repository, f"[{gigabytes}, {image}]", 20)
        config["mediaType"] = "application/vnd.oci.image.config.v1+json"
        registry.put_manifest(repository, "1", config, layers)
        names.append(f"{repository}:1")
    return names
