"""How long to wait before a retry."""

from __future__ import annotations


def backoff_seconds(failures: int, first_seconds: float, longest_seconds: float, jitter: float = 1.0) -> float:
    """The wait after `failures` failed attempts in a row: it doubles with each, up to `longest_seconds`.

    Args:
        failures: 1 or more.
        first_seconds: the wait after the first failure.
        longest_seconds: no wait is longer.
        jitter: from 0 to 1; spreads the waits between half and all of their length.
    """
    full = min(first_seconds * 2.0 ** (failures - 1), longest_seconds)
    return full * (0.5 + jitter / 2)
