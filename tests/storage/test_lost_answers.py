"""A write whose response was lost is repeated and finds its own object: that is a success."""

from __future__ import annotations

import os
import re
from contextlib import nullcontext
from dataclasses import replace

import pytest

from airflow_provider_sendgrid.exceptions import DestinationChangedError
from airflow_provider_sendgrid.storage.base import MIB, ObjectInfo
from airflow_provider_sendgrid.storage.multipart import crc32
from dev.services.azurite import azurite
from dev.services.gcs import fake_gcs_server, gcs_server
from tests.support.ceph import IS_WANTED as IS_CEPH
from tests.support.destinations import Destination
from tests.support.losing_proxy import LosingProxy

INFO = ObjectInfo("text/csv", {"made-by": "us"})
PART = 5 * MIB
NOT_QUICK = pytest.mark.skipif(not os.environ.get("TEST_CLOUDS"), reason="make test-clouds runs it")
KINDS = ["gs", *(pytest.param(kind, marks=NOT_QUICK) for kind in ("gs-fake", "abfs"))]
if IS_CEPH:
    KINDS = ["s3"]


@pytest.fixture(scope="module", params=KINDS)
def server(request, tmp_path_factory):
    start = {
        "gs": gcs_server,
        "gs-fake": fake_gcs_server,
        "abfs": lambda: azurite(tmp_path_factory.mktemp("azurite")),
        "s3": lambda: nullcontext(request.getfixturevalue("s3_server")),
    }
    with start[request.param]() as url:
        yield request.param.partition("-")[0], url


@pytest.fixture
def losing(server):
    """A new place, the same through a proxy that loses the response to the last request of a write, and the proxy."""
    kind, url = server
    place = Destination.fresh(kind, url)
    port = re.search(r"127\.0\.0\.1:(\d+)", url)[1]

    def is_last(method, target):
        return "comp=block&" not in target and not target.endswith("comp=block") and method in ("PUT", "POST")

    with LosingProxy(int(port), is_last).running() as proxy:
        through = replace(place, server=url.replace(f"http://127.0.0.1:{port}", proxy.url))
        yield place, through, proxy


@pytest.mark.parametrize("is_there", [False, True])
def test_a_small_object_whose_response_was_lost_is_stored(losing, is_there):
    place, through, proxy = losing
    over = place.storage().put("a.csv", b"old", INFO) if is_there else None

    version = through.storage().put("a.csv", b"new", INFO, over)

    assert 1 == proxy.lost
    assert (b"new", version) == (place.read("in/a.csv"), place.storage().head("a.csv").version)


@pytest.mark.parametrize("is_there", [False, True])
def test_an_upload_whose_last_response_was_lost_is_stored(losing, is_there):
    place, through, proxy = losing
    over = place.storage().put("a.csv", b"old", INFO) if is_there else None
    content = bytearray(b"1" * PART)
    proxy.times = 0
    upload = through.storage().begin("a.csv", INFO, over)
    upload.write_part(1, content, crc32(content))
    proxy.times = 1

    upload.complete()

    assert 1 == proxy.lost
    assert content == place.read("in/a.csv")


def test_the_same_bytes_from_another_run_are_not_our_object(losing):
    """Its run may delete it again."""
    place, through, proxy = losing
    proxy.times = 0
    storage = through.storage()
    version = place.storage().put("a.csv", b"same", INFO, None)
    with pytest.raises(DestinationChangedError):
        storage.put("a.csv", b"same", INFO, None)
    assert version == place.storage().head("a.csv").version


def test_a_delete_whose_response_was_lost_is_a_success(losing):
    place, through, proxy = losing
    version = place.storage().put("a.csv", b"old", INFO)
    proxy.is_lost = lambda method, _target: method == "DELETE"
    through.storage().delete("a.csv", version)
    assert (1, []) == (proxy.lost, place.stored_keys())
