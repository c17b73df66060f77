"""What the fault tests share: one world, made once, and no waiting."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import S3
from tests.faults.world import World, without_waits


@pytest.fixture(scope="module")
def patience() -> Iterator[pytest.MonkeyPatch]:
    """Environment variables of the connections."""
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def shared_world(s3_server: str, s3_client: Any, airflow_version: Any, patience: Any) -> Iterator[World]:
    bucket = f"faults-{uuid.uuid4().hex[:12]}"
    s3_client.create_bucket(Bucket=bucket)
    with World.open(S3(s3_client, bucket, s3_server), airflow_version, patience) as world:
        yield world


@pytest.fixture
def world(shared_world: World, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[World]:
    """The world, well and connected."""
    request.getfixturevalue("no_waiting")
    without_waits(monkeypatch)
    if shared_world.airflow_version.number < (3, 0):
        request.getfixturevalue("airflow_database")
    yield shared_world
    shared_world.calm()
