"""Starts an export exactly once, although responses are lost, workers are killed and tasks are retried.

SendGrid has no idempotency key. After a lost response only its list of exports shows whether the start was accepted. An
export can belong to this task only if it has the same lists and segments, was not listed before the first POST
(`Baseline`), was not created before it in SendGrid's time, and does not belong to another task. If several exports or
several tasks remain, the flow waits and reads the list again, because other tasks announce their ids. If that does not
help, it raises `ExportInDoubtError`.

Like `protocol`, these are generators that know no sockets and no clocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from airflow_provider_sendgrid.exceptions import (
    ExportInDoubtError,
    SendGridError,
    SendGridNotFoundError,
    SendGridPermissionError,
)
from airflow_provider_sendgrid.exports.export import FAILURE, ContactExport, ExportFamily, ExportSelection
from airflow_provider_sendgrid.exports.protocol import (
    START_RETRY_POLICY,
    Flow,
    RetryPolicy,
    get_export,
    is_refusal,
    list_exports,
    start_export,
)
from airflow_provider_sendgrid.exports.start_attempt import Attempt, Baseline, Clock
from airflow_provider_sendgrid.exports.start_search import (
    StaleListingError,
    find_started,
    is_expired,
    is_one_of,
    read_baseline,
    require_current,
    with_responses,
)

_MAX_STARTS = 3
# Delays before each search of the list, in seconds. SendGrid may still be processing the start, a new export may not be
# listed yet, and other tasks need time to announce their ids. A retry searches immediately.
_SEARCH_DELAYS = (2.0, 5.0, 10.0, 20.0, 40.0, 60.0)
_RETRY_SEARCH_DELAYS = (0.0, 5.0, 12.0, 20.0, 40.0)
# Further searches while it is in doubt which export belongs to which task.
_IN_DOUBT_DELAYS = (20.0, 40.0, 60.0, 60.0, 60.0)
# Delays before each check of the export that an earlier attempt started, while another task may take it.
_KNOWN_EXPORT_DELAYS = (0.0, 2.0, 5.0, 10.0)


def start_export_once(
    family: ExportFamily,
    selection: ExportSelection,
    attempt: Attempt,
    retry_policy: RetryPolicy = START_RETRY_POLICY,
) -> Flow[tuple[str, bool]]:
    """The id of the export, and whether it was found rather than started.

    Raises:
        ExportInDoubtError: several exports, or several tasks, remain.
        SendGridError: it could not be started. Unless ``may_have_been_accepted`` is set, neither this attempt nor an
            earlier one started an export.
        ValueError: an argument is wrong.
    """
    selection.to_payload(family)
    try:
        found_id = yield from _find_earlier(family, selection, attempt, retry_policy)
    except SendGridError as error:
        error.may_have_been_accepted = True  # by an earlier attempt
        raise
    if found_id is not None:
        return found_id, True
    if attempt.save_baseline is not None and not attempt.is_retry:
        baseline = yield from _baseline(family, selection, attempt, retry_policy)
        attempt.save_baseline(baseline)
        # The list may lag behind and lack exports that this task started before.
        known = None if baseline.known_ids is None else (*baseline.known_ids, *(attempt.known_ids or ()))
        attempt = replace(attempt, since=baseline.since, clock=baseline.clock, known_ids=known)
    return (yield from _start(family, selection, attempt, retry_policy))


def _find_earlier(
    family: ExportFamily, selection: ExportSelection, attempt: Attempt, retry_policy: RetryPolicy
) -> Flow[str | None]:
    """The id of the export that an earlier attempt started; None if there is none."""
    if attempt.export_id and (yield from _is_still_ours(family, attempt, retry_policy)):
        return attempt.export_id
    if not attempt.is_retry:
        return None
    found = yield from _search(family, selection, attempt, retry_policy, _RETRY_SEARCH_DELAYS, "")
    return found.id if found else None


def _baseline(
    family: ExportFamily, selection: ExportSelection, attempt: Attempt, retry_policy: RetryPolicy
) -> Flow[Baseline]:
    try:
        return (yield from read_baseline(family, selection, retry_policy))
    except (SendGridPermissionError, SendGridNotFoundError) as error:
        if error.is_of_proxy:
            raise
        # A key may be allowed to start exports and not to list them. A lost response then ends the attempt.
        return Baseline(attempt.since, Clock.WORKER, None)


def _start(
    family: ExportFamily, selection: ExportSelection, attempt: Attempt, retry_policy: RetryPolicy
) -> Flow[tuple[str, bool]]:
    """POST; after a lost response, search for the export; POST again only if there is none."""
    lost: SendGridError | None = None
    for starts_left in reversed(range(_MAX_STARTS)):
        try:
            return (yield from start_export(family, selection, retry_policy)), False
        except SendGridError as error:
            if not error.may_have_been_accepted:
                # SendGrid may process an earlier POST late.
                error.may_have_been_accepted = lost is not None
                raise
            lost = error
        try:
            found = yield from _search(family, selection, attempt, retry_policy, _SEARCH_DELAYS, str(lost))
        except ExportInDoubtError:
            raise
        except SendGridError:
            raise lost from None  # unknown for now; the next attempt of the task searches again
        if found is not None:
            return found.id, True
        if is_refusal(lost.status_code):  # by a proxy, which refused the request and not the response
            lost.may_have_been_accepted = starts_left < _MAX_STARTS - 1
            raise lost
        if not starts_left:
            raise lost
    raise RuntimeError("a loop that returns or raises has ended")


def _search(
    family: ExportFamily,
    selection: ExportSelection,
    attempt: Attempt,
    retry_policy: RetryPolicy,
    delays: Sequence[float],
    reason: str,
) -> Flow[ContactExport | None]:
    """Search until the export is found; for some minutes more while the result is in doubt."""
    doubt: ExportInDoubtError | StaleListingError | None = None
    for number, delay in enumerate((*delays, *_IN_DOUBT_DELAYS)):
        if number >= len(delays) and doubt is None:
            return None
        try:
            found = yield from find_started(family, selection, attempt, retry_policy, delay, str(doubt or reason))
        except (ExportInDoubtError, StaleListingError) as error:
            doubt = error
            continue
        if found is not None:
            return found
        doubt = None
    if doubt is not None:
        raise doubt
    return None


def _is_still_ours(family: ExportFamily, attempt: Attempt, retry_policy: RetryPolicy) -> Flow[bool]:
    """Whether the export that an earlier attempt started is usable, and no other task took it.

    Airflow deletes a task's announcement when the task is retried. Until this attempt has announced the id again,
    another task whose response was lost may take the export.
    """
    for delay in _KNOWN_EXPORT_DELAYS:
        reason = "another task may have taken it" * bool(delay)
        try:
            flow = get_export(family, attempt.export_id, retry_policy)
            export, responses = yield from with_responses(flow, delay, reason)
        except SendGridNotFoundError:
            # The 404 may come from a proxy, or from a machine of SendGrid's that lags behind: the list decides.
            listed, responses = yield from with_responses(list_exports(family, retry_policy))
            same = [each for each in listed if is_one_of(each.id, [attempt.export_id])]
            if not same:
                require_current(responses[0], family, attempt)
                return False
            export = same[0]
        if export.status == FAILURE or is_expired(export, responses[-1]):
            return False
        concurrent = attempt.concurrent_starts()
        if is_one_of(export.id, concurrent.ids):
            return False
        if not any(other.may_own(export) for other in concurrent.starting):
            return True
    return True
