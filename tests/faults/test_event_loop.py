"""Nothing that waits in the triggerer blocks its loop: what may block is done in another thread, or awaited."""

from __future__ import annotations

import asyncio
import inspect
import socket
import time

import pytest

from airflow_provider_sendgrid.emulator import Fault
from airflow_provider_sendgrid.hooks.sendgrid import SendGridHook
from airflow_provider_sendgrid.triggers.sendgrid import SendGridExportTrigger


@pytest.fixture
def blocked(monkeypatch):
    """The names of what was called on a running loop, though it may block."""
    names: list[str] = []

    def watch(owner, name):
        original = getattr(owner, name)

        def watched(*given, **named):
            try:
                asyncio.get_running_loop()
            except RuntimeError:
                return original(*given, **named)
            names.append(name)
            return original(*given, **named)

        is_of_the_class = isinstance(inspect.getattr_static(owner, name), classmethod)
        monkeypatch.setattr(owner, name, staticmethod(watched) if is_of_the_class else watched)

    watch(time, "sleep")
    watch(socket, "getaddrinfo")
    watch(SendGridHook, "get_connection")
    return names


@pytest.mark.asyncio
async def test_a_wait_blocks_no_loop(ticking_emulator, blocked, no_waiting):  # noqa: ARG001 - in no time
    """Through an outage, too, and from the look-up of the connection to the event."""
    ticking_emulator.inject(Fault("status", path="*/exports/*", status=503, first=2))
    export_id = ticking_emulator.start_export()

    trigger = SendGridExportTrigger(export_id, poll_interval=0.01)
    [event] = [event.payload async for event in trigger.run()]

    assert "ready" == event["outcome"]
    assert [] == blocked


@pytest.mark.asyncio
async def test_what_blocks_would_be_seen(sendgrid_emulator, blocked):
    """The same question, asked in the way of a worker."""
    assert "ready" == SendGridHook().get_export(sendgrid_emulator.start_export()).status
    time.sleep(0)  # noqa: ASYNC251 - to be seen

    assert ["get_connection", "sleep"] == blocked
