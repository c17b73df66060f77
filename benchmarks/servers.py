"""The source and the sink, each in a process of its own."""

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

from benchmarks.certificates import Trust

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Setting:
    """How source and sink behave."""

    block: Path
    trust: Trust | None = None
    latency_seconds: float = 0.0
    bytes_per_second: float | None = None
    digests: bool = False

    @property
    def for_both(self) -> list[str]:
        tls = self.trust.tls if self.trust else None
        arguments = ["--latency-seconds", str(self.latency_seconds)]
        return [*arguments, "--certificate", tls.certificate, "--key", tls.key] if tls else arguments

    @property
    def source(self) -> list[str]:
        limit = ["--bytes-per-second", str(self.bytes_per_second)] if self.bytes_per_second else []
        return ["benchmarks.source", str(self.block), *limit, *self.for_both]

    @property
    def sink(self) -> list[str]:
        return ["benchmarks.sink", *(["--digest"] if self.digests else []), *self.for_both]


@dataclass(frozen=True)
class Servers:
    """Where they are."""

    source: str
    sink: str
    trust: Trust | None = field(default=None)

    @property
    def authority(self) -> str | None:
        return str(self.trust.authority) if self.trust else None

    def report(self) -> dict[str, Any]:
        """What came to the sink so far."""
        context = ssl.create_default_context(cafile=self.authority) if self.trust else None
        with urllib.request.urlopen(f"{self.sink}/-/report", context=context) as answer:
            return dict(json.load(answer))


@contextmanager
def running(setting: Setting) -> Iterator[Servers]:
    scheme = "https" if setting.trust else "http"
    with ExitStack() as stack:
        ports = [stack.enter_context(_server(command)) for command in (setting.source, setting.sink)]
        source, sink = (f"{scheme}://127.0.0.1:{port}" for port in ports)
        yield Servers(source, sink, setting.trust)


@contextmanager
def _server(command: Sequence[str]) -> Iterator[int]:
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("pipes were asked for")
        yield int(process.stdout.readline())
        process.stdin.close()
        process.wait(10)
