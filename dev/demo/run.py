"""`make demo`: one export of contacts from SendGrid into a storage by a real Airflow, told as it happens.

    python -m dev.demo.run [s3|file|gcs|azure]

Everything runs on this machine: SendGrid's emulator, the storage's server, and all of Airflow's processes. With
SENDGRID_API_KEY, SENDGRID_EXPORT_BUCKET and AWS credentials in the environment, the real services are used.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from dev.airflow.api import FINAL_RUN_STATES, TaskInstance
from dev.demo.delivery import Delivery
from dev.demo.stage import EXAMPLE_DAGS, Say, Stage, lab_folder, stage, teller
from dev.demo.targets import DAG_OF, TARGETS
from dev.services.processes import end_on_sigterm
from dev.waiting import wait_until

SENSOR = "wait_for_export"
LAST_TASK = "store"
EMULATED_RUN_SECONDS = 300
REAL_RUN_SECONDS = 6 * 3600
ROWS_SHOWN = 3
ERROR_LINES_SHOWN = 3
ROW_CHARACTERS_SHOWN = 150


def main() -> None:
    end_on_sigterm()
    target, say = target_from_command_line(), teller()
    try:
        with (
            lab_folder("demo") as folder,
            stage(folder, say, folder_with_one_dag(folder, DAG_OF[target]), target=target) as on_stage,
        ):
            play(on_stage, say)
        say("done")
    except KeyboardInterrupt:
        sys.exit("interrupted; all that was started has been ended")
    except (RuntimeError, TimeoutError) as error:
        sys.exit(f"FAILED: {error}")


def target_from_command_line() -> str:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("target", nargs="?", default="s3", choices=TARGETS)
    return str(parser.parse_args().target)


def folder_with_one_dag(folder: Path, dag_id: str) -> Path:
    """The demo's DAG alone: other examples need not be parsed for it."""
    dags_folder = folder / "dags"
    dags_folder.mkdir()
    dag_file = EXAMPLE_DAGS / f"{dag_id}.py"
    (dags_folder / dag_file.name).symlink_to(dag_file)
    return dags_folder


def play(on_stage: Stage, say: Say) -> None:
    """One run of the DAG, and what it left behind."""
    airflow = on_stage.airflow
    on_stage.sendgrid.clock.stop()  # until the sensor is seen waiting, how long ever a busy machine takes for that
    run_id = airflow.trigger(on_stage.target.dag_id)
    say(f"{on_stage.target.dag_id} started over the REST API: {run_id}")
    states_seen = follow(on_stage, run_id, say)
    if airflow.api.run_state(on_stage.target.dag_id, run_id) != "success":
        raise RuntimeError(f"the run failed\n{airflow.account_of(on_stage.target.dag_id, run_id)}")
    if not on_stage.is_real and (SENSOR, "deferred") not in states_seen:
        raise RuntimeError(f"{SENSOR} was not seen waiting in the triggerer: {states_seen}")
    show_tasks(airflow.api.task_instances(on_stage.target.dag_id, run_id))
    show_delivery(on_stage, run_id)


def follow(on_stage: Stage, run_id: str, say: Say) -> list[tuple[str, str]]:
    """Tells each change of a task's state until the run is over; returns them."""
    api = on_stage.airflow.api
    seen: list[tuple[str, str]] = []

    def tell_until_over() -> bool:
        is_over = api.run_state(on_stage.target.dag_id, run_id) in FINAL_RUN_STATES
        for task in sorted(api.task_instances(on_stage.target.dag_id, run_id), key=start_order):
            if task.state and (task.task_id, task.state) not in seen:
                seen.append((task.task_id, task.state))
                say(f"  {task.task_id:<16} {in_words(task.state)}")
                if (task.task_id, task.state) == (SENSOR, "deferred"):
                    on_stage.sendgrid.clock.go_on()
                tell_errors(on_stage, run_id, task)
        return is_over

    wait_until(
        f"the run of {on_stage.target.dag_id} over",
        tell_until_over,
        seconds=REAL_RUN_SECONDS if on_stage.is_real else EMULATED_RUN_SECONDS,
        evidence=lambda: on_stage.airflow.account_of(on_stage.target.dag_id, run_id),
    )
    return seen


def tell_errors(on_stage: Stage, run_id: str, task: TaskInstance) -> None:
    """At once, for Airflow may try again for minutes before the run fails."""
    if task.state not in {"up_for_retry", "failed"}:
        return
    log = on_stage.airflow.api.task_log(on_stage.target.dag_id, run_id, task.task_id, task.try_number, task.map_index)
    for line in [line for line in log.splitlines() if "error" in line.lower()][-ERROR_LINES_SHOWN:]:
        print(f"            {line}")


def start_order(task: TaskInstance) -> tuple[bool, str]:
    return (task.start is None, str(task.start))


def in_words(state: str) -> str:
    return "deferred: waits in the triggerer, no worker is held" if state == "deferred" else state


def show_tasks(tasks: list[TaskInstance]) -> None:
    print("\nTasks")
    for task in sorted(tasks, key=start_order):
        print(f"  {task.task_id:<16} {task.state:<8} try {task.try_number} {task.seconds or 0:6.1f} s")


def show_delivery(on_stage: Stage, run_id: str) -> None:
    api = on_stage.airflow.api
    delivery = Delivery(on_stage.target.place, api.xcom(on_stage.target.dag_id, run_id, LAST_TASK))
    print(f"\nObjects in {on_stage.target.place.bucket}")
    for key, size_bytes in delivery.sizes().items():
        print(f"  {size_bytes:>12,} bytes  {key}")
    if not on_stage.is_real:
        show_rows(delivery)
    print("\nManifest")
    print(json.dumps(delivery.manifest(), indent=2))
    check_count(delivery.contacts(), on_stage, run_id)


def show_rows(delivery: Delivery) -> None:
    print(f"\nFirst lines of {delivery.keys[0]}")
    for line in delivery.first_lines(1 + ROWS_SHOWN):
        print(f"  {line[:ROW_CHARACTERS_SHOWN]}")


def check_count(delivered: int, on_stage: Stage, run_id: str) -> None:
    """Counts with other code than the package's, against what the emulator really exported."""
    export_id = on_stage.airflow.api.xcom(on_stage.target.dag_id, run_id, "start_export")
    exported = on_stage.sendgrid.exported_contacts(export_id)
    if exported is not None and exported != delivered:
        raise RuntimeError(f"{exported:,} contacts exported, {delivered:,} delivered")
    print(f"\nCounted again in the bucket: {delivered:,} contacts", end="")
    print("" if exported is None else ", exactly those that were exported", flush=True)


if __name__ == "__main__":
    main()
