"""Settings of a SendGrid connection: API key, host, subuser, timeout, trust, proxy.

Knows what a SendGrid connection may hold. Knows neither Airflow's classes, nor this machine's environment and files
(see `network`), nor how a request is sent.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import logging
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from urllib.parse import quote

from airflow_provider_sendgrid.exceptions import redact
from airflow_provider_sendgrid.redaction import hide_secret, holds_key

API_HOSTS = {"global": "https://api.sendgrid.com", "eu": "https://api.eu.sendgrid.com"}
DEFAULT_TIMEOUT_SECONDS = 30.0

log = logging.getLogger(__name__)

# No user and no query.
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?(?P<path>/[^?#]*)?"
)
_HOST_NAME = re.compile(
    r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*\.?"
)
_PORTS = {"http": 80, "https": 443}
# Every request's target begins with /v3/, so this path adds nothing.
_PATHS = ("", "/", "/v3", "/v3/")
_PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")
# As JSON, a form, a URI and people write them.
_BOOLEANS = {
    **dict.fromkeys(("true", "1", "yes", "on", "y", "t"), True),
    **dict.fromkeys(("false", "0", "no", "off", "n", "f"), False),
}
# What Airflow's pages show, and its "Test" button sends, instead of a stored secret.
_PLACEHOLDER = re.compile(r"\*{3,}")

# What templates make of nothing, and the form with an id where the id is missing.
_NO_SUBUSER = ("", "none", "null", "account-id", "account-id none", "account-id null")

_EXTRA_KEYS = ("region", "on_behalf_of", "timeout", "verify", "proxy")
_HOST, _KEY = "the field 'API host'", "the field 'API key' (password)"
_OWN_KEYS = f"its keys in extra itself ({', '.join(_EXTRA_KEYS)})"
# What keys with other names mean that contain one of these, in lower case and without separators; first match wins.
_MEANT_BY_PART = {
    **dict.fromkeys(("behalf", "subuser", "account", "impersonat", "actingas", "username", "teammate"), "on_behalf_of"),
    **dict.fromkeys(("region", "residency", "datacent", "europe", "country"), "region"),
    **dict.fromkeys(("timeout",), "timeout"),
    **dict.fromkeys(("verif", "certif", "cabundle", "cafile", "cacert", "capath", "insecure"), "verify"),
    **dict.fromkeys(("proxy", "proxies"), "proxy"),
    **dict.fromkeys(("host", "baseurl", "apiurl", "endpoint"), _HOST),
    **dict.fromkeys(("apikey", "password", "token", "secret", "bearer"), _KEY),
}
# The same by whole words: these are parts of too many others.
_MEANT_BY_WORD = {
    **dict.fromkeys(("user", "sub", "obo", "act", "child", "tenant", "parent", "header", "headers"), "on_behalf_of"),
    **dict.fromkeys(("eu", "location", "zone", "geo", "reg", "rgn"), "region"),
    **dict.fromkeys(("ssl", "tls", "ca", "cert"), "verify"),
    **dict.fromkeys(("url", "domain", "server"), _HOST),
    **dict.fromkeys(("key",), _KEY),
    **dict.fromkeys(("extra", "extras"), _OWN_KEYS),
}
# What decides which account is exported, without separators.
_NEVER_NESTED = ("onbehalfof", "subuser")
# Keys with such a word that are known to mean something else.
_UNRELATED = ("user_agent",)
# How alike two names must be for one to be a misspelling of the other, and a name's word for one: 0 to 1.
_ALIKE = 0.7
_WORD_ALIKE = 0.8
# Characters of a user and a password that only one of the two clients takes for what they are.
_UNENCODED = re.compile(r"[^!-~]|[\[\]\\#?/@]")


@dataclass(frozen=True, slots=True)
class SendGridConnection:
    """Everything a client needs to speak to SendGrid; its repr shows no secret.

    Attributes:
        api_key: sent as ``Authorization: Bearer <api_key>`` to `base_url` and nowhere else.
        base_url: scheme, host and port of the API, without a path.
        on_behalf_of: the subuser to act for (its user name, or ``account-id <id>``), sent in the header
            ``on-behalf-of``.
        timeout_seconds: longest wait for a connection, and for the next bytes of a response.
        verify: False, True, or the path of a file or folder of CA certificates.
        proxy: URL of the proxy for all requests; None follows the environment (``HTTPS_PROXY``, ``NO_PROXY``).
        name: the connection's id, for messages.
    """

    api_key: str = field(repr=False)
    base_url: str = API_HOSTS["global"]
    on_behalf_of: str | None = None
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
    verify: bool | str = True
    proxy: str | None = field(default=None, repr=False)
    name: str = field(default="sendgrid", compare=False)

    @classmethod
    def from_fields(
        cls,
        *,
        name: str,
        password: str | None,
        host: str | None = None,
        port: int | None = None,
        schema: str | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> SendGridConnection:
        """Read the fields of an Airflow connection; empty and null mean absent.

        Args:
            name: the connection's id, for messages.
            password: the API key.
            host: a host name or a full URL; wins over the region, unless they contradict each other.
            port: port of `host`, where the URL names none.
            schema: where Airflow puts the path of a connection's URI; there must be none.
            extra: ``region`` (``global``, ``eu``), ``on_behalf_of``, ``timeout`` (seconds), ``verify``
                (bool, or path of a file or folder of CA certificates) and ``proxy``. A misspelled key is refused; a
                key that resembles none of these is ignored with a warning.

        Raises:
            ValueError: a setting is missing or wrong; names the setting and the right value, without secrets.
        """
        hide_secret((password or "").strip())
        try:
            return cls._parse(name, password, host, port, schema, extra or {})
        except ValueError as error:
            raise ValueError(redact(str(error))) from None

    @classmethod
    def _parse(
        cls,
        name: str,
        password: str | None,
        host: str | None,
        port: int | None,
        schema: str | None,
        extra: Mapping[str, Any],
    ) -> SendGridConnection:
        given = {key: value for key, value in extra.items() if value not in (None, "")}
        _check_keys(name, given)
        region = _region(name, given.get("region"))
        return cls(
            api_key=_api_key(name, password),
            base_url=_base_url(name, host, port, schema, region),
            on_behalf_of=_on_behalf_of(name, given.get("on_behalf_of")),
            timeout_seconds=_seconds(name, given.get("timeout", DEFAULT_TIMEOUT_SECONDS)),
            verify=_verify(name, given.get("verify", True)),
            proxy=_proxy(name, given.get("proxy")),
            name=name,
        )

    @property
    def is_local(self) -> bool:
        """Whether the API is played on this machine, over plain HTTP."""
        return self.base_url.startswith("http://")


def _check_keys(name: str, given: Mapping[str, Any]) -> None:
    """Refuse misspelled keys: ignoring them could export another account's contacts, or from another region."""
    unknown = []
    for key, value in given.items():
        if key in _EXTRA_KEYS:
            continue
        if meant := _meant(str(key)) or ("region" if _names_region(value) else None):
            raise ValueError(f"Connection {name!r}: extra has the unknown key {key!r}; did you mean {meant}?")
        if nested := _nested_setting(value):
            raise ValueError(f"Connection {name!r}: extra has {nested!r} within {key!r}; put it into extra itself.")
        unknown.append(redact(str(key)))
    if unknown:
        _warn_of_unknown(name, tuple(unknown))


def _nested_setting(value: Any) -> str | None:
    """The key within another one's value that would decide which account, or which region, is exported."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    for key, each in value.items() if isinstance(value, Mapping) else ():
        plain = re.sub(r"[^a-z]", "", str(key).lower())
        if plain in _NEVER_NESTED or (plain == "region" and _names_region(each)):
            return str(key)
    return None


def _names_region(value: Any) -> bool:
    return isinstance(value, str) and value.strip().lower() in API_HOSTS


def _meant(key: str) -> str | None:
    """The setting that a misspelled key of extra resembles, None where it resembles none."""
    text = unicodedata.normalize("NFKD", key.removeprefix("extra__sendgrid__"))
    words = re.findall(r"[a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", text).lower())
    if "_".join(words) in _UNRELATED:
        return None
    plain = "".join(words)
    if not plain:  # letters of another alphabet
        return f"one of {', '.join(_EXTRA_KEYS)}"
    names = {each.replace("_", ""): each for each in _EXTRA_KEYS}
    if near := difflib.get_close_matches(plain, names, n=1, cutoff=_ALIKE):
        return names[near[0]]
    by_part = (meant for part, meant in _MEANT_BY_PART.items() if part in plain)
    by_word = (_MEANT_BY_WORD[word] for word in words if word in _MEANT_BY_WORD)
    by_misspelled_word = (
        _MEANT_BY_PART[near[0]]
        for word in words
        if (near := difflib.get_close_matches(word, _MEANT_BY_PART, n=1, cutoff=_WORD_ALIKE))
    )
    return next(by_part, None) or next(by_word, None) or next(by_misspelled_word, None)


@cache
def _warn_of_unknown(name: str, keys: tuple[str, ...]) -> None:
    log.warning(
        "Connection %r: extra has keys that this provider does not know and ignores: %s. It knows %s.",
        name,
        ", ".join(keys),
        ", ".join(_EXTRA_KEYS),
    )


def _refuse_placeholder(name: str, setting: str, text: str) -> None:
    if _PLACEHOLDER.fullmatch(text):
        raise ValueError(
            f"Connection {name!r}: {setting} is {text!r}, the placeholder that Airflow's page shows and sends instead "
            "of the stored value. Enter the value again before you press 'Test', or run "
            f"'airflow connections test {name}'."
        )


def _api_key(name: str, password: str | None) -> str:
    key = (password or "").strip()
    if not key:
        raise ValueError(f"Connection {name!r} has no API key: put it into the field 'API key' (password).")
    _refuse_placeholder(name, "the API key (password)", key)
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(
            f"The API key of connection {name!r} holds blanks or characters that no key has: copy it again."
        )
    return key


def _region(name: str, value: Any) -> str | None:
    if value is None or (isinstance(value, str) and value in API_HOSTS):
        return value
    near = difflib.get_close_matches(str(value).strip().lower(), API_HOSTS, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"Connection {name!r} has the region {value!r}: it must be one of {', '.join(API_HOSTS)}.{hint}")


def _base_url(name: str, host: str | None, port: int | None, schema: str | None, region: str | None) -> str:
    _refuse_path(name, (schema or "").strip("/").lower() in ("", "http", "https", "v3"))
    text = (host or "").strip()
    if not text:
        if port not in (None, 0, 443):
            raise ValueError(
                f"Connection {name!r}: port {port} has no host to belong to. Set the host, or leave the port empty."
            )
        return API_HOSTS[region or "global"]
    if holds_key(text):
        raise ValueError(f"Connection {name!r}: the host holds an API key. Put the key into {_KEY}.")
    match = _URL.fullmatch(text.lower() if "://" in text else f"https://{text.lower()}")
    number = int(match["port"] or port or 0) if match else -1
    if match is None or not _is_host(match["host"]) or not 0 <= number <= 65535:
        raise ValueError(
            f"Connection {name!r}: the host must be a host name or a URL such as {API_HOSTS['global']}, without user, "
            "password, query and blanks, and with a port below 65536."
        )
    _refuse_path(name, (match["path"] or "") in _PATHS)
    if match["scheme"] == "http" and not is_loopback(match["host"].strip("[]")):
        raise ValueError(f"Connection {name!r}: the key would travel to {match['host']} unencrypted; use https://.")
    is_implied = number in (0, _PORTS[match["scheme"]])
    base_url = f"{match['scheme']}://{match['host']}{'' if is_implied else f':{number}'}"
    _refuse_contradiction(name, base_url, region)
    return base_url


def _refuse_path(name: str, is_fine: bool) -> None:
    if not is_fine:
        raise ValueError(
            f"Connection {name!r}: the host must have no path, for requests go to /v3/ of the host. Remove the path "
            f"(in a connection's URI, the path is its schema), or choose a proxy that forwards {API_HOSTS['global']}."
        )


def _refuse_contradiction(name: str, base_url: str, region: str | None) -> None:
    regions = {url: each for each, url in API_HOSTS.items()}
    host_region = regions.get(re.sub(r"\.?(:\d+)?$", "", base_url))
    if region is not None and host_region is not None and host_region != region:
        raise ValueError(
            f"Connection {name!r}: the region is {region!r}, but the host {base_url} is that of the region "
            f"{host_region!r}. Leave the host empty, or set the region to {host_region!r}."
        )


def _is_host(text: str) -> bool:
    if not text.startswith("["):
        return _HOST_NAME.fullmatch(text) is not None
    try:
        ipaddress.IPv6Address(text.strip("[]"))
    except ValueError:
        return False
    return True


def is_loopback(hostname: str) -> bool:
    """Whether a host of this name is this machine, as far as the name alone tells."""
    if hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(hostname).is_loopback
    except ValueError:
        return False


def _on_behalf_of(name: str, value: Any) -> str | None:
    if value is None:
        return None
    text = str(value).strip()
    if isinstance(value, bool) or not isinstance(value, str | int) or text.lower() in _NO_SUBUSER:
        raise ValueError(
            f"Connection {name!r}: on_behalf_of must be the user name of a subuser, or 'account-id' and an id, not "
            f"{value!r}. Remove it to act for the account itself."
        )
    if holds_key(text):
        raise ValueError(f"Connection {name!r}: on_behalf_of holds an API key. Put the key into {_KEY}.")
    if not text.isprintable() or not text.isascii():
        raise ValueError(f"Connection {name!r}: on_behalf_of holds characters that no header can carry.")
    return text


def _seconds(name: str, value: Any) -> float:
    try:
        seconds = 0.0 if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = 0.0
    if not 0 < seconds < 3600:
        raise ValueError(
            f"Connection {name!r}: timeout must be a number of seconds above 0 and below 3600, such as 30, not "
            f"{value!r}."
        )
    return seconds


def _verify(name: str, value: Any) -> bool | str:
    if isinstance(value, bool):
        return value
    text = str(value).strip()
    if text.lower() in _BOOLEANS:
        return _BOOLEANS[text.lower()]
    if not isinstance(value, str) or not text or not text.isprintable():
        raise ValueError(
            f"Connection {name!r}: verify must be true, false, or the path of a file or folder of CA certificates, "
            f"not {value!r}."
        )
    return text


def _proxy(name: str, value: Any) -> str | None:
    if value is None:
        return None
    _refuse_placeholder(name, "proxy", str(value).strip())
    # requests would take a bare host name, httpx would not: what works in a worker must work when deferred.
    return checked_proxy(f"Connection {name!r}: proxy", value)


def checked_proxy(setting: str, value: Any) -> str:
    """A proxy's URL, checked, and with its user and password in the one form that both clients read alike.

    Args:
        setting: the setting's name, for the message.
        value: the URL; it may hold a user and a password, so messages do not repeat it.

    Raises:
        ValueError: it is not a proxy's URL that both clients understand.
    """
    text = value.strip() if isinstance(value, str) else ""
    scheme, _, rest = text.partition("://")
    scheme = scheme.lower()
    credentials, _, rest = rest.rpartition("@")
    authority, _, path = rest.partition("/")
    match = re.fullmatch(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^@:\s\[\]]+)(?::(?P<port>\d{1,5}))?", authority)
    if scheme not in _PROXY_SCHEMES or match is None or not _is_host(match["host"].lower()) or path:
        raise ValueError(
            f"{setting} must be a URL such as http://proxy.example:3128, with one of the schemes "
            f"{', '.join(_PROXY_SCHEMES)} and without a path."
        )
    if match["port"] is not None and not 0 < int(match["port"]) < 65536:
        raise ValueError(f"{setting} must be a URL such as http://proxy.example:3128: its port must be 1 to 65535.")
    return f"{scheme}://{_credentials(setting, scheme, credentials)}{authority}"


def _credentials(setting: str, scheme: str, text: str) -> str:
    """User and password of a proxy's URL, with a password in any case, and the ``@``; empty where there are none."""
    if found := _UNENCODED.search(text):
        raise ValueError(
            f"{setting}: its user or password holds {found[0]!r}; percent-encode that as {quote(found[0], safe='')}."
        )
    user, _, password = text.partition(":")
    if password and not user:
        raise ValueError(f"{setting} has a password, but no user.")
    if user and not password and scheme.startswith("socks"):
        raise ValueError(f"{setting} has a user, but no password: a SOCKS proxy needs both, or neither.")
    return f"{user}:{password}@" if user else ""
