"""Processes that the lab starts and ends: each with a process group and a log file of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

TAIL_LINES = 40


@dataclass
class Process:
    """One command; may be started again after it was stopped or killed."""

    name: str
    command: Sequence[str | Path]
    environment: Mapping[str, str]
    log: Path
    running: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def start(self) -> None:
        if self.is_running():
            raise RuntimeError(f"{self.name} runs already")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            # A group of its own keeps the terminal's ctrl-C from it: whoever started it ends it, in order.
            self.running = subprocess.Popen(
                self.command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def is_running(self) -> bool:
        return self.running is not None and self.running.poll() is None

    def stop(self, seconds: float = 10) -> None:
        """Asks first; whatever of it is left after so many seconds is killed."""
        self._end(signal.SIGTERM, seconds)

    def kill(self) -> None:
        """As if the machine had died under it."""
        self._end(signal.SIGKILL, 5)

    def tail(self, lines: int = TAIL_LINES) -> str:
        if not self.log.exists():
            return f"--- {self.name}: no log\n"
        last = self.log.read_text(errors="replace").splitlines()[-lines:]
        state = "running" if self.is_running() else "not running"
        return "\n".join([f"--- {self.name} ({state}), end of {self.log}", *last, ""])

    def _end(self, sign: int, seconds: float) -> None:
        if self.running is None:
            return
        # Airflow's children make process groups of their own: they are looked up while they have a parent.
        family = descendants(self.running.pid)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.running.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.running.wait(seconds)
        for child in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.running.pid, signal.SIGKILL)
        self.running.wait()
        self.running = None


def descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
