"""Finds the export of a start in SendGrid's list of exports.

Knows which listed exports may belong to a start, and when a listing is too old to prove anything. Like `protocol`, it
knows no sockets and no clocks.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timezone

from airflow_provider_sendgrid.exceptions import ExportInDoubtError, SendGridError, SendGridServerError
from airflow_provider_sendgrid.exports.export import FAILURE, ContactExport, ExportFamily, ExportSelection
from airflow_provider_sendgrid.exports.protocol import (
    START_RETRY_POLICY,
    Flow,
    Response,
    RetryPolicy,
    T,
    list_exports,
    parse_date,
    time_at_sendgrid,
)
from airflow_provider_sendgrid.exports.start_attempt import (
    MARGIN_SECONDS,
    ROUNDING_SECONDS,
    Attempt,
    Baseline,
    Clock,
    ConcurrentStarts,
    created_seconds,
    file_types,
)


class StaleListingError(SendGridServerError):
    """A listing from before the start: it does not prove that an export is missing."""


def read_baseline(
    family: ExportFamily, selection: ExportSelection, retry_policy: RetryPolicy = START_RETRY_POLICY
) -> Flow[Baseline]:
    """Read SendGrid's time and the exports that exist before a start."""
    listed, responses = yield from with_responses(list_exports(family, retry_policy))
    first = responses[0]  # exports created while later pages are read may not be in the list
    clock = Clock.SENDGRID if parse_date(first) else Clock.WORKER
    known = tuple(export.id for export in listed if _has_selection(export, selection))
    # A cached list lacks exports that were created since.
    return Baseline(time_at_sendgrid(first).timestamp() + _cache_age_seconds(first), clock, known)


def find_started(
    family: ExportFamily,
    selection: ExportSelection,
    attempt: Attempt,
    retry_policy: RetryPolicy = START_RETRY_POLICY,
    delay_seconds: float = 0.0,
    reason: str = "",
) -> Flow[ContactExport | None]:
    """The one export that this start may have created; None if there is none.

    Args:
        family: of the export.
        selection: its lists and segments.
        attempt: what is known of the start.
        retry_policy: see `RetryPolicy`.
        delay_seconds: how long to wait before the list is requested.
        reason: of the wait, for the log.

    Raises:
        ExportInDoubtError: several exports remain, or the one that remains may belong to another task.
        StaleListingError: there is none, but the list is a cached copy from before the start.
    """
    listed, responses = yield from with_responses(list_exports(family, retry_policy), delay_seconds, reason)
    first, last = responses[0], responses[-1]
    since = _since_at_sendgrid(attempt, last)
    earliest = since.timestamp() - _margin_seconds(attempt, last)
    certain_from = earliest if attempt.has_baseline else _certain_from(attempt, since)
    found = [
        export
        for export in _candidates(listed, selection, attempt, earliest)
        if created_seconds(export) < certain_from or not is_expired(export, last)
    ]
    # Read after the list, which shows only what was announced before.
    concurrent = attempt.concurrent_starts() if found else ConcurrentStarts()
    found = [export for export in found if not is_one_of(export.id, concurrent.ids)]
    if not found:
        require_current(first, family, attempt)
        return None
    owners = [other.name for other in concurrent.starting if any(other.may_own(export) for export in found)]
    is_certain = len(found) == 1 and not owners and created_seconds(found[0]) >= certain_from
    if not is_certain or not _is_unambiguous(found[0], selection, concurrent):
        raise _in_doubt(family, found, owners, since)
    return found[0]


def _candidates(
    listed: Iterable[ContactExport], selection: ExportSelection, attempt: Attempt, earliest: float
) -> Iterator[ContactExport]:
    """Exports of the same lists, segments and file type that were not known before the start."""
    for export in listed:
        is_same = _has_selection(export, selection) and file_types(export) <= {selection.file_type}
        is_new = not is_one_of(export.id, attempt.known_ids or ())
        # Without a baseline, only the time shows what existed before.
        is_in_time = attempt.has_baseline or created_seconds(export) >= earliest
        if is_same and is_new and is_in_time and export.status != FAILURE:
            yield export


def _is_unambiguous(export: ContactExport, selection: ExportSelection, concurrent: ConcurrentStarts) -> bool:
    """Whether lists, file type and all other tasks are known."""
    is_type_known = bool(file_types(export)) or {*concurrent.file_types} <= {selection.file_type}
    return is_type_known and export.is_selection_known and concurrent.is_complete


def require_current(response: Response, family: ExportFamily, attempt: Attempt) -> None:
    """Refuse a cached list: its ``Age`` header says so, or SendGrid sent it before the start began.

    Raises:
        StaleListingError: the list is from before the start.
    """
    date = parse_date(response)
    is_before = attempt.clock is Clock.SENDGRID and date is not None and date.timestamp() < attempt.since
    if is_before or _cache_age_seconds(response) > 0:
        raise StaleListingError(
            f"list of {family.value} exports: a proxy answered with a copy from before the start. Exclude SendGrid's "
            "API from its cache.",
            may_have_been_accepted=True,
        )


def is_expired(export: ContactExport, response: Response) -> bool:
    """Whether its files are deleted by SendGrid's clock and by the worker's: one clock may be wrong."""
    clocks = parse_date(response), datetime.fromtimestamp(response.received_at, tz=timezone.utc)
    return all(now is not None and export.is_expired_at(now) for now in clocks)


def is_one_of(export_id: str, ids: Collection[str]) -> bool:
    """Whether `export_id` is one of `ids`, in any case."""
    return _normalized([export_id]) <= _normalized(ids)


def with_responses(flow: Flow[T], delay_seconds: float = 0.0, reason: str = "") -> Flow[tuple[T, list[Response]]]:
    """Run a flow after a wait, and keep its responses."""
    responses: list[Response] = []
    try:
        request = replace(next(flow), delay_seconds=delay_seconds, reason=reason)
        while True:
            try:
                response = yield request
            except SendGridError as error:
                request = flow.throw(error)
            else:
                responses.append(response)
                request = flow.send(response)
    except StopIteration as end:
        return end.value, responses


def _in_doubt(
    family: ExportFamily, found: Sequence[ContactExport], owners: Sequence[str], since: datetime
) -> ExportInDoubtError:
    tasks = f" Other tasks that are starting the same: {', '.join(owners)}." if owners else ""
    return ExportInDoubtError(
        f"start of a {family.value} export: its response was lost, and it is not certain which export it started. "
        f"Exports of the same lists and segments since {since.isoformat(timespec='seconds')}: "
        f"{', '.join(export.id for export in found)}.{tasks} Pass the id that you want to the tasks that follow, or "
        "set durable=False and run the task again to start another export.",
        may_have_been_accepted=True,
    )


def _has_selection(export: ContactExport, selection: ExportSelection) -> bool:
    """Whether it has the same lists and segments; an export of lists is never one of all contacts."""
    if not selection.list_ids and not selection.segment_ids and export.export_type in ("list_export", "segment_export"):
        return False
    is_known = export.is_selection_known  # if not, it may have them, and `find_started` raises
    wanted = ((export.list_ids, selection.list_ids), (export.segment_ids, selection.segment_ids))
    return all(_normalized(ids) == _normalized(own) for ids, own in wanted if is_known or ids)


def _normalized(ids: Collection[str | int]) -> set[str]:
    return {str(item).strip().lower() for item in ids}


def _cache_age_seconds(response: Response) -> int:
    age = response.headers.get("age", "").strip()
    return int(age) if re.fullmatch("[0-9]{1,8}", age) else 0


def _margin_seconds(attempt: Attempt, response: Response) -> float:
    """How much earlier than `attempt.since` its export may appear to be."""
    is_clock_known = attempt.clock is Clock.WORKER and not attempt.is_retry and parse_date(response)
    is_exact = is_clock_known and not attempt.has_baseline
    return ROUNDING_SECONDS if is_exact else MARGIN_SECONDS[attempt.clock]


def _certain_from(attempt: Attempt, since: datetime) -> float:
    """Exports that are older leave the start in doubt.

    The later of both times: the worker's clock may be ahead of the scheduler's, or the scheduler's behind SendGrid's.
    """
    return max(since.timestamp(), attempt.since if attempt.clock is Clock.RUN else 0) - ROUNDING_SECONDS


def _since_at_sendgrid(attempt: Attempt, response: Response) -> datetime:
    """`attempt.since` by SendGrid's clock: as long ago as by the worker's."""
    since = datetime.fromtimestamp(attempt.since, tz=timezone.utc)
    if attempt.clock is Clock.SENDGRID:
        return since
    received_at = datetime.fromtimestamp(response.received_at, tz=timezone.utc)
    return since + (time_at_sendgrid(response) - received_at)
