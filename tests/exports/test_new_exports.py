"""Which exports are news."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest

from airflow_provider_sendgrid.exports.export import ContactExport
from airflow_provider_sendgrid.exports.new_exports import SeenExports

NOON = datetime(2026, 6, 1, 12, tzinfo=timezone.utc)


class Clock:
    now = NOON

    def __call__(self):
        return self.now.timestamp()


def export(name, status="ready", minutes=0):
    completed = NOON + timedelta(minutes=minutes)
    return ContactExport(id=name, status=status, completed_at=completed, expires_at=completed + timedelta(hours=12))


def ids(exports):
    return [each.id for each in exports]


def test_at_the_first_look_only_what_became_ready_since_is_news():
    listed = [export("later", minutes=2), export("before", minutes=-1), export("then"), export("no", "pending")]
    assert ids(SeenExports(clock=Clock()).news(listed)) == []
    assert ids(SeenExports(since=NOON.timestamp() + 0.9, clock=Clock()).news(listed)) == ["then", "later"]


def test_what_was_noted_is_no_news_and_looking_alone_notes_nothing():
    seen = SeenExports(since=0.0, clock=Clock())
    assert ids(seen.news([export("a")])) == ids(seen.news([export("a")])) == ["a"]
    assert not seen.is_changed
    seen.note([export("a"), export("b", "pending")])
    assert seen.is_changed
    assert ids(seen.news([export("a"), export("b")])) == ["b"]


def test_an_export_that_has_expired_is_none_that_is_ready():
    clock = Clock()
    clock.now = NOON + timedelta(hours=13)
    assert SeenExports(since=0.0, clock=clock).news([export("a")]) == []


def test_what_is_long_gone_is_forgotten_but_not_what_left_the_listing_for_a_while():
    clock = Clock()
    seen = SeenExports(clock=clock)
    seen.note([export("a")])
    clock.now += timedelta(hours=23)
    seen.note([])
    assert (set(seen.ids), seen.forgotten) == ({"a"}, set())
    clock.now += timedelta(hours=25)
    seen.note([])
    assert (set(seen.ids), seen.forgotten) == (set(), {"a"})


def test_an_old_export_that_one_listing_lacks_is_no_news_when_it_returns():
    clock, old = Clock(), ContactExport(id="a", status="ready")
    seen = SeenExports(clock=clock)
    for listing in ([old], [old], [], [old]):
        assert seen.news(listing) == []
        seen.note(listing)
        clock.now += timedelta(hours=23)


def test_exports_that_failed_or_are_unwanted_are_forgotten_a_day_later():
    clock = Clock()
    seen = SeenExports(clock=clock)
    others = [export("failed", "failure"), export("unwanted"), ContactExport("pending", "pending")]
    seen.note([], others)
    again = SeenExports(ids=seen.ids, listed=dict(seen.listed), clock=clock)
    clock.now += timedelta(hours=25)
    again.note([], others[2:])
    assert again.forgotten == {"failed"}
    clock.now += timedelta(hours=25)
    again.note([], others[2:])
    assert again.forgotten == {"failed", "unwanted"}
    assert set(again.listed) == {"pending"}


def seen_at(when, *exports):
    return [replace(each, as_of=when) for each in exports]


@pytest.mark.parametrize("ahead", [-600, 0, 600])
def test_an_export_that_was_ready_before_an_empty_first_look_is_not_news(ahead):
    """Whatever this machine's clock says: the next listing shows SendGrid's time."""
    clock = Clock()
    clock.now = NOON + timedelta(seconds=ahead)
    seen = SeenExports(clock=clock)
    seen.news([])
    seen.note([])
    clock.now += timedelta(minutes=30)
    later = seen_at(NOON + timedelta(minutes=30), export("old", minutes=-180), export("new", minutes=10))
    assert ids(seen.news(later)) == ["new"]
    seen.note(later)
    assert set(seen.ids) == {"new"}


def test_a_wrong_date_at_the_first_look_makes_nothing_new():
    seen = SeenExports(clock=Clock())
    first = seen_at(NOON + timedelta(days=1), export("old", minutes=-180))
    assert seen.news(first) == []
    seen.note(first)
    assert seen.news(seen_at(NOON, export("old", minutes=-180))) == []


def test_state_of_an_older_version_knows_no_first_look():
    assert ids(SeenExports(ids={}, clock=Clock()).news([export("a", minutes=-180)])) == ["a"]
