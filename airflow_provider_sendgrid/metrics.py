"""Metrics through Airflow's own backends, if ``[metrics]`` enables them; see docs/metrics.md.

Names begin with ``sendgrid.`` and contain no id; the family is a tag. Durations are `timedelta`, because backends
differ in the unit of a number. A metric that cannot be sent is logged and never fails a task.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

from airflow_provider_sendgrid._compat import Stats
from airflow_provider_sendgrid.delivery.export import Delivery
from airflow_provider_sendgrid.files.download import FileDownload

log = logging.getLogger(__name__)


def export_started(family: str, *, is_found: bool) -> None:
    """A task started an export, or found the one that an earlier attempt started."""
    _count("exports_found" if is_found else "exports_started", 1, family)


def polled(family: str, polls: int = 1) -> None:
    """A wait made `polls` successful polls."""
    _count("polls", polls, family)


def wait_ended(family: str, outcome: str, waited_seconds: float | None) -> None:
    """A wait ended.

    Args:
        family: of the export.
        outcome: ``ready``, ``failure``, ``expired`` or ``timeout``.
        waited_seconds: since it began; None if unknown.
    """
    _count(f"waits_{outcome}", 1, family)
    if waited_seconds is not None:
        _time("wait", waited_seconds, family)


def request_retried(family: str) -> None:
    """A request to SendGrid's API is retried."""
    _count("retries", 1, family)


def fetched(family: str, downloads: Iterable[FileDownload], renewals: int) -> None:
    """Files were downloaded, completely or not."""
    downloads = list(downloads)
    _count("fetched_bytes", sum(each.fetched_bytes for each in downloads), family)
    _count("resumptions", sum(each.resumptions for each in downloads), family)
    _count("url_renewals", renewals, family)


def delivered(family: str, delivery: Delivery) -> None:
    """A delivery succeeded; files that an earlier one stored are not counted again."""
    _count("deliveries", 1, family)
    _count("delivered_files", len(delivery.new_files), family)
    _count("delivered_bytes", sum(file.size for file in delivery.new_files), family)
    _count("delivered_rows", sum(file.rows or 0 for file in delivery.new_files), family)
    _time("delivery", delivery.seconds, family)


def _count(name: str, count: int, family: str) -> None:
    if count:
        _send(Stats.incr, name, count, family)


def _time(name: str, seconds: float, family: str) -> None:
    _send(Stats.timing, name, timedelta(seconds=seconds), family)


def _send(send: Callable[..., Any], name: str, value: int | timedelta, family: str) -> None:
    try:
        send(f"sendgrid.{name}", value, tags={"family": str(getattr(family, "value", family))})
    except Exception as error:  # noqa: BLE001 - a metrics backend must not fail an export
        log.warning("The metric sendgrid.%s could not be sent: %s", name, type(error).__name__)
