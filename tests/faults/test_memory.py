"""Endless responses and gzip bombs do not fill the memory, measured in another process."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from airflow_provider_sendgrid.emulator import Emulator, Fault
from tests.conftest import REPOSITORY

# A response may have 32 MiB; it is joined from its pieces, and copied once.
MAX_KIB = 160 * 1024
KINDS = ("endless", "bomb", "endless_header")


@pytest.mark.parametrize("client", ["requests", "httpx"])
def test_no_response_fills_the_memory(client):
    """An endless body, 1 GB in 1 MB of gzip, an endless header."""
    with Emulator(api_key="SG.a-key") as emulator:
        good = emulator.start_export()
        emulator.inject(*(Fault(kind, path=f"*/{kind}") for kind in KINDS))
        command = [sys.executable, "-m", "tests.support.request_alone", client, emulator.url, good, *KINDS]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)

    result = json.loads(done.stdout.splitlines()[-1])
    assert len(KINDS) == len(result["messages"])
    assert ["larger than" in text for text in result["messages"]] == [True, True, False]
    assert result["grown_kib"] < MAX_KIB
