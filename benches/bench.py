#!/usr/bin/env python3
"""Measures charon beside the tools that people would take instead: the same images, the same run.

    benches/bench.py [--rounds N] [--images N] [--megabytes N] [--svg FILE]

Everything happens on loopback, with distribution as the registry of both sides. The tools take turns in each round, so
that a machine that slows down slows all of them; medians are told, and ratios are made round by round. What is measured
is whole processes: wall time, processor time, and the memory of the largest one. Charon syncs its payload to the disk,
the others do not: its time is told with that and without. Over a link means: 50 ms a round trip and 20 MB/s a
connection (link.py).
"""

import argparse
import hashlib
import json
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path

from link import Link

ROOT = Path(__file__).resolve().parent.parent
SHARED_MEGABYTES = 60
# Over a link less is carried: it takes long.
LINK_IMAGES, LINK_MEGABYTES = 4, 20
MANY_IMAGES, MANY_LAYERS = 1000, 20


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
        """How many requests it has had."""
        return sum(b"HTTP/1.1" in line for line in open(self.folder / "log", "rb"))


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


def make_many(host):
    """A thousand tags of images that share twenty small layers."""

    def put(path, data, kind):
        request = urllib.request.Request(f"http://{host}{path}", data, {"Content-Type": kind}, method="PUT")
        urllib.request.urlopen(request).close()

    def blob(content):
        begin = urllib.request.Request(f"http://{host}/v2/bench/many/blobs/uploads/", b"", method="POST")
        place = urllib.request.urlopen(begin).headers["Location"].removeprefix(f"http://{host}")
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        put(f"{place}&digest={digest}", content, "application/octet-stream")
        return {"digest": digest, "size": len(content)}

    tar = {"mediaType": "application/vnd.oci.image.layer.v1.tar"}
    layers = [blob(f"layer {index}".encode()) | tar for index in range(MANY_LAYERS)]
    config = blob(b"{}") | {"mediaType": "application/vnd.oci.image.config.v1+json"}
    kind = "application/vnd.oci.image.manifest.v1+json"
    for index in range(MANY_IMAGES):
        manifest = {"schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers, "annotations": {"n": str(index)}}
        put(f"/v2/bench/many/manifests/{index}", json.dumps(manifest).encode(), kind)


def measure(script):
    """Runs a shell script; gives wall seconds, processor seconds, and the peak memory of its largest process in MB."""
    began = time.monotonic()
    process = subprocess.Popen(["bash", "-ec", script], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    error = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.monotonic() - began
    if status != 0:
        raise SystemExit(f"{script}\n{error.decode()}")
    return (wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024), error.decode()


def sync_time(log):
    """How long charon says that it took to sync the payload, in seconds."""
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    when = {line["message"].split()[0]: datetime.fromisoformat(line["timestamp"]) for line in lines}
    return (when["Wrote"] - when["Syncing"]).total_seconds()


def version(command):
    text = subprocess.run(command, capture_output=True, text=True).stdout
    return text.strip().splitlines()[0] if text.strip() else "?"


class Bench:
    """The command lines of all tools, of which each carries the same images."""

    def __init__(self, charon, names, near, folder):
        self.charon, self.names, self.near, self.folder = charon, names, near, folder
        folder.mkdir(exist_ok=True)
        self.payload, self.other = folder / "charon.zip", folder / "docker-charon.zip"
        self.layouts, self.oras = folder / "layouts", folder / "oras"

    def each(self, command):
        """One call an image."""
        return " && ".join(command.format(name=name, layout=name.split("/")[1].split(":")[0]) for name in self.names)

    def builds(self):
        near, images = self.near, ",".join(self.names)
        return {
            "charon make-payload": f"rm -f {self.payload}; "
            f"{self.charon} make-payload -v --log-format json -i -r {near} -f {self.payload} {images}",
            "docker-charon make-payload": f"rm -f {self.other}; docker-charon make-payload -i -r {near} -f {self.other} {images}",
            "crane pull --format=oci": f"rm -rf {self.layouts}; mkdir {self.layouts}; "
            + self.each(f"crane pull --insecure --format=oci {near}/{{name}} {self.layouts}/{{layout}}"),
            "oras cp --to-oci-layout": f"rm -rf {self.oras}; "
            + self.each(f"oras cp --from-plain-http {near}/{{name}} --to-oci-layout {self.oras}:{{layout}}"),
        }

    def imports(self, far):
        return {
            "charon push-payload": f"{self.charon} push-payload -q -i -r {far} -f {self.payload}",
            "docker-charon push-payload": f"docker-charon push-payload -i -r {far} -f {self.other}",
            "crane push": self.each(f"crane push --insecure {self.layouts}/{{layout}} {far}/{{name}}"),
            "oras cp --from-oci-layout": self.each(
                f"oras cp --from-oci-layout {self.oras}:{{layout}} --to-plain-http {far}/{{name}}"
            ),
        }


WITHOUT_SYNC = "charon, without the sync"


def run(bench, rounds, link=None, title=""):
    """All figures: {what: {tool: [(wall, cpu, memory) a round]}}, and the requests of an import that finds all there."""
    build, first, again = f"build{title}", f"import{title}", f"import again{title}"
    figures, requests = {build: {}, first: {}, again: {}}, {}
    for index in range(rounds + 1):
        is_counted = index > 0  # the first round warms the page cache
        for tool, script in bench.builds().items():
            figure, log = measure(script)
            if is_counted:
                figures[build].setdefault(tool, []).append(figure)
            if is_counted and tool.startswith("charon"):
                without = (figure[0] - sync_time(log), *figure[1:])
                figures[build].setdefault(WITHOUT_SYNC, []).append(without)
        for place, tool in enumerate(bench.imports("")):
            folder = bench.folder / "far"
            shutil.rmtree(folder, ignore_errors=True)
            with Registry(folder, 5990 + place) as far, (Link(far.host, 5970 + place) if link else nullcontext(far)) as door:
                script = bench.imports(door.host)[tool]
                figure, _ = measure(script)
                before = far.requests()
                figure_again, _ = measure(script)
                requests[tool] = far.requests() - before
            if is_counted:
                figures[first].setdefault(tool, []).append(figure)
                figures[again].setdefault(tool, []).append(figure_again)
        print(f"round {index} of {rounds}{title}" + ("" if is_counted else " (not counted)"), file=sys.stderr)
    return figures, requests


def median(figures, place):
    return statistics.median(figure[place] for figure in figures)


def ratio(ours, theirs, place):
    return statistics.median(a[place] / b[place] for a, b in zip(ours, theirs))


def table(figures):
    lines = []
    for what, tools in figures.items():
        # What no peer does is not held against it: the ratios are without the sync.
        ours = tools.get(WITHOUT_SYNC) or next(iter(tools.values()))
        lines += [f"### {what}", "", "| | wall | charon's ratio | cpu | charon's ratio | memory |", "|---|---|---|---|---|---|"]
        for tool, rounds in tools.items():
            wall, cpu, memory = (median(rounds, place) for place in range(3))
            ratios = ["", ""] if tool.startswith("charon") else [f"{ratio(ours, rounds, place):.2f}" for place in range(2)]
            lines.append(f"| {tool} | {wall:.2f} s | {ratios[0]} | {cpu:.2f} s | {ratios[1]} | {memory:.0f} MB |")
        lines.append("")
    return "\n".join(lines)


def svg(figures, title):
    """A bar an activity and tool: median wall time."""
    bars, y = [], 46
    longest = max(median(rounds, 0) for tools in figures.values() for rounds in tools.values())
    for what, tools in figures.items():
        bars.append(f'<text x="8" y="{y}" font-weight="bold">{what}, wall seconds</text>')
        y += 10
        for tool, rounds in tools.items():
            wall = median(rounds, 0)
            width = 420 * wall / longest
            colour = "#1f6f8b" if tool.startswith("charon") else "#b8c4c9"
            bars.append(
                f'<text x="196" y="{y + 13}" text-anchor="end">{tool}</text>'
                f'<rect x="204" y="{y}" width="{width:.1f}" height="18" fill="{colour}"/>'
                f'<text x="{210 + width:.1f}" y="{y + 13}">{wall:.2f}</text>'
            )
            y += 24
        y += 24
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="700" height="{y}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n<text x="8" y="18">{title}</text>\n' + "\n".join(bars) + "\n</svg>\n"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--megabytes", type=int, default=144, help="of each image's own layer")
    parser.add_argument("--charon", default=str(ROOT / "target/x86_64-unknown-linux-gnu/release/charon"))
    parser.add_argument("--svg", type=Path)
    options = parser.parse_args()
    processor = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    print(f"{platform.system()} {platform.release()}, {os.cpu_count()} x {processor}")
    for command in (
        [options.charon, "--version"],
        ["crane", "version"],
        ["oras", "version"],
        ["registry", "--version"],
    ):
        print(f"{Path(command[0]).name}: {version(command)}")
    print("docker-charon: 0.4.3")
    with tempfile.TemporaryDirectory(prefix="charon-bench-") as name:
        folder = Path(name)
        with Registry(folder / "near", 5980) as near:
            names = [f"bench/image-{index}:1" for index in range(options.images)]
            few = [f"bench/few-{index}:1" for index in range(LINK_IMAGES)]
            # In a process of its own: a measured process is told to have had the memory of the one that forked it.
            maker = os.fork()
            if maker == 0:
                make_images(near.host, names, options.megabytes, folder)
                make_images(near.host, few, LINK_MEGABYTES, folder)
                make_many(near.host)
                os._exit(0)
            if os.waitpid(maker, 0)[1] != 0:
                raise SystemExit("the images could not be made")
            total = SHARED_MEGABYTES + options.images * options.megabytes
            title = f"{options.images} images, {total} MB in all, loopback, medians of {options.rounds} rounds"
            print(f"{title}\n")
            figures, requests = run(Bench(options.charon, names, near.host, folder / "loopback"), options.rounds)
            print(table(figures))
            print("Requests of an import that finds all there: " + ", ".join(f"{tool} {n}" for tool, n in requests.items()) + "\n")
            with Link(near.host, 5981) as link:
                over = f", {LINK_IMAGES} images over a link"
                figures_of_link, _ = run(Bench(options.charon, few, link.host, folder / "link"), options.rounds, True, over)
            print(table(figures_of_link))
            (wall, cpu, memory), _ = measure(many(options.charon, near.host, folder))
            print(f"{MANY_IMAGES} images of {MANY_LAYERS} shared layers: {wall:.2f} s, {cpu:.2f} s cpu, {memory:.0f} MB")
    if options.svg:
        options.svg.write_text(svg(figures | figures_of_link, title))


def many(charon, host, folder):
    images = folder / "many.sh"
    names = ",".join(f"bench/many:{index}" for index in range(MANY_IMAGES))
    images.write_text(f"exec {charon} make-payload -q -i -r {host} -f {folder}/many.zip {names}\n")
    return f"bash {images}"


if __name__ == "__main__":
    main()
