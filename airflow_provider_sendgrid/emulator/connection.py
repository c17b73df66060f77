"""One connection: reads requests and sends responses, with the faults of their send options.

Knows HTTP/1.1 on the wire. Must not know endpoints or kinds of faults.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from http.client import parse_headers
from typing import BinaryIO, Final

from .messages import Part, Request, Response, first_bytes, split

_LINE_BYTES: Final = 65_536
_TICKS_PER_SECOND: Final = 50
_PIECE_BYTES: Final = 1 << 20
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 seconds: close() sends RST

CountBytes = Callable[[int], None]
Respond = Callable[[Request], tuple[Response, CountBytes]]


class ConnectionClosedError(Exception):
    """The connection is closed."""


@dataclass(slots=True)
class Connection:
    """One client's connection, kept open between requests."""

    socket: socket.socket
    incoming: BinaryIO
    respond: Respond
    ended: threading.Event
    """Set when the listener closes."""
    bytes_sent: int = field(default=0)

    def serve(self) -> None:
        """Respond to requests until either side closes the connection."""
        while (request := self._read()) is not None:
            response, count = self.respond(request)
            self._delay_or_drop(response)
            self._send(request, response, count)
            if request.headers.get("connection", "").lower() == "close":
                return

    def _read(self) -> Request | None:
        line = self.incoming.readline(_LINE_BYTES).decode("latin-1")
        if not line:
            return None
        words = line.split()
        if len(words) != 3:
            raise ConnectionClosedError
        parsed = parse_headers(self.incoming)
        headers = {name.lower(): value for name, value in parsed.items()}
        if headers.get("expect", "").lower() == "100-continue":
            self.socket.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or "transfer-encoding" in headers:
            raise ConnectionClosedError
        return Request(words[0], words[1], headers, self.incoming.read(int(length)))

    def _delay_or_drop(self, response: Response) -> None:
        send_options = response.send_options
        if send_options.delay_seconds:
            self.ended.wait(send_options.delay_seconds)
        if send_options.hang_until is not None:
            send_options.hang_until.wait()
            raise ConnectionClosedError
        if send_options.drop:
            self._close(with_reset=send_options.drop == "reset")

    def _send(self, request: Request, response: Response, count: CountBytes) -> None:
        while response.send_options.endless_header and not self.ended.is_set():
            self._send_part(response.send_options.endless_header, response, count)
        limit = self._limit(response)
        parts = () if request.method == "HEAD" else tuple(first_bytes(response.body, limit))
        self._send_parts(_head(response), parts, response, count)
        while response.send_options.endless and not self.ended.is_set():
            self._send_part(response.send_options.endless, response, count)
        is_used_up = 0 < response.send_options.connection_bytes <= self.bytes_sent
        if limit < response.length or is_used_up or _has_wrong_length(response):
            self._close(with_reset=response.send_options.cut_with_reset)

    def _limit(self, response: Response) -> int:
        """Return how many bytes of the body may be sent."""
        send_options = response.send_options
        limits = [response.length]
        limits += [send_options.cut_after] if send_options.cut_after is not None else []
        limits += [max(0, send_options.connection_bytes - self.bytes_sent)] if send_options.connection_bytes else []
        return min(limits)

    def _send_parts(self, head: bytes, parts: tuple[Part, ...], response: Response, count: CountBytes) -> None:
        """Send head and body, together in one packet when the body is in memory."""
        texts = [part for part in parts if isinstance(part, bytes)]
        if len(texts) == len(parts) and not response.send_options.bytes_per_second:
            self._count_sent(sum(map(len, texts)), count)
            self.socket.sendall(b"".join([head, *texts]))
            return
        self.socket.sendall(head)
        for part in parts:
            self._send_part(part, response, count)

    def _send_part(self, part: Part, response: Response, count: CountBytes) -> None:
        speed = response.send_options.bytes_per_second
        for piece in split(part, max(1, speed // _TICKS_PER_SECOND) if speed else _PIECE_BYTES):
            self._count_sent(len(piece), count)
            self._send_piece(piece, count)
            if speed and self.ended.wait(len(piece) / speed):
                raise ConnectionClosedError

    def _send_piece(self, piece: Part, count: CountBytes) -> None:
        if isinstance(piece, bytes):
            self.socket.sendall(piece)
            return
        with piece.path.open("rb") as file:
            try:
                self.socket.sendfile(file, piece.first, piece.length)
            except OSError:
                sent = max(0, file.tell() - piece.first)
                self._count_sent(sent - piece.length, count)
                raise

    def _count_sent(self, sent: int, count: CountBytes) -> None:
        """Count bytes before they are sent: a client that has read the last one may ask for the count at once."""
        self.bytes_sent += sent
        count(sent)

    def _close(self, *, with_reset: bool) -> None:
        if with_reset:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        raise ConnectionClosedError


def _head(response: Response) -> bytes:
    phrase = HTTPStatus(response.status).phrase if response.status in _KNOWN_STATUSES else "Unknown"
    declared = {} if response.send_options.endless else {"Content-Length": str(response.length)}
    lines = [f"{name}: {value}" for name, value in {**declared, **response.headers}.items()]
    return "\r\n".join([f"HTTP/1.1 {response.status} {phrase}", *lines, "", ""]).encode("latin-1")


_KNOWN_STATUSES: Final = frozenset(status.value for status in HTTPStatus)


def _has_wrong_length(response: Response) -> bool:
    """Return whether Content-Length is wrong; the connection cannot be reused then."""
    return response.headers.get("Content-Length", str(response.length)) != str(response.length)
