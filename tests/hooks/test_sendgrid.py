"""The hook: an Airflow connection turned into a client."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import AsyncExitStack

import pytest

from airflow_provider_sendgrid.emulator import Emulator, Fault, Key
from airflow_provider_sendgrid.exceptions import (
    SendGridAuthError,
    SendGridBadRequestError,
    SendGridError,
    SendGridNotFoundError,
    SendGridPermissionError,
    SendGridUnavailableError,
)
from airflow_provider_sendgrid.hooks.sendgrid import SendGridHook
from tests.support.network import Server, response

FAMILIES = ("marketing", "legacy")
EXPORTS = {"marketing": "/v3/marketing/contacts/exports", "legacy": "/v3/contactdb/exports"}
WRONG_KEY = "SG.wrong-wrong-wrong-wrong.never-seen-before"
READS_LEGACY = Key("SG.readslegacy.secretsecret", frozenset({"marketing_campaigns.read", "user.scopes.read"}))
READS_MARKETING = Key("SG.readsmarketing.secretsecret", frozenset({"marketing.read", "user.scopes.read"}))
READS_NOTHING = Key("SG.readsnothing.secretsecret", frozenset({"user.scopes.read", "mail.send"}))


@pytest.fixture
def connect(monkeypatch):
    """Set the connection `sendgrid_default`."""

    def to(url, password, **extra):
        connection = {"conn_type": "sendgrid", "host": url, "password": password, "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_SENDGRID_DEFAULT", json.dumps(connection))

    return to


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


# Requests


def test_an_export_is_started_and_read(sendgrid_emulator, family):
    """By its id: status, files and count."""
    hook = SendGridHook(family=family)

    export_id = hook.start_export([sendgrid_emulator.list_id("Customers", family)])
    export = hook.get_export(export_id)

    assert (export_id, "ready", 500, 1) == (export.id, export.status, export.contact_count, len(export.urls))
    assert {EXPORTS[family]} == {request.path for request in sendgrid_emulator.requests("POST")}


def test_an_export_without_lists_contains_all_contacts(sendgrid_emulator, family):
    hook = SendGridHook(family=family)
    everybody = sum(each.contacts for each in sendgrid_emulator.lists(family))

    export = hook.get_export(hook.start_export())

    assert export.contact_count >= everybody


def test_segments_file_type_and_size_reach_sendgrid(sendgrid_emulator, family):
    """The files hold JSON of the segment's contacts."""
    hook = SendGridHook(family=family)
    segment = sendgrid_emulator.segment_id("Customers in Germany", family)

    export_id = hook.start_export(segment_ids=[segment], file_type="json", max_file_size=1, notify_by_email=True)

    [file] = sendgrid_emulator.export_files(export_id)
    assert (120, True) == (file.rows, file.name.endswith(".json.gzip"))


def test_ids_of_the_legacy_family_may_be_strings(sendgrid_emulator):
    """Templates and mapped tasks pass numbers as strings."""
    list_id = str(sendgrid_emulator.list_id("Customers", "legacy"))
    hook = SendGridHook(family="legacy")

    assert 500 == hook.get_export(hook.start_export([list_id])).contact_count


def test_listings_contain_every_page(sendgrid_emulator, family):
    sendgrid_emulator.configure(page_size=2)
    hook = SendGridHook(family=family)
    started = {hook.start_export([sendgrid_emulator.list_id("Customers", family)]) for _ in range(5)}

    assert started == {export.id for export in hook.list_exports()}


def test_lists_segments_and_scopes_are_returned(sendgrid_emulator, family):
    hook = SendGridHook(family=family)

    assert {each.name for each in sendgrid_emulator.lists(family)} == {item["name"] for item in hook.get_lists()}
    assert {"Active in the last month", "Customers in Germany"} == {item["name"] for item in hook.get_segments()}
    assert {"marketing.read", "marketing_campaigns.read", "user.scopes.read"} == set(hook.get_scopes())


@pytest.mark.asyncio
async def test_async_methods_return_the_same_results(sendgrid_emulator, family):
    """aget_export and alist_exports are get_export and list_exports."""
    export_id = sendgrid_emulator.start_export(family=family)
    hook = SendGridHook(family=family)

    export = await hook.aget_export(export_id)
    listed = await hook.alist_exports()

    assert (export_id, "ready") == (export.id, export.status)
    assert [export_id] == [item.id for item in listed]


def test_every_request_names_the_subuser_of_the_connection(sendgrid_emulator, connect):
    sendgrid_emulator.configure(subusers=("branch",))
    connect(sendgrid_emulator.url, sendgrid_emulator.api_key, on_behalf_of="branch")

    SendGridHook().get_lists()

    assert {"branch"} == {request.headers["on-behalf-of"] for request in sendgrid_emulator.requests()}


def test_an_unknown_family_is_refused_before_any_request(sendgrid_emulator):
    """The constructor accepts it, because it may be a template."""
    hook = SendGridHook(family="{{ params.family }}")

    with pytest.raises(ValueError, match=r"family must be 'marketing' or 'legacy', not '\{\{ params.family \}\}'"):
        hook.get_lists()
    assert 0 == sendgrid_emulator.count()


@pytest.mark.parametrize("value", [["marketing"], {"marketing": 1}, {"legacy"}, 1, None, "", b"legacy", True], ids=repr)
def test_a_family_of_another_type_is_refused(sendgrid_emulator, value):
    with pytest.raises(ValueError, match=r"family must be 'marketing' or 'legacy', not "):
        SendGridHook(family=value).get_lists()
    assert 0 == sendgrid_emulator.count()


@pytest.mark.parametrize("value", [["main"], {"a": 1}, None, "", "  ", "None", b"main", True], ids=repr)
def test_a_connection_id_that_is_not_a_string_is_refused(sendgrid_emulator, value):
    with pytest.raises(ValueError, match=r"sendgrid_conn_id must be the id of an Airflow connection"):
        SendGridHook(value).get_lists()
    assert 0 == sendgrid_emulator.count()


@pytest.mark.parametrize("nothing", [[], (), set(), iter([])], ids=lambda each: type(each).__name__)
def test_empty_ids_do_not_export_all_contacts(sendgrid_emulator, nothing):
    with pytest.raises(ValueError, match=r"hold no id; nothing was exported"):
        SendGridHook().start_export(nothing)
    with pytest.raises(ValueError, match=r"hold no id; nothing was exported"):
        SendGridHook().start_export(segment_ids=nothing)
    assert 0 == sendgrid_emulator.count()


@pytest.mark.usefixtures("airflow_database")
def test_a_missing_connection_is_named_with_the_next_step():
    """It is not Airflow's own exception, on which a sensor with soft_fail would skip."""
    with pytest.raises(SendGridUnavailableError, match=r"no connection 'nowhere', or .*: add one of type 'sendgrid'"):
        SendGridHook("nowhere").get_scopes()


@pytest.mark.parametrize(
    "text", ['{"conn_type": "sendgrid", "password": "the-secret"', "sendgrid://:the-secret/x@host:abc/"]
)
@pytest.mark.usefixtures("airflow_database")
def test_a_connection_that_cannot_be_parsed_is_a_value_error(monkeypatch, text):
    """Airflow logs the error and then reports a missing connection."""
    monkeypatch.setenv("AIRFLOW_CONN_BROKEN", text)
    with pytest.raises(ValueError, match=r"'broken' cannot be parsed \(.*\)\. It must be a JSON object") as caught:
        SendGridHook("broken").get_scopes()
    assert "the-secret" not in str(caught.value)
    assert SendGridHook("broken").test_connection() == (False, str(caught.value))


@pytest.mark.parametrize("error", [RuntimeError("throttled: the-secret"), OSError("the-secret")])
def test_an_error_of_the_secrets_backend_is_retryable(monkeypatch, error):
    def get_connection(_name):
        raise error

    monkeypatch.setattr(SendGridHook, "get_connection", staticmethod(get_connection))
    with pytest.raises(SendGridUnavailableError, match=r"'main' could not be read \(\w+Error\)") as caught:
        SendGridHook("main").get_scopes()
    assert "the-secret" not in str(caught.value)


def test_the_test_buttons_message_does_not_contain_the_key(connect):
    """A proxy may return it, for example as a scope."""
    key = "the-key-of-a-gateway-0123"
    body = json.dumps({"scopes": ["marketing.read", key]}).encode()
    with Server(answers=[response(body=body)]).running() as server:
        connect(server.url, key)
        is_fine, text = SendGridHook().test_connection()
    assert is_fine
    assert key not in text


def test_the_constructor_reads_no_connection():
    """DAG files may create hooks."""
    assert "nowhere" == SendGridHook("nowhere").sendgrid_conn_id


# Errors


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    ("status", "error_class"),
    [
        (400, SendGridBadRequestError),
        (401, SendGridAuthError),
        (403, SendGridPermissionError),
        (404, SendGridNotFoundError),
    ],
)
@pytest.mark.asyncio
@pytest.mark.usefixtures("no_waiting")
async def test_each_status_raises_its_own_error_class(sendgrid_emulator, status, error_class, is_async):
    sendgrid_emulator.inject(Fault("status", status=status, message="as the test wants it"))

    with pytest.raises(error_class, match="as the test wants it") as caught:
        await SendGridHook().aget_export("an-id") if is_async else SendGridHook().get_export("an-id")

    assert status == caught.value.status_code
    assert "as the test wants it" == caught.value.errors[0]["message"]


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.asyncio
@pytest.mark.usefixtures("no_waiting")
async def test_a_temporary_outage_is_retried(sendgrid_emulator, is_async):
    """429, 500 and a connection that breaks: the fourth try succeeds."""
    export_id = sendgrid_emulator.start_export()
    sendgrid_emulator.inject(
        Fault("status", nth=1, status=429, retry_after=1), Fault("status", nth=2), Fault("lost", nth=3)
    )
    hook = SendGridHook()

    export = await hook.aget_export(export_id) if is_async else hook.get_export(export_id)

    assert "ready" == export.status
    assert 4 == sendgrid_emulator.count("GET")


@pytest.mark.usefixtures("no_waiting")
def test_a_start_with_a_lost_response_is_not_repeated(sendgrid_emulator):
    """SendGrid may have accepted it."""
    sendgrid_emulator.inject(Fault("lost", method="POST"))

    with pytest.raises(SendGridUnavailableError) as caught:
        SendGridHook().start_export()

    assert caught.value.may_have_been_accepted
    assert 1 == sendgrid_emulator.count("POST")


@pytest.mark.parametrize("password", [None, "", "  ", "two words"])
def test_a_connection_without_a_key_names_the_setting(sendgrid_emulator, connect, password):
    connect(sendgrid_emulator.url, password)

    with pytest.raises(ValueError, match=r"(?=.*sendgrid_default)(?=.*API key)"):
        SendGridHook().get_lists()


# Where the key goes


def test_the_key_goes_to_the_apis_host_only(sendgrid_emulator):
    """Requests with the session of get_conn send the key to the API only."""
    with SendGridHook().get_conn() as session:
        response = session.get(f"{sendgrid_emulator.url}/v3/scopes")
        session.get(f"{sendgrid_emulator.files_url}/sg-contact-exports/x")

    assert 200 == response.status_code
    assert 1 == sendgrid_emulator.count(listener="files")
    assert [] == sendgrid_emulator.leaks()


def test_the_key_is_masked_in_logs_after_it_was_read(connect, airflow_version):
    """Without the blanks around it; Airflow masks only the password as it was entered."""
    key = "SG.copied-with-blanks.around-it-and-never-seen"
    connect("https://api.sendgrid.com", f"  {key}\n")

    assert key == SendGridHook().connection.api_key

    assert "the key is ***" == airflow_version.redact(f"the key is {key}")


def test_no_error_contains_the_key(sendgrid_emulator, connect, output_of_all_logs):
    """Not even if SendGrid's message repeats the key."""
    connect(sendgrid_emulator.url, WRONG_KEY)
    sendgrid_emulator.inject(Fault("status", status=401, message=f"unknown key {WRONG_KEY}"))

    with pytest.raises(SendGridAuthError) as caught:
        SendGridHook().get_lists()

    assert "never-seen-before" not in f"{caught.value!r} {caught.value} {output_of_all_logs()}"


def test_disabled_tls_verification_logs_a_warning(sendgrid_emulator, connect, output_of_all_logs):
    connect(sendgrid_emulator.url, sendgrid_emulator.api_key, verify=False)

    assert SendGridHook().connection.verify is False

    assert "turns off the verification of TLS certificates" in output_of_all_logs()


# Wrong settings


@pytest.fixture
def connect_raw(monkeypatch):
    """Set the connection `sendgrid_default` with extra as a string."""

    def to(extra, **fields):
        known = {"conn_type": "sendgrid", "password": "SG.key", "extra": extra, **fields}
        monkeypatch.setenv("AIRFLOW_CONN_SENDGRID_DEFAULT", json.dumps(known))

    return to


WRONG_SETTINGS = [
    ({"extra": "region: eu"}, {}, "extra must be a JSON object"),
    ({"extra": '["eu"]'}, {}, "extra must be a JSON object"),
    ({"extra": '{"region": "eu"'}, {}, "extra must be a JSON object"),
    ({"extra": '{"regoin": "eu"}'}, {}, "did you mean region"),
    ({"extra": '{"verify": "/nowhere.pem"}'}, {}, "verify is '/nowhere.pem', which cannot be read"),
    ({"extra": '{"region": "eu"}', "host": "api.sendgrid.com"}, {}, "but the host"),
    ({"extra": "", "host": "https://proxy.example/sendgrid/"}, {}, "no path"),
    ({"extra": "", "schema": "sendgrid"}, {}, "no path"),
    ({"extra": ""}, {"https_proxy": "http://proxy.example:99999"}, "https_proxy must be a URL"),
    ({"extra": ""}, {"REQUESTS_CA_BUNDLE": "/nowhere.pem"}, "REQUESTS_CA_BUNDLE is '/nowhere.pem'"),
    ({"extra": "", "password": "***"}, {}, "placeholder"),
    ({"extra": '{"on_behalf_of": "sub", "on_behalf_of": null}'}, {}, "extra has the key 'on_behalf_of' twice"),
]


@pytest.mark.filterwarnings("ignore:Encountered")
@pytest.mark.parametrize(("fields", "environ", "text"), WRONG_SETTINGS, ids=[each[2] for each in WRONG_SETTINGS])
def test_a_wrong_setting_is_a_value_error_at_once(connect_raw, monkeypatch, fields, environ, text):
    """In a worker, in a triggerer, and for the "Test" button, without retries."""
    connect_raw(**fields)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(ValueError, match=text):
        SendGridHook().connection  # noqa: B018 - reads it
    with pytest.raises(ValueError, match=text):
        asyncio.run(SendGridHook().aload_connection())
    works, said = SendGridHook().test_connection()
    assert (works, text in said) == (False, True)


def test_extra_that_is_null_or_empty_is_absent(connect_raw):
    for extra in ("", "{}", "null", None):
        connect_raw(extra)
        assert "https://api.sendgrid.com" == SendGridHook().connection.base_url


# The "Test" button of the connection form


def test_the_test_button_names_the_families_of_the_key(sendgrid_emulator):
    works, text = SendGridHook().test_connection()

    assert works
    assert "marketing, legacy" in text
    assert sendgrid_emulator.api_key not in text


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (READS_LEGACY.secret, (True, "it may export: legacy.")),
        (READS_NOTHING.secret, (False, "it lacks the scope marketing.read or marketing_campaigns.read")),
        (WRONG_KEY, (False, "SendGrid answered 401")),
        ("", (False, "has no API key")),
    ],
)
def test_the_test_button_names_the_fault_of_the_key(connect, key, expected):
    with Emulator(keys=[READS_LEGACY, READS_NOTHING]) as emulator:
        connect(emulator.url, key)
        works, text = SendGridHook().test_connection()

    assert expected[0] is works
    assert expected[1] in text
    assert key == "" or key not in text


@pytest.mark.parametrize(("secret", "is_named"), [(READS_LEGACY.secret, True), (READS_MARKETING.secret, False)])
def test_the_test_button_names_the_upgrade_of_legacy_accounts(connect, secret, is_named):
    """A key may have the scope although the account has no exports."""
    with Emulator(keys=[READS_LEGACY, READS_MARKETING]) as emulator:
        connect(emulator.url, secret)
        works, text = SendGridHook().test_connection()

    assert works
    assert ("upgraded in 2025" in text) is is_named


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("family", FAMILIES)
def test_an_export_is_empty_only_after_two_responses(sendgrid_emulator, family):
    """SendGrid may add count and files a moment after the status."""
    export_id = sendgrid_emulator.start_export(family=family)
    sendgrid_emulator.inject(Fault("unfilled", first=1))
    export = SendGridHook(family=family).get_export(export_id)
    assert export.contact_count
    assert export.urls


def test_segments_of_both_apis_are_found_by_name(sendgrid_emulator):
    old = sendgrid_emulator.add_segment("Old buyers", first_api=True)
    new = sendgrid_emulator.segment_id("Customers in Germany")
    assert [old, new] == SendGridHook().ids_of_segments(["Old buyers", "Customers in Germany"])
    assert [] == SendGridHook().ids_of_segments([])


@pytest.mark.usefixtures("no_waiting")
def test_the_test_button_reports_a_refused_connection(connect):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    connect(f"http://127.0.0.1:{port}", WRONG_KEY)

    works, text = SendGridHook().test_connection()

    assert works is False
    assert "Check the host" in text


@pytest.mark.usefixtures("no_waiting")
def test_the_test_button_reports_another_server(sendgrid_emulator):
    sendgrid_emulator.inject(Fault("html"))

    works, text = SendGridHook().test_connection()

    assert works is False
    assert "not a JSON object" in text


@pytest.mark.usefixtures("airflow_database")
def test_the_test_button_reports_a_missing_connection():
    works, text = SendGridHook().test_connection()

    assert works is False
    assert "There is no connection 'sendgrid_default'" in text


@pytest.mark.usefixtures("sendgrid_emulator")
def test_every_error_is_a_sendgrid_error():
    """Users catch SendGridError in retry policies."""
    with pytest.raises(SendGridError):
        SendGridHook().start_export(["no-such-list"])


@pytest.mark.asyncio
async def test_waits_on_one_connection_share_a_poller(sendgrid_emulator, monkeypatch):
    """No poller is shared between connections, even with the same key, between families, or after a change."""
    monkeypatch.setenv("AIRFLOW_CONN_ANOTHER", sendgrid_emulator.connection_json())
    async with AsyncExitStack() as stack:

        async def watch(*arguments):
            return await stack.enter_async_context(SendGridHook(*arguments).watch())

        first, second = await watch(), await watch("sendgrid_default", "marketing")
        others = [await watch("another"), await watch("sendgrid_default", "legacy")]
        monkeypatch.setenv("AIRFLOW_CONN_SENDGRID_DEFAULT", sendgrid_emulator.connection_json(timeout=7))
        others.append(await watch())

        assert first is second
        assert len({id(each) for each in (first, *others)}) == 4
