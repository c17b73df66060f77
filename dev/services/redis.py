"""A Redis server on this machine: what Celery's workers take their tasks from."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dev.services.ports import LOCALHOST, accepts_connections, free_port
from dev.services.processes import Process
from dev.waiting import wait_until

HOW_TO_INSTALL = "redis-server was not found on PATH. On Debian or Ubuntu: apt-get install redis-server."


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """An empty one; its URL. All is gone when it ends.

    Raises:
        RuntimeError: there is none; says what to install.
    """
    program, port = shutil.which("redis-server"), free_port()
    if program is None:
        raise RuntimeError(HOW_TO_INSTALL)
    nothing_kept = ["--save", "", "--appendonly", "no", "--dir", str(folder)]
    command = [program, "--bind", LOCALHOST, "--port", str(port), *nothing_kept]
    server = Process("redis", command, dict(os.environ), folder / "redis.log")
    server.start()
    try:
        wait_until("Redis listening", lambda: accepts_connections(port), seconds=30, evidence=server.tail)
        yield f"redis://{LOCALHOST}:{port}/0"
    finally:
        server.stop()
