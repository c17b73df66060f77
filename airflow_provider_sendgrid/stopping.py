"""A signal that ends every wait of a task: pauses between retries, waits for buffers, reads from sockets."""

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

# A signal handler may interrupt a thread between its check and its wait, so it checks again after this time.
_CHECK_SECONDS = 0.5


class StoppedError(Exception):
    """The task was stopped."""


class StopSignal:
    """Set once, from any thread or signal handler; shared by all threads of a delivery.

    Args:
        grace_seconds: how long a stopped task may take to clean up. Airflow kills it after 5 s, and ending the process
            takes some of them on a busy machine.
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
        """Whether all work must stop."""
        return self._is_set

    def set(self) -> None:
        """Stop all work; safe to call again, and in a signal handler."""
        self._set_at = time.monotonic() if self._set_at is None else self._set_at
        self._is_set = True
        self._wake()
        for callback in list(self._callbacks.values()):
            with suppress(Exception):
                callback()

    def seconds_left(self, share: float = 1.0) -> float:
        """The rest of this share of `grace_seconds`; all of it before `set` is called."""
        used = 0.0 if self._set_at is None else time.monotonic() - self._set_at
        return max(0.0, share * self.grace_seconds - used)

    def on_set(self, callback: Callable[[], object]) -> Callable[[], None]:
        """Register a callback for `set`, called immediately if it is set already; return a function that removes it.

        The callback interrupts what a flag cannot, such as a read from a socket. It must neither block nor take a lock,
        and may be called twice.
        """
        key = object()
        self._callbacks[key] = callback
        if self.is_set:
            with suppress(Exception):
                callback()
        return lambda: self._callbacks.pop(key, None) and None

    def child(self) -> StopSignal:
        """A signal for a part of the work: set together with this one, or alone by its own `set`."""
        child = StopSignal(self.grace_seconds)
        child_set = weakref.WeakMethod(child.set)
        forget = self.on_set(lambda: (set_it := child_set()) and set_it())
        weakref.finalize(child, forget).atexit = False
        return child

    def raise_if_set(self) -> None:
        """Raise if all work must stop.

        Raises:
            StoppedError: this signal is set.
        """
        if self.is_set:
            raise StoppedError("the task was stopped")

    def wait(self, seconds: float) -> None:
        """Wait this long.

        Raises:
            StoppedError: this signal is set.
        """
        self._wait_until(lambda: False, seconds)
        self.raise_if_set()

    def result(self, future: Future[T], seconds: float | None = None) -> T:
        """The result of a future, or the error that it ended with.

        Raises:
            StoppedError: this signal is set, and the future is not done.
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

        For calls that nothing can interrupt, such as connecting. The thread is a daemon.

        Args:
            function: called once.
            seconds: how long to wait for it; None for no limit.
            name: of the thread.
            late: called with a result that comes too late.

        Raises:
            StoppedError: this signal is set.
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
                left = _CHECK_SECONDS if end is None else end - time.monotonic()
                if left <= 0:
                    return
                self._changed.wait(min(left, _CHECK_SECONDS))


class HasFileno(Protocol):
    """A socket, or a reader of one."""

    def fileno(self) -> int:
        """The file descriptor."""


def shut_down(connection: HasFileno) -> None:
    """Shut down a connection below TLS: a thread that reads from it, or writes to it, gets an error.

    After a TLS socket's own `shutdown`, a thread that reads from it would return encrypted bytes as plain ones. Does
    nothing if the connection is closed.
    """
    with suppress(OSError, ValueError, AttributeError), socket.socket(fileno=os.dup(connection.fileno())) as duplicate:
        duplicate.shutdown(socket.SHUT_RDWR)
