"""HTTP sessions for the API and for downloads, with the same proxies and certificates in requests and httpx.

Only the API's own origin receives the key. `requests` and `httpx` are imported inside functions: a worker needs no
httpx, a triggerer no requests, and a DAG file neither.
"""

from __future__ import annotations

from base64 import b64encode
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from airflow_provider_sendgrid import __version__
from airflow_provider_sendgrid.exports.connection import SendGridConnection
from airflow_provider_sendgrid.exports.network import Network, resolve_network
from airflow_provider_sendgrid.exports.sending import is_proxy_error, recording_pool
from airflow_provider_sendgrid.redaction import redact_logs_of_libraries

if TYPE_CHECKING:
    import httpx
    import requests

# HTTP clients decompress all layers of all bytes read at once; `client` decompresses small pieces.
ACCEPTED_ENCODING = "gzip"
# A cached response lacks new exports and a new status.
_API_HEADERS = {"Accept": "application/json", "Cache-Control": "no-cache"}
# The connections of a delivery; requests keeps 10 by default and would reopen the others for each request.
_POOL_SIZE = 64


def new_session(connection: SendGridConnection) -> requests.Session:
    """A session that adds the key and the subuser only to requests for the API's own origin."""
    headers = own_headers(connection)

    def add_headers(prepared: requests.PreparedRequest) -> requests.PreparedRequest:
        parts = urlsplit(prepared.url or "")
        if f"{parts.scheme}://{parts.netloc}" == connection.base_url:
            prepared.headers.update(headers)
        return prepared

    def add_headers_after_redirect(prepared: requests.PreparedRequest, _: requests.Response) -> None:
        for name in headers:
            prepared.headers.pop(name, None)
        add_headers(prepared)

    session = new_download_session(connection)
    session.auth = add_headers
    session.rebuild_auth = add_headers_after_redirect  # type: ignore[method-assign]  # otherwise requests reads ~/.netrc
    session.headers.update(_API_HEADERS)
    return session


def new_download_session(connection: SendGridConnection) -> requests.Session:
    """A session without the key, for the signed URLs of files.

    Raises:
        ValueError: a proxy or a source of certificates is invalid.
    """
    import requests

    def add_nothing(prepared: requests.PreparedRequest) -> requests.PreparedRequest:
        return prepared

    def resolve_redirects(*args: Any, yield_requests: bool = False, **kwargs: Any) -> Any:
        # For `Response.next`, requests would read the body of a redirect that is not followed, however long.
        return iter(()) if yield_requests else super(requests.Session, session).resolve_redirects(*args, **kwargs)

    redact_logs_of_libraries()
    network = resolve_network(connection)
    session = requests.Session()
    session.trust_env = False  # `network` has read the environment, for both clients
    session.verify = network.is_verified
    session.mount("https://", _Adapter.of(network))
    session.mount("http://", _Adapter.of(network))
    session.resolve_redirects = resolve_redirects  # type: ignore[method-assign]
    session.auth = add_nothing  # otherwise requests reads ~/.netrc
    session.headers["User-Agent"] = _user_agent()
    return session


def new_async_client(connection: SendGridConnection) -> httpx.AsyncClient:
    """A client for the API without the key, which is added to each request.

    Raises:
        ValueError: a proxy or a source of certificates is invalid.
    """
    import httpx

    redact_logs_of_libraries()
    network = resolve_network(connection)
    proxy = _httpx_proxy(network.proxy_for(connection.base_url), network)
    # No limit, so that hanging requests do not block others. Callers limit the requests in flight.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
    mounts = {}
    if proxy is not None and proxy.url.scheme == "socks5" and proxy.auth is not None:
        mounts["all://"] = _socks_transport_class()(proxy, verify=network.tls, limits=limits, trust_env=False)
    return httpx.AsyncClient(
        base_url=connection.base_url,
        headers={
            **_API_HEADERS,
            "Accept-Encoding": ACCEPTED_ENCODING,
            "User-Agent": _user_agent(),
        },
        timeout=connection.timeout_seconds,
        limits=limits,
        trust_env=False,
        verify=network.tls,
        proxy=proxy,
        mounts=mounts,
        follow_redirects=False,
    )


def own_headers(connection: SendGridConnection) -> dict[str, str]:
    """The headers that only the API's own origin may receive."""
    headers = {"Authorization": f"Bearer {connection.api_key}"}
    return headers | ({"on-behalf-of": connection.on_behalf_of} if connection.on_behalf_of else {})


def _user_agent() -> str:
    return f"airflow-provider-sendgrid/{__version__}"


def _httpx_proxy(url: str | None, network: Network) -> httpx.Proxy | None:
    import httpx

    if url is None:
        return None
    # In httpx the proxy resolves names for both schemes; "socks5h" exists since 0.28.
    url = url.replace("socks5h://", "socks5://", 1)
    return httpx.Proxy(url, ssl_context=network.tls if url.startswith("https:") else None)


class _SocksTransport:
    """Uses a SOCKS proxy with its user and password, or without them if the proxy requires none.

    PySocks, in a worker, offers both methods at once. httpx offers only the password, which such proxies refuse.
    """

    def __init__(self, proxy: httpx.Proxy, **kwargs: Any) -> None:
        import httpx

        self._with_login = httpx.AsyncHTTPTransport(proxy=proxy, **kwargs)
        self._without = httpx.AsyncHTTPTransport(proxy=httpx.Proxy(proxy.url), **kwargs)
        self._requires_login = True

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if not self._requires_login:
            return await self._without.handle_async_request(request)
        try:
            return await self._with_login.handle_async_request(request)
        except Exception as error:
            if not is_proxy_error(error):  # in the handshake: nothing was sent to the host
                raise
            if trace := request.extensions.get("trace"):
                await trace.close_connections()
            try:
                response = await self._without.handle_async_request(request)
            except Exception as second:  # noqa: BLE001 - one of the two is raised
                raise (error if is_proxy_error(second) else second) from None
        self._requires_login = False
        return response

    async def aclose(self) -> None:
        await self._with_login.aclose()
        await self._without.aclose()


@cache
def _socks_transport_class() -> Any:
    import httpx

    return type("SocksTransport", (_SocksTransport, httpx.AsyncBaseTransport), {})


class _Adapter:
    """Uses the proxies and certificates of `network`, and records when sending begins.

    A mixin for the adapter of requests, which is imported later.
    """

    network: Network
    poolmanager: Any

    @classmethod
    def of(cls, network: Network) -> requests.adapters.HTTPAdapter:
        adapter: Any = _adapter_class()(pool_maxsize=_POOL_SIZE)
        adapter.network = network
        return adapter  # type: ignore[no-any-return]

    def send(self, request: Any, *args: Any, proxies: Any = None, **kwargs: Any) -> Any:
        if not proxies and (proxy := self.network.proxy_for(request.url)):
            proxies = {"all": proxy}
        return super().send(request, *args, proxies=proxies, **kwargs)  # type: ignore[misc]

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)  # type: ignore[misc]
        _record_sending(self.poolmanager)

    def proxy_headers(self, proxy: str) -> dict[str, str]:
        # UTF-8, as in httpx; requests would use Latin-1.
        credentials, _, _ = urlsplit(proxy).netloc.rpartition("@")
        if not credentials:
            return {}
        return {"Proxy-Authorization": f"Basic {b64encode(unquote(credentials).encode()).decode()}"}

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        # The proxy resolves names, as in httpx.
        proxy = proxy.replace("socks5://", "socks5h://", 1)
        if proxy.startswith("https:"):
            kwargs["proxy_ssl_context"] = self.network.tls
        manager = super().proxy_manager_for(proxy, **kwargs)  # type: ignore[misc]
        _record_sending(manager)
        return manager

    def build_connection_pool_key_attributes(self, request: Any, verify: Any, cert: Any = None) -> Any:
        host, pool = super().build_connection_pool_key_attributes(request, verify, cert)  # type: ignore[misc]
        if self._is_default(verify):
            pool["ssl_context"] = self.network.tls
        return host, pool

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        # Otherwise requests trusts its own certificates as well.
        if cert or not self._is_default(verify):
            super().cert_verify(conn, url, verify, cert)  # type: ignore[misc]

    def _is_default(self, verify: Any) -> bool:
        """Whether the user of this session did not set other certificates."""
        return verify is self.network.is_verified


@cache
def _adapter_class() -> Any:
    import requests

    return type("SendGridAdapter", (_Adapter, requests.adapters.HTTPAdapter), {})


def _record_sending(manager: Any) -> None:
    pools = manager.pool_classes_by_scheme
    manager.pool_classes_by_scheme = {scheme: recording_pool(pool) for scheme, pool in pools.items()}
