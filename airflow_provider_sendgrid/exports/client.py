"""The two drivers of the protocol: requests in a worker, httpx on the event loop.

Only this module waits and sends requests. Redirects are not followed (SendGrid's API has none). Every network error
becomes a `SendGridError`, and so does any other error after sending began. `sending` decides whether the request may
have been accepted.

The decompressed size of a response is limited, and so is the time from the first byte sent to the last byte received.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import closing
from functools import partial
from typing import TypeVar
from urllib.parse import urlsplit

from airflow_provider_sendgrid.compression import Gunzip
from airflow_provider_sendgrid.exceptions import ExportIncompleteError, SendGridError, SendGridServerError
from airflow_provider_sendgrid.exports.connection import SendGridConnection
from airflow_provider_sendgrid.exports.network_errors import error_from_exception
from airflow_provider_sendgrid.exports.protocol import Flow, RateLimit, Request, Response
from airflow_provider_sendgrid.exports.sending import SendState, Trace, is_known_error, recording_to
from airflow_provider_sendgrid.exports.sessions import (
    ACCEPTED_ENCODING,
    new_async_client,
    new_download_session,
    new_session,
    own_headers,
)
from airflow_provider_sendgrid.stopping import StopSignal

__all__ = ["AsyncSendGridClient", "SendGridClient", "new_download_session"]

T = TypeVar("T")
log = logging.getLogger(__name__)

# A page of a listing holds a few hundred URLs of 1 to 2 KB; a larger response is not SendGrid's.
MAX_RESPONSE_BYTES = 32 * 1024 * 1024
_CHUNK_BYTES = 64 * 1024
# The whole response may take this many times the timeout for its next bytes: SendGrid's API does not trickle.
_RESPONSE_TIMEOUTS = 4


class SendGridClient:
    """Runs flows with requests, in a worker; use it in a ``with`` block or call `close`.

    Args:
        connection: API key and host.
        sleep: waits, in seconds; by default until then, or until `stop` is set.
        clock: seconds since the epoch.
        on_retry: called before each request that is sent again.
        stop: ends pauses and the wait for a response immediately, with `StoppedError`.
    """

    def __init__(
        self,
        connection: SendGridConnection,
        *,
        sleep: Callable[[float], object] | None = None,
        clock: Callable[[], float] = time.time,
        on_retry: Callable[[], object] = lambda: None,
        stop: StopSignal | None = None,
    ) -> None:
        self.connection = connection
        self.rate_limit = RateLimit()
        self._stop = stop or StopSignal()
        self._session = new_session(connection)
        # Otherwise requests parses the target of a redirect that is not followed, and raises what it finds there.
        self._session.get_redirect_target = lambda _: None  # type: ignore[method-assign,assignment]
        self._on_retry = on_retry
        self._sleep = sleep or self._stop.wait
        self._clock = clock

    def run_flow(self, flow: Flow[T]) -> T:
        """Send the requests of a flow and return its result."""
        with closing(flow):
            try:
                request = next(flow)
                while True:
                    try:
                        response = self._send(request)
                    except SendGridError as error:
                        request = flow.throw(error)
                    else:
                        request = flow.send(response)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def __enter__(self) -> SendGridClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, request: Request) -> Response:
        """Send a request when it is due, within the time limit of a response."""
        if request.reason:
            self._on_retry()
        if (wait := _wait_seconds(request, self.rate_limit, self._clock())) > 0:
            self._sleep(wait)
        send_state, is_done = SendState(), False
        seconds = _max_response_seconds(self.connection)
        # In a separate thread: a socket's timeout never ends a response that arrives byte by byte. A cancelled request
        # sends nothing more.
        try:
            exchange = partial(self._exchange, request, send_state)
            response = self._stop.call(exchange, seconds, name="sendgrid-api")
            is_done = True
        except TimeoutError as error:
            raise error_from_exception(error, request, self.connection, send_state, seconds) from None
        finally:
            if not is_done:
                send_state.interrupt()
        self.rate_limit.record(response)
        return response

    def _exchange(self, request: Request, send_state: SendState) -> Response:
        """Send a request and translate errors."""
        try:
            with recording_to(send_state):
                return self._receive(request)
        except SendGridError:
            raise
        except Exception as error:  # the libraries let through errors of others
            if not send_state.has_begun and not is_known_error(type(error)):
                raise
            seconds = _max_response_seconds(self.connection)
            raise error_from_exception(error, request, self.connection, send_state, seconds) from None

    def _receive(self, request: Request) -> Response:
        with self._session.request(
            request.method,
            self.connection.base_url + request.target,
            json=request.body,
            headers={"Accept-Encoding": ACCEPTED_ENCODING},
            timeout=self.connection.timeout_seconds,
            allow_redirects=False,
            stream=True,
        ) as received:
            headers = {name.lower(): value for name, value in received.headers.items()}
            body = _Body(request, headers)
            while chunk := received.raw.read(_CHUNK_BYTES, decode_content=False):
                body.add(chunk)
            return Response(
                received.status_code, headers, bytes(body.content), self._clock(), self.connection.on_behalf_of
            )


class AsyncSendGridClient:
    """Runs flows with httpx, on an event loop; use it in an ``async with`` block or call `aclose`.

    Args:
        connection: API key and host.
        sleep: waits, in seconds.
        clock: seconds since the epoch.
        on_retry: called before each request that is sent again, on the event loop: it must not block.

    Attributes:
        rate_limit: of SendGrid's latest response.
        successes: how many requests succeeded so far.
    """

    def __init__(
        self,
        connection: SendGridConnection,
        *,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        clock: Callable[[], float] = time.time,
        on_retry: Callable[[], object] = lambda: None,
    ) -> None:
        self.connection = connection
        self.rate_limit = RateLimit()
        self.successes = 0
        self._client = new_async_client(connection)
        self._in_flight: set[asyncio.Task[Response]] = set()
        self._on_retry = on_retry
        self._sleep = sleep
        self._clock = clock

    async def run_flow(self, flow: Flow[T]) -> T:
        """Send the requests of a flow and return its result."""
        with closing(flow):
            try:
                request = next(flow)
                while True:
                    try:
                        response = await self._send(request)
                    except SendGridError as error:
                        request = flow.throw(error)
                    else:
                        request = flow.send(response)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]

    async def aclose(self) -> None:
        """Close the connections once no request is in flight: a cancelled one takes a moment to end."""
        if self._in_flight:
            await asyncio.wait(self._in_flight)
        await self._client.aclose()

    async def __aenter__(self) -> AsyncSendGridClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _send(self, request: Request) -> Response:
        if request.reason:
            self._on_retry()
        if (wait := _wait_seconds(request, self.rate_limit, self._clock())) > 0:
            await self._sleep(wait)
        send_state = SendState()
        seconds = _max_response_seconds(self.connection)
        exchange = asyncio.ensure_future(self._exchange(request, send_state))
        self._in_flight.add(exchange)
        exchange.add_done_callback(self._in_flight.discard)
        try:
            response = await asyncio.wait_for(exchange, seconds)
        except asyncio.TimeoutError:  # not the built-in one before Python 3.11
            raise error_from_exception(TimeoutError(), request, self.connection, send_state, seconds) from None
        finally:
            send_state.cancel()
        self.rate_limit.record(response)
        self.successes += 200 <= response.status_code < 300
        return response

    async def _exchange(self, request: Request, send_state: SendState) -> Response:
        trace = Trace(send_state)
        try:
            async with self._client.stream(
                request.method,
                request.target,
                json=request.body,
                headers=own_headers(self.connection),
                extensions={"trace": trace},
            ) as received:
                headers = {name.lower(): value for name, value in received.headers.items()}
                body = _Body(request, headers)
                async for chunk in received.aiter_raw(_CHUNK_BYTES):
                    body.add(chunk)
                return Response(
                    received.status_code, headers, bytes(body.content), self._clock(), self.connection.on_behalf_of
                )
        except asyncio.CancelledError:
            await trace.close_connections()
            raise
        except SendGridError:
            raise
        except Exception as error:  # the libraries let through errors of others
            if not send_state.has_begun:
                await trace.close_connections()
                if not is_known_error(type(error)):
                    raise
            seconds = _max_response_seconds(self.connection)
            raise error_from_exception(error, request, self.connection, send_state, seconds) from None


def _wait_seconds(request: Request, rate_limit: RateLimit, now: float) -> float:
    """How long to wait before a request, for a retry or for the rate limit; logs the reason."""
    for_limit = rate_limit.wait_seconds(now)
    if request.delay_seconds >= for_limit > 0 or for_limit == 0 < request.delay_seconds:
        log.warning("%s Trying again in %.0f s.", request.reason, request.delay_seconds)
    elif for_limit > 0:
        log.info("SendGrid's rate limit leaves no request; waiting %.0f s for the next window.", for_limit)
    return max(request.delay_seconds, for_limit)


def _max_response_seconds(connection: SendGridConnection) -> float:
    return _RESPONSE_TIMEOUTS * connection.timeout_seconds


class _Body:
    """The body of one response, decompressed as it arrives."""

    def __init__(self, request: Request, headers: Mapping[str, str]) -> None:
        self.content = bytearray()
        self._request = request
        self._gunzip = Gunzip() if headers.get("content-encoding", "").lower() in ("gzip", "x-gzip") else None

    def add(self, chunk: bytes) -> None:
        for piece in self._decompress(chunk):
            self.content += piece
            if len(self.content) > MAX_RESPONSE_BYTES:
                raise self._error(f"is larger than {MAX_RESPONSE_BYTES} bytes")

    def _decompress(self, chunk: bytes) -> Iterator[bytes]:
        if self._gunzip is None:
            yield chunk
            return
        try:
            yield from self._gunzip.feed(memoryview(chunk))
        except ExportIncompleteError:
            raise self._error("is not valid gzip, although its header says so") from None

    def _error(self, problem: str) -> SendGridServerError:
        return SendGridServerError(
            f"{self._request.method} {urlsplit(self._request.target).path}: the response {problem}; it is not a "
            "response of SendGrid's API. Check the connection's host.",
            may_have_been_accepted=self._request.method == "POST",
        )
