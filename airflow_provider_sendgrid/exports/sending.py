"""Whether a request may have reached SendGrid although its response was lost.

A start may be repeated only if it was certainly not accepted, which means that sending never began: there was no
connection, no tunnel through the proxy, or no TLS. The type of an exception does not show that. requests raises
`ProxyError` for a refused tunnel and for a tunnel that broke after the request; httpx raises `ReadError` for a proxy
that closes the connection instead of making the tunnel, and for a lost response. Therefore the clients record when
sending begins (`SendState`), and `ERRORS` lists the errors for which that record decides.

The record also stops a cancelled request: if its slow connection is made later, nothing is sent.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum
from functools import cache
from http.client import HTTPResponse, IncompleteRead
from typing import Any

from airflow_provider_sendgrid.stopping import shut_down


class When(Enum):
    """When an error can happen."""

    BEFORE = "before a request is sent: it was never sent"
    EITHER = "before or after: never sent if the record shows that a connection was tried and sending did not begin"
    AFTER = "after: it may have been accepted"


# By the name of the error's class or its nearest base. An error that is not listed is AFTER.
# A record that sending began wins over BEFORE.
ERRORS: dict[str, When] = {
    # requests, in a worker
    "requests.ConnectTimeout": When.BEFORE,
    "requests.ProxyError": When.EITHER,  # refused tunnel; or a connection through a proxy that broke
    "requests.SSLError": When.EITHER,  # certificate or handshake; or broken records later
    "requests.ConnectionError": When.EITHER,  # refused, unknown name, bad response of a proxy; or reset later
    "requests.ReadTimeout": When.EITHER,  # the proxy's response to CONNECT; or SendGrid's
    "requests.ChunkedEncodingError": When.AFTER,
    "requests.ContentDecodingError": When.AFTER,
    "urllib3.HTTPError": When.AFTER,  # raised while the body of a response is read
    "http.HTTPException": When.AFTER,
    # httpx, in a triggerer
    "httpx.PoolTimeout": When.BEFORE,
    "httpx.ConnectTimeout": When.BEFORE,
    "httpx.ConnectError": When.BEFORE,  # TCP and TLS
    "httpx.ProxyError": When.BEFORE,  # the proxy refused the tunnel
    "httpx.UnsupportedProtocol": When.BEFORE,
    "httpx.ReadError": When.EITHER,  # also of the response to CONNECT
    "httpx.WriteError": When.EITHER,
    "httpx.ReadTimeout": When.EITHER,
    "httpx.WriteTimeout": When.EITHER,
    "httpx.RemoteProtocolError": When.EITHER,  # closed, or not HTTP
    "httpx.LocalProtocolError": When.EITHER,
    "httpx.CloseError": When.AFTER,
    "httpx.DecodingError": When.AFTER,
    # What httpx lets through from its SOCKS library; requests wraps its own.
    "socksio.SOCKSError": When.EITHER,
    # both
    "builtins.TimeoutError": When.EITHER,  # the deadline of the whole response, see `client`
    "builtins.OSError": When.EITHER,  # what the libraries let through
}


class RequestCancelledError(Exception):
    """Sending was about to begin, but the request was cancelled."""


class SendState:
    """How far one request was sent; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_connecting = False
        self._has_begun = False
        self._is_cancelled = False
        self._socket: Any = None

    def record_connecting(self) -> None:
        """A connection is being made for the request.

        Raises:
            RequestCancelledError: the request was cancelled.
        """
        self._record(has_begun=False)

    def record_sending(self) -> None:
        """The next bytes of the request are about to be sent.

        Raises:
            RequestCancelledError: the request was cancelled.
        """
        self._record(has_begun=True)

    def cancel(self) -> None:
        """Send no more bytes of the request."""
        with self._lock:
            self._is_cancelled = True

    def use_socket(self, connection: Any) -> None:
        """Record the socket that the request is sent by; shut it down if the request was cancelled."""
        with self._lock:
            self._socket = connection
            is_cancelled = self._is_cancelled
        if is_cancelled:
            shut_down(connection)

    def interrupt(self) -> None:
        """Cancel the request and shut down its connection."""
        self.cancel()
        if self._socket is not None:
            shut_down(self._socket)

    @property
    def has_begun(self) -> bool:
        """Whether bytes of the request may have been sent."""
        with self._lock:
            return self._has_begun

    def may_have_been_accepted(self, error: BaseException) -> bool:
        """Whether the request may have reached SendGrid before this error."""
        when = when_raised(type(error))
        with self._lock:
            if self._has_begun or when is When.AFTER:
                return True
            return when is When.EITHER and not self._is_connecting

    def _record(self, *, has_begun: bool) -> None:
        with self._lock:
            if self._is_cancelled:
                raise RequestCancelledError
            self._is_connecting = True
            self._has_begun = self._has_begun or has_begun


def when_raised(error_class: type[BaseException]) -> When:
    """When an error of this class can happen."""
    return next((ERRORS[name] for name in _names(error_class) if name in ERRORS), When.AFTER)


def is_known_error(error_class: type[BaseException]) -> bool:
    """Whether the class is in `ERRORS`; any other error means that a response could not be read."""
    return any(name in ERRORS for name in _names(error_class))


def is_proxy_error(error: BaseException) -> bool:
    """Whether the proxy refused httpx's connection, before the request."""
    return not {"httpx.ProxyError", "socksio.SOCKSError"}.isdisjoint(_names(type(error)))


def _names(error_class: type[BaseException]) -> Iterator[str]:
    return (f"{each.__module__.partition('.')[0]}.{each.__name__}" for each in error_class.__mro__)


# httpx

# httpcore's events of connections, tunnels, their TLS and clean-up.
_EVENTS_BEFORE = ("connection.", "proxy.", "socks.", "http11.response_closed.")


class Trace:
    """A callback for httpx's extension ``trace``; unknown events count as sending."""

    def __init__(self, send_state: SendState) -> None:
        self._send_state = send_state
        self._streams: list[Any] = []

    async def __call__(self, event: str, info: dict[str, Any]) -> None:
        """Record an event of httpcore."""
        if event.endswith(".connect_tcp.complete"):
            self._streams.append(info["return_value"])
        if not event.endswith(".started"):
            return
        is_for_tunnel = getattr(info.get("request"), "method", None) == b"CONNECT"
        if is_for_tunnel or event.startswith(_EVENTS_BEFORE):
            self._send_state.record_connecting()
        else:
            self._send_state.record_sending()

    async def close_connections(self) -> None:
        """Close the request's connections: httpcore leaves them open if TLS is cancelled or SOCKS fails."""
        for stream in self._streams:
            await stream.aclose()


# requests

_current: ContextVar[SendState | None] = ContextVar("sendgrid_sending", default=None)


@contextmanager
def recording_to(send_state: SendState) -> Iterator[None]:
    """Record in `send_state` what connections of `recording_pool` do in this thread."""
    token = _current.set(send_state)
    try:
        yield
    finally:
        _current.reset(token)


class RecordedTLSSocket(ssl.SSLSocket):
    """A TLS socket whose handshake ends when its request is interrupted, see `SendState.interrupt`.

    It also closes itself if the connection is reset before the handshake, which `ssl` does not do.
    """

    _has_begun = False

    def recv(self, *args: Any, **kwargs: Any) -> bytes:
        """Receive; `ssl` calls this before the handshake to check the connection."""
        try:
            return super().recv(*args, **kwargs)
        except ConnectionError:
            if not self._has_begun:
                self.close()
            raise

    def do_handshake(self, block: bool = False) -> None:
        """Make the socket known before the handshake, which may hang."""
        self._has_begun = True
        if send_state := _current.get():
            send_state.use_socket(self)
        super().do_handshake(block)


# Without "101 Switching Protocols", which nothing follows.
_INTERIM = (100, *range(102, 200))


class _HeadLines:
    """The lines of a response's head. `http.client` accepts a head that was cut by the end of the connection."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._is_first = True

    def readline(self, limit: int) -> bytes:
        line: bytes = self._stream.readline(limit)
        is_cut = not line.endswith(b"\n") and len(line) < limit
        # A connection that ends before the first byte is another error.
        if is_cut and not (self._is_first and not line):
            raise IncompleteRead(line)
        self._is_first = False
        return line

    def close(self) -> None:
        self._stream.close()


class FinalResponse(HTTPResponse):
    """The response after all interim ones (1xx), as in httpx; `http.client` skips "100 Continue" only."""

    def begin(self) -> None:
        """Read the whole head.

        Raises:
            IncompleteRead: the connection ended within it.
        """
        self._begin()
        while self.status in _INTERIM:
            self.headers = self.msg = None  # type: ignore[assignment]  # or the next head is not read
            self._begin()

    def _begin(self) -> None:
        stream = self.fp
        lines: Any = _HeadLines(stream)
        self.fp = lines
        try:
            super().begin()
        finally:
            if self.fp is lines:  # http.client forgets the stream when it closes it
                self.fp = stream


class _Recording:
    """Mixed into urllib3's connections."""

    sock: Any
    auto_open: int
    response_class = FinalResponse
    _is_making_connection = False

    def connect(self) -> None:
        if send_state := _current.get():
            send_state.record_connecting()
        self._is_making_connection = True
        try:
            super().connect()  # type: ignore[misc]
        finally:
            self._is_making_connection = False

    def send(self, data: Any) -> None:
        if self.sock is None and self.auto_open:
            self.connect()
        send_state = _current.get()
        if send_state:
            send_state.use_socket(self.sock)
            if not self._is_making_connection:  # which sends CONNECT to a proxy
                send_state.record_sending()
        super().send(data)  # type: ignore[misc]


@cache
def recording_pool(pool_class: type[Any]) -> type[Any]:
    """A class of urllib3's connection pools, whose connections record when sending begins."""
    connection_class = pool_class.ConnectionCls
    if issubclass(connection_class, _Recording):
        return pool_class
    recording = type(f"Recording{connection_class.__name__}", (_Recording, connection_class), {})
    return type(f"Recording{pool_class.__name__}", (pool_class,), {"ConnectionCls": recording})
