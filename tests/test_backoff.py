"""How long to wait before a retry."""

from __future__ import annotations

import pytest

from airflow_provider_sendgrid.backoff import backoff_seconds


def test_waits_double_up_to_the_longest():
    assert [backoff_seconds(failures, 2.0, 30.0) for failures in range(1, 7)] == [2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


@pytest.mark.parametrize(("jitter", "seconds"), [(0.0, 4.0), (0.5, 6.0), (1.0, 8.0)])
def test_jitter_shortens_a_wait_by_up_to_half(jitter, seconds):
    assert backoff_seconds(3, 2.0, 30.0, jitter) == seconds
