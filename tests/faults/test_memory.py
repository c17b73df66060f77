"""Answers without end, and bombs, do not fill the memory: measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from airflow_provider_sendgrid.emulator import Emulator, Fault
from tests.conftest import REPOSITORY

# An answer may have 32 MiB; it is joined from its pieces, and copied once.
MOST_KIB = 160 * 1024
KINDS = ("endless", "bomb", "endless_header")


@pytest.mark.parametrize("client", ["requests", "httpx"])
def test_no_answer_fills_the_memory(client):
    """A body that never ends, 1 GB in 1 MB of gzip, a header that never ends."""
    with Emulator(api_key="SG.a-key") as emulator:
        good = emulator.start_export()
        emulator.inject(*(Fault(kind, path=f"*/{kind}") for kind in KINDS))
        command = [sys.executable, "-m", "tests.faults.ask_alone", client, emulator.url, good, *KINDS]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)

    seen = json.loads(done.stdout.splitlines()[-1])
    assert len(KINDS) == len(seen["told"])
    assert ["larger than" in text for text in seen["told"]] == [True, True, False]
    assert seen["grown_kib"] < MOST_KIB
