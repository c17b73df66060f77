"""A byte that is damaged on its way to a storage, over plain HTTP, never ends up in a published object."""

from __future__ import annotations

import hashlib
import json
import os
import re
from contextlib import ExitStack, nullcontext
from dataclasses import replace

import pytest

from airflow_provider_sendgrid.delivery.export import DeliveryOptions, deliver_export
from airflow_provider_sendgrid.emulator import Emulator, Settings
from airflow_provider_sendgrid.exceptions import DestinationError
from airflow_provider_sendgrid.storage.base import MIB, ObjectInfo
from airflow_provider_sendgrid.storage.multipart import crc32
from dev.services.azurite import azurite
from dev.services.gcs import fake_gcs_server, gcs_server
from tests.support.ceph import IS_WANTED as IS_CEPH
from tests.support.destinations import Destination
from tests.support.flipping_proxy import FlippingProxy
from tests.support.sendgrid_source import SendGrid

INFO = ObjectInfo("text/csv", {"made-by": "us"})
MARK = b"the-mark"
PART = 5 * MIB
NOT_QUICK = pytest.mark.skipif(not os.environ.get("TEST_CLOUDS"), reason="make test-clouds runs it")
KINDS = ["gs", *(pytest.param(kind, marks=NOT_QUICK) for kind in ("gs-fake", "abfs"))]
if IS_CEPH:
    KINDS = ["s3"]


@pytest.fixture(scope="module", params=KINDS)
def server(request, tmp_path_factory):
    """Kind and URL, or connection string, of a plain HTTP server."""
    start = {
        "gs": gcs_server,
        "gs-fake": fake_gcs_server,
        "abfs": lambda: azurite(tmp_path_factory.mktemp("azurite")),
        "s3": lambda: nullcontext(request.getfixturevalue("s3_server")),
    }
    with start[request.param]() as url:
        yield request.param.partition("-")[0], url


@pytest.fixture
def damaged_place(server):
    """A fresh place, and the same as it is reached through a proxy that damages bytes."""
    kind, url = server
    place = Destination.fresh(kind, url)
    port = re.search(r"127\.0\.0\.1:(\d+)", url)[1]
    with ExitStack() as stack:

        def through(mark, times):
            proxy = stack.enter_context(FlippingProxy(int(port), mark, times).running())
            return proxy, replace(place, server=url.replace(f"127.0.0.1:{port}", f"127.0.0.1:{proxy.port}"))

        yield place, through


def upload(storage, content):
    upload = storage.begin("a.csv", INFO, None)
    try:
        for number, start in enumerate(range(0, len(content), PART), 1):
            part = bytearray(content[start : start + PART])
            upload.write_part(number, part, crc32(part))
        upload.complete()
    finally:
        upload.abort()


@pytest.mark.parametrize("times", [1, None])
@pytest.mark.parametrize("is_small", [True, False])
def test_no_damaged_object_is_published(damaged_place, times, is_small):
    """It is refused or deleted; if the repeated request is undamaged, the object is complete."""
    place, through = damaged_place
    content = MARK + b"." * (100 if is_small else PART) + b"the end"
    proxy, damaged = through(MARK, times)
    try:
        if is_small:
            damaged.storage().put("a.csv", content, INFO, None)
        else:
            upload(damaged.storage(), content)
    except DestinationError:
        assert [] == place.stored_keys()
    else:
        assert content == place.read("in/a.csv")
    if not proxy.flipped:
        pytest.skip("this server names an address of its own for the parts")


@pytest.mark.parametrize("contacts", [50, 25_000])
def test_the_manifests_sha256_is_that_of_the_object(damaged_place, contacts):
    """However often bytes were damaged before, the delivery fails or repeats the request."""
    place, through = damaged_place
    with Emulator(Settings(encoding="plain", contacts_per_file=25_000), populate=False) as emulator:
        sendgrid = SendGrid(emulator)
        export_id = sendgrid.export(contacts)
        [file] = emulator.export_files(export_id)
        proxy, damaged = through(file.read()[200:240], 2)
        delivery = None
        for _ in range(4):
            try:
                with sendgrid.source(export_id) as source:
                    options = DeliveryOptions(part_bytes=PART, compression="none")
                    delivery = deliver_export(source, damaged.storage(), options)
                break
            except DestinationError:
                continue
    assert proxy.flipped or contacts > 50
    [entry] = json.loads(place.read("in/_manifest.json"))["entries"]
    assert entry["meta"]["sha256"] == hashlib.sha256(place.read(delivery.files[0].uri)).hexdigest()
