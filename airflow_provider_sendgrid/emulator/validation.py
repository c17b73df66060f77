"""Replaces fields of frozen dataclasses by external values: checks names and types, coerces nothing.

Knows dataclasses and JSON's types. Must not know particular dataclasses.
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
    types = {each.name: str(each.type) for each in fields(value)}
    for name, change in changes.items():
        if name not in types:
            raise ValueError(f"there is no {name!r}; there are {', '.join(types)}")
        if not _has_type(change, types[name]):
            raise ValueError(f"{name} must be {types[name]}, not {change!r}")
    frozen: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in changes.items()}
    return replace(value, **frozen)


def _has_type(value: object, type_name: str) -> bool:
    """Return whether a value fits a field; a boolean is not a number."""
    return isinstance(value, _TYPES[type_name]) and (isinstance(value, bool) == (type_name == "bool"))
