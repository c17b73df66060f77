"""Names of lists and segments become ids, exactly or not at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_sendgrid.emulator import Emulator, Fault
from airflow_provider_sendgrid.exceptions import (
    SendGridBadRequestError,
    SendGridNotFoundError,
    SendGridServerError,
)
from airflow_provider_sendgrid.exports.client import SendGridClient
from airflow_provider_sendgrid.exports.connection import SendGridConnection
from airflow_provider_sendgrid.exports.export import ExportFamily
from airflow_provider_sendgrid.exports.name_lookup import ids_of_names, ids_of_segments

LISTS = [
    {"id": "a1", "name": "Newsletter"},
    {"id": "b2", "name": "Customers"},
    {"id": "c3", "name": "Customers in Germany"},
    {"id": "d4", "name": "Twice"},
    {"id": "e5", "name": "Twice"},
]


def test_ids_come_in_the_order_of_the_names():
    assert ids_of_names("list", ["Customers", "Newsletter"], LISTS) == ["b2", "a1"]


def test_an_id_of_the_legacy_family_stays_a_number():
    assert ids_of_names("list", ["Customers"], [{"id": 7, "name": "Customers"}]) == [7]


def test_no_names_give_no_ids():
    assert ids_of_names("list", [], LISTS) == []


@pytest.mark.parametrize("name", ["newsletter", "Newsletter ", "Newslettr", "NEWSLETTER", "news letter"])
def test_an_unknown_name_suggests_the_nearest(name):
    """An export of the wrong people is worse than none."""
    with pytest.raises(SendGridNotFoundError, match="Similar names: 'Newsletter'") as caught:
        ids_of_names("list", [name], LISTS)
    assert f"No list is named {name!r}" in str(caught.value)


@pytest.mark.parametrize("name", ["", "zzzz"])
def test_a_name_without_similar_ones_gives_their_number(name):
    with pytest.raises(SendGridNotFoundError, match="No similar name among 4 segments"):
        ids_of_names("segment", [name], LISTS)


def test_an_ambiguous_name_fails_with_all_ids():
    with pytest.raises(SendGridBadRequestError, match=r"2 lists are named 'Twice': d4, e5\. .* in list_ids"):
        ids_of_names("list", ["Customers", "Twice"], LISTS)


def test_a_list_without_a_name_is_not_found_as_none():
    """Or an export holds contacts that were not requested; the name may be missing from a broken response."""
    with pytest.raises(SendGridServerError, match=r"No list is named 'None', but SendGrid sent 1 lists without a name"):
        ids_of_names("list", ["None"], [{"id": "y", "name": None}, *LISTS])


def test_a_name_of_digits_may_be_an_integer():
    """Native rendering turns it into one."""
    assert ids_of_names("list", [2026], [{"id": "y", "name": "2026"}]) == ["y"]


@pytest.mark.parametrize("name", [None, True, 1.5, ["Newsletter"]])
def test_a_name_that_is_not_a_text_is_refused(name):
    with pytest.raises(TypeError, match="list_names must hold names"):
        ids_of_names("list", [name], LISTS)


@pytest.mark.parametrize("item", [{"name": "Odd"}, {"name": "Odd", "id": None}, {"id": "x"}, {"id": "y", "name": None}])
def test_a_malformed_item_is_ignored(item):
    assert ids_of_names("list", ["Newsletter"], [item, *LISTS]) == ["a1"]


@given(st.dictionaries(st.text(max_size=8), st.integers(), max_size=8), st.text(max_size=8))
def test_a_name_is_found_exactly_if_it_exists(ids, name):
    items = [{"id": each, "name": other} for other, each in ids.items()]
    try:
        found = ids_of_names("list", [name], items)
    except SendGridNotFoundError:
        assert name not in ids
    else:
        assert found == [ids[name]]


# --- both segments APIs

FIRST_API = "/v3/marketing/segments"


@pytest.fixture
def sendgrid():
    with Emulator() as emulator:
        yield emulator


def look_up(sendgrid, *names, family=ExportFamily.MARKETING):
    connection = SendGridConnection(sendgrid.api_key, base_url=sendgrid.url)
    with SendGridClient(connection, sleep=lambda _seconds: None) as client:
        return client.run_flow(ids_of_segments(family, names))


def paths(sendgrid):
    return [request.path for request in sendgrid.requests(listener="api")]


def test_segments_of_both_apis_are_found_by_name(sendgrid):
    old, new = sendgrid.add_segment("Old buyers", first_api=True), sendgrid.add_segment("New buyers")
    assert look_up(sendgrid, "Old buyers", "New buyers") == [old, new]


def test_a_name_in_both_segments_apis_is_ambiguous(sendgrid):
    """Whichever was meant, the other one holds other contacts."""
    ids = [sendgrid.add_segment("Buyers", first_api=first_api) for first_api in (False, True)]
    with pytest.raises(SendGridBadRequestError, match=f"2 segments are named 'Buyers': {ids[0]}, {ids[1]}"):
        look_up(sendgrid, "Buyers")


def test_a_segment_in_both_apis_is_one_segment(sendgrid):
    body = '{"results": [{"id": "s-1", "name": "Buyers"}]}'
    sendgrid.inject(Fault("body", path=f"{FIRST_API}*", message=body))
    assert look_up(sendgrid, "Buyers") == ["s-1"]


@pytest.mark.parametrize("status", [403, 404, 410])
def test_without_the_first_segments_api_the_other_is_used(sendgrid, status):
    segment = sendgrid.add_segment("Buyers")
    sendgrid.inject(Fault("status", path=FIRST_API, status=status))
    assert look_up(sendgrid, "Buyers") == [segment]


def test_an_unknown_name_mentions_the_unreadable_first_api(sendgrid):
    sendgrid.inject(Fault("status", path=FIRST_API, status=403))
    with pytest.raises(
        SendGridNotFoundError,
        match=r"No segment is named 'Old buyers'.* Segments of the first API could not be read: .*answered 403",
    ):
        look_up(sendgrid, "Old buyers")


@pytest.mark.parametrize("fault", [Fault("status", path=FIRST_API, status=503), Fault("null_listing", path=FIRST_API)])
def test_an_outage_of_the_first_api_is_an_error(sendgrid, fault):
    """It may hold the same name."""
    sendgrid.add_segment("Buyers")
    sendgrid.inject(fault)
    with pytest.raises(SendGridServerError, match="segments of the first API"):
        look_up(sendgrid, "Buyers")


def test_legacy_segments_have_one_api(sendgrid):
    segment = sendgrid.add_segment("Buyers", family="legacy")
    assert look_up(sendgrid, "Buyers", family=ExportFamily.LEGACY) == [segment]
    assert paths(sendgrid) == ["/v3/contactdb/segments"]


def test_no_names_need_no_request(sendgrid):
    assert look_up(sendgrid) == []
    assert paths(sendgrid) == []


def test_a_null_listing_is_repeated_before_a_name_is_unknown(sendgrid):
    segment = sendgrid.add_segment("Buyers")
    sendgrid.inject(Fault("null_listing", first=1))
    assert look_up(sendgrid, "Buyers") == [segment]
