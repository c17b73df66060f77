"""The rate limit and its headers, with either form of Reset."""

from __future__ import annotations

import pytest

PATH = "/v3/scopes"


def limits(response):
    return [response.headers.get(f"X-RateLimit-{name}") for name in ("Limit", "Remaining", "Reset")]


def test_without_a_limit_there_are_no_rate_limit_headers(client):
    assert limits(client.ask("GET", PATH)) == [None, None, None]


def test_every_response_has_the_remaining_requests(emulator, client, clock):
    emulator.configure(rate_limit=3, rate_limit_window=60.0)
    assert limits(client.ask("GET", PATH)) == ["3", "2", "1700000060"]
    clock.advance(10)
    assert limits(client.ask("GET", PATH, Authorization="")) == ["3", "1", "1700000060"]


@pytest.mark.parametrize("retry_after", [False, True])
def test_a_request_beyond_the_limit_is_429(emulator, client, clock, retry_after):
    emulator.configure(rate_limit=1, rate_limit_reset="seconds", retry_after=retry_after)
    client.ask("GET", PATH)
    clock.advance(40)
    refused = client.ask("GET", PATH)
    assert (refused.status, limits(refused)) == (429, ["1", "0", "20"])
    assert refused.json == {"errors": [{"message": "too many requests", "field": None}]}
    assert ("20" if retry_after else None) == refused.headers.get("Retry-After")


def test_the_limit_is_reset_with_the_next_window(emulator, client, clock):
    emulator.configure(rate_limit=1, rate_limit_window=60.0)
    assert [client.ask("GET", PATH).status for _ in range(2)] == [200, 429]
    clock.advance(60)
    assert client.ask("GET", PATH).status == 200


def test_a_refused_post_starts_no_export(emulator, client):
    emulator.configure(rate_limit=1)
    responses = [client.ask("POST", "/v3/marketing/contacts/exports", {}).status for _ in range(2)]
    emulator.configure(rate_limit=0)
    assert responses == [202, 429]
    assert len(client.ask("GET", "/v3/marketing/contacts/exports").json["result"]) == 1
