"""Ports on 127.0.0.1 that nobody listens on."""

from __future__ import annotations

import socket
from contextlib import ExitStack

LOCALHOST = "127.0.0.1"


def free_ports(count: int) -> list[int]:
    """Different ones: all are held until the last is known."""
    with ExitStack() as held:
        return [held.enter_context(listening_socket()).getsockname()[1] for _ in range(count)]


def listening_socket() -> socket.socket:
    return socket.create_server((LOCALHOST, 0))


def accepts_connections(port: int) -> bool:
    with socket.socket() as attempt:
        attempt.settimeout(1)
        return attempt.connect_ex((LOCALHOST, port)) == 0
