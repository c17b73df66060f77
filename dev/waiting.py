"""Waiting with a deadline that says what was waited for and what there was to see instead."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Answer = TypeVar("Answer")


def wait_until(
    what: str,
    ask: Callable[[], Answer],
    *,
    seconds: float,
    pause_seconds: float = 0.2,
    evidence: Callable[[], str] = str,
) -> Answer:
    """The first answer that is true; TimeoutError after so many seconds without one.

    `evidence` is asked for the tail of a log or the like, in the case of failure alone.
    """
    deadline = time.monotonic() + seconds
    while not (answer := ask()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:g} s (last answer: {answer!r})\n{evidence()}")
        time.sleep(pause_seconds)
    return answer
