"""A limit is told before it bites, in either meaning of Reset."""

from __future__ import annotations

import pytest

PATH = "/v3/scopes"


def limits(reply):
    return [reply.headers.get(f"X-RateLimit-{name}") for name in ("Limit", "Remaining", "Reset")]


def test_without_a_limit_nothing_is_said_of_it(client):
    assert limits(client.ask("GET", PATH)) == [None, None, None]


def test_every_answer_tells_what_remains(emulator, client, clock):
    emulator.configure(rate_limit=3, rate_limit_window=60.0)
    assert limits(client.ask("GET", PATH)) == ["3", "2", "1700000060"]
    clock.advance(10)
    assert limits(client.ask("GET", PATH, Authorization="")) == ["3", "1", "1700000060"]


@pytest.mark.parametrize("retry_after", [False, True])
def test_beyond_the_limit_is_429(emulator, client, clock, retry_after):
    emulator.configure(rate_limit=1, rate_limit_reset="seconds", retry_after=retry_after)
    client.ask("GET", PATH)
    clock.advance(40)
    refused = client.ask("GET", PATH)
    assert (refused.status, limits(refused)) == (429, ["1", "0", "20"])
    assert refused.json == {"errors": [{"message": "too many requests", "field": None}]}
    assert ("20" if retry_after else None) == refused.headers.get("Retry-After")


def test_the_next_window_is_open_again(emulator, client, clock):
    emulator.configure(rate_limit=1, rate_limit_window=60.0)
    assert [client.ask("GET", PATH).status for _ in range(2)] == [200, 429]
    clock.advance(60)
    assert client.ask("GET", PATH).status == 200


def test_a_refused_post_starts_nothing(emulator, client):
    emulator.configure(rate_limit=1)
    replies = [client.ask("POST", "/v3/marketing/contacts/exports", {}).status for _ in range(2)]
    emulator.configure(rate_limit=0)
    assert replies == [202, 429]
    assert len(client.ask("GET", "/v3/marketing/contacts/exports").json["result"]) == 1
