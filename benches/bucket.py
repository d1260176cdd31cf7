"""A large payload into a bucket and out of it again, killed on the way."""

import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import contextmanager

from measure import measure
from registry import Registry

ACCESS, SECRET = "charon", "a-secret-of-the-store"


@contextmanager
def store(folder, port):
    """versitygw, with a bucket `transfer`; gives the environment that reaches it."""
    data, iam, sidecar = (folder / name for name in ("data", "iam", "sidecar"))
    (data / "transfer").mkdir(parents=True)
    iam.mkdir()
    # What it keeps of an object of many parts is more than the extended attributes of a file may be.
    sidecar.mkdir()
    credentials = {"ROOT_ACCESS_KEY": ACCESS, "ROOT_SECRET_KEY": SECRET}
    command = ["versitygw", "--port", f"127.0.0.1:{port}", "--quiet", "--iam-dir", iam, "posix", "--sidecar", sidecar, data]
    process = subprocess.Popen(command, env=os.environ | credentials, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.05)
        keys = {"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET}
        yield os.environ | keys | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
        shutil.rmtree(folder)


def kill_once(command, environment, is_time):
    """Starts a command, and kills it as soon as `is_time`."""
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not is_time():
        if process.poll() is not None:
            raise SystemExit(f"{command} ended before it was to be killed")
        time.sleep(0.05)
    process.kill()
    process.wait()


def bucket(goals, charon, near, images, gigabytes, folder):
    """Builds into a bucket, is killed half way, goes on; imports from it, is killed half way, goes on."""
    total, before = gigabytes << 30, near.served()
    what = f"{gigabytes} GiB, a bucket, killed once"
    with store(folder / "store", 5960) as environment, Registry(folder / "far", 5990) as far:
        payload = ["-q", "-i", "-f", "s3://transfer/large.zip"]
        build = [charon, "make-payload", *payload, "-r", near.host, images.read_text()]
        kill_once(build, environment, lambda: near.served() - before > total / 2)
        figure, _ = measure(f"{charon} make-payload {' '.join(payload)} -r {near.host} $(cat {images})", environment)
        fetched = near.served() - before
        print(f"{what}: build, the rest, verified: {figure.wall:.1f} s, {figure.cpu:.1f} s cpu, {figure.memory:.0f} MiB")
        size = (folder / "store/data/transfer/large.zip").stat().st_size
        goals.add(f"build of {what}, bytes fetched in all, of the payload's", fetched / size, 1.02)
        push = f"{charon} push-payload {' '.join(payload)} -r {far.host}"
        kill_once(push.split(), environment, lambda: far.kept() > total / 2)
        figure, _ = measure(push, environment)
        print(f"{what}: import, the rest: {figure.wall:.1f} s, {figure.cpu:.1f} s cpu, {figure.memory:.0f} MiB\n")
    shutil.rmtree(folder / "far")
