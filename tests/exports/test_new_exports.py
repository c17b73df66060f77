"""Which exports are news."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest

from airflow_provider_sendgrid.exports.export import ContactExport
from airflow_provider_sendgrid.exports.new_exports import SeenExports
from tests.support.clock import FakeClock

NOON = datetime(2026, 6, 1, 12, tzinfo=timezone.utc)


def clock_at_noon():
    return FakeClock(NOON.timestamp())


def export(name, status="ready", minutes=0):
    completed = NOON + timedelta(minutes=minutes)
    return ContactExport(id=name, status=status, completed_at=completed, expires_at=completed + timedelta(hours=12))


def ids(exports):
    return [each.id for each in exports]


def test_the_first_listing_has_new_exports_since_a_time_only():
    listed = [export("later", minutes=2), export("before", minutes=-1), export("then"), export("no", "pending")]
    assert ids(SeenExports(clock=clock_at_noon()).find_new(listed)) == []
    assert ids(SeenExports(since=NOON.timestamp() + 0.9, clock=clock_at_noon()).find_new(listed)) == [
        "then",
        "later",
    ]


def test_only_recorded_exports_are_known():
    seen = SeenExports(since=0.0, clock=clock_at_noon())
    assert ids(seen.find_new([export("a")])) == ids(seen.find_new([export("a")])) == ["a"]
    assert not seen.is_changed
    seen.record([export("a"), export("b", "pending")])
    assert seen.is_changed
    assert ids(seen.find_new([export("a"), export("b")])) == ["b"]


def test_an_expired_export_is_not_new():
    clock = clock_at_noon()
    clock.advance(13 * 3600)
    assert SeenExports(since=0.0, clock=clock).find_new([export("a")]) == []


def test_an_export_is_forgotten_a_day_after_its_last_listing():
    clock = clock_at_noon()
    seen = SeenExports(clock=clock)
    seen.record([export("a")])
    clock.advance(23 * 3600)
    seen.record([])
    assert (set(seen.ids), seen.forgotten) == ({"a"}, set())
    clock.advance(25 * 3600)
    seen.record([])
    assert (set(seen.ids), seen.forgotten) == (set(), {"a"})


def test_an_export_missing_from_one_listing_is_not_new_later():
    clock, old = clock_at_noon(), ContactExport(id="a", status="ready")
    seen = SeenExports(clock=clock)
    for listing in ([old], [old], [], [old]):
        assert seen.find_new(listing) == []
        seen.record(listing)
        clock.advance(23 * 3600)


def test_failed_and_other_exports_are_forgotten_after_a_day():
    clock = clock_at_noon()
    seen = SeenExports(clock=clock)
    others = [export("failed", "failure"), export("unwanted"), ContactExport("pending", "pending")]
    seen.record([], others)
    again = SeenExports(ids=seen.ids, listed=dict(seen.listed), clock=clock)
    clock.advance(25 * 3600)
    again.record([], others[2:])
    assert again.forgotten == {"failed"}
    clock.advance(25 * 3600)
    again.record([], others[2:])
    assert again.forgotten == {"failed", "unwanted"}
    assert set(again.listed) == {"pending"}


def seen_at(when, *exports):
    return [replace(each, as_of=when) for each in exports]


@pytest.mark.parametrize("ahead", [-600, 0, 600])
def test_an_export_ready_before_an_empty_listing_is_not_new(ahead):
    """Whatever this machine's clock says: the next listing shows SendGrid's time."""
    clock = clock_at_noon()
    clock.advance(ahead)
    seen = SeenExports(clock=clock)
    seen.find_new([])
    seen.record([])
    clock.advance(30 * 60)
    later = seen_at(NOON + timedelta(minutes=30), export("old", minutes=-180), export("new", minutes=10))
    assert ids(seen.find_new(later)) == ["new"]
    seen.record(later)
    assert set(seen.ids) == {"new"}


def test_a_wrong_date_in_the_first_listing_makes_nothing_new():
    seen = SeenExports(clock=clock_at_noon())
    first = seen_at(NOON + timedelta(days=1), export("old", minutes=-180))
    assert seen.find_new(first) == []
    seen.record(first)
    assert seen.find_new(seen_at(NOON, export("old", minutes=-180))) == []


def test_state_of_an_older_version_can_be_read():
    assert ids(SeenExports(ids={}, clock=clock_at_noon()).find_new([export("a", minutes=-180)])) == ["a"]
