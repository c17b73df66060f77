"""One connection: requests read from it, answers sent as well or as badly as they say.

Knows HTTP/1.1 on the wire. Must not know what is asked, nor why an answer is to go wrong.
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

from .messages import Answer, Part, Request, first_bytes, steps

_LINE_BYTES: Final = 65_536
_TICKS_PER_SECOND: Final = 50
_PIECE_BYTES: Final = 1 << 20
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 seconds: close() sends RST

Count = Callable[[int], None]
Respond = Callable[[Request], tuple[Answer, Count]]


class ConnectionEndedError(Exception):
    """This connection carries nothing more."""


@dataclass(slots=True)
class Connection:
    """One client's connection, kept alive between requests."""

    socket: socket.socket
    incoming: BinaryIO
    respond: Respond
    ended: threading.Event
    """Set when the listener closes."""
    carried: int = field(default=0)

    def serve(self) -> None:
        """Answer requests until either side has had enough."""
        while (request := self._read()) is not None:
            answer, count = self.respond(request)
            self._misbehave(answer)
            self._send(request, answer, count)
            if request.headers.get("connection", "").lower() == "close":
                return

    def _read(self) -> Request | None:
        line = self.incoming.readline(_LINE_BYTES).decode("latin-1")
        if not line:
            return None
        words = line.split()
        if len(words) != 3:
            raise ConnectionEndedError
        parsed = parse_headers(self.incoming)
        headers = {name.lower(): value for name, value in parsed.items()}
        if headers.get("expect", "").lower() == "100-continue":
            self.socket.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or "transfer-encoding" in headers:
            raise ConnectionEndedError
        return Request(words[0], words[1], headers, self.incoming.read(int(length)))

    def _misbehave(self, answer: Answer) -> None:
        sending = answer.sending
        if sending.delay_seconds:
            self.ended.wait(sending.delay_seconds)
        if sending.hang_until is not None:
            sending.hang_until.wait()
            raise ConnectionEndedError
        if sending.drop:
            self._end(with_reset=sending.drop == "reset")

    def _send(self, request: Request, answer: Answer, count: Count) -> None:
        while answer.sending.endless_header and not self.ended.is_set():
            self._send_part(answer.sending.endless_header, answer, count)
        limit = self._limit(answer)
        parts = () if request.method == "HEAD" else tuple(first_bytes(answer.body, limit))
        self._send_parts(_head(answer), parts, answer, count)
        while answer.sending.endless and not self.ended.is_set():
            self._send_part(answer.sending.endless, answer, count)
        is_worn_out = 0 < answer.sending.connection_bytes <= self.carried
        if limit < answer.length or is_worn_out or _is_lying(answer):
            self._end(with_reset=answer.sending.cut_with_reset)

    def _limit(self, answer: Answer) -> int:
        """Return how many bytes of the body may go out."""
        sending = answer.sending
        limits = [answer.length]
        limits += [sending.cut_after] if sending.cut_after is not None else []
        limits += [max(0, sending.connection_bytes - self.carried)] if sending.connection_bytes else []
        return min(limits)

    def _send_parts(self, head: bytes, parts: tuple[Part, ...], answer: Answer, count: Count) -> None:
        """Send head and body, together in one packet when the body is in memory."""
        texts = [part for part in parts if isinstance(part, bytes)]
        if len(texts) == len(parts) and not answer.sending.bytes_per_second:
            self._tally(sum(map(len, texts)), count)
            self.socket.sendall(b"".join([head, *texts]))
            return
        self.socket.sendall(head)
        for part in parts:
            self._send_part(part, answer, count)

    def _send_part(self, part: Part, answer: Answer, count: Count) -> None:
        speed = answer.sending.bytes_per_second
        for piece in steps(part, max(1, speed // _TICKS_PER_SECOND) if speed else _PIECE_BYTES):
            self._tally(len(piece), count)
            self._send_piece(piece, count)
            if speed and self.ended.wait(len(piece) / speed):
                raise ConnectionEndedError

    def _send_piece(self, piece: Part, count: Count) -> None:
        if isinstance(piece, bytes):
            self.socket.sendall(piece)
            return
        with piece.path.open("rb") as file:
            try:
                self.socket.sendfile(file, piece.first, piece.length)
            except OSError:
                sent = max(0, file.tell() - piece.first)
                self._tally(sent - piece.length, count)
                raise

    def _tally(self, sent: int, count: Count) -> None:
        """Count bytes before they go: whoever has read the last one may ask at once."""
        self.carried += sent
        count(sent)

    def _end(self, *, with_reset: bool) -> None:
        if with_reset:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        raise ConnectionEndedError


def _head(answer: Answer) -> bytes:
    phrase = HTTPStatus(answer.status).phrase if answer.status in _KNOWN_STATUSES else "Unknown"
    declared = {} if answer.sending.endless else {"Content-Length": str(answer.length)}
    lines = [f"{name}: {value}" for name, value in {**declared, **answer.headers}.items()]
    return "\r\n".join([f"HTTP/1.1 {answer.status} {phrase}", *lines, "", ""]).encode("latin-1")


_KNOWN_STATUSES: Final = frozenset(status.value for status in HTTPStatus)


def _is_lying(answer: Answer) -> bool:
    """Tell whether the announced length is not the body's; the connection is of no use then."""
    return answer.headers.get("Content-Length", str(answer.length)) != str(answer.length)
