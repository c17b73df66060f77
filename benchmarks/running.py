"""Runs the contenders of a case in turn, and checks that what they say they brought is what came."""

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
from benchmarks.certificates import Trust
from benchmarks.content import Block, block
from benchmarks.job import Job
from benchmarks.runs import Run
from benchmarks.servers import REPOSITORY, Servers, Setting, running

_NEEDS = {
    "http_to_s3": "airflow.providers.http",
    "smart_open_copy": "smart_open",
    "obstore_put": "obstore",
}
_TIMEOUT_SECONDS = 1200


class PeerFailedError(Exception):
    """A contender could not do its job; the text is the end of what it said."""


@dataclass
class Outcome:
    """The runs of each contender, and why some took no part."""

    case: Case
    runs: dict[str, list[Run]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Laboratory:
    """Where things are kept, and whom clients trust."""

    folder: Path
    trust: Trust

    def block(self, case: Case) -> Block:
        return block(self.folder / "content", case.kind, case.block_bytes)

    def setting(self, case: Case) -> Setting:
        return Setting(
            self.block(case).path, self.trust if case.tls else None, case.latency_seconds, case.bytes_per_second
        )


def run_case(case: Case, laboratory: Laboratory, rounds: int, say: Callable[[str], object]) -> Outcome:
    """Everyone once to warm up, then in turn: A B C, A B C, ..."""
    outcome = Outcome(case)
    content = laboratory.block(case)
    with running(laboratory.setting(case)) as servers:
        for number in range(rounds + 1):
            for contender in case.contenders:
                if contender.name in outcome.missing or number > contender.most_rounds:
                    continue
                try:
                    run = run_once(case, contender, content, servers, laboratory.folder)
                except PeerFailedError as error:
                    outcome.missing[contender.name] = str(error)
                    say(f"  {contender.name}: {error}")
                    continue
                say(f"  {contender.name}: {run.wall:.2f} s, CPU {run.cpu:.2f} s{'' if number else ' (warm-up)'}")
                if number:
                    outcome.runs.setdefault(contender.name, []).append(run)
    return outcome


def run_once(case: Case, contender: Contender, content: Block, servers: Servers, folder: Path) -> Run:
    """One run in a process of its own.

    Raises:
        PeerFailedError: it is not installed, failed, or did not bring what it should.
    """
    if (needed := _NEEDS.get(contender.peer)) and not _is_installed(needed):
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
    # Each file begins with a header; repeated blocks repeat it, there it counts as a row.
    return Job(
        urls, servers.sink, servers.authority, rows - case.files if contender.counts_rows else None, contender.options
    )


def _stored_size(case: Case, contender: Contender, content: Block) -> int | None:
    """How large each object should be; None where only the compressor knows."""
    size = contender.size or case.size
    wants_gzip = contender.options.get("compression", "gzip") == "gzip"
    if contender.peer != "ours" or wants_gzip == (case.kind == "gzip"):
        return size
    return None if wants_gzip else size // content.size * content.plain_size


def _check_delivered(contender: Contender, report: dict[str, Any], files: int, size: int | None) -> None:
    """A run counts only where the sink got every byte of every file."""
    if contender.options.get("imports_only"):
        return
    sizes = [stored["size"] for key, stored in report["objects"].items() if key.endswith((".csv", ".gz"))]
    if len(sizes) != files or (size is not None and set(sizes) != {size}) or report["unfinished"]:
        raise PeerFailedError(f"failed: {len(sizes)} objects came, {sorted(set(sizes))[:3]} bytes long, not {size}")


def environment(servers: Servers, folder: Path) -> dict[str, str]:
    """No proxies and nobody's settings: made-up credentials, the sink, and whom to trust."""
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
