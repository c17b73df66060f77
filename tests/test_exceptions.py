"""Errors name the next step, and never a secret."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import re
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_sendgrid import exceptions
from airflow_provider_sendgrid.exceptions import NON_RETRYABLE_ERRORS, SendGridError, redact
from airflow_provider_sendgrid.redaction import register_secret

KEY = f"SG.{'k3y-' * 5}ab.{'S3cret_' * 6}z"
SIGNATURE = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
SIGNED_URL = (
    "https://sendgrid-exports.s3.amazonaws.com/a/b/contacts.csv.gzip?X-Amz-Algorithm=AWS4-HMAC-SHA256"
    f"&X-Amz-Credential=ASIA7SECRET%2F20260101%2Fus-east-1%2Fs3%2Faws4_request&X-Amz-Signature={SIGNATURE}"
    "&X-Amz-Security-Token=IQoJb3JpZ2luX2VjEOr%2F%2Ftoken"
)
CLASSES = [SendGridError, *SendGridError.__subclasses__()]
# Those of `exceptions` itself: other modules may derive from them.
OWN_CLASSES = [each for each in CLASSES if each.__module__ == exceptions.__name__]


# --- the tree


def test_every_class_in_the_tree_exists_and_every_class_is_in_the_tree():
    """The docstring is what users read to write `except`."""
    named = re.findall(r"^ +(?:[├└]── )?(\w+Error) ", exceptions.__doc__, re.MULTILINE)
    assert named == [each.__name__ for each in OWN_CLASSES]


@pytest.mark.parametrize("error_class", OWN_CLASSES)
def test_every_class_says_what_it_means(error_class):
    assert error_class.__doc__


def test_what_a_further_try_cannot_help_is_of_this_tree():
    assert set(NON_RETRYABLE_ERRORS) < set(OWN_CLASSES)
    transient = {"SendGridRateLimitError", "SendGridServerError", "SendGridUnavailableError"}
    assert not transient & {each.__name__ for each in NON_RETRYABLE_ERRORS}


# --- no secrets


SURROUNDINGS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(SURROUNDINGS, SURROUNDINGS)
def test_a_key_is_hidden_whatever_surrounds_it(before, after):
    """Even where a letter touches it, as in the repr of a text with line breaks."""
    shown = redact(f"{before}{KEY}{after}")
    assert KEY not in shown
    assert "S3cret_" not in shown


@given(SURROUNDINGS, SURROUNDINGS)
def test_a_signature_and_a_token_are_hidden_whatever_surrounds_the_url(before, after):
    shown = redact(f"{before}{SIGNED_URL}{after}")
    for secret in (SIGNATURE, "ASIA7SECRET", "IQoJb3JpZ2luX2VjEOr"):
        assert secret not in shown


@given(SURROUNDINGS, SURROUNDINGS, st.sampled_from(["https", "http", "socks5", "HTTPS"]))
def test_a_password_in_a_url_is_hidden_whatever_surrounds_it(before, after, scheme):
    shown = redact(f"{before}{scheme}://user:p4ssw0rd@proxy.example:3128/{after}")
    assert "p4ssw0rd" not in shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"Authorization: Bearer {KEY}", "Authorization: Bearer SG.***"),
        ("{'Authorization': 'bearer abc.def-123'}", "{'Authorization': 'bearer ***'}"),
        ("Proxy-Authorization: Basic dXNlcjpwYXNz", "Proxy-Authorization: Basic ***"),
        (f"key {KEY[:12]}… was refused", "key SG.***… was refused"),
        (f"'\\n{KEY}\\n'", "'\\nSG.***\\n'"),
        (f"got {SIGNED_URL}", "got https://sendgrid-exports.s3.amazonaws.com/a/b/contacts.csv.gzip?***"),
        (
            f"Max retries exceeded with url: /a.csv?X-Amz-Expires=300&X-Amz-Signature={SIGNATURE} (Caused by",
            "Max retries exceeded with url: /a.csv?*** (Caused by",
        ),
        (f"/a.csv?AWSAccessKeyId=AKIA1&Signature={SIGNATURE}", "/a.csv?***"),
        (
            'https://h:443 "PUT /upload/o?uploadType=resumable&upload_id=secret HTTP/1.1" 200 0',
            'https://h:443 "PUT /upload/o?*** HTTP/1.1" 200 0',
        ),
        ("(b'Location', b'https://h/f?name=it's&token=secret')", "(b'Location', b'https://h/f?***')"),
        ("/it's/f?sv=2024&sig=secret, /g?token=secret", "/it's/f?*** /g?***"),
        (f"(b'x-amz-security-token', b'{SIGNATURE}')", "(b'x-amz-security-token', b'***')"),
        (f"X-Amz-Signature: {SIGNATURE}", "X-Amz-Signature: ***"),
        (f'{{"X-Amz-Security-Token": "{SIGNATURE}"}}', '{"X-Amz-Security-Token": "***"}'),
        ("https://user:p@ss@host.example/path", "https://***@host.example/path"),
        ("socks5://user:pass@host.example:1080", "socks5://***@host.example:1080"),
    ],
)
def test_secrets_give_way_to_stars(text, shown):
    assert shown == redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "status of marketing export 6f0a2c5e-8d4b: SendGrid answered 404 (export not found).",
        "GET /v3/scopes at https://api.sendgrid.com: no connection (ConnectTimeout).",
        "it begins with 'SG.'; the key's ID is not the key",
        "MSG.format is no key, nor is a list_id",
        "mail someone@example.com, or see https://example.com/docs",
        "x-amz-request-id: 4442587FB7D0A2F9",
        "Is the key wrong? See https://example.com/docs, or ask: why?because",
    ],
)
def test_what_is_no_secret_stays_readable(text):
    assert text == redact(text)


@given(st.text(st.sampled_from("SG.aé/:?@=&'\" \nhtps*") | st.characters(exclude_categories=["Cs"])))
def test_hiding_twice_is_hiding_once(text):
    """Texts pass several borders on their way to the log."""
    assert redact(text) == redact(redact(text))


def test_no_text_of_an_error_shows_a_secret():
    error = SendGridError(f"{SIGNED_URL} with {KEY}", status_code=400, errors=[{"message": f"bad key {KEY}"}])
    for text in (str(error), repr(error), json.dumps(error.to_event())):
        assert KEY not in text
        assert SIGNATURE not in text


# --- through an event


@pytest.mark.parametrize("error_class", OWN_CLASSES)
def test_an_event_brings_back_the_error_that_it_describes(error_class):
    """A trigger's error is raised in the worker: same class, text, status and errors."""
    error = error_class("it broke", status_code=418, errors=[{"message": "no", "field": "list_ids"}])
    again = SendGridError.from_event(json.loads(json.dumps(error.to_event())))
    assert type(again) is error_class
    assert (str(error), error.status_code, error.errors) == (str(again), again.status_code, again.errors)


def test_an_event_says_errors_of_any_kind_in_json():
    error = SendGridError("it broke", errors=[{"message": None, "help": {"url": SIGNED_URL}, "when": object}])
    assert SIGNATURE not in json.dumps(error.to_event())


@pytest.mark.parametrize("event", [{}, {"type": "KeyError", "message": ""}, {"type": None, "errors": None}])
def test_an_event_of_unknown_kind_is_an_error_all_the_same(event):
    """An event that a newer or older version wrote must not pass as a success."""
    error = SendGridError.from_event(event)
    assert type(error) is SendGridError
    assert str(error)


# --- through a process


@pytest.mark.parametrize("error_class", OWN_CLASSES)
@pytest.mark.parametrize("carry", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy])
def test_an_error_survives_being_carried_between_processes(error_class, carry):
    error = error_class(f"it broke with {KEY}", status_code=500, errors=[{"message": "x"}], may_have_been_accepted=True)
    again = carry(error)
    assert type(again) is error_class
    assert str(error) == str(again)
    assert vars(error) == vars(again)


def test_an_error_needs_a_text():
    """An exception without text helps no one."""
    parameters = inspect.signature(SendGridError).parameters
    assert parameters["message"].default is inspect.Parameter.empty


@pytest.mark.parametrize(
    "shape", [str, str.lower, lambda key: quote(key, safe="").replace("-", "%2d"), lambda key: f"{key[:9]} {key[9:]}"]
)
def test_the_key_of_a_connection_is_hidden_whatever_its_form(shape):
    key = "a-gateways/own+secret"
    register_secret(key)
    shown = shape(key)
    error = SendGridError(
        f"key {shown} is bad", errors=[{"message": shown, "field": {"key": shown}, "help": [shown], shown: 1}]
    )
    assert shown not in str(error)
    assert shown not in str(error.errors)
    assert shown not in str(error.to_event())


def test_a_short_secret_is_not_hidden_in_every_word():
    register_secret("key")
    assert redact("the key is bad") == "the key is bad"
