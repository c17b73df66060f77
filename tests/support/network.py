"""A server and a proxy on real sockets, plain or with TLS, that fail exactly when a test says so."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

ANSWER = b'{"id": "export-1", "scopes": []}'


def make_certificate(folder: Path, *names: str) -> Path:
    """A certificate for these names (by default localhost) that no client trusts yet, with its key, in one file."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, folder.name[:60])])
    now = datetime.now(timezone.utc)
    subjects = [x509.DNSName(each) for each in names or ("localhost",)]
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(subjects), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / "own.pem"
    encodings = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path.write_bytes(key.private_bytes(*encodings) + signed.public_bytes(serialization.Encoding.PEM))
    return path


def reset(connection: socket.socket) -> None:
    """End a connection as a firewall does."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def read_head(connection: socket.socket) -> bytes:
    """All up to the empty line, and what came with it; empty where the peer closed before."""
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = connection.recv(65536)
        if not chunk:
            return b""
        data += chunk
    return data


def read_request(connection: socket.socket) -> bytes:
    """A whole request."""
    data = read_head(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    wanted = 0
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            wanted = int(line.partition(b":")[2])
    while data and len(body) < wanted:
        chunk = connection.recv(65536)
        if not chunk:
            return b""
        body += chunk
    return head + b"\r\n\r\n" + body if data else b""


def response(status: str = "200 OK", body: bytes = ANSWER) -> bytes:
    return (
        b"HTTP/1.1 %s\r\nContent-Length: %d\r\nContent-Type: application/json\r\n\r\n" % (status.encode(), len(body))
        + body
    )


@dataclass
class Server:
    """Accepts connections, each in a thread.

    Attributes:
        fault: when the connections fail; see `serve`. Of a proxy, see `Proxy`.
        certificate: file of the certificate, where it speaks TLS.
        requests: those that arrived whole, first lines only.
        connections: how many were accepted.
    accepted: set once there is one.
        held: while it is not set, the fault "slow" keeps connections waiting.
        answers: what it sends to the first requests, instead of `ANSWER`.
    """

    fault: str = ""
    certificate: Path | None = None
    requests: list[str] = field(default_factory=list)
    connections: int = 0
    held: threading.Event = field(default_factory=threading.Event)
    answers: list[bytes] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    accepted: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self) -> Iterator[Server]:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        accepting = threading.Thread(target=self._accept, daemon=True)
        accepting.start()
        try:
            yield self
        finally:
            self.ended.set()
            self.held.set()
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            for each in list(self._open):
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
            accepting.join(10)
            for thread in self._threads:
                thread.join(10)
            for each in self._open:
                each.close()

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    @property
    def url(self) -> str:
        return f"{'https' if self.certificate else 'http'}://localhost:{self.port}"

    def count(self, method: str) -> int:
        return sum(each.startswith(f"{method} ") for each in self.requests)

    def _accept(self) -> None:
        while not self.ended.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()
            self.accepted.set()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError, ValueError):
            self.serve(connection)
        with suppress(OSError):
            connection.close()

    def serve(self, connection: socket.socket) -> None:  # noqa: C901, PLR0911 - one branch for each fault
        """Serve one connection.

        Faults, in the order in which they can happen:

        "reset": at once; "cut handshake": in the middle of TLS's; "hang": nothing comes; "slow": TLS waits for `held`;
        "middle": reset once the first bytes of the request came; "lost", "closed": reset, or closed, once the whole
        request came; "silent": no response; "half": of the response; "garbage": instead of it; "broken tls": bytes that
        are no TLS instead of it; "stale": closes after each response, which says otherwise.
        """
        if self.fault == "reset":
            reset(connection)
            return
        if self.fault in ("hang", "slow"):
            (self.ended if self.fault == "hang" else self.held).wait()
        if self.certificate:
            if self.fault == "cut handshake":
                connection.recv(10)
                reset(connection)
                return
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.certificate)
            connection = context.wrap_socket(connection, server_side=True)
            self._open.append(connection)
        while True:
            if self.fault == "middle":
                connection.recv(1)
                reset(connection)
                return
            request = read_request(connection)
            if not request:
                return
            self.requests.append(request.split(b"\r\n")[0].decode())
            if self.fault == "lost":
                reset(connection)
                return
            if self.fault == "closed":
                connection.close()
                return
            if self.fault == "silent":
                self.ended.wait()
            if self.fault == "broken tls":
                with socket.socket(fileno=connection.detach()) as raw:
                    raw.sendall(b"\x17\x03\x03\x00\x05hello")
                return
            usual = self.answers.pop(0) if self.answers else response()
            answer = b"SSH-2.0-x\r\n\r\n" if self.fault == "garbage" else usual
            connection.sendall(answer[: len(answer) // 2] if self.fault == "half" else answer)
            if self.fault in ("half", "garbage", "stale"):
                connection.close()
                return


@dataclass
class Proxy(Server):
    """An HTTP proxy: makes tunnels for CONNECT, and forwards plain HTTP."""

    def serve(self, connection: socket.socket) -> None:  # noqa: C901, PLR0911, PLR0912 - one branch for each fault
        """Serve one connection.

        Faults, in the order in which they can happen:

        "reset", "hang", "slow": as soon as the connection is made; "403", "407", "502": answers the first request so;
        "garbage", "closed", "lost": instead of the answer to the first request; "tunnel": reset once the tunnel is
        made; "cut answer": reset when the response comes back (plain HTTP); "504 after": forwards, and
        answers 504 itself.
        """
        if self.fault == "reset":
            reset(connection)
            return
        if self.certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.certificate)
            connection = context.wrap_socket(connection, server_side=True)
            self._open.append(connection)
        head = read_request(connection)
        if not head:
            return
        line = head.split(b"\r\n")[0].decode()
        self.requests.append(line)
        if self.fault in ("hang", "slow"):
            (self.ended if self.fault == "hang" else self.held).wait()
        if self.fault == "lost":
            reset(connection)
            return
        if self.fault == "closed":
            return
        if self.fault == "garbage":
            connection.sendall(b"SSH-2.0-x\r\n\r\n")
            return
        if self.fault.isdigit():
            connection.sendall(response(f"{self.fault} No", b"no"))
            return
        method, target, _ = line.split()
        if method == "CONNECT":
            host, _, port = target.rpartition(":")
            connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            if self.fault == "tunnel":
                connection.recv(1)
                reset(connection)
                return
            upstream = self._connect(host, port)
        else:
            host, _, port = target.split("/")[2].rpartition(":")
            upstream = self._connect(host, port)
            upstream.sendall(head.replace(target.encode(), b"/" + target.split("/", 3)[3].encode(), 1))
            if self.fault == "504 after":
                upstream.recv(65536)
                connection.sendall(response("504 Gateway Timeout", b"no"))
                return
            if self.fault == "cut answer":
                upstream.recv(65536)
                reset(connection)
                return
        self._relay(connection, upstream)

    def _connect(self, host: str, port: str) -> socket.socket:
        # A name of the domain "test" is this machine, to the proxy only.
        upstream = socket.create_connection(("localhost" if host.endswith(".test") else host.strip("[]"), int(port)))
        self._open.append(upstream)
        return upstream

    def _relay(self, client: socket.socket, upstream: socket.socket) -> None:
        back = threading.Thread(target=self._pump, args=(upstream, client), daemon=True)
        back.start()
        self._pump(client, upstream)
        back.join()
        upstream.close()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@dataclass
class SocksProxy(Proxy):
    """A SOCKS5 proxy that takes the user "user" with the password "p4ss"."""

    def serve(self, connection: socket.socket) -> None:
        """Serve one connection.

        "login": wants user and password; "closes": wants none, and ends a connection that does not offer that, as
        OpenSSH does; "": refuses it by the protocol's answer.
        """
        stream = connection.makefile("rb")
        with stream:
            wanted = 2 if self.fault == "login" else 0
            if wanted not in stream.read(stream.read(2)[1]):
                connection.sendall(b"" if self.fault == "closes" else b"\x05\xff")
                return
            connection.sendall(bytes([5, wanted]))
            if wanted:
                user = stream.read(stream.read(2)[1])
                is_known = (user, stream.read(stream.read(1)[0])) == (b"user", b"p4ss")
                connection.sendall(b"\x01\x00" if is_known else b"\x01\x01")
                if not is_known:
                    return
            host = stream.read(stream.read(5)[4]).decode()
            port = int.from_bytes(stream.read(2), "big")
        self.requests.append(f"CONNECT {host}:{port}")
        upstream = self._connect(host, str(port))
        connection.sendall(b"\x05\x00\x00\x01" + bytes(6))
        self._relay(connection, upstream)


@contextmanager
def closed_port() -> Iterator[int]:
    """A port on which no server listens; it stays reserved."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]
