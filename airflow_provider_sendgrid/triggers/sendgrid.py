"""Waits for a SendGrid export in the triggerer, where waiting costs no worker."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from airflow_provider_sendgrid._compat import BaseTrigger, TriggerEvent
from airflow_provider_sendgrid.exceptions import SendGridError, redact
from airflow_provider_sendgrid.exports.export import ExportFamily
from airflow_provider_sendgrid.exports.watch import PollSchedule, Sighting
from airflow_provider_sendgrid.hooks.sendgrid import SendGridHook


class SendGridExportTrigger(BaseTrigger):
    """Fires one event when an export is ready, has failed, has expired, or its time is up.

    The event holds JSON values and no URL: Airflow logs it whole and stores it unencrypted.

    Args:
        export_id: the id that starting the export returned.
        family: ``"marketing"`` or ``"legacy"``.
        sendgrid_conn_id: connection of type ``sendgrid``.
        poll_interval: longest time between two polls, in seconds.
        end_time: when to stop waiting, in seconds since the epoch: absolute, so that neither a restart of
            the triggerer nor another try of the trigger moves it.
        start_time: when the wait began, likewise; now, where it is not given.
    """

    def __init__(
        self,
        export_id: str,
        family: str = ExportFamily.MARKETING.value,
        sendgrid_conn_id: str = SendGridHook.default_conn_name,
        poll_interval: float = 60.0,
        end_time: float | None = None,
        start_time: float | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.export_id = export_id
        self.family = family
        self.sendgrid_conn_id = sendgrid_conn_id
        self.poll_interval = poll_interval
        self.end_time = end_time
        self.start_time = start_time

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The path of this class and its arguments, for the metadata database."""
        names = ("export_id", "family", "sendgrid_conn_id", "poll_interval", "end_time", "start_time")
        path = f"{type(self).__module__}.{type(self).__qualname__}"
        return path, {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait and fire once."""
        try:
            event = sighting_event(await self._wait())
        except SendGridError as error:
            event = {"outcome": "error", "error": error.to_event()}
        except Exception as error:
            self.log.exception("Waiting for SendGrid export %s ended by an unforeseen error.", self.export_id)
            broken = SendGridError(redact(f"{type(error).__name__}: {error}"))
            event = {"outcome": "error", "error": broken.to_event()}
        yield TriggerEvent(event)

    async def _wait(self) -> Sighting:
        async with SendGridHook(self.sendgrid_conn_id, self.family).watch() as watch:
            return await watch.wait(
                self.export_id,
                PollSchedule(self.poll_interval),
                started_at=time.time() if self.start_time is None else self.start_time,
                end_time=float("inf") if self.end_time is None else self.end_time,
            )


def sighting_event(sighting: Sighting) -> dict[str, Any]:
    """What the event says of a wait that ended."""
    error = sighting.error()
    return {
        "outcome": sighting.outcome.value,
        "export": sighting.summary(),
        "description": sighting.describe(),
        "error": error.to_event() if error else None,
    }
