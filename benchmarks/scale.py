"""500 exports wait in one triggerer of a real Airflow, and SendGrid grants 10 requests per 20 s.

    .lab/env-3.3.2/bin/python -m benchmarks.scale              with a shared poller
    .lab/env-3.3.2/bin/python -m benchmarks.scale --restart    and a restart of the triggerer in the middle
    .lab/env-3.3.2/bin/python -m benchmarks.scale --alone      without sharing: 500 connections with the same key

Prints the delay of each export, the number of requests and the triggerer's CPU. Fails if an export is detected more
than 45 s after it was ready, if a task fails, or if a 429 is ignored. Takes about seven minutes; needs Airflow 3.3.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from airflow_provider_sendgrid.emulator import Emulator, Settings
from airflow_provider_sendgrid.emulator.recording import RecordedRequest
from dev import REPOSITORY
from dev.airflow.instance import AirflowInstance
from dev.services.waiting import wait_until
from tests.support.local_airflow import airflow_with, connection_to

DAG_ID = "wait_at_scale"
DAG = """
import os
from datetime import datetime

from airflow.sdk import DAG, BaseOperator
from airflow.triggers.base import StartTriggerArgs


class Wait(BaseOperator):
    start_from_trigger = True
    start_trigger_args = StartTriggerArgs(
        trigger_cls="benchmarks.scale_trigger.Waiting",
        trigger_kwargs={"plan": os.environ["SCALE_PLAN"]},
        next_method="execute_complete",
    )

    def __init__(self, *, number, **kwargs):
        super().__init__(**kwargs)
        self.number = number


with DAG(
    "wait_at_scale", start_date=datetime(2026, 1, 1), schedule=None, catchup=False, max_active_tasks=1000
):
    Wait.partial(task_id="wait").expand(number=list(range(int(os.environ["SCALE_EXPORTS"]))))
"""
LIMIT, WINDOW_SECONDS = 10, 20.0
SEEN_WITHIN_SECONDS = 45.0
# The first export is ready so long after its start, so that all exports wait; then one after another.
FIRST_READY_SECONDS = 100.0
APART_SECONDS = 0.3


@dataclass(frozen=True)
class ScaleResult:
    """The result of one run."""

    seen: list[dict[str, Any]]
    late_seconds: list[float]
    states: Mapping[str, int]
    requests: Sequence[RecordedRequest]
    cpu_seconds: float
    idle_cpu_seconds_per_minute: float
    seconds: float
    all_waited_after: float

    @property
    def refused(self) -> list[RecordedRequest]:
        return [each for each in self.requests if each.status == 429]

    @property
    def early_requests(self) -> int:
        """The number of requests between a 429 and the end of its window."""
        ends = 0.0
        count = 0
        start = None
        for each in self.requests:
            if start is None or each.time >= start + WINDOW_SECONDS:
                start, ends = each.time, 0.0
            count += each.time < ends
            if each.status == 429:
                ends = start + WINDOW_SECONDS
        return count


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--exports", type=int, default=500)
    parser.add_argument("--alone", action="store_true", help="without a shared poller")
    parser.add_argument("--restart", action="store_true", help="stop and start the triggerer in the middle")
    options = parser.parse_args()
    result = measure(options.exports, is_alone=options.alone, restarts=options.restart)
    report(result)
    if not options.alone and (problems := find_problems(result, options.exports, restarts=options.restart)):
        sys.exit("\n".join(problems))


def measure(exports: int, *, is_alone: bool, restarts: bool) -> ScaleResult:
    settings = Settings(rate_limit=LIMIT, rate_limit_window=WINDOW_SECONDS, rate_limit_reset="seconds")
    with tempfile.TemporaryDirectory() as folder, Emulator(settings, populate=False) as emulator:
        plan = Path(folder) / "plan.json"
        environment = {"SCALE_PLAN": str(plan), "SCALE_EXPORTS": str(exports), "PYTHONPATH": str(REPOSITORY)}
        with airflow_with("scale", {"wait_at_scale.py": DAG}, environment) as (airflow, _):
            connection_ids = connect(airflow, emulator, exports, Path(folder), is_alone=is_alone)
            airflow.wait_for_dag(DAG_ID)
            idle = cpu_while(airflow, 30.0) * 2
            return run(airflow, emulator, plan, connection_ids, idle, restarts=restarts)


def run(
    airflow: AirflowInstance,
    emulator: Emulator,
    plan: Path,
    connection_ids: list[str],
    idle: float,
    *,
    restarts: bool,
) -> ScaleResult:
    lists = [
        emulator.add_list(f"List {number}", contacts=0, ready_after=FIRST_READY_SECONDS + number * APART_SECONDS)
        for number in range(len(connection_ids))
    ]
    started = time.time()
    export_ids = [emulator.start_export([each]) for each in lists]
    ready_at = [started + FIRST_READY_SECONDS + number * APART_SECONDS for number in range(len(lists))]
    seen_file = plan.with_name("seen.jsonl")
    seen_file.touch()
    content = {
        "export_ids": export_ids,
        "connection_ids": connection_ids,
        "end_time": ready_at[-1] + 150,
        "seen": str(seen_file),
    }
    plan.write_text(json.dumps(content))
    before = cpu_seconds(airflow)
    run_id = airflow.trigger(DAG_ID)
    wait_until("all wait", lambda: deferred(airflow, run_id) == len(lists), seconds=300, pause_seconds=2)
    all_waited_after = time.time() - started
    used = 0.0
    if restarts:
        wait_until("half of them are ready", lambda: time.time() > ready_at[len(lists) // 2], seconds=600)
        used = cpu_seconds(airflow) - before
        airflow.components["triggerer"].stop()
        airflow.components["triggerer"].start()
        before = 0.0
    airflow.wait_for_run(DAG_ID, run_id, seconds=900)
    used += cpu_seconds(airflow) - before
    seen = [json.loads(line) for line in seen_file.read_text().splitlines()]
    for each in seen:
        each["late"] = each["at"] - ready_at[each["number"]]
    return ScaleResult(
        seen=seen,
        late_seconds=[each["late"] for each in seen if each["outcome"] == "ready"],
        states=Counter(str(task.state) for task in airflow.api.task_instances(DAG_ID, run_id)),
        requests=emulator.requests(),
        cpu_seconds=used,
        idle_cpu_seconds_per_minute=idle,
        seconds=time.time() - started,
        all_waited_after=all_waited_after,
    )


def connect(airflow: AirflowInstance, emulator: Emulator, exports: int, folder: Path, *, is_alone: bool) -> list[str]:
    """The id of each export's connection; triggers with different connections share no poller."""
    connection = connection_to(emulator)
    if not is_alone:
        airflow.api.store_connection("sendgrid_default", connection)
        return ["sendgrid_default"] * exports
    ids = [f"sendgrid_{number}" for number in range(exports)]
    file = folder / "connections.json"
    given = {name: value for name, value in connection.items() if value}
    file.write_text(json.dumps(dict.fromkeys(ids, given)))
    airflow.airflow("connections", "import", str(file))
    return ids


def deferred(airflow: AirflowInstance, run_id: str) -> int:
    path = f"/dags/{DAG_ID}/dagRuns/{run_id.replace('+', '%2B')}/taskInstances?state=deferred&limit=1"
    count: int = airflow.api.request("GET", path)["total_entries"]
    return count


def cpu_while(airflow: AirflowInstance, seconds: float) -> float:
    before = cpu_seconds(airflow)
    time.sleep(seconds)
    return cpu_seconds(airflow) - before


def cpu_seconds(airflow: AirflowInstance) -> float:
    """CPU time of the triggerer and its children."""
    triggerer = airflow.components["triggerer"].running
    if triggerer is None:
        return 0.0
    process = psutil.Process(triggerer.pid)
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def report(result: ScaleResult) -> None:
    late = sorted(result.late_seconds)
    minutes = result.seconds / 60
    print(f"tasks             {dict(result.states)}; all waited {result.all_waited_after:.0f} s after the start")
    if late:
        print(
            f"seen after ready  median {statistics.median(late):.1f} s, latest {late[-1]:.1f} s ({len(late)} exports)"
        )
    in_order = sorted(result.seen, key=number_of)
    tenths = [f"{each['late']:.0f}" for each in in_order[:: max(1, len(in_order) // 10)]]
    print(f"in time's order   {', '.join(tenths)} s")
    print(f"requests          {len(result.requests)} in {minutes:.1f} minutes")
    print(f"429               {len(result.refused)}, {result.early_requests} requests before such a window's end")
    idle = result.idle_cpu_seconds_per_minute
    print(f"triggerer's CPU   {result.cpu_seconds:.1f} s; idle it takes {idle:.1f} s a minute")
    errors = Counter((each["error"] or {}).get("type") for each in result.seen if each["outcome"] != "ready")
    if errors:
        print(f"not seen          {dict(errors)}")


def number_of(seen: Mapping[str, Any]) -> int:
    number: int = seen["number"]
    return number


def find_problems(result: ScaleResult, exports: int, *, restarts: bool) -> list[str]:
    found = []
    if result.states != {"success": exports}:
        found.append(f"not all tasks succeeded: {dict(result.states)}")
    if Counter(each["number"] for each in result.seen) != Counter(range(exports)):
        found.append("not every export was seen exactly once")
    if not restarts and max(result.late_seconds, default=0.0) > SEEN_WITHIN_SECONDS:
        found.append(f"an export was seen {max(result.late_seconds):.1f} s after it was ready")
    if result.early_requests:
        found.append(f"{result.early_requests} requests came before the end of a window that had refused one")
    return found


if __name__ == "__main__":
    main()
