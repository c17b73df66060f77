"""Polling with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def wait_until(
    what: str,
    poll: Callable[[], Result],
    *,
    seconds: float,
    pause_seconds: float = 0.2,
    evidence: Callable[[], str] = str,
) -> Result:
    """Poll until the result is true, and return it.

    Raises:
        TimeoutError: after `seconds`; its message has the last result and `evidence()`, such as the end of a log.
    """
    deadline = time.monotonic() + seconds
    while not (result := poll()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:g} s (last result: {result!r})\n{evidence()}")
        time.sleep(pause_seconds)
    return result
