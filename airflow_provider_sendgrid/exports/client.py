"""Two ways to speak the protocol: requests in a worker, httpx on the event loop.

Only here requests wait and go out, and only here the key is added: to requests for the API's own origin,
never to another. Redirects are not followed (SendGrid's API knows none). What requests and httpx raise is
turned into `SendGridUnavailableError` without their texts, for these may name URLs with a query.

An answer is bounded in its size, unpacked, and in its time, from the first byte sent to the last received.

`requests` and `httpx` are imported by the client that needs them: a worker needs no httpx, a triggerer no
requests, and a DAG file neither.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import closing
from contextvars import copy_context
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from airflow_provider_sendgrid import __version__
from airflow_provider_sendgrid.exceptions import (
    ExportIncompleteError,
    SendGridError,
    SendGridServerError,
    SendGridUnavailableError,
)
from airflow_provider_sendgrid.exports.connection import SendGridConnection
from airflow_provider_sendgrid.exports.gunzip import Gunzip
from airflow_provider_sendgrid.exports.protocol import Conversation, RateLimit, Reply, Request

if TYPE_CHECKING:
    import httpx
    import requests

T = TypeVar("T")
log = logging.getLogger(__name__)

# A page of a listing holds a few hundred URLs of 1 to 2 KB; more than this is no answer of SendGrid's.
MAX_ANSWER_BYTES = 32 * 1024 * 1024
_CHUNK_BYTES = 64 * 1024
# A whole answer may take so many times as long as the wait for its next bytes: who sends one now and then is no API.
_TIMEOUTS_OF_AN_ANSWER = 4
# Unpacked here alone, a little at a time: HTTP clients unpack all that they have read at once, and layer after layer.
_ACCEPTED_ENCODING = "gzip"
# As many as a delivery may open at once; requests keeps 10, and would open the others for each request anew.
_POOL_SIZE = 64


class SendGridClient:
    """Speaks the protocol with requests, in a worker; use it in a ``with`` block or call `close`.

    Args:
        connection: who we are and whom we ask.
        sleep: how to wait, in seconds.
        clock: seconds since the epoch.
        on_retry: told of each request that is made again.
    """

    def __init__(
        self,
        connection: SendGridConnection,
        *,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.time,
        on_retry: Callable[[], object] = lambda: None,
    ) -> None:
        self.connection = connection
        self.rate_limit = RateLimit()
        self._session = new_session(connection)
        self._on_retry = on_retry
        self._sleep = sleep
        self._clock = clock

    def converse(self, conversation: Conversation[T]) -> T:
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

    def _answer(self, request: Request) -> Reply:
        import requests
        import urllib3

        if request.because:
            self._on_retry()
        if (wait := _wait_seconds(request, self.rate_limit, self._clock())) > 0:
            self._sleep(wait)
        try:
            reply = _in_time(_longest_answer_seconds(self.connection), partial(self._exchange, request))
        except (requests.RequestException, OSError, urllib3.exceptions.HTTPError) as error:
            raise _unavailable(error, request, self.connection, _never_sent_by_requests(error)) from None
        except concurrent.futures.TimeoutError as error:
            raise _unavailable(error, request, self.connection, never_sent=False) from None
        self.rate_limit.note(reply)
        return reply

    def _exchange(self, request: Request, given_up: threading.Event) -> Reply:
        with self._session.request(
            request.method,
            self.connection.base_url + request.target,
            json=request.body,
            headers={"Accept-Encoding": _ACCEPTED_ENCODING},
            timeout=self.connection.timeout_seconds,
            allow_redirects=False,
            stream=True,
        ) as response:
            headers = {name.lower(): value for name, value in response.headers.items()}
            body = _Body(request, headers)
            while not given_up.is_set() and (chunk := response.raw.read1(_CHUNK_BYTES, decode_content=False)):
                body.add(chunk)
            return Reply(response.status_code, headers, bytes(body.content), self._clock())


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
        self._client = _new_async_client(connection)
        self._under_way: set[asyncio.Task[Reply]] = set()
        self._on_retry = on_retry
        self._sleep = sleep
        self._clock = clock

    async def converse(self, conversation: Conversation[T]) -> T:
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

    async def _answer(self, request: Request) -> Reply:
        import httpx

        if request.because:
            self._on_retry()
        if (wait := _wait_seconds(request, self.rate_limit, self._clock())) > 0:
            await self._sleep(wait)
        exchange = asyncio.ensure_future(self._exchange(request))
        self._under_way.add(exchange)
        exchange.add_done_callback(self._under_way.discard)
        try:
            reply = await asyncio.wait_for(exchange, _longest_answer_seconds(self.connection))
        except asyncio.TimeoutError as error:
            raise _unavailable(error, request, self.connection, never_sent=False) from None
        except httpx.HTTPError as error:
            never_sent = isinstance(
                error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout | httpx.ProxyError
            )
            raise _unavailable(error, request, self.connection, never_sent) from None
        self.rate_limit.note(reply)
        self.successes += 200 <= reply.status_code < 300
        return reply

    async def _exchange(self, request: Request) -> Reply:
        async with self._client.stream(
            request.method, request.target, json=request.body, headers=_own_headers(self.connection)
        ) as response:
            headers = {name.lower(): value for name, value in response.headers.items()}
            body = _Body(request, headers)
            async for chunk in response.aiter_raw(_CHUNK_BYTES):
                body.add(chunk)
            return Reply(response.status_code, headers, bytes(body.content), self._clock())


def new_session(connection: SendGridConnection) -> requests.Session:
    """A session that adds the key and the subuser to requests for the API's own origin, and to no other."""
    own_headers = _own_headers(connection)

    def add_own(prepared: requests.PreparedRequest) -> requests.PreparedRequest:
        parts = urlsplit(prepared.url or "")
        if f"{parts.scheme}://{parts.netloc}" == connection.base_url:
            prepared.headers.update(own_headers)
        return prepared

    def add_own_after_redirect(prepared: requests.PreparedRequest, _: requests.Response) -> None:
        for name in own_headers:
            prepared.headers.pop(name, None)
        add_own(prepared)

    session = new_download_session(connection)
    session.auth = add_own
    session.rebuild_auth = add_own_after_redirect  # type: ignore[method-assign]  # or requests asks ~/.netrc
    session.headers["Accept"] = "application/json"
    return session


def new_download_session(connection: SendGridConnection) -> requests.Session:
    """A session without the key, for the signed URLs of files: same proxy, same trust."""
    import requests

    def add_nothing(prepared: requests.PreparedRequest) -> requests.PreparedRequest:
        return prepared

    session = requests.Session()
    session.mount("https://", requests.adapters.HTTPAdapter(pool_maxsize=_POOL_SIZE))
    session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=_POOL_SIZE))
    session.auth = add_nothing  # or requests would look into ~/.netrc
    session.headers["User-Agent"] = _user_agent()
    if connection.proxy or connection.verify is not True:
        # Or an environment's proxy and REQUESTS_CA_BUNDLE would win over the connection's own settings.
        found: Any = session.merge_environment_settings(connection.base_url, {}, None, None, None)
        own = connection.proxy
        session.proxies = {"http": own, "https": own} if own else found["proxies"]
        session.verify = found["verify"] if connection.verify is True else connection.verify
        session.trust_env = False
    return session


def _new_async_client(connection: SendGridConnection) -> httpx.AsyncClient:
    import httpx

    return httpx.AsyncClient(
        base_url=connection.base_url,
        headers={
            "Accept": "application/json",
            "Accept-Encoding": _ACCEPTED_ENCODING,
            "User-Agent": _user_agent(),
        },
        timeout=connection.timeout_seconds,
        verify=_tls(connection.verify),
        proxy=connection.proxy,
        follow_redirects=False,
    )


def _tls(verify: bool | str) -> Any:
    if verify is True:
        return _usual_trust(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))
    return ssl.create_default_context(cafile=verify) if isinstance(verify, str) else verify


@cache
def _usual_trust(*_where: str | None) -> ssl.SSLContext:
    """What httpx trusts by itself; to read it takes a tenth of a second, in which the event loop stands still."""
    import httpx

    return httpx.create_ssl_context()


def _own_headers(connection: SendGridConnection) -> dict[str, str]:
    headers = {"Authorization": f"Bearer {connection.api_key}"}
    return headers | ({"on-behalf-of": connection.on_behalf_of} if connection.on_behalf_of else {})


def _user_agent() -> str:
    return f"airflow-provider-sendgrid/{__version__}"


def _wait_seconds(request: Request, rate_limit: RateLimit, now: float) -> float:
    """How long to wait before a request, said in the log: for another try, or for a slot in the rate limit."""
    for_slot = rate_limit.wait_seconds(now)
    if request.after_seconds >= for_slot > 0 or for_slot == 0 < request.after_seconds:
        log.warning("%s Trying again in %.0f s.", request.because, request.after_seconds)
    elif for_slot > 0:
        log.info("SendGrid's rate limit leaves no request; waiting %.0f s for the next window.", for_slot)
    return max(request.after_seconds, for_slot)


def _longest_answer_seconds(connection: SendGridConnection) -> float:
    return _TIMEOUTS_OF_AN_ANSWER * connection.timeout_seconds


def _in_time(seconds: float, exchange: Callable[[threading.Event], Reply]) -> Reply:
    """What `exchange` answers within so many seconds, in all.

    It runs in a thread of its own: a peer that sends a byte now and then, be it of a header, outlasts every timeout of
    a socket. Given up, it ends with the next byte that comes, or does not come.

    Raises:
        concurrent.futures.TimeoutError: it took longer.
    """
    outcome: concurrent.futures.Future[Reply] = concurrent.futures.Future()
    given_up = threading.Event()

    def run() -> None:
        try:
            outcome.set_result(exchange(given_up))
        except BaseException as error:  # noqa: BLE001 - raised again by whoever waits
            outcome.set_exception(error)

    # No pool: its threads would be waited for when the worker ends.
    threading.Thread(target=copy_context().run, args=(run,), name="sendgrid-api", daemon=True).start()
    try:
        return outcome.result(seconds)
    finally:
        given_up.set()


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


def _never_sent_by_requests(error: Exception) -> bool:
    """Whether the request surely did not reach SendGrid: no connection came about."""
    import requests
    from urllib3.exceptions import MaxRetryError, NewConnectionError

    if isinstance(error, requests.ConnectTimeout | requests.exceptions.ProxyError):
        return True
    cause = error.args[0] if error.args else None
    reason = cause.reason if isinstance(cause, MaxRetryError) else None
    is_distrusted = any(isinstance(each, ssl.SSLCertVerificationError) for each in getattr(reason, "args", ()))
    return isinstance(reason, NewConnectionError) or is_distrusted


def _unavailable(
    error: Exception, request: Request, connection: SendGridConnection, never_sent: bool
) -> SendGridUnavailableError:
    what = f"{request.method} {urlsplit(request.target).path} at {connection.base_url}"
    kind = type(error).__name__
    if never_sent:
        return SendGridUnavailableError(
            f"{what}: no connection ({kind}). Check the host, the network's rules, the proxy and its TLS."
        )
    return SendGridUnavailableError(
        f"{what}: the connection broke or the answer did not come in time ({kind}, timeout "
        f"{connection.timeout_seconds:g} s, {_longest_answer_seconds(connection):g} s in all). Check that the host "
        "answers from here, or raise the connection's timeout.",
        may_have_been_accepted=request.method == "POST",
    )
