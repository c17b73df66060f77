"""A local PostgreSQL server, for Airflow's metadata."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dev.services.ports import LOCALHOST, free_port
from dev.services.processes import Process, running

DEBIAN_FOLDER = Path("/usr/lib/postgresql")
OWNER = "postgres"
HOW_TO_INSTALL = (
    "PostgreSQL's initdb was found neither on PATH nor below /usr/lib/postgresql.\n"
    "On Debian or Ubuntu: apt-get install postgresql. On Fedora: dnf install postgresql-server. On macOS: brew install "
    "postgresql."
)
# The data is temporary: it need not survive a crash.
FAST = ("-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off")


def find_programs(debian_folder: Path = DEBIAN_FOLDER) -> Path:
    """The folder with initdb. Debian has one folder for each version, not on PATH.

    Raises:
        RuntimeError: PostgreSQL is not installed; the message names the package.
    """
    if on_path := shutil.which("initdb"):
        return Path(on_path).resolve().parent
    found = sorted(debian_folder.glob("*/bin/initdb"), key=lambda path: version_in(path.parts[-3]))
    if not found:
        raise RuntimeError(HOW_TO_INSTALL)
    return found[-1].parent


def version_in(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


def as_owner() -> list[str]:
    """PostgreSQL does not run as root: then it runs as the user that its package created."""
    return ["runuser", "-u", OWNER, "--"] if os.geteuid() == 0 else []


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """Start an empty database; yields its SQLAlchemy URL. All data is deleted at the end."""
    programs, data, port = find_programs(), folder.resolve() / "postgres", free_port()
    data.mkdir(parents=True)
    if os.geteuid() == 0:
        shutil.chown(data, OWNER, OWNER)
    initialise(programs, data)
    listen = ("-h", LOCALHOST, "-p", str(port), "-k", "")
    command = [*as_owner(), programs / "postgres", "-D", data, *listen, *FAST]
    process = Process("postgres", command, dict(os.environ), folder / "postgres.log")
    is_ready = [programs / "pg_isready", "-q", "-h", LOCALHOST, "-p", str(port)]
    with running(process, lambda: subprocess.run(is_ready, check=False).returncode == 0):
        yield f"postgresql+psycopg2://{OWNER}@{LOCALHOST}:{port}/postgres"


def initialise(programs: Path, data: Path) -> None:
    settings = ["--username", OWNER, "--auth", "trust", "--encoding", "UTF8", "--no-locale", "--no-sync"]
    command = [*as_owner(), programs / "initdb", "-D", data, *settings]
    done = subprocess.run(command, cwd=data, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"initdb failed:\n{done.stdout}\n{done.stderr}")
