"""The settings of a SendGrid connection: API key, host, subuser, timeout, certificates, proxy.

Knows which values are valid. Knows neither Airflow's classes, nor this machine's environment and files (see `network`),
nor how a request is sent.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_sendgrid.exceptions import redact
from airflow_provider_sendgrid.exports.extra_keys import API_KEY_FIELD, check_keys
from airflow_provider_sendgrid.exports.hosts import API_HOSTS, is_host, is_loopback, parse_proxy_url
from airflow_provider_sendgrid.redaction import contains_key, register_secret

DEFAULT_TIMEOUT_SECONDS = 30.0

# No user and no query.
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?(?P<path>/[^?#]*)?"
)
_PORTS = {"http": 80, "https": 443}
# Every request's target begins with /v3/, so this path adds nothing.
_PATHS = ("", "/", "/v3", "/v3/")
# As written in JSON, forms, URIs and by people.
_BOOLEANS = {
    **dict.fromkeys(("true", "1", "yes", "on", "y", "t"), True),
    **dict.fromkeys(("false", "0", "no", "off", "n", "f"), False),
}
# Airflow's pages show this instead of a stored secret, and the "Test" button sends it.
_PLACEHOLDER = re.compile(r"\*{3,}")

# An empty value as templates render it, and `account-id` without an id.
_NO_SUBUSER = ("", "none", "null", "account-id", "account-id none", "account-id null")


@dataclass(frozen=True, slots=True)
class SendGridConnection:
    """All settings that a client needs; its repr shows no secret.

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
        register_secret((password or "").strip())
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
        check_keys(name, given)
        region = _parse_region(name, given.get("region"))
        return cls(
            api_key=_parse_api_key(name, password),
            base_url=_parse_base_url(name, host, port, schema, region),
            on_behalf_of=_parse_on_behalf_of(name, given.get("on_behalf_of")),
            timeout_seconds=_parse_timeout(name, given.get("timeout", DEFAULT_TIMEOUT_SECONDS)),
            verify=_parse_verify(name, given.get("verify", True)),
            proxy=_parse_proxy(name, given.get("proxy")),
            name=name,
        )

    @property
    def is_local(self) -> bool:
        """Whether the API is on this machine, over plain HTTP, such as the emulator."""
        return self.base_url.startswith("http://")


def _refuse_placeholder(name: str, setting: str, text: str) -> None:
    if _PLACEHOLDER.fullmatch(text):
        raise ValueError(
            f"Connection {name!r}: {setting} is {text!r}, the placeholder that Airflow's page shows and sends instead "
            "of the stored value. Enter the value again before you press 'Test', or run "
            f"'airflow connections test {name}'."
        )


def _parse_api_key(name: str, password: str | None) -> str:
    key = (password or "").strip()
    if not key:
        raise ValueError(f"Connection {name!r} has no API key: put it into the field 'API key' (password).")
    _refuse_placeholder(name, "the API key (password)", key)
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(
            f"The API key of connection {name!r} contains spaces or characters that no key has: copy it again."
        )
    return key


def _parse_region(name: str, value: Any) -> str | None:
    if value is None or (isinstance(value, str) and value in API_HOSTS):
        return value
    near = difflib.get_close_matches(str(value).strip().lower(), API_HOSTS, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"Connection {name!r} has the region {value!r}: it must be one of {', '.join(API_HOSTS)}.{hint}")


def _parse_base_url(name: str, host: str | None, port: int | None, schema: str | None, region: str | None) -> str:
    _refuse_path(name, (schema or "").strip("/").lower() in ("", "http", "https", "v3"))
    text = (host or "").strip()
    if not text:
        if port not in (None, 0, 443):
            raise ValueError(f"Connection {name!r}: port {port} has no host. Set the host, or leave the port empty.")
        return API_HOSTS[region or "global"]
    if contains_key(text):
        raise ValueError(f"Connection {name!r}: the host contains an API key. Put the key into {API_KEY_FIELD}.")
    match = _URL.fullmatch(text.lower() if "://" in text else f"https://{text.lower()}")
    number = int(match["port"] or port or 0) if match else -1
    if match is None or not is_host(match["host"]) or not 0 <= number <= 65535:
        raise ValueError(
            f"Connection {name!r}: the host must be a host name or a URL such as {API_HOSTS['global']}, without user, "
            "password, query and spaces, and with a port below 65536."
        )
    _refuse_path(name, (match["path"] or "") in _PATHS)
    if match["scheme"] == "http" and not is_loopback(match["host"].strip("[]")):
        raise ValueError(f"Connection {name!r}: the key would be sent to {match['host']} unencrypted; use https://.")
    is_implied = number in (0, _PORTS[match["scheme"]])
    base_url = f"{match['scheme']}://{match['host']}{'' if is_implied else f':{number}'}"
    _refuse_contradiction(name, base_url, region)
    return base_url


def _refuse_path(name: str, is_valid: bool) -> None:
    if not is_valid:
        raise ValueError(
            f"Connection {name!r}: the host must have no path, because requests go to its /v3/. Remove the path "
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


def _parse_on_behalf_of(name: str, value: Any) -> str | None:
    if value is None:
        return None
    text = str(value).strip()
    if isinstance(value, bool) or not isinstance(value, str | int) or text.lower() in _NO_SUBUSER:
        raise ValueError(
            f"Connection {name!r}: on_behalf_of must be the user name of a subuser, or 'account-id' and an id, not "
            f"{value!r}. Remove it to act for the account itself."
        )
    if contains_key(text):
        raise ValueError(f"Connection {name!r}: on_behalf_of contains an API key. Put the key into {API_KEY_FIELD}.")
    if not text.isprintable() or not text.isascii():
        raise ValueError(f"Connection {name!r}: on_behalf_of contains characters that an HTTP header cannot have.")
    return text


def _parse_timeout(name: str, value: Any) -> float:
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


def _parse_verify(name: str, value: Any) -> bool | str:
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


def _parse_proxy(name: str, value: Any) -> str | None:
    if value is None:
        return None
    _refuse_placeholder(name, "proxy", str(value).strip())
    # requests accepts a bare host name, httpx does not: workers and triggerers must accept the same.
    return parse_proxy_url(f"Connection {name!r}: proxy", value)
