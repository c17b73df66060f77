"""Runs a sensor to its end in any of Airflow's modes, without Airflow's scheduler and triggerer."""

from __future__ import annotations

import asyncio
import json
from contextlib import closing
from datetime import datetime, timezone
from importlib import import_module

from airflow_provider_sendgrid.sensors.sendgrid import SendGridExportSensor


class SensorRun:
    """One sensor, run to its end as Airflow runs it.

    Attributes:
        mode: `poke`, `reschedule` or `deferrable`.
        arguments: of the sensor.
        between: called after the task deferred and before the trigger runs.
        detours: how often the task was rescheduled or deferred.
        logged_values: the trigger's arguments and event, which Airflow logs and stores.
    """

    def __init__(self, mode, airflow_version, **arguments):
        self.mode = mode
        self.airflow_version = airflow_version
        self.arguments = arguments
        self.between = lambda: None
        self.detours = 0
        self.logged_values = []

    def run(self):
        return getattr(self, f"_{self.mode}")()

    def sensor(self):
        mode = "reschedule" if self.mode == "reschedule" else "poke"
        times = {"poke_interval": 0.01, "timeout": 60}
        deferrable = self.mode == "deferrable"
        return SendGridExportSensor(
            task_id="wait", **{"mode": mode, "deferrable": deferrable, **times, **self.arguments}
        )

    def _poke(self):
        return self.sensor().execute({})

    def _reschedule(self):
        """Each poke is a new sensor in a new process."""
        began_at, now = None, datetime.now(timezone.utc)
        while True:
            try:
                return self.sensor().execute(self.airflow_version.reschedule_context(began_at))
            except self.airflow_version.exceptions().AirflowRescheduleException:
                self.detours += 1
                began_at = now

    def _deferrable(self):
        try:
            return self.sensor().execute({})
        except self.airflow_version.exceptions().TaskDeferred as caught:
            deferred = caught
        self.detours += 1
        self.between()
        path, arguments = deferred.trigger.serialize()
        arguments = json.loads(json.dumps(arguments))
        module, _, name = path.rpartition(".")
        event = json.loads(json.dumps(event_of(getattr(import_module(module), name)(**arguments))))
        self.logged_values = [arguments, event]
        return self.sensor().resume_execution(deferred.method_name, {"event": event}, {})


def event_of(trigger):
    """The payload of the only event that `trigger` fires; asyncio.run would close pytest's event loop."""

    async def only_event():
        [event] = [event async for event in trigger.run()]
        return event.payload

    with closing(asyncio.new_event_loop()) as loop:
        return loop.run_until_complete(only_event())
