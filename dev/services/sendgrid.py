"""SendGrid's emulator in this process, or the real SendGrid."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from airflow_provider_sendgrid.emulator import Emulator, Settings

# After the sensor's first poll, so that it defers.
READY_AFTER_SECONDS = 5.0
# More than one file.
CONTACTS = 25_000
CONTACTS_PER_FILE = 10_000


class Clock:
    """The emulator's clock. While it is stopped, no export becomes ready, however slow the machine is."""

    def __init__(self) -> None:
        self._stopped_at: float | None = None

    def __call__(self) -> float:
        return time.time() if self._stopped_at is None else self._stopped_at

    def stop(self) -> None:
        self._stopped_at = time.time()

    def resume(self) -> None:
        self._stopped_at = None


@dataclass(frozen=True)
class SendGrid:
    """One account; for the real one, `emulator` is None and `clock` has no effect.

    The connection has a host and a port. Without them, Airflow 3.3's "Test" button sends other values than the stored
    ones, and Airflow does not use the stored key.
    """

    connection: dict[str, Any] = field(repr=False)
    emulator: Emulator | None = None
    clock: Clock = field(default_factory=Clock)

    @property
    def url(self) -> str:
        return f"{self.connection['host']}:{self.connection['port']}"

    def exported_contacts(self, export_id: str) -> int | None:
        """The number of contacts in an export; None for the real SendGrid."""
        if self.emulator is None:
            return None
        return sum(file.rows for file in self.emulator.export_files(export_id))


def connection_to(url: str, api_key: str) -> dict[str, Any]:
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    return {"conn_type": "sendgrid", "host": f"{parts.scheme}://{parts.hostname}", "port": port, "password": api_key}


def real_sendgrid(api_key: str) -> SendGrid:
    return SendGrid(connection_to("https://api.sendgrid.com", api_key))


@contextmanager
def emulated_sendgrid() -> Iterator[SendGrid]:
    settings = Settings(ready_after=READY_AFTER_SECONDS, contacts_per_file=CONTACTS_PER_FILE)
    clock = Clock()
    with Emulator(settings, contacts=CONTACTS, clock=clock) as emulator:
        yield SendGrid(connection_to(emulator.url, emulator.api_key), emulator, clock)
