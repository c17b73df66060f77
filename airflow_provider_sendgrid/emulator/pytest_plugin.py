"""A pytest fixture for DAG tests: `pytest_plugins = ["airflow_provider_sendgrid.emulator.pytest_plugin"]`.

Knows pytest and the name of Airflow's connection variable. Must not know anything else of Airflow.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .emulator import Emulator
from .settings import Settings


@pytest.fixture
def sendgrid_emulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """Yield a new emulator whose exports are ready at once, as the connection `sendgrid_default`."""
    with Emulator(Settings(ready_after=0)) as emulator:
        monkeypatch.setenv("AIRFLOW_CONN_SENDGRID_DEFAULT", emulator.connection_json())
        yield emulator
