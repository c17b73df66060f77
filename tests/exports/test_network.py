"""Proxy and trust: the same for both clients and for downloads, against a real TLS server and real proxies."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from dataclasses import dataclass, field, replace

import pytest

from airflow_provider_sendgrid.exceptions import SendGridUnavailableError
from airflow_provider_sendgrid.exports import network as network_module
from airflow_provider_sendgrid.exports import protocol
from airflow_provider_sendgrid.exports.client import AsyncSendGridClient, SendGridClient
from airflow_provider_sendgrid.exports.connection import SendGridConnection
from airflow_provider_sendgrid.exports.network import resolve_network
from airflow_provider_sendgrid.exports.protocol import RetryPolicy
from airflow_provider_sendgrid.exports.sessions import new_download_session
from tests.support.network import Proxy, Server, SocksProxy, closed_port, make_certificate, response

CLIENTS = ("requests", "httpx", "download")
VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
TRUST = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch):
    for name in (*VARIABLES, *map(str.lower, VARIABLES), *TRUST, "REQUEST_METHOD"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def right(tmp_path_factory):
    """The server's certificate."""
    return make_certificate(tmp_path_factory.mktemp("right"))


@pytest.fixture(scope="module")
def wrong(tmp_path_factory):
    """A certificate that has nothing to do with the server."""
    return make_certificate(tmp_path_factory.mktemp("wrong"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, right):
    """The server's certificate in a folder, under the name by which OpenSSL finds it."""
    where = tmp_path_factory.mktemp("folder")
    command = ["openssl", "x509", "-hash", "-noout", "-in", str(right)]
    name = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    (where / f"{name}.0").write_bytes(right.read_bytes())
    return where


@pytest.fixture(scope="module")
def server(right):
    with Server("", right).running() as running:
        yield running


@pytest.fixture
def proxy():
    with Proxy().running() as running:
        yield running


def get(kind, connection):
    """One GET of the API, or of a file, as the client does it; raises where it fails."""

    async def on_a_loop():
        async with AsyncSendGridClient(connection) as client:
            return await client.run_flow(protocol.get_scopes(RetryPolicy(tries=1)))

    if kind == "httpx":
        return asyncio.run(on_a_loop())
    if kind == "download":
        with new_download_session(connection) as session:
            return session.get(f"{connection.base_url}/file", timeout=10).status_code
    with SendGridClient(connection) as client:
        return client.run_flow(protocol.get_scopes(RetryPolicy(tries=1)))


def outcome(kind, connection):
    import requests

    try:
        get(kind, connection)
    except (SendGridUnavailableError, requests.RequestException):
        return False
    return True


@dataclass(frozen=True)
class SetUp:
    """Words in braces are replaced by values of the fixtures."""

    name: str
    works: bool
    uses_proxy: bool = False
    extra: dict = field(default_factory=dict)
    environ: dict = field(default_factory=dict)


PROXIED = {"verify": "{right}"}
SET_UPS = [
    # Trust
    SetUp("nothing is trusted but certifi's", works=False),
    SetUp("verify is a file", works=True, extra={"verify": "{right}"}),
    SetUp("verify is a folder", works=True, extra={"verify": "{folder}"}),
    SetUp("verify is false", works=True, extra={"verify": False}),
    SetUp("verify is another file", works=False, extra={"verify": "{wrong}"}),
    *(SetUp(f"{name} is a file", works=True, environ={name: "{right}"}) for name in TRUST[:3]),
    *(
        SetUp(f"{name} is a folder", works=True, environ={name: "{folder}"})
        for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_DIR")
    ),
    *(SetUp(f"{name} is another file", works=False, environ={name: "{wrong}"}) for name in TRUST[:3]),
    SetUp("one of two folders", works=True, environ={"SSL_CERT_DIR": "/nowhere:{folder}"}),
    SetUp("file and folder count", works=True, environ={"SSL_CERT_FILE": "{wrong}", "SSL_CERT_DIR": "{folder}"}),
    SetUp("verify wins", works=True, extra={"verify": "{right}"}, environ={"REQUESTS_CA_BUNDLE": "{wrong}"}),
    SetUp(
        "verify wins, though it distrusts",
        works=False,
        extra={"verify": "{wrong}"},
        environ=dict.fromkeys(TRUST[:3], "{right}"),
    ),
    SetUp("verify false wins", works=True, extra={"verify": False}, environ={"REQUESTS_CA_BUNDLE": "{wrong}"}),
    SetUp("requests' own wins", works=True, environ={"REQUESTS_CA_BUNDLE": "{right}", "SSL_CERT_FILE": "{wrong}"}),
    SetUp("curl's wins over OpenSSL's", works=False, environ={"CURL_CA_BUNDLE": "{wrong}", "SSL_CERT_FILE": "{right}"}),
    SetUp("an empty one is none", works=True, environ={"REQUESTS_CA_BUNDLE": "", "SSL_CERT_FILE": "{right}"}),
    # Proxy
    SetUp("connection's proxy", works=True, uses_proxy=True, extra={**PROXIED, "proxy": "{proxy}"}),
    SetUp(
        "proxy with the environment's trust",
        works=True,
        uses_proxy=True,
        extra={"proxy": "{proxy}"},
        environ={"REQUESTS_CA_BUNDLE": "{right}"},
    ),
    *(
        SetUp(f"{name} is a proxy", works=True, uses_proxy=True, extra=PROXIED, environ={name: "{proxy}"})
        for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
    ),
    SetUp("proxy without scheme", works=True, uses_proxy=True, extra=PROXIED, environ={"HTTPS_PROXY": "{proxy_host}"}),
    SetUp("HTTP_PROXY is not for https", works=True, extra=PROXIED, environ={"HTTP_PROXY": "{closed}"}),
    SetUp(
        "lower case wins",
        works=True,
        uses_proxy=True,
        extra=PROXIED,
        environ={"https_proxy": "{proxy}", "HTTPS_PROXY": "{closed}"},
    ),
    SetUp(
        "empty lower case means none", works=True, extra=PROXIED, environ={"https_proxy": "", "HTTPS_PROXY": "{closed}"}
    ),
    SetUp(
        "empty lower case wins over all",
        works=True,
        extra=PROXIED,
        environ={"https_proxy": "", "ALL_PROXY": "{closed}"},
    ),
    SetUp(
        "scheme wins over all",
        works=True,
        uses_proxy=True,
        extra=PROXIED,
        environ={"HTTPS_PROXY": "{proxy}", "ALL_PROXY": "{closed}"},
    ),
    SetUp(
        "connection's proxy wins",
        works=True,
        uses_proxy=True,
        extra={**PROXIED, "proxy": "{proxy}"},
        environ={"HTTPS_PROXY": "{closed}"},
    ),
    SetUp(
        "connection's proxy is for all hosts",
        works=True,
        uses_proxy=True,
        extra={**PROXIED, "proxy": "{proxy}"},
        environ={"NO_PROXY": "*"},
    ),
    SetUp("a proxy that is closed", works=False, extra=PROXIED, environ={"HTTPS_PROXY": "{closed}"}),
    *(
        SetUp(f"NO_PROXY {entry}", works=True, extra=PROXIED, environ={"HTTPS_PROXY": "{closed}", "NO_PROXY": entry})
        for entry in (
            "*",
            "localhost",
            ".localhost",
            "LOCALHOST",
            "localhost:{port}",
            "https://localhost",
            "example.com,localhost",
            "example.com localhost",
            "::1,[::1],fe80::/10,[::1]:8080,10.0.0.0/8,localhost",
        )
    ),
    *(
        SetUp(
            f"not for NO_PROXY {entry}",
            works=True,
            uses_proxy=True,
            extra=PROXIED,
            environ={"HTTPS_PROXY": "{proxy}", "NO_PROXY": entry},
        )
        for entry in ("localhost:1", "host", "http://localhost", "10.0.0.0/8", "::1", "2001:db8::/32", "[::1]", "")
    ),
]


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
@pytest.mark.parametrize("kind", CLIENTS)
@pytest.mark.parametrize("set_up", SET_UPS, ids=lambda each: each.name)
def test_worker_triggerer_and_download_use_the_same_network(
    kind, set_up, server, proxy, right, wrong, folder, monkeypatch
):
    with closed_port() as port:
        words = {
            "right": right,
            "wrong": wrong,
            "folder": folder,
            "proxy": proxy.url,
            "proxy_host": f"localhost:{proxy.port}",
            "closed": f"http://localhost:{port}",
            "port": server.port,
        }

        def filled(texts):
            return {key: text.format(**words) if isinstance(text, str) else text for key, text in texts.items()}

        for name, value in filled(set_up.environ).items():
            monkeypatch.setenv(name, value)
        connection = replace(SendGridConnection("SG.key", server.url, timeout_seconds=10), **filled(set_up.extra))
        assert outcome(kind, connection) is set_up.works
    assert (proxy.count("CONNECT") > 0) is set_up.uses_proxy


@pytest.mark.parametrize("kind", CLIENTS)
def test_an_https_proxy_is_verified_by_the_same_rules(kind, server, right, wrong):
    import httpx

    if kind == "httpx" and httpx.__version__.startswith("0.27."):
        pytest.skip("httpx 0.27 trusts certifi's certificates only, where a proxy speaks TLS on an event loop")
    with Proxy("", right).running() as proxy:
        connection = SendGridConnection("SG.key", server.url, timeout_seconds=10, proxy=proxy.url)
        assert outcome(kind, replace(connection, verify=str(right)))
        assert proxy.count("CONNECT") == 1
        assert not outcome(kind, replace(connection, verify=str(wrong)))


def test_verify_of_one_request_does_not_affect_others(server, right, wrong):
    """`SendGridHook.get_conn` hands the session to users."""
    import requests

    connection = SendGridConnection("SG.key", server.url, verify=str(right))
    with new_download_session(connection) as session:
        with pytest.raises(requests.exceptions.SSLError):
            session.get(server.url, timeout=10, verify=str(wrong))
        with pytest.warns(match="Unverified HTTPS request"):
            assert session.get(server.url, timeout=10, verify=False).ok
        assert session.get(server.url, timeout=10).ok
    with (
        new_download_session(replace(connection, verify=str(wrong))) as session,
        pytest.raises(requests.RequestException),
    ):
        session.get(server.url, timeout=10)


@pytest.mark.parametrize("user", ["token@", "user:p%C3%BC%E2%82%ACss@", "user:p%40ss@", "u%3Ax:a:b@", "@"])
def test_both_clients_send_the_proxy_the_same_credentials(user, server, right):
    seen = []

    class Noting(Proxy):
        def serve(self, connection):
            head = connection.recv(65536, socket.MSG_PEEK).decode()
            seen.append([line for line in head.split("\r\n") if line.lower().startswith("proxy-authorization:")])
            super().serve(connection)

    with Noting().running() as proxy:
        url = f"http://{user}localhost:{proxy.port}"
        connection = SendGridConnection.from_fields(
            name="main", password="SG.key", host=server.url, extra={"proxy": url, "verify": str(right)}
        )
        for kind in CLIENTS:
            get(kind, connection)
    assert [[line.lower() for line in lines] for lines in seen[1:]] == [[line.lower() for line in seen[0]]] * 2
    assert bool(seen[0]) is (user != "@")


@pytest.mark.parametrize("kind", CLIENTS)
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_plain_http_to_this_machine_uses_no_proxy(kind, host, proxy, monkeypatch):
    """The proxy would read the key."""
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    with Server().running() as plain:
        connection = SendGridConnection("SG.key", f"http://{host}:{plain.port}")
        get(kind, connection)
        get(kind, replace(connection, proxy=proxy.url))
    assert proxy.connections == 0


@pytest.mark.parametrize("kind", CLIENTS)
def test_interim_responses_are_skipped(kind):
    with Server(answers=[b"HTTP/1.1 103 Early Hints\r\n\r\n" * 2 + response()]).running() as plain:
        assert get(kind, SendGridConnection("SG.key", plain.url)) in (200, [])


# --- NO_PROXY in detail


@pytest.mark.parametrize(
    ("entry", "url", "is_direct"),
    [
        ("example.com", "https://example.com/", True),
        ("example.com", "https://api.example.com/", True),
        (".example.com", "https://api.example.com/", True),
        ("*.example.com", "https://api.example.com/", True),
        ("example.com.", "https://example.com/", True),
        ("example.com", "https://notexample.com/", False),
        ("example.com", "https://example.com.evil.org/", False),
        ("api.example.com", "https://example.com/", False),
        ("example.com:443", "https://example.com/", True),
        ("example.com:8443", "https://example.com/", False),
        ("10.1.2.3", "https://10.1.2.3/", True),
        ("10.0.0.0/8", "https://10.1.2.3/", True),
        ("10.1.2.3/8", "https://10.9.9.9/", True),
        ("10.0.0.0/8", "https://11.1.2.3/", False),
        ("10.1.2.3:443", "https://10.1.2.3/", True),
        ("::1", "https://[::1]/", True),
        ("[::1]", "https://[::1]:8443/", True),
        ("[::1]:8443", "https://[::1]:8443/", True),
        ("[::1]:8443", "https://[::1]/", False),
        ("0:0:0:0:0:0:0:1", "https://[::1]/", True),
        ("2001:DB8::/32", "https://[2001:db8::5]/", True),
        ("[2001:db8::]/32", "https://[2001:db8::5]/", True),
        ("2001:db8::/32", "https://[2001:db9::5]/", False),
        ("::/0", "https://10.1.2.3/", False),
        ("[::1", "https://[::1]/", False),
        ("10.0.0.0/33", "https://10.1.2.3/", False),
        (".", "https://example.com/", False),
        (",,", "https://example.com/", False),
    ],
)
def test_no_proxy_names_hosts_addresses_and_networks(entry, url, is_direct):
    environ = {"https_proxy": "http://proxy.example:3128", "no_proxy": entry}
    network = resolve_network(SendGridConnection("SG.key"), environ)
    assert (network.proxy_for(url) is None) is is_direct


def test_downloads_use_the_proxy_rules_of_their_host():
    environ = {"https_proxy": "http://proxy.example:3128", "no_proxy": "amazonaws.com"}
    network = resolve_network(SendGridConnection("SG.key"), environ)
    assert network.proxy_for("https://api.sendgrid.com/v3/scopes") == "http://proxy.example:3128"
    assert network.proxy_for("https://bucket.s3.amazonaws.com/file") is None


def test_http_proxy_is_ignored_in_a_cgi_script():
    environ = {"HTTP_PROXY": "http://evil.example", "REQUEST_METHOD": "GET"}
    assert resolve_network(SendGridConnection("SG.key"), environ).proxies == {}


# --- settings that are wrong


@pytest.mark.parametrize(
    ("environ", "text"),
    [
        ({"HTTPS_PROXY": "http://proxy.example:99999"}, r"HTTPS_PROXY .*port must be 1 to 65535"),
        ({"HTTPS_PROXY": "http://proxy.example:p4ss"}, r"HTTPS_PROXY must be a URL such as"),
        ({"https_proxy": "ftp://proxy.example"}, r"https_proxy must be a URL such as"),
        ({"ALL_PROXY": "http://"}, r"ALL_PROXY must be a URL such as"),
        ({"ALL_PROXY": "socks4://proxy.example"}, r"ALL_PROXY must be a URL such as"),
        ({"http_proxy": "http://user:p4ss@"}, r"http_proxy must be a URL such as"),
        ({"HTTPS_PROXY": "http://user:p4ss#1@proxy.example"}, r"HTTPS_PROXY: .*'#'; percent-encode that as %23"),
        ({"REQUESTS_CA_BUNDLE": "/nowhere.pem"}, r"REQUESTS_CA_BUNDLE is '/nowhere.pem', which cannot be read"),
        ({"CURL_CA_BUNDLE": "/nowhere.pem"}, r"CURL_CA_BUNDLE is '/nowhere.pem', which cannot be read"),
        ({"SSL_CERT_FILE": "/nowhere.pem"}, r"SSL_CERT_FILE is '/nowhere.pem', which cannot be read"),
        ({"SSL_CERT_DIR": "/nowhere:/neither"}, r"SSL_CERT_DIR is '/nowhere', which cannot be read"),
    ],
)
def test_an_error_names_the_variable_without_its_password(environ, text):
    with pytest.raises(ValueError, match=text) as caught:
        resolve_network(SendGridConnection("SG.key"), environ)
    assert "p4ss" not in str(caught.value)


@pytest.mark.parametrize(
    "content", ["", "no certificate", "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n"]
)
def test_a_certificate_file_that_is_not_pem_is_refused(tmp_path, content):
    path = tmp_path / "own.pem"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"'main': verify is .*own\.pem.*not a file of CA certificates in PEM format"):
        resolve_network(SendGridConnection("SG.key", verify=str(path), name="main"), {})


def test_a_missing_certificate_file_is_refused():
    with pytest.raises(ValueError, match=r"'main': verify is '/nowhere', which cannot be read.*every worker"):
        resolve_network(SendGridConnection("SG.key", verify="/nowhere", name="main"), {})


def test_a_folder_without_hashed_names_suggests_rehash(tmp_path, right):
    (tmp_path / "own.pem").write_bytes(right.read_bytes())
    with pytest.raises(ValueError, match=r"openssl rehash"):
        resolve_network(SendGridConnection("SG.key", verify=str(tmp_path)), {})


@pytest.mark.parametrize("missing", network_module._SOCKS_MODULES)
def test_a_socks_proxy_needs_the_packages_of_both_clients(missing, monkeypatch):
    monkeypatch.setattr(network_module, "find_spec", lambda name: None if name == missing else object())
    install = r"pip install requests\[socks\] httpx\[socks\]"
    with pytest.raises(ValueError, match=rf"'main': proxy is a SOCKS proxy.*{install}"):
        resolve_network(SendGridConnection("SG.key", proxy="socks5://proxy.example:1080", name="main"), {})
    with pytest.raises(ValueError, match=rf"ALL_PROXY is a SOCKS proxy.*{install}"):
        resolve_network(SendGridConnection("SG.key"), {"ALL_PROXY": "socks5h://proxy.example"})


@pytest.mark.parametrize("kind", CLIENTS)
@pytest.mark.parametrize("wants", ["", "closes", "login"])
@pytest.mark.parametrize("login", ["", "user:p4ss@", "user:wrong@"])
def test_a_socks_login_is_used_only_if_the_proxy_requires_it(kind, wants, login, server, right):
    for module in network_module._SOCKS_MODULES:
        pytest.importorskip(module)
    with SocksProxy(wants).running() as proxy:
        url = f"socks5://{login}localhost:{proxy.port}"
        connection = SendGridConnection("SG.key", server.url, timeout_seconds=10, verify=str(right), proxy=url)
        works = wants != "login" or login == "user:p4ss@"
        assert outcome(kind, connection) is works
        assert proxy.count("CONNECT") == works


def test_a_triggerer_remembers_whether_a_socks_login_is_used(server, right):
    for module in network_module._SOCKS_MODULES:
        pytest.importorskip(module)

    async def ask_twice(connection):
        async with AsyncSendGridClient(connection) as client:
            for _ in range(2):
                await client.run_flow(protocol.get_scopes(RetryPolicy(tries=1)))

    with SocksProxy().running() as proxy:
        url = f"socks5://user:p4ss@localhost:{proxy.port}"
        asyncio.run(ask_twice(SendGridConnection("SG.key", server.url, verify=str(right), proxy=url)))
        assert proxy.connections == 2  # one is refused


def test_an_unused_proxy_variable_is_not_checked():
    """The connection's own proxy wins."""
    connection = SendGridConnection("SG.key", proxy="http://proxy.example:3128")
    assert resolve_network(connection, {"HTTPS_PROXY": "ftp://"}).proxies["https"] == "http://proxy.example:3128"


def test_renewed_certificates_are_read_again(tmp_path, right, wrong):
    """Reading them takes a tenth of a second, during which the event loop of a triggerer would be blocked."""
    path = tmp_path / "own.pem"
    path.write_bytes(right.read_bytes())
    connection = SendGridConnection("SG.key", verify=str(path))
    first = resolve_network(connection, {}).tls
    assert resolve_network(connection, {}).tls is first
    before = path.stat()
    path.write_bytes(wrong.read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert resolve_network(connection, {}).tls is not first


@pytest.mark.parametrize("is_link", [False, True])
def test_renewed_certificates_in_a_folder_are_read_again(tmp_path, right, wrong, is_link):
    folder, kept = tmp_path / "folder", tmp_path / "own.pem"
    folder.mkdir()
    kept.write_bytes(right.read_bytes())
    name = folder / "0123abcd.0"
    name.symlink_to(kept) if is_link else name.write_bytes(right.read_bytes())
    connection = SendGridConnection("SG.key", verify=str(folder))
    first = resolve_network(connection, {}).tls
    assert resolve_network(connection, {}).tls is first
    name.write_bytes(wrong.read_bytes())
    assert resolve_network(connection, {}).tls is not first
