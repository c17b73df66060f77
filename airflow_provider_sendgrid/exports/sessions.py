"""HTTP sessions: the key for the API's own origin only, and the same proxies and trust for requests and httpx.

`requests` and `httpx` are imported where they are needed: a worker needs no httpx, a triggerer no requests, and a DAG
file neither.
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

# HTTP clients unpack all that they have read at once, and layer after layer; `client` unpacks a little at a time.
ACCEPTED_ENCODING = "gzip"
# A copy that a proxy kept shows neither new exports nor a new status.
_API_HEADERS = {"Accept": "application/json", "Cache-Control": "no-cache"}
# As many as a delivery may open at once; requests keeps 10, and would open the others again for each request.
_POOL_SIZE = 64


def new_session(connection: SendGridConnection) -> requests.Session:
    """A session that adds the key and the subuser to requests for the API's own origin, and to no other."""
    headers = own_headers(connection)

    def add_own(prepared: requests.PreparedRequest) -> requests.PreparedRequest:
        parts = urlsplit(prepared.url or "")
        if f"{parts.scheme}://{parts.netloc}" == connection.base_url:
            prepared.headers.update(headers)
        return prepared

    def add_own_after_redirect(prepared: requests.PreparedRequest, _: requests.Response) -> None:
        for name in headers:
            prepared.headers.pop(name, None)
        add_own(prepared)

    session = new_download_session(connection)
    session.auth = add_own
    session.rebuild_auth = add_own_after_redirect  # type: ignore[method-assign]  # or requests asks ~/.netrc
    session.headers.update(_API_HEADERS)
    return session


def new_download_session(connection: SendGridConnection) -> requests.Session:
    """A session without the key, for the signed URLs of files: same proxies, same trust.

    Raises:
        ValueError: the connection's or the environment's proxy or trust is wrong.
    """
    import requests

    def add_nothing(prepared: requests.PreparedRequest) -> requests.PreparedRequest:
        return prepared

    def resolve_redirects(*args: Any, yield_requests: bool = False, **kwargs: Any) -> Any:
        # To fill in `Response.next`, requests would read the body of a redirect that is not followed, however long.
        return iter(()) if yield_requests else super(requests.Session, session).resolve_redirects(*args, **kwargs)

    redact_logs_of_libraries()
    network = resolve_network(connection)
    session = requests.Session()
    session.trust_env = False  # `network` has read the environment, for both clients
    session.verify = network.is_verified
    session.mount("https://", _Adapter.of(network))
    session.mount("http://", _Adapter.of(network))
    session.resolve_redirects = resolve_redirects  # type: ignore[method-assign]
    session.auth = add_nothing  # or requests would look into ~/.netrc
    session.headers["User-Agent"] = _user_agent()
    return session


def new_async_client(connection: SendGridConnection) -> httpx.AsyncClient:
    """A client for the API, without the key: it is added to each request.

    Raises:
        ValueError: the connection's or the environment's proxy or trust is wrong.
    """
    import httpx

    redact_logs_of_libraries()
    network = resolve_network(connection)
    proxy = _httpx_proxy(network.proxy_for(connection.base_url), network)
    # No limit: requests that hang must not keep others from a connection. Callers bound how many are in flight.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
    login = {}
    if proxy is not None and proxy.url.scheme == "socks5" and proxy.auth is not None:
        login["all://"] = _socks_transport_class()(proxy, verify=network.tls, limits=limits, trust_env=False)
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
        mounts=login,
        follow_redirects=False,
    )


def own_headers(connection: SendGridConnection) -> dict[str, str]:
    """What only the API's own origin may see."""
    headers = {"Authorization": f"Bearer {connection.api_key}"}
    return headers | ({"on-behalf-of": connection.on_behalf_of} if connection.on_behalf_of else {})


def _user_agent() -> str:
    return f"airflow-provider-sendgrid/{__version__}"


def _httpx_proxy(url: str | None, network: Network) -> httpx.Proxy | None:
    import httpx

    if url is None:
        return None
    # httpx has the proxy look up names for both, and knows "socks5h" from 0.28 on only.
    url = url.replace("socks5h://", "socks5://", 1)
    return httpx.Proxy(url, ssl_context=network.tls if url.startswith("https:") else None)


class _SocksTransport:
    """Uses a SOCKS proxy with its user and password, or, if the proxy wants none, without them.

    As in a worker, where PySocks offers both at once. httpx offers the password alone, which such proxies refuse.
    """

    def __init__(self, proxy: httpx.Proxy, **kwargs: Any) -> None:
        import httpx

        self._with_login = httpx.AsyncHTTPTransport(proxy=proxy, **kwargs)
        self._without = httpx.AsyncHTTPTransport(proxy=httpx.Proxy(proxy.url), **kwargs)
        self._wants_login = True

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if not self._wants_login:
            return await self._without.handle_async_request(request)
        try:
            return await self._with_login.handle_async_request(request)
        except Exception as error:
            if not is_proxy_error(error):  # its handshake: nothing was sent to the host
                raise
            if trace := request.extensions.get("trace"):
                await trace.close_connections()
            try:
                response = await self._without.handle_async_request(request)
            except Exception as second:  # noqa: BLE001 - one of both is raised
                raise (error if is_proxy_error(second) else second) from None
        self._wants_login = False
        return response

    async def aclose(self) -> None:
        await self._with_login.aclose()
        await self._without.aclose()


@cache
def _socks_transport_class() -> Any:
    import httpx

    return type("SocksTransport", (_SocksTransport, httpx.AsyncBaseTransport), {})


class _Adapter:
    """Sends through the proxy of each URL, trusts what `network` says, and records when sending begins.

    Added to requests' adapter where that is imported.
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
        _record(self.poolmanager)

    def proxy_headers(self, proxy: str) -> dict[str, str]:
        # In UTF-8, as with httpx; requests would take Latin-1.
        credentials, _, _ = urlsplit(proxy).netloc.rpartition("@")
        if not credentials:
            return {}
        return {"Proxy-Authorization": f"Basic {b64encode(unquote(credentials).encode()).decode()}"}

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        # As with httpx, the proxy looks up names.
        proxy = proxy.replace("socks5://", "socks5h://", 1)
        if proxy.startswith("https:"):
            kwargs["proxy_ssl_context"] = self.network.tls
        manager = super().proxy_manager_for(proxy, **kwargs)  # type: ignore[misc]
        _record(manager)
        return manager

    def build_connection_pool_key_attributes(self, request: Any, verify: Any, cert: Any = None) -> Any:
        host, pool = super().build_connection_pool_key_attributes(request, verify, cert)  # type: ignore[misc]
        if self._is_ours(verify):
            pool["ssl_context"] = self.network.tls
        return host, pool

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        # Or requests would add its own certificates to those trusted.
        if cert or not self._is_ours(verify):
            super().cert_verify(conn, url, verify, cert)  # type: ignore[misc]

    def _is_ours(self, verify: Any) -> bool:
        """Whether a user of this session left the trust as it is."""
        return verify is self.network.is_verified


@cache
def _adapter_class() -> Any:
    import requests

    return type("SendGridAdapter", (_Adapter, requests.adapters.HTTPAdapter), {})


def _record(manager: Any) -> None:
    pools = manager.pool_classes_by_scheme
    manager.pool_classes_by_scheme = {scheme: recording_pool(pool) for scheme, pool in pools.items()}
