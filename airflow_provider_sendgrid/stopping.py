"""One switch that ends every wait of a task: pauses between tries, waits for memory or a turn, reads of a socket."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress


class StoppedError(Exception):
    """The task was told to stop; nobody needs the result any more."""


class StopSignal:
    """Set once, from any thread or signal handler; shared by all threads of a delivery."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._callbacks: dict[object, Callable[[], object]] = {}

    @property
    def is_set(self) -> bool:
        """Whether everything is to stop."""
        return self._event.is_set()

    def set(self) -> None:
        """Stop everything; safe to call again, and in a signal handler."""
        self._event.set()
        for callback in list(self._callbacks.values()):
            with suppress(Exception):
                callback()

    def on_set(self, callback: Callable[[], object]) -> Callable[[], None]:
        """Have `callback` called by `set`, at once if that happened already; return what takes it back.

        It interrupts what a flag cannot, such as a read from a socket; it must neither block nor take a lock.
        """
        key = object()
        self._callbacks[key] = callback
        if self.is_set:
            with suppress(Exception):
                callback()
        return lambda: self._callbacks.pop(key, None) and None

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
        self._event.wait(seconds)
        self.raise_if_set()
