"""A local Redis server: the broker of Celery's workers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dev.services.ports import LOCALHOST, accepts_connections, free_port
from dev.services.processes import Process, running

HOW_TO_INSTALL = "redis-server was not found on PATH. On Debian or Ubuntu: apt-get install redis-server."


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """Start an empty server; yields its URL. All data is deleted at the end.

    Raises:
        RuntimeError: Redis is not installed; the message names the package.
    """
    program, port = shutil.which("redis-server"), free_port()
    if program is None:
        raise RuntimeError(HOW_TO_INSTALL)
    no_persistence = ["--save", "", "--appendonly", "no", "--dir", str(folder)]
    command = [program, "--bind", LOCALHOST, "--port", str(port), *no_persistence]
    with running(Process("redis", command, dict(os.environ), folder / "redis.log"), lambda: accepts_connections(port)):
        yield f"redis://{LOCALHOST}:{port}/0"
