"""A server with one response to everything never yields a delivery: nothing counts as stored that is not."""

from __future__ import annotations

import pytest

from airflow_provider_sendgrid.exceptions import DestinationChangedError, DestinationError, DestinationRefusedError
from airflow_provider_sendgrid.storage.azure import AzureStorage
from airflow_provider_sendgrid.storage.base import ANY_VERSION, MIB, ObjectInfo
from airflow_provider_sendgrid.storage.errors import ATTEMPTS
from airflow_provider_sendgrid.storage.gcs import GcsStorage
from airflow_provider_sendgrid.storage.multipart import crc32
from dev.services.gcs import gcs_client
from tests.support.alike_server import ANSWERS, alike_server
from tests.support.destinations import no_sleep

INFO = ObjectInfo("text/csv", {"made-by": "us"})
ERRORS = (DestinationChangedError, DestinationError, DestinationRefusedError)


def gcs(url):
    return GcsStorage(gcs_client(url), "lake", "in/", sleep=no_sleep)


def azure(url):
    from azure.storage.blob import BlobServiceClient

    container = BlobServiceClient(f"{url}/account", credential="a2V5").get_container_client("lake")
    return AzureStorage(container, "abfs://lake/", "in/", sleep=no_sleep)


@pytest.fixture(params=[gcs, azure])
def storage_at(request):
    return request.param


def upload_whole(storage, over):
    upload = storage.begin("a.csv", INFO, over)
    try:
        for number, part in enumerate((bytearray(5 * MIB), bytearray(1)), 1):
            upload.write_part(number, part, crc32(part))
        upload.complete()
    finally:
        upload.abort()


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("over", [None, ANY_VERSION])
def test_no_write_succeeds(storage_at, answer, over):
    with alike_server(answer) as url:
        for write in (
            lambda: storage_at(url).put("a.csv", b"1", INFO, over),
            lambda: upload_whole(storage_at(url), over),
        ):
            with pytest.raises(ERRORS, match=r"(begin|upload|put|commit|head) of \w+://lake/in/a\.csv") as caught:
                write()
            assert "secret" not in str(caught.value)


@pytest.mark.parametrize("answer", ANSWERS)
def test_no_object_is_found(storage_at, answer):
    """A 404 may mean that there is none; everything else is an error."""
    is_absence = answer.startswith("404")
    with alike_server(answer) as url:
        storage = storage_at(url)
        for find in (storage.head, storage.read):
            try:
                found = find("a.csv")
            except ERRORS:
                continue
            assert is_absence
            assert found is None


@pytest.mark.parametrize("answer", ["404 page", "404 empty", "302 page", "400 page"])
def test_a_failed_listing_is_not_an_empty_one(storage_at, answer):
    with alike_server(answer) as url:
        try:
            versions = storage_at(url).versions()
        except ERRORS:
            return
        assert versions is None


def test_an_object_that_may_not_be_deleted_is_reported(storage_at):
    """The delivery decides what that means."""
    with alike_server("403 page") as url, pytest.raises(DestinationRefusedError, match=r"delete of .*Grant"):
        storage_at(url).delete("a.csv")


def test_a_prefix_that_may_not_be_listed_has_no_known_versions(storage_at, caplog):
    """Logged once."""
    with alike_server("403 page") as url:
        storage = storage_at(url)
        assert (None, None) == (storage.versions(), storage.versions())
    assert 1 == len([record for record in caplog.records if "cannot be listed" in record.getMessage()])


def test_an_object_that_is_not_there_may_be_deleted(storage_at):
    with alike_server("404 empty") as url:
        storage_at(url).delete("a.csv")


@pytest.mark.parametrize(("answer", "attempts"), [("503 page", ATTEMPTS), ("429 empty", ATTEMPTS), ("403 page", 1)])
def test_only_transient_errors_are_retried(storage_at, answer, attempts, monkeypatch):
    """With pauses that the caller can end."""
    pauses = []
    monkeypatch.setattr("tests.storage.test_alike_servers.no_sleep", pauses.append)
    with alike_server(answer) as url, pytest.raises(ERRORS):
        storage_at(url).put("a.csv", b"1", INFO)
    assert (attempts - 1) == len([each for each in pauses[: ATTEMPTS - 1] if each])


@pytest.mark.parametrize(("answer", "attempts"), [("503 page", ATTEMPTS), ("503 text in JSON", ATTEMPTS)])
def test_a_head_is_retried_whatever_the_shape_of_the_error(storage_at, answer, attempts, monkeypatch):
    """Google's client raises AttributeError over ``{"error": "text"}``."""
    pauses = []
    monkeypatch.setattr("tests.storage.test_alike_servers.no_sleep", pauses.append)
    with alike_server(answer) as url, pytest.raises(DestinationError, match="503"):
        storage_at(url).head("a.csv")
    assert (attempts - 1) == len(pauses)
