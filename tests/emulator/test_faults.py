"""Whatever can go wrong, goes wrong on demand, and only then."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from urllib.parse import urlsplit

import pytest

from airflow_provider_sendgrid.emulator import Emulator, Fault
from airflow_provider_sendgrid.emulator.faults import KINDS

EXPORTS = "/v3/marketing/contacts/exports"
SCOPES = "/v3/scopes"
NO_ANSWER = (http.client.RemoteDisconnected, ConnectionResetError)


def statuses(client, times, path=SCOPES):
    return [client.ask("GET", path).status for _ in range(times)]


# --- when


def test_a_fault_strikes_every_request_until_it_is_cleared(emulator, client):
    emulator.inject(Fault("status", status=503))
    assert statuses(client, 3) == [503, 503, 503]
    emulator.clear_faults()
    assert statuses(client, 1) == [200]


def test_a_fault_may_strike_the_nth_or_the_first_few(emulator, client):
    """Counted from when it was installed, among the requests it fits."""
    emulator.inject(Fault("status", path=SCOPES, nth=3), Fault("status", path=SCOPES, first=1, status=502))
    client.ask("GET", "/v3/marketing/lists")
    assert statuses(client, 4) == [502, 200, 500, 200]


def test_a_fault_strikes_only_what_it_fits(emulator, client):
    url = client.list_url()
    emulator.inject(
        Fault("status", method="POST"),
        Fault("status", path="/v3/marketing/li*"),
        Fault("status", path="*-00001.csv.gzip"),
    )
    assert statuses(client, 1) == [200]
    assert client.ask("POST", EXPORTS, {}).status == 500
    assert client.ask("GET", "/v3/marketing/lists").status == 500
    assert client.fetch(url).status == 500


def test_a_fault_may_strike_one_listener(emulator, client):
    url = client.list_url()
    emulator.inject(Fault("status", listener="files"))
    assert (statuses(client, 1), client.fetch(url).status) == ([200], 500)


def test_faults_add_up(emulator, client):
    """A truncated file from a storage that ignores ranges, say."""
    url = client.list_url()
    emulator.inject(Fault("no_ranges"), Fault("truncate", at=50))
    reply = client.fetch(url, range="bytes=10-")
    assert (reply.status, len(reply.body)) == (200, 50)


@pytest.mark.parametrize("wrong", [{"kind": "bad luck"}, {}, {"kind": "cut", "at": "5"}, {"kind": "cut", "byte": 5}])
def test_a_fault_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=r"there is no|must be"):
        Fault.from_payload(wrong)


def test_a_fault_is_the_same_from_json():
    fault = Fault("cut", at=5, nth=2, with_reset=True)
    assert Fault.from_payload(json.loads(json.dumps(fault.as_json()))) == fault


# --- what: no answer


@pytest.mark.parametrize("kind", ["refuse", "reset"])
def test_a_refused_request_is_not_carried_out(emulator, client, kind):
    emulator.inject(Fault(kind, method="POST"))
    with pytest.raises(NO_ANSWER):
        client.ask("POST", EXPORTS, {})
    assert client.ask("GET", EXPORTS).json["result"] == []
    assert emulator.requests("POST")[0].status == 0


@pytest.mark.parametrize("with_reset", [False, True])
def test_a_lost_answer_is_to_a_request_that_was_carried_out(emulator, client, with_reset):
    """The export has started; nobody was told."""
    emulator.inject(Fault("lost", method="POST", with_reset=with_reset))
    with pytest.raises(NO_ANSWER):
        client.ask("POST", EXPORTS, {})
    assert len(client.ask("GET", EXPORTS).json["result"]) == 1


def test_a_reset_is_a_real_one(emulator):
    emulator.inject(Fault("reset"))
    parts = urlsplit(emulator.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as connection:
        connection.sendall(b"GET /v3/scopes HTTP/1.1\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            connection.recv(1)


def test_a_hanging_request_hangs_until_released(emulator, client):
    emulator.inject(Fault("hang"))
    outcome: list[object] = []

    def ask():
        with pytest.raises(NO_ANSWER) as ended:
            client.ask("GET", SCOPES)
        outcome.append(ended.value)

    thread = threading.Thread(target=ask)
    thread.start()
    assert emulator.wait_for_requests(1)
    assert outcome == []
    emulator.clear_faults()
    thread.join()
    assert len(outcome) == 1
    assert statuses(client, 1) == [200]


def test_closing_lets_go_of_what_hangs():
    """A test that fails half way must not hang for ever."""
    with Emulator() as emulator:
        emulator.inject(Fault("hang"))
        parts = urlsplit(emulator.url)
        waiting = socket.create_connection((parts.hostname, parts.port), timeout=10)
        waiting.sendall(b"GET /v3/scopes HTTP/1.1\r\n\r\n")
        assert emulator.wait_for_requests(1)
    assert waiting.recv(1) == b""
    waiting.close()


def test_a_delayed_answer_comes(emulator, client):
    emulator.inject(Fault("delay", seconds=0.01))
    assert statuses(client, 1) == [200]


# --- what: another answer


@pytest.mark.parametrize(("meaning", "reset"), [("epoch", "1700000030"), ("seconds", "30"), ("", None)])
def test_429_may_mean_its_reset_either_way(emulator, client, meaning, reset):
    emulator.inject(Fault("status", status=429, seconds=30, rate_limit_reset=meaning, message="too many requests"))
    reply = client.ask("GET", SCOPES)
    assert (reply.status, reply.headers.get("X-RateLimit-Reset")) == (429, reset)
    assert reply.json["errors"][0]["message"] == "too many requests"


def test_an_error_may_say_when_to_come_back(emulator, client):
    emulator.inject(Fault("status", status=503, retry_after=1.5))
    assert client.ask("GET", SCOPES).headers["Retry-After"] == "1.5"


def test_storage_fails_in_xml(emulator, client):
    url = client.list_url()
    emulator.inject(Fault("status", status=503, message="Please reduce your request rate."))
    assert b"<Message>Please reduce" in client.fetch(url).body


def test_an_answer_may_be_html_empty_or_half(emulator, client):
    whole = client.ask("GET", SCOPES).body
    emulator.inject(Fault("html", nth=1), Fault("empty", nth=2), Fault("broken_json", nth=3))
    page, empty, half = (client.ask("GET", SCOPES) for _ in range(3))
    assert (page.status, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert (empty.status, empty.body) == (200, b"")
    assert (half.status, half.body) == (200, whole[: len(whole) // 2])


def test_an_answer_may_lead_elsewhere(emulator, client):
    emulator.inject(Fault("redirect", location="http://elsewhere.example/", status=307))
    reply = client.ask("GET", SCOPES)
    assert (reply.status, reply.headers["Location"]) == (307, "http://elsewhere.example/")


def test_an_answer_may_never_end(emulator):
    emulator.inject(Fault("endless"))
    connection = http.client.HTTPConnection(urlsplit(emulator.url).netloc, timeout=10)
    connection.request("GET", SCOPES)
    with connection.getresponse() as answer:
        assert answer.getheader("Content-Length") is None
        assert len(answer.read(3_000_000)) == 3_000_000
    connection.close()


def test_a_header_may_never_end(emulator):
    emulator.inject(Fault("endless_header"))
    parts = urlsplit(emulator.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as connection:
        connection.sendall(b"GET /v3/scopes HTTP/1.1\r\n\r\n")
        with connection.makefile("rb") as answer:
            head = answer.read(300_000)
    assert head.startswith(b"HTTP/1.1 200 OK\r\nX-Filler: ")
    assert b"\r\n\r\n" not in head


def test_an_answer_may_be_far_larger_than_it_looks(emulator, client):
    emulator.inject(Fault("bomb", at=3))
    reply = client.ask("GET", SCOPES)
    assert reply.headers["Content-Encoding"] == "gzip"
    assert len(reply.body) < 10_000
    assert reply.content == b" " * 3 * 1024 * 1024


def test_files_may_be_offered_elsewhere(emulator, client):
    """Only their origin is another; what has no URLs stays as it is."""
    right = client.list_url()
    emulator.inject(Fault("other_host", location="http://elsewhere.example"))
    wrong = client.list_url()
    assert wrong.startswith("http://elsewhere.example/")
    assert urlsplit(wrong).path.count("/") == urlsplit(right).path.count("/")
    assert client.ask("GET", SCOPES).json["scopes"]


def test_a_body_may_be_anything(emulator, client):
    emulator.inject(Fault("body", message='{"result": null}'), Fault("body", message="gone", status=410))
    reply = client.ask("GET", SCOPES)
    assert (reply.status, reply.body) == (200, b'{"result": null}')


@pytest.mark.parametrize(
    ("path", "key"),
    [
        (EXPORTS, "result"),
        ("/v3/marketing/lists", "result"),
        ("/v3/marketing/segments/2.0", "results"),
        ("/v3/contactdb/lists", "lists"),
        (SCOPES, "scopes"),
    ],
)
def test_a_listing_may_be_null(emulator, client, path, key):
    """Users of the real API report it."""
    whole = client.ask("GET", path).json
    emulator.inject(Fault("null_listing", nth=1))
    assert client.ask("GET", path).json == whole | {key: None}
    assert client.ask("GET", path).json == whole


@pytest.mark.parametrize("family", ["marketing", "legacy"])
def test_an_export_may_be_ready_before_its_files_are_named(emulator, client, family):
    export_id = emulator.start_export(family=family)
    path = {"marketing": EXPORTS, "legacy": "/v3/contactdb/exports"}[family]
    emulator.inject(Fault("unfilled", first=1))
    early, late = (client.ask("GET", f"{path}/{export_id}").json for _ in range(2))
    count = {"marketing": "contact_count", "legacy": "recipient_count"}[family]
    assert (early["status"], early["urls"], early[count]) == ("ready", None, 0)
    assert late["urls"]
    assert late[count] > 0


@pytest.mark.parametrize("family", ["marketing", "legacy"])
def test_an_export_may_list_its_files_in_another_order(emulator, client, family):
    emulator.configure(contacts_per_file=2)
    path = {"marketing": EXPORTS, "legacy": "/v3/contactdb/exports"}[family]
    export_id = emulator.start_export([emulator.add_list("Seven", family=family, contacts=7)], family=family)
    emulator.inject(Fault("reorder", nth=2))
    orders = [
        [url.partition("?")[0] for url in client.ask("GET", f"{path}/{export_id}").json["urls"]] for _ in range(3)
    ]
    assert len(orders[0]) == 4
    assert orders[0] == orders[1][::-1] == orders[2]


def test_one_request_among_good_ones_may_be_forbidden(emulator, client):
    emulator.inject(Fault("status", status=403, nth=2))
    assert statuses(client, 3) == [200, 403, 200]


# --- what: a file


def test_a_file_may_be_cut(emulator, client):
    """After some bytes of each answer: a range cut again makes progress."""
    url = client.list_url()
    whole = client.fetch(url).body
    emulator.inject(Fault("cut", listener="files", at=1_000))
    with pytest.raises(http.client.IncompleteRead) as cut:
        client.fetch(url, range="bytes=500-")
    assert cut.value.partial == whole[500:1_500]


def test_a_cut_may_be_a_reset(emulator, client):
    url = client.list_url("Newsletter")
    emulator.inject(Fault("cut", listener="files", at=1_000, with_reset=True))
    with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
        client.fetch(url)


def test_an_api_answer_may_be_cut_in_the_middle(emulator, client):
    emulator.inject(Fault("cut"))
    with pytest.raises(http.client.IncompleteRead):
        client.ask("GET", SCOPES)


def test_a_file_may_be_shorter_and_say_so(emulator, client):
    """Nothing on the wire is wrong; only gzip's own end is missing."""
    url = client.list_url()
    whole = client.fetch(url).body
    emulator.inject(Fault("truncate", at=2_000))
    assert client.fetch(url).body == whole[:2_000]
    part = client.fetch(url, range="bytes=1990-")
    assert (part.headers["Content-Range"], part.body) == ("bytes 1990-1999/2000", whole[1_990:2_000])


def test_a_length_may_be_a_lie(emulator, client):
    url = client.list_url()
    whole = client.fetch(url).body
    emulator.inject(Fault("wrong_length", nth=1), Fault("wrong_length", nth=2, at=-10))
    with pytest.raises(http.client.IncompleteRead) as cut:
        client.fetch(url)
    assert cut.value.partial == whole
    assert client.fetch(url).body == whole[:-10]


def test_a_range_may_be_another_than_it_says(emulator, client):
    url = client.list_url()
    size = len(client.fetch(url).body)
    emulator.inject(Fault("wrong_range", at=3))
    assert client.fetch(url, range="bytes=5-9").headers["Content-Range"] == f"bytes 8-12/{size}"
    assert client.fetch(url).status == 200


@pytest.mark.parametrize("asked", [None, "bytes=500-", "bytes=700-700", "bytes=0-99"])
def test_one_byte_may_be_wrong(emulator, client, asked):
    """At the same place of the file, whichever range it is fetched by."""
    url = client.list_url()
    sent = {"range": asked} if asked else {}
    right = client.fetch(url, **sent)
    emulator.inject(Fault("corrupt", at=700))
    wrong = client.fetch(url, **sent)
    first = 500 if asked == "bytes=500-" else 700 if asked == "bytes=700-700" else 0
    differing = [first + i for i, (a, b) in enumerate(zip(right.body, wrong.body, strict=True)) if a != b]
    assert differing == ([] if asked == "bytes=0-99" else [700])
    assert wrong.headers == right.headers


def test_one_byte_of_an_api_answer_may_be_wrong(emulator, client):
    right = client.ask("GET", SCOPES).body
    emulator.inject(Fault("corrupt", at=3))
    assert client.ask("GET", SCOPES).body == right[:3] + bytes([right[3] ^ 0xFF]) + right[4:]


def test_a_file_may_change_between_two_requests(emulator, client):
    """Another ETag, other people, the same shape; `If-Match` notices."""
    url = client.list_url()
    before = client.fetch(url)
    emulator.inject(Fault("changed"))
    after = client.fetch(url)
    assert before.headers["ETag"] != after.headers["ETag"]
    assert before.content != after.content
    assert client.fetch(url, if_match=before.headers["ETag"]).status == 412


def test_a_url_may_end_at_once(emulator, client):
    url = client.list_url()
    emulator.inject(Fault("expire", listener="files", first=1))
    assert [client.fetch(url).status for _ in range(2)] == [403, 200]


def test_a_file_may_trickle(emulator, client):
    url = client.list_url()
    emulator.inject(Fault("trickle", bytes_per_second=100_000))
    assert len(client.fetch(url, range="bytes=0-999").body) == 1_000


def test_every_kind_has_its_line_in_the_documentation():
    import airflow_provider_sendgrid.emulator.spoiling as module

    assert [kind for kind in KINDS if f"`{kind}`" not in module.__doc__] == []


def test_every_kind_has_exactly_one_effect():
    from airflow_provider_sendgrid.emulator import spoiling

    effects = [*spoiling._INSTEAD, *spoiling._TREATMENTS, *spoiling._CHANGES]
    assert sorted(effects) == sorted(KINDS)
