"""Names of lists and segments to their ids: exact, or an error that helps to mend the name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from airflow_provider_sendgrid.exceptions import SendGridBadRequestError, SendGridNotFoundError


def ids_of_names(kind: str, names: Sequence[str], items: Iterable[Mapping[str, Any]]) -> list[str | int]:
    """The id of each name, in the order of the names.

    Args:
        kind: ``list`` or ``segment``, for messages.
        names: as they stand in SendGrid, to the letter.
        items: all lists, or all segments, as SendGrid describes them.

    Raises:
        SendGridNotFoundError: there is none of a name; tells the nearest ones.
        SendGridBadRequestError: several have the same name; tells their ids.
    """
    ids: dict[str, list[str | int]] = {}
    for item in items:
        if item.get("id") is not None:
            ids.setdefault(str(item.get("name")), []).append(item["id"])
    return [_only_id(kind, name, ids) for name in names]


def _only_id(kind: str, name: str, ids: Mapping[str, Sequence[str | int]]) -> str | int:
    found = ids.get(name, ())
    if len(found) == 1:
        return found[0]
    if found:
        raise SendGridBadRequestError(
            f"{len(found)} {kind}s are named {name!r}: {', '.join(map(str, found))}. Name the one you mean by its id, "
            f"in {kind}_ids."
        )
    folded = {other.strip().casefold(): other for other in ids}
    near = [folded[other] for other in get_close_matches(name.strip().casefold(), list(folded), n=3, cutoff=0.5)]
    hint = f"The nearest: {', '.join(map(repr, near))}." if near else f"There are {len(ids)} {kind}s, none near it."
    raise SendGridNotFoundError(f"No {kind} is named {name!r}. {hint}")
