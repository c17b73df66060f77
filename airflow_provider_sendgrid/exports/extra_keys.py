"""Checks the keys in a connection's extra: a misspelled key could export another account or region.

Knows the names of settings and how people misspell them. `connection` knows their values.
"""

from __future__ import annotations

import difflib
import json
import logging
import re
import unicodedata
from collections.abc import Mapping
from functools import cache
from typing import Any

from airflow_provider_sendgrid.exceptions import redact
from airflow_provider_sendgrid.exports.hosts import API_HOSTS

log = logging.getLogger(__name__)

API_KEY_FIELD = "the field 'API key' (password)"
_HOST_FIELD = "the field 'API host'"
_KEYS = ("region", "on_behalf_of", "timeout", "verify", "proxy")
_KEYS_THEMSELVES = f"its keys at the top level of extra ({', '.join(_KEYS)})"
# Which setting an unknown key means if it contains one of these, in lower case without separators; first match wins.
_SETTING_BY_PART = {
    **dict.fromkeys(("behalf", "subuser", "account", "impersonat", "actingas", "username", "teammate"), "on_behalf_of"),
    **dict.fromkeys(("region", "residency", "datacent", "europe", "country"), "region"),
    **dict.fromkeys(("timeout",), "timeout"),
    **dict.fromkeys(("verif", "certif", "cabundle", "cafile", "cacert", "capath", "insecure"), "verify"),
    **dict.fromkeys(("proxy", "proxies"), "proxy"),
    **dict.fromkeys(("host", "baseurl", "apiurl", "endpoint"), _HOST_FIELD),
    **dict.fromkeys(("apikey", "password", "token", "secret", "bearer"), API_KEY_FIELD),
}
# Only as whole words: these are parts of too many other words.
_SETTING_BY_WORD = {
    **dict.fromkeys(("user", "sub", "obo", "act", "child", "tenant", "parent", "header", "headers"), "on_behalf_of"),
    **dict.fromkeys(("eu", "location", "zone", "geo", "reg", "rgn"), "region"),
    **dict.fromkeys(("ssl", "tls", "ca", "cert"), "verify"),
    **dict.fromkeys(("url", "domain", "server"), _HOST_FIELD),
    **dict.fromkeys(("key",), API_KEY_FIELD),
    **dict.fromkeys(("extra", "extras"), _KEYS_THEMSELVES),
}
# Keys that decide which account is exported, without separators.
_NEVER_NESTED = ("onbehalfof", "subuser")
# Keys with one of these words that mean something else.
_UNRELATED = ("user_agent",)
# The least similarity of two names, and of a name's word, for one to be a misspelling of the other: 0 to 1.
_NAME_SIMILARITY = 0.7
_WORD_SIMILARITY = 0.8


def check_keys(name: str, extra: Mapping[str, Any]) -> None:
    """Refuse misspelled keys, and log the other unknown ones.

    Args:
        name: the connection's id, for messages.
        extra: of the connection, without empty values.

    Raises:
        ValueError: a key resembles a setting, or its value contains one.
    """
    unknown = []
    for key, value in extra.items():
        if key in _KEYS:
            continue
        if setting := _meant_setting(str(key)) or ("region" if _is_region(value) else None):
            raise ValueError(f"Connection {name!r}: extra has the unknown key {key!r}; did you mean {setting}?")
        if nested := _nested_setting(value):
            raise ValueError(
                f"Connection {name!r}: extra has {nested!r} within {key!r}; move it to the top level of extra."
            )
        unknown.append(redact(str(key)))
    if unknown:
        _warn_of_unknown(name, tuple(unknown))


def _nested_setting(value: Any) -> str | None:
    """The key within another key's value that would decide which account or region is exported."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    for key, each in value.items() if isinstance(value, Mapping) else ():
        plain = re.sub(r"[^a-z]", "", str(key).lower())
        if plain in _NEVER_NESTED or (plain == "region" and _is_region(each)):
            return str(key)
    return None


def _is_region(value: Any) -> bool:
    return isinstance(value, str) and value.strip().lower() in API_HOSTS


def _meant_setting(key: str) -> str | None:
    """The setting that a misspelled key resembles; None if it resembles none."""
    text = unicodedata.normalize("NFKD", key.removeprefix("extra__sendgrid__"))
    words = re.findall(r"[a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", text).lower())
    if "_".join(words) in _UNRELATED:
        return None
    plain = "".join(words)
    if not plain:  # letters of another alphabet
        return f"one of {', '.join(_KEYS)}"
    names = {each.replace("_", ""): each for each in _KEYS}
    if near := difflib.get_close_matches(plain, names, n=1, cutoff=_NAME_SIMILARITY):
        return names[near[0]]
    by_part = (setting for part, setting in _SETTING_BY_PART.items() if part in plain)
    by_word = (_SETTING_BY_WORD[word] for word in words if word in _SETTING_BY_WORD)
    by_misspelled_word = (
        _SETTING_BY_PART[near[0]]
        for word in words
        if (near := difflib.get_close_matches(word, _SETTING_BY_PART, n=1, cutoff=_WORD_SIMILARITY))
    )
    return next(by_part, None) or next(by_word, None) or next(by_misspelled_word, None)


@cache
def _warn_of_unknown(name: str, keys: tuple[str, ...]) -> None:
    log.warning(
        "Connection %r: ignoring unknown keys in extra: %s. Known keys: %s.",
        name,
        ", ".join(keys),
        ", ".join(_KEYS),
    )
