"""The trigger of `benchmarks.scale`: the provider's own, configured by a file; it ends its task itself.

So 500 tasks wait in the triggerer without 1,000 processes that start and end them.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from airflow.triggers.base import TaskFailedEvent, TaskSuccessEvent, TriggerEvent

from airflow_provider_sendgrid.triggers.sendgrid import SendGridExportTrigger

POLL_INTERVAL_SECONDS = 30.0


class Waiting(SendGridExportTrigger):
    """Waits for the export of this task's map index in the plan, and records when it was detected."""

    def __init__(self, plan: str) -> None:
        super().__init__("", poll_interval=POLL_INTERVAL_SECONDS)
        self.plan = plan

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return f"{type(self).__module__}.{type(self).__qualname__}", {"plan": self.plan}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        seen_file = self._load_plan()
        async for event in super().run():
            record(seen_file, self.task_instance.map_index, event.payload)
            yield TaskSuccessEvent() if event.payload["outcome"] == "ready" else TaskFailedEvent()

    def _load_plan(self) -> Path:
        plan, number = json.loads(Path(self.plan).read_text()), self.task_instance.map_index
        self.export_id = plan["export_ids"][number]
        self.sendgrid_conn_id = plan["connection_ids"][number]
        self.end_time = plan["end_time"]
        return Path(plan["seen"])


def record(file: Path, number: int, payload: dict[str, Any]) -> None:
    with file.open("a") as lines:
        line = {"number": number, "at": time.time(), "outcome": payload["outcome"], "error": payload["error"]}
        lines.write(json.dumps(line) + "\n")
