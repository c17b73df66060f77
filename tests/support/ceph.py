"""Ceph RGW: an S3 server from Debian that ignores CRC32 checksums, as many servers in companies do.

    python -m tests.support.ceph

installs Debian's packages where they are missing and it runs as root; `make test-ceph` does so. The cluster is as small
as it gets: one monitor, one OSD that keeps all in memory, one gateway. Each is a separate process on 127.0.0.1.
"""

from __future__ import annotations

import base64
import http.client
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from dev.services.ports import LOCALHOST, accepts_connections, free_port
from dev.services.processes import Process
from dev.services.waiting import wait_until
from tests.support.seaweedfs import LOGIN, PASSWORD

IS_WANTED = bool(os.environ.get("TEST_CEPH"))
PACKAGES = ("ceph-common", "ceph-mon", "ceph-osd", "radosgw")
PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
SECONDS_TO_START = 60
_SETTINGS = """
[global]
fsid = {fsid}
mon host = [v2:{host}:{mon_port}/0]
ms bind ipv6 = false
ms bind msgr1 = false
auth cluster required = none
auth service required = none
auth client required = none
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
run dir = {folder}
admin socket =
crash dir = {folder}
log file = {folder}/$name.log
mon cluster log file = {folder}/cluster.log

[mon]
mon data = {folder}/mon
mon data avail crit = 0
mon allow pool size one = true

[osd]
public addr = {host}
cluster addr = {host}
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = 8589934592

[client]
ms mon client mode = crc
rgw data = {folder}/rgw
rgw frontends = beast endpoint={host}:{port}
rgw rados pool pg num min = 4
rgw override bucket index max shards = 1
rgw user max buckets = 100000
rgw crypt require ssl = false
rgw crypt s3 kms backend = testing
rgw crypt s3 kms encryption keys = alias/lake={kms_key} arn:aws:kms:us-east-1:123456789012:key/1={kms_key}
"""


def missing_ceph() -> str:
    """Why there is no server, empty if there can be one."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if not missing:
        return ""
    return f"{', '.join(missing)} not found: run `apt-get install {' '.join(PACKAGES)}` as root, on Debian or Ubuntu"


@contextmanager
def ceph_server(folder: Path) -> Iterator[str]:
    """Run a cluster with its data in `folder`; yields the URL of its S3 server."""
    if reason := missing_ceph():
        raise RuntimeError(reason)
    settings, monitors, fsid, osd_id = (
        folder / "ceph.conf",
        str(folder / "monmap"),
        str(uuid.uuid4()),
        str(uuid.uuid4()),
    )
    mon_port, port = free_port(), free_port()
    given = {"fsid": fsid, "host": LOCALHOST, "mon_port": mon_port, "port": port, "folder": folder}
    given["kms_key"] = base64.b64encode(bytes(range(32))).decode()
    settings.write_text(_SETTINGS.format_map(given))
    for name in ("mon", "osd", "rgw"):
        (folder / name).mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CEPH_")}

    def run(program: str, *arguments: str) -> None:
        command = [program, "--conf", str(settings), *arguments]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=SECONDS_TO_START
        )
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")

    with ExitStack() as stack:

        def start(program: str, *arguments: str) -> Process:
            command = [program, "--conf", str(settings), *arguments, "--foreground"]
            process = Process(program, command, environment, folder / f"{program}.output")
            process.start()
            stack.callback(process.stop, seconds=5)
            return process

        run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v2:{LOCALHOST}:{mon_port}]", monitors)
        run("ceph-mon", "--id", "a", "--mkfs", "--keyring", os.devnull, "--monmap", monitors)
        mon = start("ceph-mon", "--id", "a")
        wait_for(mon, lambda: accepts_connections(mon_port))
        run("ceph", "osd", "new", osd_id)
        run("ceph-osd", "--id", "0", "--mkfs", "--osd-uuid", osd_id)
        start("ceph-osd", "--id", "0")
        # One user with two pairs of keys: those of the tests that use moto, and those of SeaweedFS.
        for verb, key, secret in ((("user", "create", "--display-name", "tests"), "test", "test"),
                                  (("key", "create"), LOGIN, PASSWORD)):  # fmt: skip
            run("radosgw-admin", *verb, "--uid", "tests", "--access-key", key, "--secret-key", secret)
        storage_class = ("--placement-id", "default-placement", "--storage-class", "STANDARD_IA")
        run("radosgw-admin", "zonegroup", "placement", "add", "--rgw-zonegroup", "default", *storage_class)
        pool = ("--data-pool", "default.rgw.infrequent.data")
        run("radosgw-admin", "zone", "placement", "add", "--rgw-zone", "default", *storage_class, *pool)
        rgw = start("radosgw", "--id", "rgw")
        wait_for(rgw, lambda: answers_http(port))
        yield f"http://{LOCALHOST}:{port}"


def wait_for(process: Process, is_up: Callable[[], bool]) -> None:
    wait_until(process.name, lambda: process.has_exited() or is_up(), seconds=SECONDS_TO_START, evidence=process.tail)
    if process.has_exited():
        raise RuntimeError(f"{process.name} ended by itself\n{process.tail()}")


def answers_http(port: int) -> bool:
    connection = http.client.HTTPConnection(LOCALHOST, port, timeout=5)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status < 500
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


@pytest.fixture(scope="session")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server, started by the first test that needs it."""
    if not IS_WANTED:
        pytest.skip("make test-ceph runs it")
    if reason := missing_ceph():
        pytest.skip(reason)
    with ceph_server(tmp_path_factory.mktemp("ceph")) as url:
        yield url


def install() -> None:
    """Install Debian's packages unless they are there; end with one line if that cannot be done."""
    if missing_ceph() and os.geteuid() == 0 and shutil.which("apt-get"):
        print(f"Installing {', '.join(PACKAGES)} (once)", flush=True)
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (("update",), ("install", "--yes", "--no-install-recommends", *PACKAGES)):
            subprocess.run(["apt-get", "-qq", *command], env=environment, check=False, stdout=subprocess.DEVNULL)
    if reason := missing_ceph():
        sys.exit(reason)


if __name__ == "__main__":
    install()
