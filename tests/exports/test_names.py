"""Names of lists and segments become ids, exactly or not at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_sendgrid.exceptions import SendGridBadRequestError, SendGridNotFoundError
from airflow_provider_sendgrid.exports.names import ids_of_names

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


def test_no_names_are_no_ids():
    assert ids_of_names("list", [], LISTS) == []


@pytest.mark.parametrize("name", ["newsletter", "Newsletter ", "Newslettr", "NEWSLETTER", "news letter"])
def test_a_name_that_is_not_exactly_there_fails_and_tells_the_nearest(name):
    """An export of the wrong people is worse than none."""
    with pytest.raises(SendGridNotFoundError, match="The nearest: 'Newsletter'") as caught:
        ids_of_names("list", [name], LISTS)
    assert f"No list is named {name!r}" in str(caught.value)


@pytest.mark.parametrize("name", ["", "zzzz"])
def test_a_name_that_is_like_none_says_how_many_there_are(name):
    with pytest.raises(SendGridNotFoundError, match="There are 4 segments, none near it"):
        ids_of_names("segment", [name], LISTS)


def test_a_name_that_several_have_fails_with_all_their_ids():
    with pytest.raises(SendGridBadRequestError, match=r"2 lists are named 'Twice': d4, e5\. .* in list_ids"):
        ids_of_names("list", ["Customers", "Twice"], LISTS)


@pytest.mark.parametrize("item", [{"name": "Odd"}, {"name": "Odd", "id": None}, {"id": "x"}, {"id": "y", "name": None}])
def test_an_odd_item_breaks_nothing(item):
    assert ids_of_names("list", ["Newsletter"], [item, *LISTS]) == ["a1"]


@given(st.dictionaries(st.text(max_size=8), st.integers(), max_size=8), st.text(max_size=8))
def test_a_name_is_found_when_and_only_when_it_is_there(ids, name):
    items = [{"id": each, "name": other} for other, each in ids.items()]
    try:
        found = ids_of_names("list", [name], items)
    except SendGridNotFoundError:
        assert name not in ids
    else:
        assert found == [ids[name]]
