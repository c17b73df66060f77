"""Parses the arguments that select lists and segments, as templates and XComs render them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# What templates render where there is no value; compared in lower case and without blanks.
_EMPTY_TEXTS = frozenset({"", "none", "null", "[]", "()", "{}", "set()"})


def is_empty(value: Any) -> bool:
    """Whether a rendered value holds nothing."""
    if isinstance(value, str | bytes):
        text = value if isinstance(value, str) else value.decode(errors="replace")
        return "".join(text.split()).lower() in _EMPTY_TEXTS
    return value is None or (hasattr(value, "__len__") and len(value) == 0)


def parse_items(name: str, value: Any) -> list[Any]:
    """Parse a rendered list of ids or names.

    Raises:
        ValueError: the list or an entry is empty. Neither may select all contacts, or fewer lists than intended.
        TypeError: the value is not a list, or an entry is neither a string nor an integer.
    """
    is_list = isinstance(value, Iterable) and not isinstance(value, str | bytes | bytearray | memoryview | Mapping)
    items = list(value) if is_list else []
    if is_empty(value) or (is_list and not items):
        raise ValueError(
            f"{name} was passed, but rendered to nothing ({value!r}); nothing was exported. Pass at least one, skip "
            f"the task when there is none, or leave {name} out to export all contacts."
        )
    if not is_list:
        raise TypeError(
            f"{name} must be a list, not {value!r}. A template gives a list with render_template_as_native_obj=True, "
            "or pass the output of the task that returns one."
        )
    for item in items:
        if is_empty(item):
            raise ValueError(f"{name} contains an empty entry ({item!r} in {items!r}); nothing was exported.")
        if isinstance(item, bool) or not isinstance(item, str | int):
            raise TypeError(f"{name} must hold strings or numbers, not {item!r}.")
    # Ids have no blanks around them. Names may.
    return [str(item) if name.endswith("names") else item.strip() if isinstance(item, str) else item for item in items]


def unique_ids(ids: Iterable[str | int]) -> list[str | int]:
    """Each id once, at its first position; 7 and "7" are the same id."""
    return list({str(item): item for item in reversed(list(ids))}.values())[::-1]
