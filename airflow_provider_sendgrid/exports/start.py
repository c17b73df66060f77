"""Starting an export exactly once, although responses get lost, workers die and tasks are retried.

SendGrid has no idempotency key. After a lost response only its list of exports shows whether the start was accepted. An
export can be ours only if it has the same lists and segments, was not listed before the first POST (`Baseline`), was
not created before it in SendGrid's time, and is not the export of another task. If several exports or several tasks
remain, the flow waits and looks again, because other tasks announce the ids that they get. If that does not help, it
raises `ExportInDoubtError`.

Like `protocol`, these are generators that know no sockets and no clocks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from enum import Enum
from urllib.parse import urlsplit

from airflow_provider_sendgrid.exceptions import (
    ExportInDoubtError,
    SendGridError,
    SendGridNotFoundError,
    SendGridPermissionError,
    SendGridServerError,
)
from airflow_provider_sendgrid.exports.export import FAILURE, ContactExport, ExportFamily, ExportSelection
from airflow_provider_sendgrid.exports.protocol import (
    START_RETRY_POLICY,
    Flow,
    Response,
    RetryPolicy,
    T,
    get_export,
    is_refusal,
    list_exports,
    parse_date,
    start_export,
    time_at_sendgrid,
)

_STARTS = 3
# Waits before each look at the list: SendGrid may be carrying the start out still, a new export may take a moment to be
# listed, and other tasks need a moment to announce the ids of theirs. A retry looks at once.
_LOOKS_AFTER_SECONDS = (2.0, 5.0, 10.0, 20.0, 40.0, 60.0)
_LOOKS_OF_A_RETRY = (0.0, 5.0, 12.0, 20.0, 40.0)
# Waits before each look at the export that an earlier try got, while another task may take it.
_LOOKS_AT_A_KNOWN_ONE = (0.0, 2.0, 5.0, 10.0)
# Further looks while it is in doubt which export belongs to which task.
_LOOKS_IN_DOUBT = (20.0, 40.0, 60.0, 60.0, 60.0)


class Clock(str, Enum):
    """Whose clock `Attempt.since` was read from."""

    SENDGRID = "sendgrid"
    WORKER = "worker"
    RUN = "run"


# How much earlier than `since` an export of this start may seem to be, by clock, in seconds: SendGrid's times are whole
# seconds, and its machines may differ a little; clocks of different machines may be minutes apart. One that seems to be
# even earlier leaves a doubt if it was not listed before the start.
_ROUNDING_SECONDS = 2.0
_MARGIN_SECONDS = {Clock.SENDGRID: 30.0, Clock.WORKER: 600.0 + _ROUNDING_SECONDS, Clock.RUN: 600.0 + _ROUNDING_SECONDS}


@dataclass(frozen=True, slots=True)
class PendingStart:
    """Another task that is starting an export of the same lists and segments, and does not know its id yet.

    Attributes:
        name: of the task.
        since: SendGrid's time before its first POST, in seconds since the epoch; None where it is not known.
        file_type: of its export; empty where it is not known.
    """

    name: str
    since: float | None = None
    file_type: str = ""

    def may_own(self, export: ContactExport) -> bool:
        """Whether `export` may be the one that this task starts."""
        is_too_old = self.since is not None and _created(export) < self.since - _MARGIN_SECONDS[Clock.SENDGRID]
        return not is_too_old and (not self.file_type or _file_types(export) <= {self.file_type})


@dataclass(frozen=True, slots=True)
class ConcurrentStarts:
    """What is known of concurrent starts in other tasks.

    Attributes:
        ids: exports that belong to other tasks.
        starting: tasks that are starting an export of the same lists and segments.
        file_types: of all exports of the same lists and segments that other tasks started, or are starting.
        are_all: whether all other tasks could be read.
    """

    ids: Collection[str] = ()
    starting: Sequence[PendingStart] = ()
    file_types: Collection[str] = ()
    are_all: bool = True


@dataclass(frozen=True, slots=True)
class Baseline:
    """SendGrid's time and exports before the first POST of a start.

    Attributes:
        since: seconds since the epoch.
        clock: SendGrid's; the worker's if SendGrid sent no time.
        known_ids: exports of the same lists and segments that existed before; None if they could not be listed.
    """

    since: float
    clock: Clock
    known_ids: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Attempt:
    """What is known of this start and of earlier tries.

    Attributes:
        since: the start began at this time or later, in seconds since the epoch.
        is_retry: an earlier try may have started the export.
        concurrent_starts: reads the announcements of other tasks; called each time an export was found.
        clock: whose clock `since` is from.
        known_ids: exports of the same lists and segments that existed before the first try; before it, those that its
            baseline may lack. None if unknown. Then, and with `Clock.RUN`, an export that is older than `since`, if
            only within the margin, leaves a doubt.
        export_id: the export that an earlier try got. It is kept if it is usable.
        save_baseline: is called with the baseline before the first POST; without it no baseline is read.
    """

    since: float
    is_retry: bool = False
    concurrent_starts: Callable[[], ConcurrentStarts] = ConcurrentStarts
    clock: Clock = Clock.WORKER
    known_ids: Collection[str] | None = ()
    export_id: str = ""
    save_baseline: Callable[[Baseline], None] | None = None

    @property
    def has_baseline(self) -> bool:
        """Whether `known_ids` are all that existed before."""
        return (
            self.known_ids is not None
            and self.clock is not Clock.RUN
            and (self.is_retry or self.save_baseline is not None)
        )


def start_export_once(
    family: ExportFamily,
    selection: ExportSelection,
    attempt: Attempt,
    retry_policy: RetryPolicy = START_RETRY_POLICY,
) -> Flow[tuple[str, bool]]:
    """The id of the export, and whether it was found rather than started.

    Raises:
        ExportInDoubtError: several exports, or several tasks, remain.
        SendGridError: it could not be started. Unless ``may_have_been_accepted`` is set, neither this try nor an
            earlier one started an export.
        ValueError: an argument is wrong.
    """
    selection.to_payload(family)
    try:
        if attempt.export_id and (yield from _is_still_ours(family, attempt, retry_policy)):
            return attempt.export_id, True
        if attempt.is_retry:
            found = yield from _search(family, selection, attempt, retry_policy, _LOOKS_OF_A_RETRY, "")
            if found is not None:
                return found.id, True
    except SendGridError as error:
        error.may_have_been_accepted = True  # by an earlier try
        raise
    if attempt.save_baseline is not None and not attempt.is_retry:
        try:
            baseline = yield from read_baseline(family, selection, retry_policy)
        except (SendGridPermissionError, SendGridNotFoundError) as error:
            if error.is_of_proxy:
                raise
            # A key may start exports and not list them. A lost response then ends the try with its error.
            baseline = Baseline(attempt.since, Clock.WORKER, None)
        attempt.save_baseline(baseline)
        # The list may lag behind and lack what this task started before.
        known = None if baseline.known_ids is None else (*baseline.known_ids, *(attempt.known_ids or ()))
        attempt = replace(attempt, since=baseline.since, clock=baseline.clock, known_ids=known)
    return (yield from _start(family, selection, attempt, retry_policy))


def _start(
    family: ExportFamily, selection: ExportSelection, attempt: Attempt, retry_policy: RetryPolicy
) -> Flow[tuple[str, bool]]:
    """POST; after a lost response look for the export; POST again only if there is none."""
    lost: SendGridError | None = None
    for starts_left in reversed(range(_STARTS)):
        try:
            return (yield from start_export(family, selection, retry_policy)), False
        except SendGridError as error:
            if not error.may_have_been_accepted:
                # SendGrid may carry out an earlier POST late.
                error.may_have_been_accepted = lost is not None
                raise
            lost = error
        try:
            found = yield from _search(family, selection, attempt, retry_policy, _LOOKS_AFTER_SECONDS, str(lost))
        except ExportInDoubtError:
            raise
        except SendGridError:
            raise lost from None  # unknown for now; the next try of the task looks again
        if found is not None:
            return found.id, True
        if is_refusal(lost.status_code):  # a proxy's: it refused the request, not the response
            lost.may_have_been_accepted = starts_left < _STARTS - 1
            raise lost
        if not starts_left:
            raise lost
    raise RuntimeError("a loop that returns or raises has ended")


def read_baseline(
    family: ExportFamily, selection: ExportSelection, retry_policy: RetryPolicy = START_RETRY_POLICY
) -> Flow[Baseline]:
    """Read SendGrid's time, and the exports that exist before a start."""
    listed, responses = yield from _with_responses(list_exports(family, retry_policy))
    first = responses[0]  # what is created while further pages are read is not in the list
    clock = Clock.SENDGRID if parse_date(first) else Clock.WORKER
    known = tuple(export.id for export in listed if _is_of(export, selection))
    # A list that a proxy kept lacks what was created since.
    return Baseline(time_at_sendgrid(first).timestamp() + _age_seconds(first), clock, known)


def _search(
    family: ExportFamily,
    selection: ExportSelection,
    attempt: Attempt,
    retry_policy: RetryPolicy,
    looks_after_seconds: Sequence[float],
    reason: str,
) -> Flow[ContactExport | None]:
    """Look until the export is found; go on for some minutes while there is a doubt."""
    doubt: ExportInDoubtError | _OldListError | None = None
    for look, seconds in enumerate((*looks_after_seconds, *_LOOKS_IN_DOUBT)):
        if look >= len(looks_after_seconds) and doubt is None:
            return None
        try:
            found = yield from find_started(family, selection, attempt, retry_policy, seconds, str(doubt or reason))
        except (ExportInDoubtError, _OldListError) as error:
            doubt = error
            continue
        if found is not None:
            return found
        doubt = None
    if doubt is not None:
        raise doubt
    return None


def find_started(
    family: ExportFamily,
    selection: ExportSelection,
    attempt: Attempt,
    retry_policy: RetryPolicy = START_RETRY_POLICY,
    delay_seconds: float = 0.0,
    reason: str = "",
) -> Flow[ContactExport | None]:
    """The one export that this start may have begun; None if there is none.

    Args:
        family: of the export.
        selection: what it exports.
        attempt: what is known of the start.
        retry_policy: see `RetryPolicy`.
        delay_seconds: how long to wait before the list is requested.
        reason: why, for the log.

    Raises:
        ExportInDoubtError: several exports remain, or another task may own the one that remains.
    """
    listed, responses = yield from _with_responses(list_exports(family, retry_policy), delay_seconds, reason)
    last = responses[-1]
    since = _since_at_sendgrid(attempt, last)
    earliest = since.timestamp() - _margin_seconds(attempt, last)
    known = _texts(attempt.known_ids or ())
    candidates = [
        export
        for export in listed
        if _is_of(export, selection) and _file_types(export) <= {selection.file_type} and export.status != FAILURE
    ]
    candidates = [export for export in candidates if not _texts([export.id]) <= known]
    if not attempt.has_baseline:
        candidates = [export for export in candidates if _created(export) >= earliest]
        # The later of both: the worker's clock may be ahead of the scheduler's, or the scheduler's behind SendGrid's.
        surely_since = max(since.timestamp(), attempt.since if attempt.clock is Clock.RUN else 0) - _ROUNDING_SECONDS
    else:
        surely_since = earliest
    found = [export for export in candidates if _created(export) < surely_since or not _is_expired(export, last)]
    concurrent = (
        attempt.concurrent_starts() if found else ConcurrentStarts()
    )  # after the list: it shows only what was announced before
    found = [export for export in found if not _texts([export.id]) <= _texts(concurrent.ids)]
    if not found:
        _refuse_old(responses[0], family, attempt)
        return None
    owners = [other.name for other in concurrent.starting if any(other.may_own(export) for export in found)]
    is_too_early = _created(found[0]) < surely_since
    is_of_unknown_type = not _file_types(found[0]) and not {*concurrent.file_types} <= {selection.file_type}
    is_of_unknown_selection = not found[0].is_selection_known
    is_unclear = owners or is_too_early or is_of_unknown_type or is_of_unknown_selection or not concurrent.are_all
    if len(found) > 1 or is_unclear:
        raise _doubt(family, found, owners, since)
    return found[0]


class _OldListError(SendGridServerError):
    """A list from before the start: it proves nothing."""


def _refuse_old(response: Response, family: ExportFamily, attempt: Attempt) -> None:
    """Refuse a list that a proxy kept: its ``Age`` says so, or it was sent before the start began, in SendGrid's time.

    Raises:
        _OldListError: it proves nothing.
    """
    date = parse_date(response)
    is_before = attempt.clock is Clock.SENDGRID and date is not None and date.timestamp() < attempt.since
    if is_before or _age_seconds(response) > 0:
        raise _OldListError(
            f"list of {family.value} exports: a proxy answered with a copy from before the start. Exclude SendGrid's "
            "API from its cache.",
            may_have_been_accepted=True,
        )


def _age_seconds(response: Response) -> int:
    """For how long a proxy has kept it."""
    age = response.headers.get("age", "").strip()
    return int(age) if re.fullmatch("[0-9]{1,8}", age) else 0


def _is_still_ours(family: ExportFamily, attempt: Attempt, retry_policy: RetryPolicy) -> Flow[bool]:
    """Whether the export that an earlier try got is usable, and no other task took it.

    Airflow deletes a task's announcement when it is retried. Until this try announced the id again, another task whose
    response was lost could take the export.
    """
    for seconds in _LOOKS_AT_A_KNOWN_ONE:
        reason = "another task may have taken it" * bool(seconds)
        try:
            flow = get_export(family, attempt.export_id, retry_policy)
            export, responses = yield from _with_responses(flow, seconds, reason)
        except SendGridNotFoundError:
            # A proxy may have sent the 404, or a machine of SendGrid's that lags behind: the list decides.
            listed, responses = yield from _with_responses(list_exports(family, retry_policy))
            same = [each for each in listed if _texts([each.id]) == _texts([attempt.export_id])]
            if not same:
                _refuse_old(responses[0], family, attempt)
                return False
            export = same[0]
        if export.status == FAILURE or _is_expired(export, responses[-1]):
            return False
        concurrent = attempt.concurrent_starts()
        if _texts([export.id]) <= _texts(concurrent.ids):
            return False
        if not any(other.may_own(export) for other in concurrent.starting):
            return True
    return True


def _doubt(
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


def _is_of(export: ContactExport, selection: ExportSelection) -> bool:
    """Whether it has the same lists and segments; an export of lists is never one of all contacts."""
    if not selection.list_ids and not selection.segment_ids and export.export_type in ("list_export", "segment_export"):
        return False
    is_known = export.is_selection_known  # else it may be, and `find_started` raises a doubt
    wanted = ((export.list_ids, selection.list_ids), (export.segment_ids, selection.segment_ids))
    return all(_texts(ids) == _texts(own) for ids, own in wanted if is_known or ids)


def _texts(ids: Collection[str | int]) -> set[str]:
    return {str(item).strip().lower() for item in ids}


def _file_types(export: ContactExport) -> set[str]:
    """The types that its files' names show; empty before it is ready."""
    names = [urlsplit(url).path.rpartition("/")[2].lower() for url in export.urls]
    return {kind for name in names for kind in ("csv", "json") if f".{kind}" in name}


def _created(export: ContactExport) -> float:
    return export.created_at.timestamp() if export.created_at else float("inf")


def _is_expired(export: ContactExport, response: Response) -> bool:
    """Whether its files are gone for sure, by SendGrid's clock and the worker's: else another would be started."""
    clocks = parse_date(response), datetime.fromtimestamp(response.received_at, tz=timezone.utc)
    return all(now is not None and export.is_expired_at(now) for now in clocks)


def _margin_seconds(attempt: Attempt, response: Response) -> float:
    """How much earlier than `attempt.since` its export may seem to be."""
    is_clock_known = attempt.clock is Clock.WORKER and not attempt.is_retry and parse_date(response)
    is_exact = is_clock_known and not attempt.has_baseline
    return _ROUNDING_SECONDS if is_exact else _MARGIN_SECONDS[attempt.clock]


def _since_at_sendgrid(attempt: Attempt, response: Response) -> datetime:
    """`attempt.since` by SendGrid's clock: as long ago as it is by the worker's."""
    since = datetime.fromtimestamp(attempt.since, tz=timezone.utc)
    if attempt.clock is Clock.SENDGRID:
        return since
    received_at = datetime.fromtimestamp(response.received_at, tz=timezone.utc)
    return since + (time_at_sendgrid(response) - received_at)


def _with_responses(flow: Flow[T], delay_seconds: float = 0.0, reason: str = "") -> Flow[tuple[T, list[Response]]]:
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
