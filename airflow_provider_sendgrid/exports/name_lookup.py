"""Finds the ids of lists and segments by name: an exact match, or an error that helps to correct the name.

Like `protocol`, it knows no sockets and no clocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from airflow_provider_sendgrid.exceptions import (
    SendGridBadRequestError,
    SendGridError,
    SendGridNotFoundError,
    SendGridServerError,
)
from airflow_provider_sendgrid.exports.export import ExportFamily
from airflow_provider_sendgrid.exports.protocol import (
    DEFAULT_RETRY_POLICY,
    Flow,
    RetryPolicy,
    get_first_segments,
    get_segments,
)

# Refusals that mean "this account has no such API", if the other API responds.
_NO_SUCH_API = (400, 403, 404, 405, 410)


def ids_of_segments(
    family: ExportFamily, names: Sequence[str], retry_policy: RetryPolicy = DEFAULT_RETRY_POLICY
) -> Flow[list[str | int]]:
    """The id of each segment, from the segments API 2.0 and the first segments API.

    Both are always read, to detect a name that exists in both.

    Raises:
        SendGridNotFoundError: no segment has this name; mentions if the segments of the first API could not be read.
        SendGridBadRequestError: several segments have this name; lists their ids.
        SendGridError: the segments could not be fetched.
    """
    if not names:
        return []
    segments = yield from get_segments(family, retry_policy)
    unread: SendGridError | None = None
    try:
        segments += yield from get_first_segments(family, retry_policy)
    except SendGridError as error:
        if error.status_code not in _NO_SUCH_API:
            raise
        unread = error
    by_id = {str(segment["id"]): segment for segment in segments}
    try:
        return ids_of_names("segment", names, by_id.values())
    except SendGridNotFoundError as error:
        if unread is None:
            raise
        raise SendGridNotFoundError(
            f"{error} Segments of the first API could not be read: {unread}", status_code=unread.status_code
        ) from None


def ids_of_names(kind: str, names: Sequence[str], items: Iterable[Mapping[str, Any]]) -> list[str | int]:
    """The id of each name, in the order of the names.

    Args:
        kind: ``list`` or ``segment``, for messages.
        names: exactly as in SendGrid.
        items: all lists, or all segments, as SendGrid describes them.

    Raises:
        SendGridNotFoundError: none has this name; lists similar names.
        SendGridBadRequestError: several have this name; lists their ids.
        SendGridServerError: none has this name, but some have no name.
        TypeError: a name is not a text.
    """
    ids: dict[str, list[str | int]] = {}
    nameless = 0
    for item in items:
        if not isinstance(name := item.get("name"), str):
            nameless += 1
        elif item.get("id") is not None:
            ids.setdefault(name, []).append(item["id"])
    return [_only_id(kind, _as_text(kind, name), ids, nameless) for name in names]


def _as_text(kind: str, name: Any) -> str:
    # Native rendering turns a name of digits into an integer.
    if isinstance(name, str | int) and not isinstance(name, bool):
        return str(name)
    raise TypeError(f"{kind}_names must hold names, not {name!r}.")


def _only_id(kind: str, name: str, ids: Mapping[str, Sequence[str | int]], nameless: int) -> str | int:
    found = ids.get(name, ())
    if len(found) == 1:
        return found[0]
    if found:
        raise SendGridBadRequestError(
            f"{len(found)} {kind}s are named {name!r}: {', '.join(map(str, found))}. Pass the id of the right one "
            f"in {kind}_ids."
        )
    if nameless:
        raise SendGridServerError(
            f"No {kind} is named {name!r}, but SendGrid sent {nameless} {kind}s without a name. Run the task again, or "
            f"use {kind}_ids."
        )
    folded = {other.strip().casefold(): other for other in ids}
    near = [folded[other] for other in get_close_matches(name.strip().casefold(), list(folded), n=3, cutoff=0.5)]
    hint = f"Similar names: {', '.join(map(repr, near))}." if near else f"No similar name among {len(ids)} {kind}s."
    raise SendGridNotFoundError(f"No {kind} is named {name!r}. {hint}")
