"""Runs the programs of a case in turn, and checks what the sink received."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.cases import Case, Contender
from benchmarks.certificates import Certificates
from benchmarks.content import Block, block
from benchmarks.job import Job
from benchmarks.measurements import Run
from benchmarks.servers import Servers, ServerSettings, running
from dev import REPOSITORY

_REQUIRED_MODULES = {
    "http_to_s3": "airflow.providers.http",
    "smart_open_copy": "smart_open",
    "obstore_put": "obstore",
}
_TIMEOUT_SECONDS = 1200


class PeerFailedError(Exception):
    """A program failed; the message has the end of its output."""


@dataclass
class Outcome:
    """The runs of each program, and the reasons for missing ones."""

    case: Case
    runs: dict[str, list[Run]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Workspace:
    """The folder of content, and the certificates."""

    folder: Path
    certificates: Certificates

    def block(self, case: Case) -> Block:
        return block(self.folder / "content", case.kind, case.block_bytes)

    def settings(self, case: Case) -> ServerSettings:
        return ServerSettings(
            self.block(case).path, self.certificates if case.tls else None, case.latency_seconds, case.bytes_per_second
        )


def run_case(case: Case, workspace: Workspace, rounds: int, say: Callable[[str], object]) -> Outcome:
    """Run every program once to warm up, then in turn: A B C, A B C, ..."""
    outcome = Outcome(case)
    content = workspace.block(case)
    with running(workspace.settings(case)) as servers:
        for number in range(rounds + 1):
            for contender in case.contenders:
                if contender.name in outcome.missing or number > contender.most_rounds:
                    continue
                try:
                    run = run_once(case, contender, content, servers, workspace.folder)
                except PeerFailedError as error:
                    outcome.missing[contender.name] = str(error)
                    say(f"  {contender.name}: {error}")
                    continue
                say(f"  {contender.name}: {run.wall:.2f} s, CPU {run.cpu:.2f} s{'' if number else ' (warm-up)'}")
                if number:
                    outcome.runs.setdefault(contender.name, []).append(run)
    return outcome


def run_once(case: Case, contender: Contender, content: Block, servers: Servers, folder: Path) -> Run:
    """Run a program once, in its own process.

    Raises:
        PeerFailedError: it is not installed, failed, or did not deliver every file.
    """
    if (needed := _REQUIRED_MODULES.get(contender.peer)) and not _is_installed(needed):
        raise PeerFailedError(f"missing: {needed} is not installed")
    job = _job(case, contender, content, servers)
    servers.report()
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.peers.{contender.peer}", job.to_json()],
        cwd=REPOSITORY,
        env=environment(servers, folder),
        capture_output=True,
        text=True,
        check=False,
        timeout=_TIMEOUT_SECONDS,
    )
    if done.returncode:
        raise PeerFailedError(f"failed ({done.returncode}): {done.stderr.strip()[-600:]}")
    _check_delivered(contender, servers.report(), case.files, _stored_size(case, contender, content))
    return Run(**json.loads(done.stdout.strip().splitlines()[-1]))


def _job(case: Case, contender: Contender, content: Block, servers: Servers) -> Job:
    size = contender.size or case.size
    urls = [f"{servers.source}/{size}/{number:05}.csv.gz" for number in range(case.files)]
    rows = size // content.size * content.records * case.files
    # Each block begins with a header; all but the first of a file count as rows.
    return Job(
        urls, servers.sink, servers.authority, rows - case.files if contender.counts_rows else None, contender.options
    )


def _stored_size(case: Case, contender: Contender, content: Block) -> int | None:
    """The expected size of each object; None if it depends on the compressor."""
    size = contender.size or case.size
    wants_gzip = contender.options.get("compression", "gzip") == "gzip"
    if contender.peer != "ours" or wants_gzip == (case.kind == "gzip"):
        return size
    return None if wants_gzip else size // content.size * content.plain_size


def _check_delivered(contender: Contender, report: dict[str, Any], files: int, size: int | None) -> None:
    """A run is only valid if the sink received every byte of every file."""
    if contender.options.get("imports_only"):
        return
    sizes = [stored["size"] for key, stored in report["objects"].items() if key.endswith((".csv", ".gz"))]
    if len(sizes) != files or (size is not None and set(sizes) != {size}) or report["unfinished"]:
        raise PeerFailedError(f"failed: {len(sizes)} objects received, {sorted(set(sizes))[:3]} bytes long, not {size}")


def environment(servers: Servers, folder: Path) -> dict[str, str]:
    """Variables without proxies and user settings: fake credentials and the certificate authority."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    trusted = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE", "SSL_CERT_FILE")
    return {
        **kept,
        **(dict.fromkeys(trusted, servers.authority) if servers.authority else {}),
        "AIRFLOW_HOME": str(folder / "airflow"),
        "AWS_ACCESS_KEY_ID": "made-up",
        "AWS_SECRET_ACCESS_KEY": "made-up",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "PYTHONPATH": str(REPOSITORY),
    }


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
