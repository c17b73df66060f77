"""A DAG run in memory, to run start tasks, their retries, clears and concurrent runs without Airflow's scheduler."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace

from airflow_provider_sendgrid.operators.sendgrid import SendGridExportContactsOperator
from tests.support.state_store import StateStore


@dataclass
class DagRun:
    """A run of a DAG as its start tasks see it.

    Attributes:
        has_stores: whether tasks have state stores, as from Airflow 3.3 on.
        xcoms: by task id, map index and key.
        other_runs: by run id, what the start task of another run of the DAG pushed as the XCom `sendgrid_export`.
    """

    has_stores: bool = True
    started_at: datetime = field(default_factory=lambda: datetime.now(timezone.utc) - timedelta(seconds=30))
    operators: dict = field(default_factory=dict)
    xcoms: dict = field(default_factory=dict)
    stores: dict = field(default_factory=dict)
    tries: dict = field(default_factory=dict)
    max_tries: dict = field(default_factory=dict)
    clear_number: int = 0
    other_runs: dict = field(default_factory=dict)

    def clear(self, task_id, has_run_ended=True):
        """Clear a task; Airflow sets `max_tries` to the tries so far plus the task's retries."""
        self.max_tries[task_id, -1] = self.tries[task_id, -1] + self.operators[task_id].retries
        if has_run_ended:
            self.clear_number += 1
            self.started_at = datetime.now(timezone.utc)

    def add(self, task_id, **arguments):
        self.operators[task_id] = SendGridExportContactsOperator(task_id=task_id, **{"retries": 2, **arguments})

    def states(self, dag_id, task_ids):
        return {run: dict.fromkeys(task_ids, "success") for run in self.other_runs}

    def pull(self, task_ids, key, run_id=None):
        if run_id is not None:
            return [self.other_runs[run_id]]
        return [value for place, value in self.xcoms.items() if place[0] in task_ids and place[2] == key]

    def execute(self, task_id, map_index=-1, **changes):
        """Run the next try of a task; Airflow deletes the task's XComs before it."""
        own = (task_id, map_index)
        self.tries[own] = self.tries.get(own, 0) + 1
        for key in [key for key in self.xcoms if key[:2] == own]:
            del self.xcoms[key]
        operator = self.operators[task_id]
        for name, value in changes.items():
            setattr(operator, name, value)
        context = {
            "ti": SimpleNamespace(
                task_id=task_id,
                map_index=map_index,
                try_number=self.tries[own],
                xcom_push=lambda key, value: self.xcoms.__setitem__((*own, key), json.loads(json.dumps(value))),
                xcom_pull=self.pull,
                max_tries=self.max_tries.get(own, operator.retries),
                run_id="run",
                dag_id="dag",
                get_task_states=self.states,
            ),
            "task": operator,
            "dag": SimpleNamespace(tasks=list(self.operators.values())),
            "dag_run": SimpleNamespace(start_date=self.started_at, clear_number=self.clear_number),
        }
        if self.has_stores:
            context["task_state_store"] = self.stores.setdefault(own, StateStore())
        return operator.execute(context)
