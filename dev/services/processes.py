"""Child processes, each with its own process group and log file."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from dev.services.waiting import wait_until

TAIL_LINES = 40


@dataclass
class Process:
    """One command; it can be started again after it was stopped or killed."""

    name: str
    command: Sequence[str | Path]
    environment: Mapping[str, str]
    log: Path
    running: subprocess.Popen[bytes] | None = field(default=None, init=False)
    children: set[psutil.Process] = field(default_factory=set, init=False)

    def start(self) -> None:
        if self.is_running():
            raise RuntimeError(f"{self.name} is already running")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            # In its own group, it does not receive the terminal's ctrl-C: its owner stops it.
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

    def has_exited(self) -> bool:
        """Whether it exited by itself, neither by `stop` nor by `kill`."""
        return self.running is not None and self.running.poll() is not None

    def stop(self, seconds: float = 15) -> None:
        """Send SIGTERM, and SIGKILL to what is left after `seconds`."""
        self.send(signal.SIGTERM)
        self._reap(seconds)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send(signal.SIGKILL)
        self._reap(5)

    def send(self, sign: signal.Signals) -> None:
        """Send a signal to the whole group, without waiting for its effect."""
        if self.running is None:
            return
        # Airflow's children create their own process groups: they can only be found while their parent lives.
        self.children |= descendants(self.running.pid)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.running.pid, sign)

    def tail(self, lines: int = TAIL_LINES) -> str:
        if not self.log.exists():
            return f"--- {self.name}: no log\n"
        last = self.log.read_text(errors="replace").splitlines()[-lines:]
        state = "running" if self.is_running() else "not running"
        return "\n".join([f"--- {self.name} ({state}), end of {self.log}", *last, ""])

    def _reap(self, seconds: float) -> None:
        if self.running is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.running.wait(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.running.pid, signal.SIGKILL)
        for child in self.children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        self.running.wait()
        self.running = None
        self.children = set()


@contextlib.contextmanager
def running(process: Process, is_ready: Callable[[], object], seconds: float = 60) -> Iterator[Process]:
    """Start a server, wait until it is ready, and stop it at the end."""
    process.start()
    try:
        wait_until(f"{process.name} ready", is_ready, seconds=seconds, evidence=process.tail)
        yield process
    finally:
        process.stop()


def end_on_sigterm() -> None:
    """Let SIGTERM raise KeyboardInterrupt, so that every `with` block stops its processes."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def stop_all(processes: Iterable[Process]) -> None:
    """Stop all processes concurrently, because each takes seconds."""
    stopped = tuple(processes)
    for process in stopped:
        process.send(signal.SIGTERM)
    for process in stopped:
        process.stop()


def descendants(pid: int) -> set[psutil.Process]:
    try:
        return set(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return set()
