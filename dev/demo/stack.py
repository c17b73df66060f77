"""SendGrid, a storage and Airflow, running and connected: what the demo needs."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from dev import REPOSITORY, WORK_FOLDER
from dev.airflow.instance import AirflowInstance
from dev.demo.targets import TARGETS, Target, s3_target
from dev.services.s3 import S3
from dev.services.sendgrid import SendGrid, emulated_sendgrid, real_sendgrid

EXAMPLE_DAGS = REPOSITORY / "example_dags"

# Once unpaused, a DAG with a schedule would start an export at once.
NO_SCHEDULES = {"AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE": "False"}

Say = Callable[[str], None]


@dataclass(frozen=True)
class DemoStack:
    sendgrid: SendGrid
    target: Target
    airflow: AirflowInstance

    @property
    def is_real(self) -> bool:
        """Whether SendGrid's and Amazon's own services are used."""
        return self.sendgrid.emulator is None


def elapsed_printer() -> Say:
    """A function that prints lines, each with the seconds since now."""
    started = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - started:6.1f} s  {line}", flush=True)

    return say


@contextmanager
def temporary_folder(name: str) -> Iterator[Path]:
    """A folder below `WORK_FOLDER` that is removed at the end, but kept with its logs after an error."""
    WORK_FOLDER.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=WORK_FOLDER))
    try:
        yield folder
    except Exception:
        print(f"All logs are kept in {folder}", file=sys.stderr)
        raise
    except BaseException:  # ctrl-C, or a wrong environment
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def demo_stack(
    folder: Path, say: Say, dags_folder: Path, settings: Mapping[str, str] | None = None, target: str = "s3"
) -> Iterator[DemoStack]:
    """Start everything, and stop everything at the end; `settings` are more environment variables for Airflow."""
    with ExitStack() as stack:
        sendgrid, storage = connect_services(stack, folder, say, target)
        environment = {**storage.environment, **NO_SCHEDULES, **(settings or {})}
        airflow = stack.enter_context(
            AirflowInstance(Path(sys.executable), folder / "airflow", dags_folder, environment=environment)
        )
        start_airflow(airflow, {"sendgrid_default": sendgrid.connection, **storage.connections}, say)
        yield DemoStack(sendgrid, storage, airflow)
        say("stopping everything")


def connect_services(stack: ExitStack, folder: Path, say: Say, target: str) -> tuple[SendGrid, Target]:
    """The real services if the environment names them, else local ones."""
    api_key, bucket = os.environ.get("SENDGRID_API_KEY"), os.environ.get("SENDGRID_EXPORT_BUCKET")
    if bool(api_key) != bool(bucket):
        sys.exit("Set both SENDGRID_API_KEY and SENDGRID_EXPORT_BUCKET for the real services, or neither")
    if api_key and bucket:
        if target != "s3":
            sys.exit("The real services are SendGrid and S3; unset SENDGRID_API_KEY for another TARGET")
        say(f"the real SendGrid, with your key; the real S3, bucket {bucket}")
        return real_sendgrid(api_key), s3_target(S3(bucket), "the real S3")
    sendgrid = stack.enter_context(emulated_sendgrid())
    say(f"SendGrid's emulator at {sendgrid.url}, with generated contacts")
    storage = stack.enter_context(TARGETS[target](folder))
    say(f"{storage.address}, empty: {storage.store.bucket}")
    return sendgrid, storage


def start_airflow(airflow: AirflowInstance, connections: Mapping[str, dict], say: Say) -> None:
    """The steps of `AirflowInstance.up`, with a line for each."""
    say(f"Airflow {airflow.config.version}: creating its database")
    airflow.migrate()
    say(f"starting {', '.join(airflow.components)}")
    airflow.start()
    airflow.wait_until_healthy()
    say(f"Airflow is ready at {airflow.config.url}")
    for connection_id, connection in connections.items():
        airflow.api.store_connection(connection_id, connection)
    say(f"connections stored in Airflow's database: {', '.join(connections)}")
