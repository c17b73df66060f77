"""Whether a request may have reached SendGrid, although its response is lost.

A start must not be repeated unless it surely was not accepted. It was not where its sending never began: there was no
connection, no tunnel through the proxy, or no TLS. The types of exceptions alone do not tell: requests raises a
`ProxyError` for a tunnel that was refused and for one that broke after the request; httpx raises a `ReadError` for a
proxy that closes the connection instead of making the tunnel, and for a lost response. So the clients record when
sending begins (`Sending`), and `ERRORS` says which errors that record decides.

The same record stops a request that was given up: sending does not begin later, when a slow connection is made at last.
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
    EITHER = "before or after: never sent where the record shows that a connection was tried and sending did not begin"
    AFTER = "after: it may have been accepted"


# By the name of the error's class or its nearest base. An error that is not here is AFTER.
# Even where an error says BEFORE, a record that sending began wins.
ERRORS: dict[str, When] = {
    # requests, in a worker
    "requests.ConnectTimeout": When.BEFORE,
    "requests.ProxyError": When.EITHER,  # refused tunnel; or a connection through a proxy that broke
    "requests.SSLError": When.EITHER,  # certificate or handshake; or broken records later
    "requests.ConnectionError": When.EITHER,  # refused, unknown name, garbage from a proxy; or reset after the request
    "requests.ReadTimeout": When.EITHER,  # the proxy's answer to CONNECT; or the response
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
    "httpx.ReadError": When.EITHER,  # also of the answer to CONNECT
    "httpx.WriteError": When.EITHER,
    "httpx.ReadTimeout": When.EITHER,
    "httpx.WriteTimeout": When.EITHER,
    "httpx.RemoteProtocolError": When.EITHER,  # closed, or garbage
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
    """Sending was about to begin, but the request was given up."""


class Sending:
    """The record of one request; safe to share among threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_connecting = False
        self._has_begun = False
        self._is_given_up = False
        self._socket: Any = None

    def connect(self) -> None:
        """A connection is being made for the request.

        Raises:
            RequestCancelledError: the request was given up.
        """
        self._note(has_begun=False)

    def begin(self) -> None:
        """The request's next bytes are about to be sent.

        Raises:
            RequestCancelledError: the request was given up.
        """
        self._note(has_begun=True)

    def give_up(self) -> None:
        """Give the request up: what is not sent yet must not be sent."""
        with self._lock:
            self._is_given_up = True

    def use_socket(self, connection: Any) -> None:
        """This socket is the one that the request is sent by; its connection ends if the request was given up."""
        with self._lock:
            self._socket = connection
            is_given_up = self._is_given_up
        if is_given_up:
            shut_down(connection)

    def interrupt(self) -> None:
        """Give the request up, and end the connection that it uses."""
        self.give_up()
        if self._socket is not None:
            shut_down(self._socket)

    @property
    def has_begun(self) -> bool:
        """Whether bytes of the request may have been sent."""
        with self._lock:
            return self._has_begun

    def may_have_been_accepted(self, error: BaseException) -> bool:
        """Whether the request may have reached SendGrid, although it ended with this error."""
        when = when_raised(type(error))
        with self._lock:
            if self._has_begun or when is When.AFTER:
                return True
            return when is When.EITHER and not self._is_connecting

    def _note(self, *, has_begun: bool) -> None:
        with self._lock:
            if self._is_given_up:
                raise RequestCancelledError
            self._is_connecting = True
            self._has_begun = self._has_begun or has_begun


def when_raised(error_class: type[BaseException]) -> When:
    """What `ERRORS` says of an error's class."""
    return next((ERRORS[name] for name in _names(error_class) if name in ERRORS), When.AFTER)


def is_foreseen(error_class: type[BaseException]) -> bool:
    """Whether an error's class is in `ERRORS`: others show that a response could not be read."""
    return any(name in ERRORS for name in _names(error_class))


def is_proxy_error(error: BaseException) -> bool:
    """Whether httpx's proxy refused the connection, before the request."""
    return not {"httpx.ProxyError", "socksio.SOCKSError"}.isdisjoint(_names(type(error)))


def _names(error_class: type[BaseException]) -> Iterator[str]:
    return (f"{each.__module__.partition('.')[0]}.{each.__name__}" for each in error_class.__mro__)


# httpx

# httpcore's events of connections, tunnels and their TLS; and of cleaning up.
_EVENTS_BEFORE = ("connection.", "proxy.", "socks.", "http11.response_closed.")


class Trace:
    """A callback for httpx's extension ``trace``; an event that is not known counts as the beginning of sending."""

    def __init__(self, sending: Sending) -> None:
        self._sending = sending
        self._streams: list[Any] = []

    async def __call__(self, event: str, info: dict[str, Any]) -> None:
        """Note an event."""
        if event.endswith(".connect_tcp.complete"):
            self._streams.append(info["return_value"])
        if not event.endswith(".started"):
            return
        is_for_tunnel = getattr(info.get("request"), "method", None) == b"CONNECT"
        if is_for_tunnel or event.startswith(_EVENTS_BEFORE):
            self._sending.connect()
        else:
            self._sending.begin()

    async def close_connections(self) -> None:
        """Close what was opened for the request: httpcore leaves it open if TLS is cancelled, or SOCKS fails."""
        for stream in self._streams:
            await stream.aclose()


# requests

_current: ContextVar[Sending | None] = ContextVar("sendgrid_sending", default=None)


@contextmanager
def recorded_in(sending: Sending) -> Iterator[None]:
    """Record what connections of `recording_pools` do in this context, which is a thread's own."""
    token = _current.set(sending)
    try:
        yield
    finally:
        _current.reset(token)


class RecordedTLSSocket(ssl.SSLSocket):
    """A TLS socket whose handshake ends when its request is given up, see `Sending.interrupt`.

    The `ssl` module leaves a socket open whose connection was reset before the handshake; this one is closed.
    """

    _has_begun = False

    def recv(self, *args: Any, **kwargs: Any) -> bytes:
        """Receive; before the handshake `ssl` does so to see whether there is a connection."""
        try:
            return super().recv(*args, **kwargs)
        except ConnectionError:
            if not self._has_begun:
                self.close()
            raise

    def do_handshake(self, block: bool = False) -> None:
        """Begin TLS."""
        self._has_begun = True
        if sending := _current.get():
            sending.use_socket(self)
        super().do_handshake(block)


# "101 Switching Protocols" is none: nothing follows it.
_INTERIM = (100, *range(102, 200))


class _HeadLines:
    """The lines of a head. `http.client` takes a head for whole that the end of the connection has cut."""

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
    """The response after all interim ones (1xx), as with httpx; `http.client` skips "100 Continue" alone.

    Its head is whole.
    """

    def begin(self) -> None:
        """Read the head.

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
    """What is added to urllib3's connections."""

    sock: Any
    auto_open: int
    response_class = FinalResponse
    _is_making_connection = False

    def connect(self) -> None:
        if sending := _current.get():
            sending.connect()
        self._is_making_connection = True
        try:
            super().connect()  # type: ignore[misc]
        finally:
            self._is_making_connection = False

    def send(self, data: Any) -> None:
        if self.sock is None and self.auto_open:
            self.connect()
        sending = _current.get()
        if sending:
            sending.use_socket(self.sock)
            if not self._is_making_connection:  # making one sends CONNECT to a proxy
                sending.begin()
        super().send(data)  # type: ignore[misc]


@cache
def recording_pool(pool_class: type[Any]) -> type[Any]:
    """A class of urllib3's connection pools, whose connections record when sending begins."""
    connection_class = pool_class.ConnectionCls
    if issubclass(connection_class, _Recording):
        return pool_class
    recording = type(f"Recording{connection_class.__name__}", (_Recording, connection_class), {})
    return type(f"Recording{pool_class.__name__}", (pool_class,), {"ConnectionCls": recording})
