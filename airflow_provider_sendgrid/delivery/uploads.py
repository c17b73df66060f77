"""The uploads of one delivery: their threads, their memory, and how they are aborted."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import Any

from airflow_provider_sendgrid.delivery.options import DeliveryOptions
from airflow_provider_sendgrid.exceptions import DestinationChangedError
from airflow_provider_sendgrid.stopping import StopSignal
from airflow_provider_sendgrid.storage.base import ObjectInfo, Storage, StoredInfo
from airflow_provider_sendgrid.storage.buffers import PartBuffers
from airflow_provider_sendgrid.storage.multipart import PartWriter
from airflow_provider_sendgrid.threads import DaemonExecutor

log = logging.getLogger(__name__)

_ABORT_SHARE = 0.3  # of a stop's grace period: how long aborts may take at least
_CHECK_SECONDS = 0.05
_OPEN_UPLOAD_HINT = (
    "The next try of the task aborts it, or a lifecycle rule of the bucket for incomplete multipart uploads."
)


class Uploads:
    """Opens uploads, and aborts those that are not completed; call `close` at the end."""

    def __init__(self, storage: Storage, options: DeliveryOptions, stop: StopSignal) -> None:
        self._storage = storage
        self._part_bytes = options.part_bytes
        self._stop = stop
        self._threads = DaemonExecutor(options.max_concurrency, "sendgrid-upload")
        # One part is uploaded while the others are downloaded.
        self._buffers = PartBuffers((options.max_concurrency + 1) * options.part_bytes, stop)
        self._writers = set[PartWriter]()

    @contextmanager
    def open(
        self,
        name: str,
        info: ObjectInfo,
        *,
        max_bytes: int | None,
        over: str | None,
        tap: Callable[[memoryview], Future[None] | None],
    ) -> Iterator[PartWriter]:
        """Write an object, see `PartWriter`; if the block raises, the upload is aborted.

        Raises:
            DestinationChangedError: another run ended the upload.
        """
        writer = PartWriter(
            self._storage,
            name,
            info,
            buffers=self._buffers,
            executor=self._threads,
            part_bytes=self._part_bytes,
            max_bytes=max_bytes,
            over=over,
            tap=tap,
        )
        self._writers.add(writer)
        try:
            yield writer
        except BaseException as error:
            abort_and_log(writer)
            if getattr(error, "code", None) == "NoSuchUpload":
                raise DestinationChangedError(f"{error} Another run has ended this upload.") from error
            raise
        finally:
            self._writers.discard(writer)

    def head_all(self, names: Collection[str]) -> list[StoredInfo | None]:
        """What is known of several objects at once, see `Storage.head`."""
        heads = [self._threads.submit(self._storage.head, name) for name in names]
        return [self._stop.result(head) for head in heads]

    def abort_all(self, transfers: Collection[Future[Any]]) -> None:
        """Abort all uploads of a stopped delivery while threads still transfer files; log those that may stay open."""
        writers = list(self._writers)
        threads = DaemonExecutor(max(len(writers), 1), "sendgrid-abort")
        aborts: list[Future[Any]] = [threads.submit(abort_and_log, writer, at_once=True) for writer in writers]
        # The thread of a file may be aborting its upload, or wait for the response to the upload's begin.
        end = time.monotonic() + max(self._stop.seconds_left(), _ABORT_SHARE * self._stop.grace_seconds)
        while time.monotonic() < end and any(writer.may_be_open for writer in writers):
            wait([*aborts, *transfers], _CHECK_SECONDS)
        for writer in writers:
            if writer.may_be_open:
                log.error(
                    "The storage did not answer in time: an upload of %s may stay open. %s",
                    writer.uri,
                    _OPEN_UPLOAD_HINT,
                )

    def close(self) -> None:
        """End the threads without waiting for them."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def abort_and_log(writer: PartWriter, *, at_once: bool = False) -> None:
    """Abort an upload; an error is only logged, so that it does not replace the one that caused the abort."""
    try:
        if at_once:
            writer.abort_upload()
        else:
            writer.abort()
    except Exception as error:  # noqa: BLE001 - see above
        log.error("The upload of %s could not be aborted (%s). %s", writer.uri, type(error).__name__, _OPEN_UPLOAD_HINT)
