"""Contacts of lists, and the status of exports over time."""

from __future__ import annotations

import pytest

from airflow_provider_sendgrid.emulator.account import Account
from airflow_provider_sendgrid.emulator.audience import NewAudience


def start(account, *audiences, ready_after=10.0):
    return account.start_export("marketing", audiences, "csv", now=1_000.0, ready_after=ready_after)


def a_list(account, contacts=10, **options):
    return account.add_audience("list", NewAudience("A list", contacts, **options))


def test_each_list_has_its_own_contacts():
    account = Account(seed=0)
    first, second = a_list(account, 10), a_list(account, 5)
    assert start(account, first).ranges == ((0, 10),)
    assert start(account, second).ranges == ((10, 15),)
    assert start(account, first, second).ranges == ((0, 15),)


def test_an_export_without_lists_holds_every_contact():
    account = Account(seed=0, contacts=30)
    a_list(account, 10)
    assert start(account).ranges == ((0, 30),)


def test_a_contact_in_a_list_and_a_segment_is_exported_once():
    account = Account(seed=0)
    people = a_list(account, 10)
    segment = account.add_audience("segment", NewAudience("Some", 4))
    assert start(account, people, segment).ranges == ((0, 10),)


def test_ids_have_the_type_of_their_family():
    account = Account(seed=0)
    assert len(a_list(account).id) == 36
    assert isinstance(a_list(account, family="legacy").id, int)


def test_the_same_seed_gives_the_same_ids():
    assert a_list(Account(seed=4)).id == a_list(Account(seed=4)).id
    assert a_list(Account(seed=4)).id != a_list(Account(seed=5)).id


@pytest.mark.parametrize(
    ("outcome", "soon", "later"),
    [
        ("ready", "pending", "ready"),
        ("failure", "pending", "failure"),
        ("stuck", "pending", "pending"),
        ("expired", "pending", "ready"),
        ("unknown:archived", "pending", "archived"),
    ],
)
def test_an_export_has_the_outcome_of_its_list(outcome, soon, later):
    account = Account(seed=0)
    export = start(account, a_list(account), a_list(account, outcome=outcome))
    assert [soon, later] == [export.status(now, is_spooled=True) for now in (1_009.9, 1_010.0)]


def test_an_export_is_pending_until_its_files_are_written():
    account = Account(seed=0)
    assert start(account, a_list(account)).status(9_999.0, is_spooled=False) == "pending"


def test_the_slowest_list_decides_when_an_export_is_ready():
    account = Account(seed=0)
    export = start(account, a_list(account, ready_after=3.0), a_list(account, ready_after=60.0))
    assert export.completed == 1_060.0


def test_files_expire_after_twelve_hours():
    account = Account(seed=0)
    assert start(account, a_list(account)).expires - 1_000.0 == 12 * 3600
    assert start(account, a_list(account, outcome="expired")).expires < 1_000.0


def test_the_latest_export_is_listed_first():
    account = Account(seed=0)
    ids = [start(account).id for _ in range(3)]
    assert ids[::-1] == [export.id for export in account.exports("marketing")]
    assert account.exports("legacy") == []


@pytest.mark.parametrize("wrong", [{"family": "other"}, {"outcome": "failed"}, {"contacts": -1}])
def test_an_invalid_list_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        NewAudience("A list", **wrong)
