"""For storages that take a stream: parts that come from several threads are written in their order.

Knows numbers and threads; knows no storage.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod


class InOrderUpload(ABC):
    """An upload whose parts follow one another: each waits until the one before it is written.

    No part waits for ever: parts are begun in their order, and when one fails, those that wait fail with it.
    """

    def __init__(self) -> None:
        self._next = 1
        self._failure: BaseException | None = None
        self._changed = threading.Condition()

    def write_part(self, number: int, part: bytearray, crc32: int) -> None:
        """Store part `number` (from 1), when its turn has come."""
        with self._changed:
            self._changed.wait_for(lambda: self._next == number or self._failure is not None)
            if self._failure is not None:
                raise self._failure
        failure: BaseException | None = None
        try:
            self._append(part)
        except BaseException as error:
            failure = error
            raise
        finally:
            with self._changed:
                self._next, self._failure = number + 1, failure
                self._changed.notify_all()

    @abstractmethod
    def _append(self, part: bytearray) -> None:
        """Store what comes next."""
