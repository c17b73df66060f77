"""An event loop whose clock jumps to the next event: hours of waiting take no time."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

from tests.support.clock import FakeClock

T = TypeVar("T")


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Time begins at 0 and passes while all tasks wait. Raises RuntimeError if none would ever continue."""

    def __init__(self) -> None:
        self._clock = FakeClock(0.0)
        super().__init__(_JumpingSelector(self._clock))

    def time(self) -> float:
        return self._clock()


class _JumpingSelector(selectors.SelectSelector):
    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> Any:
        events = super().select(0)
        if events or timeout == 0:
            return events
        if timeout is None:
            raise RuntimeError("All tasks wait for ever.")
        self._clock.advance(timeout)
        return events


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end in virtual time; no task may be left behind."""
    loop = VirtualTimeLoop()
    try:
        result = loop.run_until_complete(coroutine)
        assert asyncio.all_tasks(loop) == set()
        return result
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
