from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from dev.airflow.faketime import shifted_clock

CLOCKS = "import time; started = time.monotonic(); time.sleep(0.01); print(time.time(), started, time.monotonic())"


def test_an_unshifted_clock_needs_no_library(tmp_path):
    assert shifted_clock(0, tmp_path) == {}


def test_the_error_names_the_package_of_a_missing_library(tmp_path):
    with pytest.raises(RuntimeError, match="apt-get install libfaketime"):
        shifted_clock(60, tmp_path)


@pytest.mark.parametrize("seconds", [420, -420])
def test_a_program_with_a_shifted_clock_can_sleep(seconds):
    try:
        variables = shifted_clock(seconds)
    except RuntimeError as error:
        pytest.skip(str(error))
    before, monotonic_before = time.time(), time.monotonic()

    ran = subprocess.run(
        [sys.executable, "-c", CLOCKS], env={**os.environ, **variables}, capture_output=True, text=True, check=True
    )

    wall, started, slept = map(float, ran.stdout.split())
    assert before <= wall - seconds <= time.time()
    assert monotonic_before <= started < slept <= time.monotonic()
