"""`make ui`: like `make demo`, but with all example DAGs, and running until ctrl-C."""

from __future__ import annotations

import signal
import sys
from contextlib import suppress

from dev.airflow.settings import ADMIN
from dev.demo.run import SENSOR, run_demo
from dev.demo.stack import EXAMPLE_DAGS, DemoStack, demo_stack, elapsed_printer, temporary_folder
from dev.services.processes import end_on_sigterm

# Shows the "Test" button of connections, which Airflow hides by default.
SETTINGS = {"AIRFLOW__CORE__TEST_CONNECTION": "Enabled"}


def main() -> None:
    end_on_sigterm()
    say = elapsed_printer()
    try:
        with temporary_folder("ui") as folder, demo_stack(folder, say, EXAMPLE_DAGS, SETTINGS) as demo:
            run_demo(demo, say)
            print(guide(demo), flush=True)
            with suppress(KeyboardInterrupt):
                signal.pause()
    except KeyboardInterrupt:
        sys.exit("interrupted; everything was stopped")
    except (RuntimeError, TimeoutError) as error:
        sys.exit(f"FAILED: {error}")


def guide(demo: DemoStack) -> str:
    """Addresses, and what to look at."""
    config = demo.airflow.config
    login = f"log in as {ADMIN}, password {ADMIN}" if config.is_airflow_2 else "no login is needed"
    return f"""
Airflow  {config.url}  ({login})
{services(demo)}
  1. Open {config.url}/dags/{demo.target.dag_id}: the tasks of the run above.
  2. Press "Trigger" at the upper right and watch {SENSOR} defer and resume.
  3. Click a task, then "Logs" or "XCom": they contain no key and no signed URL.
  4. Admin, Connections, sendgrid_default: press "Test" to check the key.

Ctrl-C stops everything."""


def services(demo: DemoStack) -> str:
    if demo.sendgrid.emulator is None:
        return f"SendGrid is the real one, with your key; the bucket is {demo.target.store.bucket}."
    emulator = demo.sendgrid.emulator
    return f"SendGrid {emulator.url}  (emulator; key {emulator.api_key})\nStorage  {demo.target.address}\n"


if __name__ == "__main__":
    main()
