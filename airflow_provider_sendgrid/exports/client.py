"""Two drivers of the protocol: requests in a worker, httpx on the event loop.

Only here requests wait and are sent. Redirects are not followed (SendGrid's API knows none). Whatever is raised once
sending began, and each network error before, becomes a `SendGridError` without its text, which may name URLs with a
query; whether the request may have been accepted all the same is decided by `sending`.

A response is bounded in its size, unpacked, and in its time, from the first byte sent to the last received.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import closing
from functools import partial
from typing import TypeVar
from urllib.parse import urlsplit

from airflow_provider_sendgrid.compression import Gunzip
from airflow_provider_sendgrid.exceptions import (
    ExportIncompleteError,
    SendGridAuthError,
    SendGridError,
    SendGridServerError,
    SendGridUnavailableError,
)
from airflow_provider_sendgrid.exports.connection import SendGridConnection
from airflow_provider_sendgrid.exports.protocol import Flow, RateLimit, Request, Response
from airflow_provider_sendgrid.exports.sending import Sending, Trace, is_foreseen, recorded_in
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

# A page of a listing holds a few hundred URLs of 1 to 2 KB; more than this is no answer of SendGrid's.
MAX_ANSWER_BYTES = 32 * 1024 * 1024
_CHUNK_BYTES = 64 * 1024
# A whole answer may take so many times as long as the wait for its next bytes: who sends one now and then is no API.
_TIMEOUTS_OF_AN_ANSWER = 4


class SendGridClient:
    """Speaks the protocol with requests, in a worker; use it in a ``with`` block or call `close`.

    Args:
        connection: who we are and whom we ask.
        sleep: how to wait, in seconds; by default until then, or until `stop` is set.
        clock: seconds since the epoch.
        on_retry: told of each request that is made again.
        stop: ends pauses and the wait for a response at once, with `StoppedError`.
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
        # Or requests would parse the target of a redirect that is not followed, and raise what it finds there.
        self._session.get_redirect_target = lambda _: None  # type: ignore[method-assign,assignment]
        self._on_retry = on_retry
        self._sleep = sleep or self._stop.wait
        self._clock = clock

    def run_flow(self, conversation: Flow[T]) -> T:
        """Carry a conversation with SendGrid to its end and return its result."""
        with closing(conversation):
            try:
                request = next(conversation)
                while True:
                    try:
                        reply = self._answer(request)
                    except SendGridError as error:
                        request = conversation.throw(error)
                    else:
                        request = conversation.send(reply)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def __enter__(self) -> SendGridClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self, request: Request) -> Response:
        if request.reason:
            self._on_retry()
        if (wait := _wait_seconds(request, self.rate_limit, self._clock())) > 0:
            self._sleep(wait)
        sending, is_done = Sending(), False
        # In a separate thread: a socket's timeout never ends a response that arrives byte by byte. A request that is
        # given up sends nothing more.
        try:
            exchange = partial(self._exchange, request, sending)
            reply = self._stop.call(exchange, _longest_answer_seconds(self.connection), name="sendgrid-api")
            is_done = True
        except TimeoutError as error:
            raise _failed(error, request, self.connection, sending) from None
        finally:
            if not is_done:
                sending.interrupt()
        self.rate_limit.note(reply)
        return reply

    def _exchange(self, request: Request, sending: Sending) -> Response:
        try:
            with recorded_in(sending):
                return self._sent(request)
        except SendGridError:
            raise
        except Exception as error:  # the libraries let through errors of others
            if not sending.has_begun and not is_foreseen(type(error)):
                raise
            raise _failed(error, request, self.connection, sending) from None

    def _sent(self, request: Request) -> Response:
        with self._session.request(
            request.method,
            self.connection.base_url + request.target,
            json=request.body,
            headers={"Accept-Encoding": ACCEPTED_ENCODING},
            timeout=self.connection.timeout_seconds,
            allow_redirects=False,
            stream=True,
        ) as response:
            headers = {name.lower(): value for name, value in response.headers.items()}
            body = _Body(request, headers)
            while chunk := response.raw.read(_CHUNK_BYTES, decode_content=False):
                body.add(chunk)
            return Response(
                response.status_code, headers, bytes(body.content), self._clock(), self.connection.on_behalf_of
            )


class AsyncSendGridClient:
    """Speaks the protocol with httpx, on an event loop; use it in an ``async with`` block or call `aclose`.

    Args:
        connection: who we are and whom we ask.
        sleep: how to wait, in seconds.
        clock: seconds since the epoch.
        on_retry: told of each request that is made again, on the event loop: it must not block.

    Attributes:
        rate_limit: what SendGrid said of its limit last.
        successes: how many requests were answered with success so far.
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
        self._under_way: set[asyncio.Task[Response]] = set()
        self._on_retry = on_retry
        self._sleep = sleep
        self._clock = clock

    async def run_flow(self, conversation: Flow[T]) -> T:
        """Carry a conversation with SendGrid to its end and return its result."""
        with closing(conversation):
            try:
                request = next(conversation)
                while True:
                    try:
                        reply = await self._answer(request)
                    except SendGridError as error:
                        request = conversation.throw(error)
                    else:
                        request = conversation.send(reply)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]

    async def aclose(self) -> None:
        """Close the connections, once no request is under way: also one that was cancelled takes a moment to end."""
        if self._under_way:
            await asyncio.wait(self._under_way)
        await self._client.aclose()

    async def __aenter__(self) -> AsyncSendGridClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _answer(self, request: Request) -> Response:
        if request.reason:
            self._on_retry()
        if (wait := _wait_seconds(request, self.rate_limit, self._clock())) > 0:
            await self._sleep(wait)
        sending = Sending()
        exchange = asyncio.ensure_future(self._exchange(request, sending))
        self._under_way.add(exchange)
        exchange.add_done_callback(self._under_way.discard)
        try:
            reply = await asyncio.wait_for(exchange, _longest_answer_seconds(self.connection))
        except asyncio.TimeoutError:  # before Python 3.11 not the built-in one
            raise _failed(TimeoutError(), request, self.connection, sending) from None
        finally:
            sending.give_up()
        self.rate_limit.note(reply)
        self.successes += 200 <= reply.status_code < 300
        return reply

    async def _exchange(self, request: Request, sending: Sending) -> Response:
        trace = Trace(sending)
        try:
            async with self._client.stream(
                request.method,
                request.target,
                json=request.body,
                headers=own_headers(self.connection),
                extensions={"trace": trace},
            ) as response:
                headers = {name.lower(): value for name, value in response.headers.items()}
                body = _Body(request, headers)
                async for chunk in response.aiter_raw(_CHUNK_BYTES):
                    body.add(chunk)
                return Response(
                    response.status_code, headers, bytes(body.content), self._clock(), self.connection.on_behalf_of
                )
        except asyncio.CancelledError:
            await trace.close_connections()
            raise
        except SendGridError:
            raise
        except Exception as error:  # likewise
            if not sending.has_begun:
                await trace.close_connections()
                if not is_foreseen(type(error)):
                    raise
            raise _failed(error, request, self.connection, sending) from None


def _wait_seconds(request: Request, rate_limit: RateLimit, now: float) -> float:
    """How long to wait before a request, said in the log: for another try, or for a slot in the rate limit."""
    for_slot = rate_limit.wait_seconds(now)
    if request.delay_seconds >= for_slot > 0 or for_slot == 0 < request.delay_seconds:
        log.warning("%s Trying again in %.0f s.", request.reason, request.delay_seconds)
    elif for_slot > 0:
        log.info("SendGrid's rate limit leaves no request; waiting %.0f s for the next window.", for_slot)
    return max(request.delay_seconds, for_slot)


def _longest_answer_seconds(connection: SendGridConnection) -> float:
    return _TIMEOUTS_OF_AN_ANSWER * connection.timeout_seconds


class _Body:
    """The content of one answer as it arrives, unpacked where it came as gzip."""

    def __init__(self, request: Request, headers: Mapping[str, str]) -> None:
        self.content = bytearray()
        self._request = request
        self._gunzip = Gunzip() if headers.get("content-encoding", "").lower() in ("gzip", "x-gzip") else None

    def add(self, chunk: bytes) -> None:
        for piece in self._plain(chunk):
            self.content += piece
            if len(self.content) > MAX_ANSWER_BYTES:
                raise self._error(f"is larger than {MAX_ANSWER_BYTES} bytes")

    def _plain(self, chunk: bytes) -> Iterator[bytes]:
        if self._gunzip is None:
            yield chunk
            return
        try:
            yield from self._gunzip.feed(memoryview(chunk))
        except ExportIncompleteError:
            raise self._error("is not the gzip that it says it is") from None

    def _error(self, what: str) -> SendGridServerError:
        return SendGridServerError(
            f"{self._request.method} {urlsplit(self._request.target).path}: the answer {what}; this is not an answer "
            "of SendGrid's API. Check the connection's host.",
            may_have_been_accepted=self._request.method == "POST",
        )


# How urllib3 and httpx word a proxy's refusal of CONNECT.
_REFUSED_TUNNEL = re.compile(r"(?:Tunnel connection failed: |^)([1-9][0-9]{2})\b")


def _failed(error: BaseException, request: Request, connection: SendGridConnection, sending: Sending) -> SendGridError:
    """The error for a request without a response that can be read."""
    what = f"{request.method} {urlsplit(request.target).path} at {connection.base_url}"
    kind = type(error).__name__
    sending.give_up()
    if not sending.may_have_been_accepted(error):
        return _not_connected(error, what)
    is_start = request.method == "POST"
    if not is_foreseen(type(error)):
        return SendGridServerError(
            f"{what}: the response cannot be read ({kind}). Check the connection's host and proxy: this is not a "
            "response of SendGrid's API.",
            may_have_been_accepted=is_start,
        )
    return SendGridUnavailableError(
        f"{what}: the connection broke or the answer did not come in time ({kind}, timeout "
        f"{connection.timeout_seconds:g} s, {_longest_answer_seconds(connection):g} s in all). Check that the host "
        "answers from here, or raise the connection's timeout.",
        may_have_been_accepted=is_start,
    )


def _not_connected(error: BaseException, what: str) -> SendGridError:
    kind = type(error).__name__
    refused = _REFUSED_TUNNEL.search(str(error)) if kind == "ProxyError" else None
    if refused is None:
        return SendGridUnavailableError(
            f"{what}: no connection ({kind}). Check the host, the network's rules, the proxy and its TLS."
        )
    what = f"{what}: no connection (the proxy refused the tunnel with {refused[1]})."
    if refused[1] == "407":
        refusal = SendGridAuthError(
            f"{what} Check the user and the password in the proxy's URL: in the connection's proxy, or in HTTPS_PROXY.",
            status_code=407,
        )
        refusal.is_of_proxy = True
        return refusal
    return SendGridUnavailableError(f"{what} Check that the proxy allows this host and port, and reaches it.")
