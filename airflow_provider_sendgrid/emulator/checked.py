"""Values from outside into frozen dataclasses: names and types are checked, nothing is coerced.

Knows dataclasses and JSON's types. Must not know whose values they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Value = TypeVar("Value", bound=DataclassInstance)

_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "float": (int, float),
    "float | None": (int, float, type(None)),
    "int": (int,),
    "int | None": (int, type(None)),
    "str": (str,),
    "Family": (str,),
    "bool": (bool,),
    "tuple[str, ...]": (list, tuple),
}


def replace_checked(value: Value, changes: Mapping[str, Any]) -> Value:
    """Return a dataclass with some fields replaced; a JSON array becomes a tuple.

    Raises:
        ValueError: for a field that does not exist, or a value of the wrong type.
    """
    kinds = {each.name: str(each.type) for each in fields(value)}
    for name, change in changes.items():
        if name not in kinds:
            raise ValueError(f"there is no {name!r}; there are {', '.join(kinds)}")
        if not _is_a(change, kinds[name]):
            raise ValueError(f"{name} must be {kinds[name]}, not {change!r}")
    frozen: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in changes.items()}
    return replace(value, **frozen)


def _is_a(value: object, kind: str) -> bool:
    """Tell whether a value fits a field; true and false are no numbers."""
    return isinstance(value, _TYPES[kind]) and (isinstance(value, bool) == (kind == "bool"))
