"""The text of an error of a storage."""

from __future__ import annotations

import pytest

from airflow_provider_sendgrid.exceptions import DestinationRefusedError
from airflow_provider_sendgrid.storage.errors import UNREADABLE_RESPONSE, Failure, RetriedCalls
from tests.support.destinations import no_sleep


def failing_with(error):
    def send():
        raise error

    return send


def test_an_html_page_as_message_is_shortened():
    """Google's client uses all of it as the message."""
    page = "<html>" + "it's forbidden " * 20_000
    calls = RetriedCalls("A storage", {}, lambda error: Failure(("403",), f"403 {error}"), no_sleep)
    with pytest.raises(DestinationRefusedError, match=r"403 <html>it's forbidden .*…\. Grant") as caught:
        calls.write("put", "gs://lake/a", failing_with(OSError(page)))
    assert all(len(str(error)) < 1500 for error in (caught.value, caught.value.__cause__))


def test_a_response_that_is_nested_too_deeply_cannot_be_read():
    calls = RetriedCalls(
        "A storage",
        {},
        lambda error: Failure(("401",), "unreadable") if isinstance(error, UNREADABLE_RESPONSE) else None,
        no_sleep,
    )
    with pytest.raises(DestinationRefusedError, match="unreadable"):
        calls.write("put", "gs://lake/a", failing_with(RecursionError()))
