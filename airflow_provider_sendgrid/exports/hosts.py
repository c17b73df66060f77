"""Host names and URLs: SendGrid's API hosts, loopback addresses and proxies."""

from __future__ import annotations

import ipaddress
import re
from typing import Any
from urllib.parse import quote

API_HOSTS = {"global": "https://api.sendgrid.com", "eu": "https://api.eu.sendgrid.com"}

_HOST_NAME = re.compile(
    r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*\.?"
)
_PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")
# Characters of a user or a password that requests and httpx read differently.
_UNENCODED = re.compile(r"[^!-~]|[\[\]\\#?/@]")


def is_host(text: str) -> bool:
    """Whether `text` is a host name, an IPv4 address, or an IPv6 address in brackets; in lower case."""
    if not text.startswith("["):
        return _HOST_NAME.fullmatch(text) is not None
    try:
        ipaddress.IPv6Address(text.strip("[]"))
    except ValueError:
        return False
    return True


def is_loopback(hostname: str) -> bool:
    """Whether the name means this machine; names are not resolved."""
    if hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(hostname).is_loopback
    except ValueError:
        return False


def parse_proxy_url(setting: str, value: Any) -> str:
    """Check a proxy's URL, and bring its user and password into the form that requests and httpx read alike.

    Args:
        setting: the setting's name, for the message.
        value: the URL; it may contain a user and a password, so messages do not repeat it.

    Raises:
        ValueError: it is not a proxy's URL that both clients understand.
    """
    text = value.strip() if isinstance(value, str) else ""
    scheme, _, rest = text.partition("://")
    scheme = scheme.lower()
    credentials, _, rest = rest.rpartition("@")
    authority, _, path = rest.partition("/")
    match = re.fullmatch(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^@:\s\[\]]+)(?::(?P<port>\d{1,5}))?", authority)
    if scheme not in _PROXY_SCHEMES or match is None or not is_host(match["host"].lower()) or path:
        raise ValueError(
            f"{setting} must be a URL such as http://proxy.example:3128, with one of the schemes "
            f"{', '.join(_PROXY_SCHEMES)} and without a path."
        )
    if match["port"] is not None and not 0 < int(match["port"]) < 65536:
        raise ValueError(f"{setting} must be a URL such as http://proxy.example:3128: its port must be 1 to 65535.")
    return f"{scheme}://{_parse_credentials(setting, scheme, credentials)}{authority}"


def _parse_credentials(setting: str, scheme: str, text: str) -> str:
    """``user:password@``, even if the password is empty; empty if there is no user."""
    if found := _UNENCODED.search(text):
        raise ValueError(
            f"{setting}: its user or password contains {found[0]!r}; percent-encode that as {quote(found[0], safe='')}."
        )
    user, _, password = text.partition(":")
    if password and not user:
        raise ValueError(f"{setting} has a password, but no user.")
    if user and not password and scheme.startswith("socks"):
        raise ValueError(f"{setting} has a user, but no password: a SOCKS proxy needs both, or neither.")
    return f"{user}:{password}@" if user else ""
