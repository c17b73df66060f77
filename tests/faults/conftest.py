"""Fixtures of the fault tests: the services, started once, and no waiting."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import S3
from tests.support.fault_services import Services, without_waits


@pytest.fixture(scope="module")
def variables() -> Iterator[pytest.MonkeyPatch]:
    """Environment variables of the connections."""
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def shared_services(s3_server: str, s3_client: Any, airflow_version: Any, variables: Any) -> Iterator[Services]:
    bucket = f"faults-{uuid.uuid4().hex[:12]}"
    s3_client.create_bucket(Bucket=bucket)
    with Services.open(S3(s3_client, bucket, s3_server), airflow_version, variables) as services:
        yield services


@pytest.fixture
def services(
    shared_services: Services, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Services]:
    """The services, without faults."""
    request.getfixturevalue("no_waiting")
    without_waits(monkeypatch)
    if shared_services.airflow_version.number < (3, 0):
        request.getfixturevalue("airflow_database")
    yield shared_services
    shared_services.reset()
