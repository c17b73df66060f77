"""When each file of one delivery is transferred, and in which thread.

Small files are transferred in parallel, in a pool of threads. Large files are transferred one after the other: each may
use all connections, and if the task is killed, the files before are complete. The first file starts alone, so that
usually only one large file is open at a time. Each file is requested once.

Knows files only as `FileTransfer`. Knows nothing of rows and manifests.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from airflow_provider_sendgrid.delivery.file import FileTransfer
from airflow_provider_sendgrid.delivery.progress import Progress
from airflow_provider_sendgrid.delivery.stored_file import StoredFile
from airflow_provider_sendgrid.exceptions import DestinationChangedError, ExportIncompleteError
from airflow_provider_sendgrid.stopping import StopSignal
from airflow_provider_sendgrid.threads import DaemonExecutor

T = TypeVar("T")

_CHECK_SECONDS = 0.2


class FileQueue:
    """Transfers files; call `close` at the end.

    Args:
        thread_count: how many small files are transferred at once.
        large_bytes: a stored file of more bytes counts as large.
        progress: is reported while files are transferred.
        stop: ends everything.
    """

    def __init__(self, thread_count: int, large_bytes: int, progress: Progress, stop: StopSignal) -> None:
        self._large_bytes = large_bytes
        self._progress = progress
        self._stop = stop
        self._threads = DaemonExecutor(thread_count, "sendgrid-file")
        self._transfers: Sequence[FileTransfer] = ()
        self._futures: dict[int, Future[Any]] = {}  # the last one of each file, by its index
        self._is_pool_closed = False  # one file was large or failed: the pool begins no other
        self._error: BaseException | None = None

    def store_all(self, transfers: Sequence[FileTransfer]) -> list[StoredFile]:
        """Store all files, and return them in the same order.

        Raises:
            ExportIncompleteError: a file could not be downloaded. A retry may succeed, so the files before it that
                were begun are stored first.
            DestinationChangedError: another run changed an object or the manifest. No transfer is running.
        """
        self._transfers, self._futures = transfers, {}
        self._is_pool_closed, self._error = False, None
        try:
            return self._store_all()
        except DestinationChangedError:
            self._finish()
            raise

    def running(self, seconds: float) -> list[Future[Any]]:
        """The transfers that are still running after so long."""
        self._is_pool_closed = True
        return list(wait(list(self._futures.values()), seconds).not_done)

    def close(self) -> None:
        """End the threads without waiting for them, and close the downloads that no thread uses."""
        self._close_transfers()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _store_all(self) -> list[StoredFile]:
        stored = dict[int, StoredFile]()
        failed = self._store_small(self._transfers[:1], stored) or self._store_small(self._transfers[1:], stored)
        # Large files that are open, up to one that failed; then files that were not begun.
        for transfer in self._transfers:
            if (failed is None or transfer.index < failed[0]) and transfer.is_open:
                stored[transfer.index] = self._store(transfer)
        if failed is not None:
            raise failed[1]
        for transfer in self._transfers:
            if transfer.index not in stored:
                stored[transfer.index] = self._store(transfer)
        return [stored[transfer.index] for transfer in self._transfers]

    def _store_small(
        self, transfers: Sequence[FileTransfer], stored: dict[int, StoredFile]
    ) -> tuple[int, ExportIncompleteError] | None:
        """Store files side by side until one is large; return the index and the error of the first that failed.

        Afterwards, large files that were begun are open; those that were not begun are neither open nor stored.
        """
        for transfer in transfers:
            self._futures[transfer.index] = self._threads.submit(self._store_if_small, transfer)
        for transfer in transfers:
            try:
                file = self._result(self._futures[transfer.index])
            except ExportIncompleteError as error:
                return transfer.index, error
            if file is not None:
                stored[transfer.index] = file
        return None

    def _store_if_small(self, transfer: FileTransfer) -> StoredFile | None:
        if self._is_pool_closed:
            return None
        try:
            file = transfer.store_if_small()
        except BaseException as error:
            self._is_pool_closed = True
            if not isinstance(error, ExportIncompleteError):
                self._error = error
            raise
        if file is None or file.size > self._large_bytes:
            self._is_pool_closed = True
        return file

    def _store(self, transfer: FileTransfer) -> StoredFile:
        """Store one file, in a thread: this one must be able to end when the task is stopped."""
        future = self._threads.submit(transfer.store)
        self._futures[transfer.index] = future
        return self._result(future)

    def _result(self, future: Future[T]) -> T:
        """The result of a transfer; raises errors of others as soon as they occur, except `ExportIncompleteError`."""
        while True:
            is_done = bool(wait([future], _CHECK_SECONDS).done)
            self._progress.report()
            if is_done:
                return future.result()
            self._stop.raise_if_set()
            if self._error is not None:
                raise self._error

    def _finish(self) -> None:
        """Wait for the transfers that are running, whatever their results, and close the other downloads."""
        self._is_pool_closed = True
        while wait(list(self._futures.values()), _CHECK_SECONDS).not_done:
            self._progress.report()
            self._stop.raise_if_set()
        self._close_transfers()

    def _close_transfers(self) -> None:
        for transfer in self._transfers:
            future = self._futures.get(transfer.index)
            if future is None or future.done():
                transfer.close()
