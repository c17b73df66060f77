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


def test_at_the_first_look_only_what_became_ready_since_is_news():
    listed = [export("later", minutes=2), export("before", minutes=-1), export("then"), export("no", "pending")]
    assert ids(SeenExports(clock=clock_at_noon()).find_new(listed)) == []
    assert ids(SeenExports(since=NOON.timestamp() + 0.9, clock=clock_at_noon()).find_new(listed)) == [
        "then",
        "later",
    ]


def test_what_was_noted_is_no_news_and_looking_alone_notes_nothing():
    seen = SeenExports(since=0.0, clock=clock_at_noon())
    assert ids(seen.find_new([export("a")])) == ids(seen.find_new([export("a")])) == ["a"]
    assert not seen.is_changed
    seen.record([export("a"), export("b", "pending")])
    assert seen.is_changed
    assert ids(seen.find_new([export("a"), export("b")])) == ["b"]


def test_an_export_that_has_expired_is_none_that_is_ready():
    clock = clock_at_noon()
    clock.advance(13 * 3600)
    assert SeenExports(since=0.0, clock=clock).find_new([export("a")]) == []


def test_what_is_long_gone_is_forgotten_but_not_what_left_the_listing_for_a_while():
    clock = clock_at_noon()
    seen = SeenExports(clock=clock)
    seen.record([export("a")])
    clock.advance(23 * 3600)
    seen.record([])
    assert (set(seen.ids), seen.forgotten) == ({"a"}, set())
    clock.advance(25 * 3600)
    seen.record([])
    assert (set(seen.ids), seen.forgotten) == (set(), {"a"})


def test_an_old_export_that_one_listing_lacks_is_no_news_when_it_returns():
    clock, old = clock_at_noon(), ContactExport(id="a", status="ready")
    seen = SeenExports(clock=clock)
    for listing in ([old], [old], [], [old]):
        assert seen.find_new(listing) == []
        seen.record(listing)
        clock.advance(23 * 3600)


def test_exports_that_failed_or_are_unwanted_are_forgotten_a_day_later():
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
def test_an_export_that_was_ready_before_an_empty_first_look_is_not_news(ahead):
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


def test_a_wrong_date_at_the_first_look_makes_nothing_new():
    seen = SeenExports(clock=clock_at_noon())
    first = seen_at(NOON + timedelta(days=1), export("old", minutes=-180))
    assert seen.find_new(first) == []
    seen.record(first)
    assert seen.find_new(seen_at(NOON, export("old", minutes=-180))) == []


def test_state_of_an_older_version_knows_no_first_look():
    assert ids(SeenExports(ids={}, clock=clock_at_noon()).find_new([export("a", minutes=-180)])) == ["a"]
