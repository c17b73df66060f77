"""Arguments of hooks and operators, as templates and XComs render them."""

from __future__ import annotations

from typing import Any


def parse_conn_id(value: Any) -> str:
    """`value`, as a template or an XCom rendered it, as the id of an Airflow connection.

    Raises:
        ValueError: it is none.
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
