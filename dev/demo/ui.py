"""`make ui`: what `make demo` does, left running with all example DAGs to click around in, until ctrl-C."""

from __future__ import annotations

import signal
import sys
from contextlib import suppress

from dev.airflow.settings import ADMIN
from dev.demo.run import SENSOR, play
from dev.demo.stage import EXAMPLE_DAGS, Stage, lab_folder, stage, teller
from dev.services.processes import end_on_sigterm

# Shows the "Test" button of connections, which Airflow hides by default.
SETTINGS = {"AIRFLOW__CORE__TEST_CONNECTION": "Enabled"}


def main() -> None:
    end_on_sigterm()
    say = teller()
    try:
        with lab_folder("ui") as folder, stage(folder, say, EXAMPLE_DAGS, SETTINGS) as on_stage:
            play(on_stage, say)
            print(guide(on_stage), flush=True)
            with suppress(KeyboardInterrupt):
                signal.pause()
    except KeyboardInterrupt:
        sys.exit("interrupted; all that was started has been ended")
    except (RuntimeError, TimeoutError) as error:
        sys.exit(f"FAILED: {error}")


def guide(on_stage: Stage) -> str:
    """Where everything is and what there is to see."""
    place = on_stage.airflow.place
    login = f"log in as {ADMIN}, password {ADMIN}" if place.is_airflow_2 else "no login is needed"
    return f"""
Airflow  {place.url}  ({login})
{services(on_stage)}
  1. Open {place.url}/dags/{on_stage.target.dag_id}: the run above stands there, task by task.
  2. Press "Trigger" at the upper right and watch {SENSOR} turn deferred, then go on.
  3. Click a task, then "Logs" or "XCom": no key and no signed URL stands there.
  4. Admin, Connections, sendgrid_default: the form of the connection; "Test" asks SendGrid.

Ctrl-C ends everything."""


def services(on_stage: Stage) -> str:
    if on_stage.sendgrid.emulator is None:
        return f"SendGrid is the real one, with your key; the bucket is {on_stage.target.place.bucket}."
    emulator = on_stage.sendgrid.emulator
    return f"SendGrid {emulator.url}  (emulator; key {emulator.api_key})\nStorage  {on_stage.target.address}\n"


if __name__ == "__main__":
    main()
