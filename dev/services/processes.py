"""Processes that the dev starts and ends: each with a process group and a log file of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence
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
    family: set[psutil.Process] = field(default_factory=set, init=False)

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

    def has_died(self) -> bool:
        """Whether it ended by itself: not when it was stopped or killed from here."""
        return self.running is not None and self.running.poll() is not None

    def stop(self, seconds: float = 15) -> None:
        """Asks first; whatever of it is left after so many seconds is killed."""
        self.send(signal.SIGTERM)
        self._bury(seconds)

    def kill(self) -> None:
        """As if the machine had died under it."""
        self.send(signal.SIGKILL)
        self._bury(5)

    def send(self, sign: signal.Signals) -> None:
        """To the whole group, without waiting for the effect."""
        if self.running is None:
            return
        # Airflow's children make process groups of their own: they are looked up while they have a parent.
        self.family |= descendants(self.running.pid)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.running.pid, sign)

    def tail(self, lines: int = TAIL_LINES) -> str:
        if not self.log.exists():
            return f"--- {self.name}: no log\n"
        last = self.log.read_text(errors="replace").splitlines()[-lines:]
        state = "running" if self.is_running() else "not running"
        return "\n".join([f"--- {self.name} ({state}), end of {self.log}", *last, ""])

    def _bury(self, seconds: float) -> None:
        if self.running is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.running.wait(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.running.pid, signal.SIGKILL)
        for child in self.family:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        self.running.wait()
        self.running = None
        self.family = set()


def end_on_sigterm() -> None:
    """Has SIGTERM end this program as ctrl-C does: through every `with` block that holds processes."""

    def leave(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, leave)


def stop_all(processes: Iterable[Process]) -> None:
    """All at once, for each takes seconds to end."""
    each = tuple(processes)
    for process in each:
        process.send(signal.SIGTERM)
    for process in each:
        process.stop()


def descendants(pid: int) -> set[psutil.Process]:
    try:
        return set(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return set()
