"""Who we are and whom we ask: the key, the host, the subuser, the limits of patience.

Knows what a SendGrid connection may hold. Knows neither Airflow's classes nor how a request is sent.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

API_HOSTS = {"global": "https://api.sendgrid.com", "eu": "https://api.eu.sendgrid.com"}
DEFAULT_TIMEOUT_SECONDS = 30.0

# No user, no query; a path is let pass and left out.
_URL = re.compile(r"(?P<scheme>https?)://(?P<host>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?(?:/[^?#]*)?")
_PORTS = {"http": 80, "https": 443}
# As JSON, a form and a URI spell them.
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True, slots=True)
class SendGridConnection:
    """Everything a client needs to speak to SendGrid; its repr shows no secret.

    Attributes:
        api_key: sent as ``Authorization: Bearer <api_key>`` to `base_url` and nowhere else.
        base_url: scheme, host and port of the API, without a path.
        on_behalf_of: user name of the subuser to act for, sent in the header ``on-behalf-of``.
        timeout_seconds: longest wait for a connection, and for the next bytes of an answer.
        verify: False, True, or the path of a CA bundle.
        proxy: URL of the proxy for all requests; None follows the environment (``HTTPS_PROXY``).
    """

    api_key: str = field(repr=False)
    base_url: str = API_HOSTS["global"]
    on_behalf_of: str | None = None
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
    verify: bool | str = True
    proxy: str | None = field(default=None, repr=False)

    @classmethod
    def from_fields(
        cls,
        *,
        name: str,
        password: str | None,
        host: str | None = None,
        port: int | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> SendGridConnection:
        """Read the fields of an Airflow connection; empty and null mean absent.

        Args:
            name: the connection's id, for messages.
            password: the API key.
            host: a host name or a full URL; wins over the region.
            port: port of `host`, where the URL names none.
            extra: ``region`` (``global``, ``eu``), ``on_behalf_of``, ``timeout`` (seconds), ``verify``
                (bool or path of a CA bundle) and ``proxy``; other keys are left alone.

        Raises:
            ValueError: something is missing or cannot be right; says what and how to mend it.
        """
        known = {key: value for key, value in (extra or {}).items() if value not in (None, "")}
        return cls(
            api_key=_api_key(name, password),
            base_url=_base_url(name, host, port, str(known.get("region", "global"))),
            on_behalf_of=_header_value(name, "on_behalf_of", known.get("on_behalf_of")),
            timeout_seconds=_seconds(name, known.get("timeout", DEFAULT_TIMEOUT_SECONDS)),
            verify=_verify(known.get("verify", True)),
            proxy=_proxy(name, known.get("proxy")),
        )

    @property
    def is_local(self) -> bool:
        """Whether the API is played on this machine, over plain HTTP."""
        return self.base_url.startswith("http://")


def _api_key(name: str, password: str | None) -> str:
    key = (password or "").strip()
    if not key:
        raise ValueError(f"Connection {name!r} has no API key: put it into the field 'API key' (password).")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(
            f"The API key of connection {name!r} holds blanks or characters that no key has: copy it again."
        )
    return key


def _base_url(name: str, host: str | None, port: int | None, region: str) -> str:
    if region not in API_HOSTS:
        raise ValueError(f"Connection {name!r} has the region {region!r}: it must be one of {', '.join(API_HOSTS)}.")
    text = (host or "").strip()
    if not text:
        return API_HOSTS[region]
    match = _URL.fullmatch(text.lower() if "://" in text else f"https://{text.lower()}")
    number = int(match["port"] or port or 0) if match else 0
    if match is None or number > 65535:
        raise ValueError(f"Connection {name!r}: the host must be a host name or a URL such as {API_HOSTS['global']}.")
    if match["scheme"] == "http" and not is_loopback(match["host"].strip("[]")):
        raise ValueError(f"Connection {name!r}: the key would travel to {match['host']} unencrypted; use https://.")
    is_implied = number in (0, _PORTS[match["scheme"]])
    return f"{match['scheme']}://{match['host']}{'' if is_implied else f':{number}'}"


def is_loopback(hostname: str) -> bool:
    """Whether a host of this name is this machine, as far as the name alone tells."""
    if hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(hostname).is_loopback
    except ValueError:
        return False


def _header_value(name: str, field_name: str, value: Any) -> str | None:
    if value is None:
        return None
    text = str(value).strip()
    if not text.isprintable() or not text.isascii():
        raise ValueError(f"Connection {name!r}: {field_name} holds characters that no header can carry.")
    return text or None


def _seconds(name: str, value: Any) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = 0.0
    if not 0 < seconds < 3600:
        raise ValueError(
            f"Connection {name!r}: timeout must be a number of seconds above 0 and below 3600, not {value!r}."
        )
    return seconds


def _verify(value: Any) -> bool | str:
    return value if isinstance(value, bool) else _BOOLEANS.get(str(value).lower(), str(value))


def _proxy(name: str, value: Any) -> str | None:
    # Requests would take a bare host name, httpx would not: what works in a worker must work when deferred.
    if value is not None and not re.match(r"(?i)(https?|socks5h?)://[^/]", str(value)):
        raise ValueError(f"Connection {name!r}: proxy must be a URL such as http://proxy.example:3128.")
    return None if value is None else str(value)
