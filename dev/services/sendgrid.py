"""Where contacts are exported from: SendGrid's emulator in this process, or the real SendGrid."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_sendgrid.emulator import Emulator, Settings

# Longer than the sensor's first look, so that the sensor has something to wait for; and more than one file.
READY_AFTER_SECONDS = 5.0
CONTACTS = 25_000
CONTACTS_PER_FILE = 10_000


class Clock:
    """The emulator's time: it can stand still, so that no export becomes ready however slow this machine is."""

    def __init__(self) -> None:
        self._stopped_at: float | None = None

    def __call__(self) -> float:
        return time.time() if self._stopped_at is None else self._stopped_at

    def stop(self) -> None:
        self._stopped_at = time.time()

    def go_on(self) -> None:
        self._stopped_at = None


@dataclass(frozen=True)
class SendGrid:
    """One account; `emulator` is None for the real one, and `clock` of no effect."""

    connection: dict[str, Any] = field(repr=False)
    emulator: Emulator | None = None
    clock: Clock = field(default_factory=Clock)

    def exported_contacts(self, export_id: str) -> int | None:
        """How many contacts an export truly holds, where that can be known."""
        if self.emulator is None:
            return None
        return sum(file.rows for file in self.emulator.export_files(export_id))


def real_sendgrid(api_key: str) -> SendGrid:
    return SendGrid({"conn_type": "sendgrid", "password": api_key})


@contextmanager
def emulated_sendgrid() -> Iterator[SendGrid]:
    settings = Settings(ready_after=READY_AFTER_SECONDS, contacts_per_file=CONTACTS_PER_FILE)
    clock = Clock()
    with Emulator(settings, contacts=CONTACTS, clock=clock) as emulator:
        yield SendGrid(json.loads(emulator.connection_json()), emulator, clock)
