"""One switch that ends every wait of a task: pauses between tries, waits for memory or a turn, reads of a socket."""

from __future__ import annotations

import os
import socket
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from contextvars import copy_context
from typing import Protocol, TypeVar

T = TypeVar("T")

# A signal handler may interrupt a thread between its check and its wait: it looks again after so long.
_LONGEST_WAIT_SECONDS = 0.5


class StoppedError(Exception):
    """The task was stopped; its result is no longer needed."""


class StopSignal:
    """Set once, from any thread or signal handler; shared by all threads of a delivery.

    Args:
        grace_seconds: how long a stopped task may take to clean up. Airflow kills it after 5 s, and a busy machine
            needs some of them to end the process.
    """

    def __init__(self, grace_seconds: float = 2.5) -> None:
        self.grace_seconds = grace_seconds
        self._is_set = False
        self._set_at: float | None = None
        # Reentrant: a signal handler may call `set` while its thread holds it.
        self._changed = threading.Condition(threading.RLock())
        self._callbacks: dict[object, Callable[[], object]] = {}

    @property
    def is_set(self) -> bool:
        """Whether everything is to stop."""
        return self._is_set

    def set(self) -> None:
        """Stop everything; safe to call again, and in a signal handler."""
        self._set_at = time.monotonic() if self._set_at is None else self._set_at
        self._is_set = True
        self._wake()
        for callback in list(self._callbacks.values()):
            with suppress(Exception):
                callback()

    def seconds_left(self, share: float = 1.0) -> float:
        """What is left of this share of `grace_seconds`; all of it if nothing is to stop yet."""
        used = 0.0 if self._set_at is None else time.monotonic() - self._set_at
        return max(0.0, share * self.grace_seconds - used)

    def on_set(self, callback: Callable[[], object]) -> Callable[[], None]:
        """Have `callback` called by `set`, at once if that happened already; return what takes it back.

        It interrupts what a flag cannot, such as a read from a socket; it must neither block nor take a lock. It may
        be called twice.
        """
        key = object()
        self._callbacks[key] = callback
        if self.is_set:
            with suppress(Exception):
                callback()
        return lambda: self._callbacks.pop(key, None) and None

    def child(self) -> StopSignal:
        """A signal for a part of the work: set with this one, and alone by its own `set`."""
        child = StopSignal(self.grace_seconds)
        child_set = weakref.WeakMethod(child.set)
        forget = self.on_set(lambda: (set_it := child_set()) and set_it())
        weakref.finalize(child, forget).atexit = False
        return child

    def raise_if_set(self) -> None:
        """Raise where work would go on.

        Raises:
            StoppedError: everything is to stop.
        """
        if self.is_set:
            raise StoppedError("the task was stopped")

    def wait(self, seconds: float) -> None:
        """Wait so long.

        Raises:
            StoppedError: everything is to stop.
        """
        self._wait_until(lambda: False, seconds)
        self.raise_if_set()

    def result(self, future: Future[T], seconds: float | None = None) -> T:
        """The result of a future, or the error that it ended with.

        Raises:
            StoppedError: everything is to stop, and the future is not done.
            TimeoutError: it took longer than `seconds`.
        """
        future.add_done_callback(lambda _: self._wake())
        self._wait_until(future.done, seconds)
        if not future.done():
            self.raise_if_set()
            raise TimeoutError
        return future.result()

    def call(
        self,
        function: Callable[[], T],
        seconds: float | None = None,
        *,
        name: str = "sendgrid-call",
        late: Callable[[T], object] = lambda _: None,
    ) -> T:
        """Run `function` in a separate thread and return its result; stop waiting for it when this signal is set.

        For what nothing can interrupt, such as making a connection. The thread does not keep the interpreter alive.

        Args:
            function: called once.
            seconds: how long to wait for it; None without end.
            name: of the thread.
            late: is called with a result that comes too late.

        Raises:
            StoppedError: everything is to stop.
            TimeoutError: it took longer.
        """
        outcome: Future[T] = Future()

        def run() -> None:
            try:
                result = function()
            except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
                with suppress(Exception):
                    outcome.set_exception(error)
                return
            try:
                outcome.set_result(result)
            except Exception:  # noqa: BLE001 - it was cancelled
                late(result)

        self.raise_if_set()
        try:
            threading.Thread(target=copy_context().run, args=(run,), name=name, daemon=True).start()
            return self.result(outcome, seconds)
        finally:
            outcome.cancel()

    def _wake(self) -> None:
        with self._changed, suppress(RuntimeError):
            self._changed.notify_all()

    def _wait_until(self, is_done: Callable[[], bool], seconds: float | None) -> None:
        end = None if seconds is None else time.monotonic() + seconds
        with self._changed:
            while not (self._is_set or is_done()):
                left = _LONGEST_WAIT_SECONDS if end is None else end - time.monotonic()
                if left <= 0:
                    return
                self._changed.wait(min(left, _LONGEST_WAIT_SECONDS))


class HasFileno(Protocol):
    """A socket, or what reads from one."""

    def fileno(self) -> int:
        """Its number."""


def shut_down(connection: HasFileno) -> None:
    """End a connection below its TLS: a thread that reads from it, or writes to it, goes on with an error.

    A TLS socket's own `shutdown` would have a thread that reads from it take encrypted bytes for plain ones.
    Nothing happens if the connection is closed.
    """
    with suppress(OSError, ValueError, AttributeError), socket.socket(fileno=os.dup(connection.fileno())) as duplicate:
        duplicate.shutdown(socket.SHUT_RDWR)
