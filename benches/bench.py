#!/usr/bin/env python3
"""Measures charon beside the tools that people would take instead: the same images, the same run.

    benches/bench.py [--rounds N] [--images N] [--megabytes N] [--many N] [--large N] [--svg FILE]

Everything happens on loopback, with distribution as the registry of both sides. The tools take turns in each round, so
that a machine that slows down slows all of them, and each round another one begins: a disk that is still busy with what
was written before is not always met by the same one. Medians are told, and ratios are made round by round. What is measured
is whole processes: wall time, processor time, the memory of the largest one, and what it had written to the disk.
Charon syncs its payload to the disk, the others do not: its time is told with that and without. Over a link means: 50 ms
a round trip and 20 MB/s a connection (link.py).
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path

from bucket import bucket
from graph import svg
from link import Link
from measure import Goals, best, figures_table, measure, median, ratio
from registry import SHARED_MEGABYTES, Registry, make_images, make_large, make_many

ROOT = Path(__file__).resolve().parent.parent
# Over a link less is carried: it takes long.
LINK_IMAGES, LINK_MEGABYTES = 4, 20
MANY_LAYERS = 20
ENTRIES = 5000
WITHOUT_SYNC = "charon, without the sync"
CHARON_BUILDS, CHARON_PUSHES = "charon make-payload", "charon push-payload"
DOCKER_CHARON_BUILDS, DOCKER_CHARON_PUSHES = "docker-charon make-payload", "docker-charon push-payload"


class Bench:
    """The command lines of all tools, of which each carries the same images."""

    def __init__(self, charon, names, near, folder):
        self.charon, self.names, self.near, self.folder = charon, names, near, folder

    def clear(self, tool):
        """An empty folder for what a tool builds: to remove an earlier gigabyte takes a third of a second, off the clock."""
        folder = self.folder / tool.split()[0]
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def each(self, command):
        """One call an image."""
        return " && ".join(command.format(name=name, layout=name.split("/")[1].split(":")[0]) for name in self.names)

    def builds(self):
        near, built, images = self.near, self.folder, ",".join(self.names)
        return {
            CHARON_BUILDS: f"{self.charon} make-payload -v --log-format json -i -r {near} -f {built}/charon/payload.zip {images}",
            DOCKER_CHARON_BUILDS: f"docker-charon make-payload -i -r {near} -f {built}/docker-charon/payload.zip {images}",
            "crane pull --format=oci": self.each(
                f"crane pull --insecure --format=oci {near}/{{name}} {built}/crane/{{layout}}"
            ),
            "oras cp --to-oci-layout": self.each(
                f"oras cp --from-plain-http {near}/{{name}} --to-oci-layout {built}/oras:{{layout}}"
            ),
        }

    def imports(self, far):
        built = self.folder
        return {
            CHARON_PUSHES: f"{self.charon} push-payload -q -i -r {far} -f {built}/charon/payload.zip",
            DOCKER_CHARON_PUSHES: f"docker-charon push-payload -i -r {far} -f {built}/docker-charon/payload.zip",
            "crane push": self.each(f"crane push --insecure {built}/crane/{{layout}} {far}/{{name}}"),
            "oras cp --from-oci-layout": self.each(
                f"oras cp --from-oci-layout {built}/oras:{{layout}} --to-plain-http {far}/{{name}}"
            ),
        }


def sync_time(log):
    """How long charon says that it took to sync the payload, in seconds."""
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    when = {line["message"].split()[0]: datetime.fromisoformat(line["timestamp"]) for line in lines}
    return (when["Wrote"] - when["Syncing"]).total_seconds()


def from_place(tools, place):
    """The same, another one first."""
    place %= len(tools)
    return tools[place:] + tools[:place]


def compare(bench, rounds, link=None, title=""):
    """All figures, {activity: {tool: [Figure of a round]}}, and what registries were asked when all was there."""
    build, first, again = f"build{title}", f"import{title}", f"import again{title}"
    pushes = bench.imports("")
    figures = {build: {tool: [] for tool in (CHARON_BUILDS, WITHOUT_SYNC, *bench.builds())}} | {
        what: {tool: [] for tool in pushes} for what in (first, again)
    }
    asked = {}
    for index in range(rounds + 1):
        is_counted = index > 0  # the first round warms the page cache
        for tool, script in from_place(list(bench.builds().items()), index):
            bench.clear(tool)
            figure, log = measure(script)
            if is_counted:
                figures[build][tool].append(figure)
            if is_counted and tool == CHARON_BUILDS:
                without = figure._replace(wall=figure.wall - sync_time(log))
                figures[build][WITHOUT_SYNC].append(without)
        for place, tool in enumerate(from_place(list(pushes), index)):
            folder = bench.folder / "far"
            shutil.rmtree(folder, ignore_errors=True)
            with Registry(folder, 5990 + place) as far, (Link(far.host, 5970 + place) if link else nullcontext(far)) as door:
                script = bench.imports(door.host)[tool]
                figure, _ = measure(script)
                before = len(far.requests())
                figure_again, _ = measure(script)
                asked[tool] = far.requests()[before:]
            if is_counted:
                figures[first][tool].append(figure)
                figures[again][tool].append(figure_again)
        shutil.rmtree(bench.folder / "far")
        print(f"round {index} of {rounds}{title}" + ("" if is_counted else " (not counted)"), file=sys.stderr)
    for what, tools in figures.items():
        # What no peer does is not held against it: the ratios are without the sync.
        ours = tools.get(WITHOUT_SYNC) or next(iter(tools.values()))
        print(f"### {what}\n\n{figures_table(tools, ours)}")
    return figures, asked


def judge(goals, figures, asked):
    build, first, again = figures.values()
    goals.wall("build", build, WITHOUT_SYNC, best(build, "wall"), 0.65)
    goals.wall("build", build, WITHOUT_SYNC, DOCKER_CHARON_BUILDS, 0.35)
    leanest = best(build, "cpu")
    goals.add(f"build, cpu, of {leanest}", ratio(build[CHARON_BUILDS], build[leanest], "cpu"), 1.0)
    goals.wall("import", first, CHARON_PUSHES, best(first, "wall"), 0.6)
    goals.wall("import again", again, CHARON_PUSHES, DOCKER_CHARON_PUSHES, 0.3)
    ours = asked[CHARON_PUSHES]
    goals.add("import again, requests of one kind for one thing", max(map(ours.count, ours)), 1, "{}")


def judge_link(goals, figures):
    build, first, _ = figures.values()
    goals.wall("build over a link", build, CHARON_BUILDS, best(build, "wall"), 0.7)
    goals.wall("import over a link", first, CHARON_PUSHES, best(first, "wall"), 0.7)


def large(goals, charon, near, images, gigabytes, folder):
    """Builds and pushes `images`, to and from a file; gives the MiB of memory of both."""
    payload = folder / "large.zip"
    figure, _ = measure(f"{charon} make-payload -q -i -r {near.host} -f {payload} $(cat {images})")
    build, size = figure.memory, payload.stat().st_size
    if figure.written < size:
        raise SystemExit(f"{folder} is in memory, where nobody sees what is written: see TMPDIR")
    what = f"{gigabytes} GiB in {ENTRIES} entries"
    print(f"{what}: build {figure.wall:.1f} s, {figure.cpu:.1f} s cpu, {figure.memory:.0f} MiB")
    goals.add(f"build of {what}, MiB of memory", figure.memory, 48, "{:.0f}")
    goals.add(f"build of {what}, bytes written, of the payload's", figure.written / size, 1.01)
    with Registry(folder / "far", 5990) as far:
        figure, _ = measure(f"{charon} push-payload -q -i -r {far.host} -f {payload}")
    shutil.rmtree(folder / "far")
    payload.unlink()
    print(f"{what}: import {figure.wall:.1f} s, {figure.cpu:.1f} s cpu, {figure.memory:.0f} MiB\n")
    goals.add(f"import of {what}, MiB of memory", figure.memory, 24, "{:.0f}")
    # A block for the time at which the file was read.
    goals.add(f"import of {what}, bytes written", figure.written, 4096, "{}")
    return build, figure.memory


def grow(goals, charon, near, gigabytes, folder):
    """What a large payload takes more than a small one, and the large one by a bucket."""
    memory, images = [], folder / "images.txt"
    for size in (1, gigabytes):
        images.write_text(",".join(make_large(near, size, ENTRIES)))
        memory.append(large(goals, charon, near, images, size, folder))
    for what, small, big in zip(["build", "import"], *memory):
        # Two runs of the same differ by a MiB or two.
        goals.add(f"{what}, MiB that {gigabytes} GiB take more than 1 GiB", big - small, 3, "{:.0f}")
    bucket(goals, charon, near, images, gigabytes, folder)


def many(goals, charon, near, most, rounds, folder):
    """Plans of more and more images of the same layers."""
    make_many(near, most, MANY_LAYERS)
    plans = {most // 4: [], most // 2: [], most: []}
    for _ in range(rounds):
        for count, figures in plans.items():
            images = ",".join(f"bench/many:{index}" for index in range(count))
            figure, _ = measure(f"{charon} make-payload --dry-run -q -i -r {near.host} -f {folder}/many.zip {images}")
            figures.append(figure)
    for count, figures in plans.items():
        wall, memory = median(figures, "wall"), median(figures, "memory")
        print(f"plan of {count} images of {MANY_LAYERS} shared layers: {wall:.2f} s, {memory:.0f} MiB")
    print()
    growth = ratio(plans[most], plans[most // 4], "wall")
    goals.add(f"time to plan {most:,} images, of that for {most // 4} (linear: 4)", growth, 4.4)
    goals.add(f"plan of {most:,} images, MiB of memory", median(plans[most], "memory"), 48, "{:.0f}")


def versions(charon):
    for command in [charon, "--version"], ["crane", "version"], ["oras", "version"], ["registry", "--version"]:
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        print(f"{Path(command[0]).name}: {said.strip().splitlines()[0]}")
    python = Path(shutil.which("docker-charon")).resolve().parent / "venv/bin/python"
    ask = "import importlib.metadata; print(importlib.metadata.version('docker-charon'))"
    print("docker-charon:", subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--megabytes", type=int, default=144, help="of each image's own layer")
    parser.add_argument("--many", type=int, default=1000, help="images of the largest plan")
    parser.add_argument("--large", type=int, default=12, help="GiB of the large payload, which takes three times as much room; 0: none")
    parser.add_argument("--charon", default=str(ROOT / "target/x86_64-unknown-linux-gnu/release/charon"))
    parser.add_argument("--svg", type=Path)
    options = parser.parse_args()
    processor = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    print(f"{platform.system()} {platform.release()}, {os.cpu_count()} x {processor}")
    versions(options.charon)
    goals = Goals()
    # A store that completes an upload of parts copies them.
    if options.large and not 1 < options.large < shutil.disk_usage(tempfile.gettempdir()).free / 3.2 / (1 << 30):
        parser.error("--large: none, or at least 2, and a third of the room that is free: see TMPDIR")
    with tempfile.TemporaryDirectory(prefix="charon-bench-") as name:
        folder = Path(name)
        with Registry(folder / "near", 5980) as near:
            names = [f"bench/image-{index}:1" for index in range(options.images)]
            few = [f"bench/few-{index}:1" for index in range(min(LINK_IMAGES, options.images))]
            make_images(near.host, names, options.megabytes, folder)
            make_images(near.host, few, min(LINK_MEGABYTES, options.megabytes), folder)
            total = SHARED_MEGABYTES + options.images * options.megabytes
            title = f"{options.images} images, {total} MB in all, loopback, medians of {options.rounds} rounds"
            print(f"{title}\n")
            figures, asked = compare(Bench(options.charon, names, near.host, folder / "loopback"), options.rounds)
            judge(goals, figures, asked)
            shutil.rmtree(folder / "loopback")
            with Link(near.host, 5981) as link:
                over = f", {len(few)} images over a link"
                of_link, _ = compare(Bench(options.charon, few, link.host, folder / "link"), options.rounds, True, over)
            judge_link(goals, of_link)
            many(goals, options.charon, near, options.many, options.rounds, folder)
            if options.large:
                grow(goals, options.charon, near, options.large, folder)
    print(goals.table())
    if options.svg:
        options.svg.write_text(svg(figures | of_link, title))


if __name__ == "__main__":
    main()
