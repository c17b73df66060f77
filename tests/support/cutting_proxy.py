"""An HTTP proxy that tunnels by CONNECT to one host behind TLS, and cuts its tunnels on request.

    with cutting_proxy("sendgrid.test", emulator_port, folder) as proxy:
        connection = {"host": "https://sendgrid.test", "extra": {"proxy": proxy.url, "verify": str(proxy.trusted)}}
        proxy.cut()

The host is known to the proxy only: a client that goes around the proxy fails to resolve its name. Requests travel from
the proxy to a TLS server, which forwards them in plain text to `port` on this machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path

LOCALHOST = "127.0.0.1"
_CHUNK_BYTES = 64 * 1024
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 seconds: close() sends RST
_REFUSAL = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class CuttingProxy:
    """The proxy; its methods may be called from any thread.

    Attributes:
        url: of the proxy, for the client.
        trusted: path of the certificate that the client must trust.
        tunnels: how many were opened so far.
        refusals: how many requests for a tunnel were refused since the last `cut`.
    """

    def __init__(self, host: str, port: int, certificate: Path) -> None:
        self.trusted = certificate
        self.tunnels = 0
        self.refusals = 0
        self._host = host
        self._port = port
        self._is_cut = False
        self._open: set[asyncio.StreamWriter] = set()
        self._started = threading.Event()

    @property
    def url(self) -> str:
        return f"http://{LOCALHOST}:{self._proxy_port}"

    def cut(self) -> None:
        """Reset all tunnels, and refuse new ones until `restore`."""
        self._call(self._cut)

    def restore(self) -> None:
        """Open tunnels again."""
        self._call(self._mend)

    def start(self) -> None:
        """Listen, in a thread of its own."""
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(),), name="cutting-proxy", daemon=True)
        self._thread.start()
        assert self._started.wait(30), "the proxy does not listen"

    def close(self) -> None:
        """End every connection."""
        self._call(self._ended.set)
        self._thread.join(30)

    async def _serve(self) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.trusted)
        tls = await asyncio.start_server(self._forward, LOCALHOST, 0, ssl=context)
        proxy = await asyncio.start_server(self._tunnel, LOCALHOST, 0)
        self._tls_port, self._proxy_port = (server.sockets[0].getsockname()[1] for server in (tls, proxy))
        self._started.set()
        await self._ended.wait()
        tls.close()
        proxy.close()

    def _call(self, change: Callable[[], object]) -> None:
        """Have the event loop make a change, and wait for it."""

        async def run() -> None:
            change()

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(30)

    def _cut(self) -> None:
        self._is_cut, self.refusals = True, 0
        for writer in self._open:
            _reset(writer)

    def _mend(self) -> None:
        self._is_cut = False

    async def _tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            method, target = (await reader.readuntil(b"\r\n\r\n")).split()[:2]
        except (OSError, asyncio.IncompleteReadError):  # a client that connects and leaves
            writer.close()
            return
        if self._is_cut:
            self.refusals += 1
            # Every second one without a word, as a proxy does that is going down.
            _reset(writer) if self.refusals % 2 == 0 else await _answer(writer, _REFUSAL)
            return
        assert (method, target) == (b"CONNECT", f"{self._host}:443".encode())
        self.tunnels += 1
        self._open.add(writer)
        try:
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await _connect(reader, writer, self._tls_port)
        finally:
            self._open.discard(writer)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _connect(reader, writer, self._port)


@contextmanager
def cutting_proxy(host: str, port: int, folder: Path) -> Iterator[CuttingProxy]:
    """A proxy to `host`, which is served by `port` on this machine; `folder` takes its certificate."""
    proxy = CuttingProxy(host, port, write_certificate(host, folder / f"{host}.pem"))
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.close()


def write_certificate(host: str, path: Path) -> Path:
    """A certificate for the host that signs itself, with its key; valid for any clock within days of this one."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    now = datetime.now(timezone.utc)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=3))
        .not_valid_after(now + timedelta(days=3))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    encodings = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path.write_bytes(key.private_bytes(*encodings) + signed.public_bytes(serialization.Encoding.PEM))
    return path


async def _connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
    """Carry bytes both ways until either side ends."""
    far_reader, far_writer = await asyncio.open_connection(LOCALHOST, port)
    await asyncio.gather(_carry(reader, far_writer), _carry(far_reader, writer))


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while chunk := await reader.read(_CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()
    writer.close()


async def _answer(writer: asyncio.StreamWriter, answer: bytes) -> None:
    writer.write(answer)
    await writer.drain()
    writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
