"""SendGrid, a storage and Airflow, connected: what the demo plays on."""

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

from dev.airflow.instance import RealAirflow
from dev.demo.targets import TARGETS, Target, s3_target
from dev.environment import REPOSITORY
from dev.services.s3 import S3
from dev.services.sendgrid import SendGrid, emulated_sendgrid, real_sendgrid

EXAMPLE_DAGS = REPOSITORY / "example_dags"
LAB_FOLDER = REPOSITORY / ".lab"

# Only what is asked for runs: unpaused, a DAG with a schedule would start an export of its own at once.
NO_SCHEDULES = {"AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE": "False"}

Say = Callable[[str], None]


@dataclass(frozen=True)
class Stage:
    """All is up and connected."""

    sendgrid: SendGrid
    target: Target
    airflow: RealAirflow

    @property
    def is_real(self) -> bool:
        """Whether it is SendGrid's and Amazon's own service that was connected."""
        return self.sendgrid.emulator is None


def teller() -> Say:
    """Prints lines, each with the seconds since now."""
    started = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - started:6.1f} s  {line}", flush=True)

    return say


@contextmanager
def lab_folder(name: str) -> Iterator[Path]:
    """A folder that is removed at the end, unless an error leaves something to look for in it."""
    LAB_FOLDER.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=LAB_FOLDER))
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
def stage(
    folder: Path, say: Say, dags_folder: Path, settings: Mapping[str, str] | None = None, target: str = "s3"
) -> Iterator[Stage]:
    """Starts everything and ends everything; `settings` are more environment variables for Airflow."""
    with ExitStack() as stack:
        sendgrid, storage = connect_services(stack, folder, say, target)
        environment = {**storage.environment, **NO_SCHEDULES, **(settings or {})}
        airflow = stack.enter_context(
            RealAirflow(Path(sys.executable), folder / "airflow", dags_folder, environment=environment)
        )
        raise_curtain(airflow, {"sendgrid_default": sendgrid.connection, **storage.connections}, say)
        yield Stage(sendgrid, storage, airflow)
        say("ending all that was started")


def connect_services(stack: ExitStack, folder: Path, say: Say, target: str) -> tuple[SendGrid, Target]:
    """The real services where the environment names them, else their stand-ins on this machine."""
    api_key, bucket = os.environ.get("SENDGRID_API_KEY"), os.environ.get("SENDGRID_EXPORT_BUCKET")
    if bool(api_key) != bool(bucket):
        sys.exit("Set both SENDGRID_API_KEY and SENDGRID_EXPORT_BUCKET for the real services, or neither")
    if api_key and bucket:
        if target != "s3":
            sys.exit("The real services are SendGrid and S3; unset SENDGRID_API_KEY for another TARGET")
        say(f"the real SendGrid, with your key; the real S3, bucket {bucket}")
        return real_sendgrid(api_key), s3_target(S3(bucket), "the real S3")
    sendgrid = stack.enter_context(emulated_sendgrid())
    say(f"SendGrid's emulator at {sendgrid.connection['host']}, with made-up contacts")
    storage = stack.enter_context(TARGETS[target](folder))
    say(f"{storage.address}, empty: {storage.place.bucket}")
    return sendgrid, storage


def raise_curtain(airflow: RealAirflow, connections: Mapping[str, dict], say: Say) -> None:
    """What RealAirflow.up does, told step by step."""
    say(f"Airflow {airflow.place.version}: making its database")
    airflow.migrate()
    say(f"starting {', '.join(airflow.parts)}")
    airflow.start()
    airflow.wait_until_healthy()
    say(f"Airflow is ready at {airflow.place.url}")
    for connection_id, connection in connections.items():
        airflow.api.store_connection(connection_id, connection)
    say(f"connections stored in Airflow's database: {', '.join(connections)}")
