"""Uploads whose parts must arrive in order, although several threads write them."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod

from airflow_provider_sendgrid.stopping import StoppedError


class SequentialUpload(ABC):
    """An upload in which each part waits until the one before it is written.

    No part waits for ever: parts start in their order, and when one fails or the upload ends, those that wait fail too.
    """

    def __init__(self) -> None:
        self._next = 1
        self._failure: BaseException | None = None
        self._is_writing = self._is_ended = False
        self._changed = threading.Condition()

    def write_part(self, number: int, part: bytearray, crc32: int) -> None:
        """Store part `number` (from 1) after the one before it."""
        with self._changed:
            self._changed.wait_for(lambda: self._next == number or self._failure is not None)
            if self._failure is not None:
                raise self._failure
            self._is_writing = True
        try:
            self._append(part)
        except BaseException as error:
            self._part_ends(number, error)
            raise
        self._part_ends(number, None)

    def end(self) -> None:
        """Refuse further parts and release the resources; safe to call again.

        Does not wait for a part that another thread is writing; that thread then releases the resources.
        """
        with self._changed:
            must_release = not self._is_ended and not self._is_writing
            self._is_ended = True
            self._failure = self._failure or StoppedError("the upload has ended")
            self._changed.notify_all()
        if must_release:
            self._release()

    def raise_if_ended(self) -> None:
        """Raise if another thread has ended the upload; called between two steps of a part.

        Raises:
            StoppedError: it has ended.
        """
        if self._is_ended:
            raise StoppedError("the upload has ended")

    def _part_ends(self, number: int, failure: BaseException | None) -> None:
        with self._changed:
            self._next, self._failure, self._is_writing = number + 1, self._failure or failure, False
            must_release = self._is_ended
            self._changed.notify_all()
        if must_release:
            self._release()

    @abstractmethod
    def _append(self, part: bytearray) -> None:
        """Store the next bytes."""

    @abstractmethod
    def _release(self) -> None:
        """Release the resources; called once, when no part is being written."""
