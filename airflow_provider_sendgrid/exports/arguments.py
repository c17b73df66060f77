"""Arguments of hooks and operators, which templates and XComs may have rendered."""

from __future__ import annotations

from typing import Any


def parse_conn_id(value: Any) -> str:
    """The id of an Airflow connection in a template's or an XCom's value.

    Raises:
        ValueError: it is empty, or not a text.
    """
    is_text = isinstance(value, str | int) and not isinstance(value, bool)  # native rendering turns digits into ints
    if not is_text or str(value).strip().lower() in ("", "none", "null"):
        raise ValueError(f"sendgrid_conn_id must be the id of an Airflow connection, a text, not {value!r}.")
    return str(value)


def require_bool(name: str, value: Any) -> bool:
    """`value`, if it is True or False: the text "False" must not count as true.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}.")
    return value


def parse_megabytes(name: str, value: Any) -> int:
    """A size in MB.

    Raises:
        ValueError: it is not a whole number, 1 or more.
    """
    try:
        number = int(str(value))  # as text, because 1.5 and True are not sizes
    except ValueError:
        number = 0
    if number < 1:
        raise ValueError(f"{name} must be a whole number of MB, 1 or more, not {value!r}.")
    return number
