"""Starts the source and the sink, each in its own process."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.certificates import Certificates
from dev import REPOSITORY


@dataclass(frozen=True)
class ServerSettings:
    """The settings of source and sink."""

    block: Path
    certificates: Certificates | None = None
    latency_seconds: float = 0.0
    bytes_per_second: float | None = None
    digests: bool = False

    @property
    def for_both(self) -> list[str]:
        tls = self.certificates.tls if self.certificates else None
        arguments = ["--latency-seconds", str(self.latency_seconds)]
        return [*arguments, "--certificate", tls.certificate, "--key", tls.key] if tls else arguments

    @property
    def source(self) -> list[str]:
        limit = ["--bytes-per-second", str(self.bytes_per_second)] if self.bytes_per_second else []
        return ["benchmarks.source", str(self.block), *limit, *self.for_both]

    @property
    def sink(self) -> list[str]:
        return ["benchmarks.s3_sink", *(["--digest"] if self.digests else []), *self.for_both]


@dataclass(frozen=True)
class Servers:
    """The URLs of source and sink."""

    source: str
    sink: str
    certificates: Certificates | None = field(default=None)

    @property
    def authority(self) -> str | None:
        return str(self.certificates.authority) if self.certificates else None

    def report(self) -> dict[str, Any]:
        """What the sink received since the last report."""
        context = ssl.create_default_context(cafile=self.authority) if self.certificates else None
        with urllib.request.urlopen(f"{self.sink}/-/report", context=context) as response:
            return dict(json.load(response))


@contextmanager
def running(settings: ServerSettings) -> Iterator[Servers]:
    scheme = "https" if settings.certificates else "http"
    with ExitStack() as stack:
        ports = [stack.enter_context(start_server(command)) for command in (settings.source, settings.sink)]
        source, sink = (f"{scheme}://127.0.0.1:{port}" for port in ports)
        yield Servers(source, sink, settings.certificates)


@contextmanager
def start_server(command: Sequence[str]) -> Iterator[int]:
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("the process has no pipes")
        yield int(process.stdout.readline())
        process.stdin.close()
        process.wait(10)
