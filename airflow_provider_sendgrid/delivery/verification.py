"""Decompresses a file to its end and counts its rows, while its parts are stored."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future

from airflow_provider_sendgrid.compression import Gunzip
from airflow_provider_sendgrid.delivery.first_bytes import PIECE_BYTES, FilePlan
from airflow_provider_sendgrid.delivery.options import DeliveryOptions
from airflow_provider_sendgrid.exceptions import ExportIncompleteError
from airflow_provider_sendgrid.files.rows import RecordCount, RecordCounter, record_counter
from airflow_provider_sendgrid.threads import DaemonExecutor

_MAX_UNCOUNTED = 2  # decompressed pieces that wait to be counted


class Verification:
    """Decompresses each part and counts its rows while the part is stored and the next ones arrive.

    One thread decompresses, another counts (measured with two cores: 1.4 times as fast as one thread for both). Where
    plain text is stored as gzip, rows are counted before it is compressed. Gzip is verified even if rows are not
    counted.
    """

    def __init__(self, plan: FilePlan, options: DeliveryOptions) -> None:
        self._counter = record_counter(plan.file_type) if options.verify_row_count else None
        self._gunzip = Gunzip() if plan.passes_through and plan.is_sent_as_gzip else None
        self._counts_stored = plan.is_sent_as_gzip or not plan.is_stored_as_gzip
        self._gunzips = DaemonExecutor(1, "sendgrid-gunzip")
        self._counts = DaemonExecutor(1, "sendgrid-count")
        self._uncounted: deque[Future[None]] = deque()

    def close(self) -> None:
        """End the threads."""
        for each in (self._gunzips, self._counts):
            each.shutdown(wait=False, cancel_futures=True)

    def tap(self, part: memoryview) -> Future[None] | None:
        """Verify a part while it is stored; the future is done when the part's memory may be used again."""
        if self._gunzip is not None:
            return self._gunzips.submit(self._gunzip_and_count, self._gunzip, part)
        if self._counter is None or not self._counts_stored:
            return None
        return self._counts.submit(self._count_pieces, self._counter, part)

    def count(self, plain: memoryview) -> None:
        """Count plain bytes that are stored as gzip."""
        if self._counter is not None:
            self._counter.feed(plain)

    def finish(self) -> RecordCount | None:
        """Return the count, after the last part; None if rows are not counted.

        Raises:
            ExportIncompleteError: the end of the file is missing, or it holds no contacts.
        """
        if self._gunzip is not None:
            self._gunzip.close()
        if self._counter is None:
            return None
        while self._uncounted:
            self._uncounted.popleft().result()
        count = self._counter.finish()
        if count.damage:
            raise ExportIncompleteError(count.damage)
        return count

    def _count_pieces(self, counter: RecordCounter, part: memoryview) -> None:
        for start in range(0, len(part), PIECE_BYTES):
            counter.feed(part[start : start + PIECE_BYTES])

    def _gunzip_and_count(self, gunzip: Gunzip, part: memoryview) -> None:
        for plain in gunzip.feed(part):
            if self._counter is None:
                continue
            self._uncounted.append(self._counts.submit(self._counter.feed, plain))
            if len(self._uncounted) > _MAX_UNCOUNTED:
                self._uncounted.popleft().result()
