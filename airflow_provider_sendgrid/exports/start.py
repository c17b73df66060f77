"""Starting an export once, although answers get lost, workers die and tasks are tried again.

SendGrid knows no idempotency key: whether a lost start went through, only the list of exports tells. An export that was
begun since, of the same lists and segments, is the one; two of them are a doubt, which is said and never guessed.

Like `protocol`, generators that know no socket and no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from airflow_provider_sendgrid.exceptions import ExportInDoubtError, SendGridError
from airflow_provider_sendgrid.exports.export import FAILURE, ContactExport, ExportFamily, ExportSelection
from airflow_provider_sendgrid.exports.protocol import (
    START_PATIENCE,
    Conversation,
    Patience,
    Reply,
    list_exports,
    start_export,
)

_STARTS = 3
# How long after a lost answer, and after one another, the list is looked at: an export may take a moment to be listed,
# and other tasks a moment to tell which one is theirs.
_LOOKS_AFTER_SECONDS = (2.0, 5.0, 10.0)
_LOOKS_OF_A_RETRY = (0.0, 2.0, 5.0)
# SendGrid's times are whole seconds.
_ROUNDING_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Rivals:
    """What other tasks are known to do that may start the same export.

    Attributes:
        ids: of the exports that they have started.
        starting: names of those that are starting the same export, and do not know its id yet.
    """

    ids: Collection[str] = ()
    starting: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Attempt:
    """What is known of earlier tries to start the same export.

    Attributes:
        since: when the first of them began, in seconds since the epoch by our clock.
        is_retry: whether there was one before this.
        rivals: asks what others do; called only where that matters, and each time anew.
    """

    since: float
    is_retry: bool = False
    rivals: Callable[[], Rivals] = Rivals


def start_export_once(
    family: ExportFamily,
    selection: ExportSelection,
    attempt: Attempt,
    patience: Patience = START_PATIENCE,
) -> Conversation[tuple[str, bool]]:
    """The id of the export, and whether it was found rather than started.

    Raises:
        ExportInDoubtError: there are several that may be the one.
        SendGridError: it could not be started.
        ValueError: an argument cannot be right.
    """
    selection.to_payload(family)
    if attempt.is_retry:
        found = yield from _look_again_and_again(family, selection, attempt, patience, _LOOKS_OF_A_RETRY, "")
        if found is not None:
            return found.id, True
    for starts_left in reversed(range(_STARTS)):
        try:
            return (yield from start_export(family, selection, patience)), False
        except SendGridError as error:
            if not error.may_have_been_accepted:
                raise
            lost = error
        try:
            found = yield from _look_again_and_again(
                family, selection, attempt, patience, _LOOKS_AFTER_SECONDS, str(lost)
            )
        except ExportInDoubtError:
            raise
        except SendGridError:
            raise lost from None  # nobody can tell now; the next try of the task looks again
        if found is not None:
            return found.id, True
        if not starts_left:
            raise lost
    raise RuntimeError("a loop that returns or raises has ended")


def _look_again_and_again(
    family: ExportFamily,
    selection: ExportSelection,
    attempt: Attempt,
    patience: Patience,
    looks_after_seconds: Sequence[float],
    because: str,
) -> Conversation[ContactExport | None]:
    """Look until the export is found; a doubt counts only if the last look still leaves it."""
    doubt: ExportInDoubtError | None = None
    for seconds in looks_after_seconds:
        try:
            found = yield from find_started(family, selection, attempt, patience, seconds, str(doubt or because))
        except ExportInDoubtError as error:
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
    patience: Patience = START_PATIENCE,
    after_seconds: float = 0.0,
    because: str = "",
) -> Conversation[ContactExport | None]:
    """The one export that an earlier try may have started; None where there is none.

    Args:
        family: of the export.
        selection: what it exports.
        attempt: what is known of earlier tries.
        patience: see `Patience`.
        after_seconds: how long to wait before the list is asked for.
        because: why, for the log.

    Raises:
        ExportInDoubtError: there are several.
    """
    replies: list[Reply] = []
    listed = yield from _carried_on(list_exports(family, patience), after_seconds, because, replies)
    ahead_seconds = _clock_difference(replies[-1]) if replies else 0.0
    not_before = datetime.fromtimestamp(attempt.since + ahead_seconds - _ROUNDING_SECONDS, tz=timezone.utc)
    now = datetime.fromtimestamp(replies[-1].received_at + ahead_seconds, tz=timezone.utc) if replies else not_before
    found = [
        export
        for export in listed
        if _is_of(export, selection)
        and export.created_at is not None
        and export.created_at >= not_before
        and export.status != FAILURE
        and not export.is_expired_at(now)
    ]
    if not found:
        return None
    rivals = attempt.rivals()
    found = [export for export in found if export.id not in rivals.ids]
    is_unclear = any(not export.is_selection_known for export in found)
    if len(found) > 1 or (found and rivals.starting) or is_unclear:
        raise _doubt(family, found, rivals, attempt)
    return found[0] if found else None


def _doubt(
    family: ExportFamily, found: Sequence[ContactExport], rivals: Rivals, attempt: Attempt
) -> ExportInDoubtError:
    since = datetime.fromtimestamp(attempt.since, tz=timezone.utc).isoformat(timespec="seconds")
    others = f" So may that of {', '.join(rivals.starting)}." if rivals.starting else ""
    return ExportInDoubtError(
        f"start of a {family.value} export: its answer was lost; begun since {since} of the same lists and segments: "
        f"{', '.join(export.id for export in found)}. One of them may be this task's export, nobody can tell.{others} "
        "Use the one you want in the tasks that follow, or set durable=False and run the task again to start another."
    )


def _is_of(export: ContactExport, selection: ExportSelection) -> bool:
    """Whether it is of the same lists, segments and, where its files tell, of the same type."""
    if not export.is_selection_known:
        return True  # it may be; `find_started` raises a doubt
    types = {kind for url in export.urls for kind in ("csv", "json") if f".{kind}" in urlsplit(url).path.lower()}
    return (
        set(export.list_ids) == {str(item) for item in selection.list_ids}
        and set(export.segment_ids) == {str(item) for item in selection.segment_ids}
        and types <= {selection.file_type}
    )


def _clock_difference(reply: Reply) -> float:
    """How far SendGrid's clock is ahead of ours, in seconds; 0 where it does not say."""
    try:
        return parsedate_to_datetime(reply.headers.get("date", "")).timestamp() - reply.received_at
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _carried_on(
    conversation: Conversation[list[ContactExport]], after_seconds: float, because: str, replies: list[Reply]
) -> Conversation[list[ContactExport]]:
    """Carry a conversation on after a wait, and keep its replies."""
    try:
        request = replace(next(conversation), after_seconds=after_seconds, because=because)
        while True:
            try:
                reply = yield request
            except SendGridError as error:
                request = conversation.throw(error)
            else:
                replies.append(reply)
                request = conversation.send(reply)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
