"""Which proxy and which certificates are used for a host.

They are resolved here, from the connection and the environment, for both HTTP clients. The clients' own reading of the
environment is off, because it differs: a worker could succeed where a triggerer fails.

In this order; the first match wins:

========  ==================================================================================================
proxy     plain HTTP to this machine: none; the connection's ``proxy``, for all hosts; ``NO_PROXY``: none;
          ``<scheme>_proxy``; ``all_proxy``
trust     the connection's ``verify``, if it is false or a path; ``REQUESTS_CA_BUNDLE``; ``CURL_CA_BUNDLE``;
          ``SSL_CERT_FILE`` and ``SSL_CERT_DIR`` together; certifi's certificates
========  ==================================================================================================

Proxy variables may be in lower or upper case; lower case wins. A variable that is set but empty means no proxy.
"""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlsplit

from airflow_provider_sendgrid.exceptions import redact
from airflow_provider_sendgrid.exports.connection import SendGridConnection
from airflow_provider_sendgrid.exports.hosts import is_loopback, parse_proxy_url
from airflow_provider_sendgrid.exports.sending import RecordedTLSSocket

_PORTS = {"http": 80, "https": 443}
# OpenSSL reads only these files in a folder, which are named by the hash of their subject.
_HASHED_NAME = re.compile(r"[0-9a-f]{8}\.[0-9]+")
# The modules that requests and httpx need for a SOCKS proxy.
_SOCKS_MODULES = ("socks", "socksio")

_Network: TypeAlias = "ipaddress.IPv4Network | ipaddress.IPv6Network"


@dataclass(frozen=True, slots=True)
class Network:
    """Proxies and trusted certificates.

    Attributes:
        proxies: proxy URLs by the scheme of the requested URL; may contain passwords.
        no_proxy: entries of ``NO_PROXY``.
        tls: trusted certificates; shared by all clients, because reading them takes a tenth of a second.
        is_verified: whether certificates are verified.
    """

    proxies: Mapping[str, str] = field(repr=False)
    no_proxy: tuple[str, ...]
    tls: ssl.SSLContext = field(repr=False)
    is_verified: bool

    def proxy_for(self, url: str) -> str | None:
        """The proxy for a URL; None if there is none.

        Plain HTTP is used only on this machine, and never through a proxy, which could read the key.
        """
        parts = urlsplit(url)
        proxy = self.proxies.get(parts.scheme)
        if proxy is None or parts.hostname is None or (parts.scheme == "http" and is_loopback(parts.hostname)):
            return None
        port = parts.port or _PORTS.get(parts.scheme, 0)
        is_direct = any(_matches(entry, parts.scheme, parts.hostname, port) for entry in self.no_proxy)
        return None if is_direct else proxy


def resolve_network(connection: SendGridConnection, environ: Mapping[str, str] | None = None) -> Network:
    """Resolve proxies and certificates from the connection's settings and the environment.

    Args:
        connection: its `proxy` and `verify` take precedence over the environment.
        environ: the environment, by default this process's.

    Raises:
        ValueError: a setting is invalid; names the setting or variable, and what to do.
    """
    environ = os.environ if environ is None else environ
    no_proxy: tuple[str, ...] = ()
    if connection.proxy is not None:
        proxies = dict.fromkeys(("http", "https"), connection.proxy)
        _check_socks(f"Connection {connection.name!r}: proxy", connection.proxy)
    else:
        proxies, no_proxy = _environment_proxies(environ), _no_proxy(environ)
    return Network(proxies, no_proxy, tls_context(_trusted(connection, environ)), connection.verify is not False)


# Proxy


def _environment_proxies(environ: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for scheme in ("http", "https"):
        for kind in (scheme, "all"):
            if environ.get(f"{kind}_proxy", "none").strip() == "":
                break  # set but empty
            if variable := _proxy_variable(kind, environ):
                value = environ[variable].strip()
                setting = f"The environment variable {variable}"
                found[scheme] = parse_proxy_url(setting, value if "://" in value else f"http://{value}")
                _check_socks(setting, found[scheme])
                break
    return found


def _proxy_variable(kind: str, environ: Mapping[str, str]) -> str | None:
    lower, upper = f"{kind}_proxy", f"{kind.upper()}_PROXY"
    # In a CGI script, HTTP_PROXY is a header that the client sent.
    names = (lower,) if lower in environ or (kind == "http" and "REQUEST_METHOD" in environ) else (upper,)
    return next((name for name in names if environ.get(name, "").strip()), None)


def _check_socks(setting: str, proxy: str) -> None:
    if proxy.startswith("socks") and not all(find_spec(module) for module in _SOCKS_MODULES):
        raise ValueError(
            f"{setting} is a SOCKS proxy, which needs packages that are not installed here. Install them on every "
            "worker and triggerer: pip install requests[socks] httpx[socks]"
        )


def _no_proxy(environ: Mapping[str, str]) -> tuple[str, ...]:
    text = environ.get("no_proxy", environ.get("NO_PROXY", ""))
    return tuple(entry.lower() for entry in re.split(r"[,\s]+", text) if entry)


def _matches(entry: str, scheme: str, host: str, port: int) -> bool:
    """Whether an entry of ``NO_PROXY`` (a host with its subdomains, an address, a network) matches a host."""
    entry_scheme, has_scheme, rest = entry.rpartition("://")
    if has_scheme and entry_scheme not in ("all", scheme):
        return False
    if rest == "*":
        return True
    name, entry_port = _split_port(rest)
    if entry_port is not None and entry_port != str(port):
        return False
    host = host.rstrip(".").partition("%")[0]
    if (network := _network(name)) is not None:
        address = _network(host)
        return address is not None and address.version == network.version and address[0] in network
    name = name.removeprefix("*").strip(".")
    return bool(name) and (host == name or host.endswith(f".{name}"))


def _split_port(entry: str) -> tuple[str, str | None]:
    """Host and port of an entry; an IPv6 address has colons, with or without brackets."""
    match = re.fullmatch(r"\[(?P<bare>[^\]]*)\](?P<length>/\d+)?(?::(?P<port>\d+))?", entry)
    if match is not None:
        return match["bare"] + (match["length"] or ""), match["port"]
    if entry.count(":") == 1:
        name, _, port = entry.partition(":")
        return name, port
    return entry, None


def _network(text: str) -> _Network | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


# Trust


@dataclass(frozen=True, slots=True)
class CertificateSource:
    """A file or folder of CA certificates.

    Attributes:
        setting: its name, for messages.
        path: of the file or folder.
        state: changes with the content, so that renewed certificates are read again.
    """

    setting: str
    path: str
    state: tuple[tuple[str, int, int, int], ...]

    @classmethod
    def at(cls, setting: str, path: str) -> CertificateSource:
        """The file or folder at a path.

        Raises:
            ValueError: it cannot be read.
        """
        try:
            return cls(setting, path, _state_of(path))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{setting} is {redact(repr(path))}, which cannot be read ({type(error).__name__}). It must be "
                "the path of a file or folder of CA certificates on this machine, and on every worker and triggerer."
            ) from None

    def load_into(self, context: ssl.SSLContext) -> None:
        """Add its certificates to those that are trusted.

        Raises:
            ValueError: it has none.
        """
        try:
            if Path(self.path).is_dir():
                if not any(_HASHED_NAME.fullmatch(name) for name in os.listdir(self.path)):  # noqa: PTH208 - names do
                    raise ValueError(
                        f"{self.setting} is the folder {self.path!r}, in which OpenSSL finds no certificates. Run "
                        f"'openssl rehash {self.path}', or name a file."
                    )
                context.load_verify_locations(capath=self.path)
            else:
                context.load_verify_locations(cafile=self.path)
        except OSError as error:  # ssl.SSLError is one
            raise ValueError(
                f"{self.setting} is {self.path!r}, which is not a file of CA certificates in PEM format "
                f"({type(error).__name__})."
            ) from None


def _state_of(path: str) -> tuple[tuple[str, int, int, int], ...]:
    """Name, inode, size and ctime of a file, or of each file in a folder; follows symbolic links."""
    if not Path(path).is_dir():
        found = Path(path).stat()
        return ((path, found.st_ino, found.st_size, found.st_ctime_ns),)
    with os.scandir(path) as entries:
        names = sorted(entry.path for entry in entries if os.path.exists(entry.path))  # noqa: PTH110 - names do
    return tuple(state for name in names if not Path(name).is_dir() for state in _state_of(name))


def _trusted(connection: SendGridConnection, environ: Mapping[str, str]) -> tuple[CertificateSource, ...]:
    """The sources of trusted certificates; empty if certificates are not verified."""
    if connection.verify is False:
        return ()
    if isinstance(connection.verify, str):
        return (CertificateSource.at(f"Connection {connection.name!r}: verify", connection.verify),)
    for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        if path := environ.get(variable):
            return (CertificateSource.at(f"The environment variable {variable}", path),)
    return tuple(_openssl_sources(environ)) or (_certifi(),)


def _openssl_sources(environ: Mapping[str, str]) -> Iterator[CertificateSource]:
    """OpenSSL's variables: both are used, and the second may name several folders."""
    if file := environ.get("SSL_CERT_FILE"):
        yield CertificateSource.at("The environment variable SSL_CERT_FILE", file)
    folders = [each for each in environ.get("SSL_CERT_DIR", "").split(os.pathsep) if each]
    for folder in [each for each in folders if Path(each).exists()] or folders[:1]:
        yield CertificateSource.at("The environment variable SSL_CERT_DIR", folder)


def _certifi() -> CertificateSource:
    import certifi

    return CertificateSource.at("The package certifi", certifi.where())


@lru_cache(maxsize=16)
def tls_context(sources: tuple[CertificateSource, ...]) -> ssl.SSLContext:
    """A context that trusts these certificates; without any, certificates are not verified."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.sslsocket_class = RecordedTLSSocket
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if sys.version_info >= (3, 13):  # as `ssl.create_default_context` does
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VERIFY_X509_STRICT
    if not sources:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    for source in sources:
        source.load_into(context)
    return context
