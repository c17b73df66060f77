"""`make demo`: a real Airflow exports contacts from SendGrid into a storage; prints each step.

    python -m dev.demo.run [s3|file|gcs|azure]

SendGrid's emulator, the storage's server and Airflow run on this machine. With SENDGRID_API_KEY, SENDGRID_EXPORT_BUCKET
and AWS credentials in the environment, the real services are used.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from dev.airflow.api import FINAL_RUN_STATES, TaskInstance
from dev.demo.delivery import Delivery
from dev.demo.stack import EXAMPLE_DAGS, DemoStack, Say, demo_stack, elapsed_printer, temporary_folder
from dev.demo.targets import DAG_OF, TARGETS
from dev.services.processes import end_on_sigterm
from dev.services.waiting import wait_until

SENSOR = "wait_for_export"
LAST_TASK = "store"
EMULATED_RUN_SECONDS = 300
REAL_RUN_SECONDS = 6 * 3600
ROWS_SHOWN = 3
ERROR_LINES_SHOWN = 3
ROW_CHARACTERS_SHOWN = 150


def main() -> None:
    end_on_sigterm()
    target, say = target_from_command_line(), elapsed_printer()
    try:
        with (
            temporary_folder("demo") as folder,
            demo_stack(folder, say, folder_with_one_dag(folder, DAG_OF[target]), target=target) as demo,
        ):
            run_demo(demo, say)
        say("done")
    except KeyboardInterrupt:
        sys.exit("interrupted; everything was stopped")
    except (RuntimeError, TimeoutError) as error:
        sys.exit(f"FAILED: {error}")


def target_from_command_line() -> str:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("target", nargs="?", default="s3", choices=TARGETS)
    return str(parser.parse_args().target)


def folder_with_one_dag(folder: Path, dag_id: str) -> Path:
    """Only the demo's DAG, so that Airflow parses no others."""
    dags_folder = folder / "dags"
    dags_folder.mkdir()
    dag_file = EXAMPLE_DAGS / f"{dag_id}.py"
    (dags_folder / dag_file.name).symlink_to(dag_file)
    return dags_folder


def run_demo(demo: DemoStack, say: Say) -> None:
    """Run the DAG once, and show what it delivered."""
    airflow = demo.airflow
    demo.sendgrid.clock.stop()  # until the sensor was seen deferred, however long that takes
    run_id = airflow.trigger(demo.target.dag_id)
    say(f"{demo.target.dag_id} started over the REST API: {run_id}")
    states_seen = follow_run(demo, run_id, say)
    if airflow.api.run_state(demo.target.dag_id, run_id) != "success":
        raise RuntimeError(f"the run failed\n{airflow.describe_run(demo.target.dag_id, run_id)}")
    if not demo.is_real and (SENSOR, "deferred") not in states_seen:
        raise RuntimeError(f"{SENSOR} was not seen deferred: {states_seen}")
    show_tasks(airflow.api.task_instances(demo.target.dag_id, run_id))
    show_delivery(demo, run_id)


def follow_run(demo: DemoStack, run_id: str, say: Say) -> list[tuple[str, str]]:
    """Print and return each change of a task's state until the run is over."""
    api = demo.airflow.api
    seen: list[tuple[str, str]] = []

    def report_changes() -> bool:
        is_over = api.run_state(demo.target.dag_id, run_id) in FINAL_RUN_STATES
        for task in sorted(api.task_instances(demo.target.dag_id, run_id), key=start_order):
            if task.state and (task.task_id, task.state) not in seen:
                seen.append((task.task_id, task.state))
                say(f"  {task.task_id:<16} {describe_state(task.state)}")
                if (task.task_id, task.state) == (SENSOR, "deferred"):
                    demo.sendgrid.clock.resume()
                print_errors(demo, run_id, task)
        return is_over

    wait_until(
        f"the run of {demo.target.dag_id} over",
        report_changes,
        seconds=REAL_RUN_SECONDS if demo.is_real else EMULATED_RUN_SECONDS,
        evidence=lambda: demo.airflow.describe_run(demo.target.dag_id, run_id),
    )
    return seen


def print_errors(demo: DemoStack, run_id: str, task: TaskInstance) -> None:
    """At once, because Airflow may retry for minutes before the run fails."""
    if task.state not in {"up_for_retry", "failed"}:
        return
    log = demo.airflow.api.task_log(demo.target.dag_id, run_id, task.task_id, task.try_number, task.map_index)
    for line in [line for line in log.splitlines() if "error" in line.lower()][-ERROR_LINES_SHOWN:]:
        print(f"            {line}")


def start_order(task: TaskInstance) -> tuple[bool, str]:
    return (task.start is None, str(task.start))


def describe_state(state: str) -> str:
    return "deferred: waits in the triggerer, without a worker slot" if state == "deferred" else state


def show_tasks(tasks: list[TaskInstance]) -> None:
    print("\nTasks")
    for task in sorted(tasks, key=start_order):
        print(f"  {task.task_id:<16} {task.state:<8} try {task.try_number} {task.seconds or 0:6.1f} s")


def show_delivery(demo: DemoStack, run_id: str) -> None:
    api = demo.airflow.api
    delivery = Delivery(demo.target.store, api.xcom(demo.target.dag_id, run_id, LAST_TASK))
    print(f"\nObjects in {demo.target.store.bucket}")
    for key, size_bytes in delivery.sizes().items():
        print(f"  {size_bytes:>12,} bytes  {key}")
    if not demo.is_real:
        show_rows(delivery)
    print("\nManifest")
    print(json.dumps(delivery.manifest(), indent=2))
    check_count(delivery.contacts(), demo, run_id)


def show_rows(delivery: Delivery) -> None:
    print(f"\nFirst lines of {delivery.keys[0]}")
    for line in delivery.first_lines(1 + ROWS_SHOWN):
        print(f"  {line[:ROW_CHARACTERS_SHOWN]}")


def check_count(delivered: int, demo: DemoStack, run_id: str) -> None:
    """Count with code that is not the package's; compare with what the emulator exported."""
    export_id = demo.airflow.api.xcom(demo.target.dag_id, run_id, "start_export")
    exported = demo.sendgrid.exported_contacts(export_id)
    if exported is not None and exported != delivered:
        raise RuntimeError(f"{exported:,} contacts exported, {delivered:,} delivered")
    print(f"\nCounted again in the bucket: {delivered:,} contacts", end="")
    print("" if exported is None else ", the same as exported", flush=True)


if __name__ == "__main__":
    main()
