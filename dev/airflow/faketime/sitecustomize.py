"""Python imports this module first when it starts with a shifted clock.

libfaketime 0.9.10 (Debian 12) makes `time.sleep` fail with EINVAL on Python 3.11 and newer: it subtracts the shift from
an absolute time of the monotonic clock, though it is configured not to. `select` sleeps without that call.
"""

from __future__ import annotations

import select
import time


def _sleep(seconds: float) -> None:
    if seconds < 0:
        raise ValueError("sleep length must be non-negative")
    select.select([], [], [], seconds)


time.sleep = _sleep
