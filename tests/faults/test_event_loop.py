"""Waits in the triggerer do not block its event loop."""

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
    """The names of blocking functions that were called on a running event loop."""
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
    """Also during an outage, and while the connection is read."""
    ticking_emulator.inject(Fault("status", path="*/exports/*", status=503, first=2))
    export_id = ticking_emulator.start_export()

    trigger = SendGridExportTrigger(export_id, poll_interval=0.01)
    [event] = [event.payload async for event in trigger.run()]

    assert "ready" == event["outcome"]
    assert [] == blocked


@pytest.mark.asyncio
async def test_a_blocking_call_is_detected(sendgrid_emulator, blocked):
    """The same request, as a worker sends it."""
    assert "ready" == SendGridHook().get_export(sendgrid_emulator.start_export()).status
    time.sleep(0)  # noqa: ASYNC251 - to be detected

    assert ["get_connection", "sleep"] == blocked
