"""What an Airflow connection may hold, and how it is told what is wrong with it."""

from __future__ import annotations

import dataclasses
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_sendgrid.exports.connection import API_HOSTS, SendGridConnection

KEY = f"SG.{'k' * 22}.{'s' * 43}"


def connection(**fields):
    return SendGridConnection.from_fields(**{"name": "sendgrid_default", "password": KEY, **fields})


def with_extra(**extra):
    return connection(extra=extra)


# --- what is not said


def test_a_key_is_all_that_is_needed():
    assert connection() == SendGridConnection(
        api_key=KEY,
        base_url="https://api.sendgrid.com",
        on_behalf_of=None,
        timeout_seconds=30.0,
        verify=True,
        proxy=None,
    )


@pytest.mark.parametrize("nothing", [None, ""])
@pytest.mark.parametrize("name", ["region", "on_behalf_of", "timeout", "verify", "proxy", "unknown"])
def test_empty_and_null_mean_absent(name, nothing):
    """Airflow's form saves every field, filled in or not."""
    assert connection() == connection(host=nothing, port=None, extra={name: nothing})


# --- the key


def test_blanks_around_a_key_are_taken_off():
    assert connection(password=f" {KEY}\n").api_key == KEY


@pytest.mark.parametrize("password", [None, "", "  \n"])
def test_a_connection_without_a_key_is_refused(password):
    with pytest.raises(ValueError, match=r"'sendgrid_default' has no API key.*password"):
        connection(password=password)


@pytest.mark.parametrize("password", ["SG.a b", "SG.a\nb", "SG.ключ", "SG.a\x00b", "SG.a\tb"])
def test_a_key_that_no_header_can_carry_is_refused_without_showing_it(password):
    with pytest.raises(ValueError, match=r"copy it again") as caught:
        connection(password=password)
    assert password not in str(caught.value)


def test_no_repr_shows_the_key_or_the_proxys_password():
    shown = repr(connection(extra={"proxy": "http://user:p4ss@proxy.example:3128"}))
    assert KEY not in shown
    assert "p4ss" not in shown


def test_a_connection_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        connection().api_key = "another"


# --- the host


@pytest.mark.parametrize(
    ("host", "port", "base_url"),
    [
        ("api.eu.sendgrid.com", None, "https://api.eu.sendgrid.com"),
        (" api.sendgrid.com ", None, "https://api.sendgrid.com"),
        ("API.SendGrid.com", None, "https://api.sendgrid.com"),
        ("https://api.sendgrid.com/", None, "https://api.sendgrid.com"),
        ("https://api.sendgrid.com/v3/", None, "https://api.sendgrid.com"),
        ("https://gateway.example:8443", None, "https://gateway.example:8443"),
        ("gateway.example", 8443, "https://gateway.example:8443"),
        ("gateway.example:8443", 9443, "https://gateway.example:8443"),
        ("gateway.example", 443, "https://gateway.example"),
        ("https://gateway.example:443", None, "https://gateway.example"),
        ("http://localhost:8080", None, "http://localhost:8080"),
        ("http://localhost:80", None, "http://localhost"),
        ("http://127.0.0.1", 8080, "http://127.0.0.1:8080"),
        ("http://[::1]:8080", None, "http://[::1]:8080"),
    ],
)
def test_a_host_is_a_name_or_a_url(host, port, base_url):
    """A port that the scheme implies is left out: clients leave it out, and the origins are compared."""
    assert connection(host=host, port=port).base_url == base_url


@pytest.mark.parametrize(
    "host",
    [
        "ftp://api.sendgrid.com",
        "https://",
        "https://user:p4ss@api.sendgrid.com",
        "https://:p4ss@api.sendgrid.com",
        "https://api.sendgrid.com?key=p4ss",
        "https://api.sendgrid.com:p4ss",
        "https://api.sendgrid.com:99999",
        "https://[p4ss",
        "2001:db8::1",
    ],
)
def test_a_host_that_cannot_be_right_is_refused_with_an_example(host):
    with pytest.raises(ValueError, match=r"'sendgrid_default'.*https://api\.sendgrid\.com") as caught:
        connection(host=host)
    assert "p4ss" not in str(caught.value)


def base_url_or_refusal(host):
    try:
        return connection(host=host).base_url
    except ValueError as error:
        return str(error)


@given(st.text(max_size=40) | st.from_regex(r"https?://[\[\]\w.:@?/-]{0,20}"))
def test_any_host_is_either_an_origin_or_refused_by_the_connections_name(host):
    said = base_url_or_refusal(host)
    assert re.fullmatch(r"https?://[a-z0-9._:\[\]-]+|Connection 'sendgrid_default'.*", said)


@pytest.mark.parametrize("host", ["http://api.sendgrid.com", "http://10.0.0.1", "http://127.0.0.1.example"])
def test_a_key_never_travels_unencrypted(host):
    with pytest.raises(ValueError, match=r"unencrypted; use https://"):
        connection(host=host)


@pytest.mark.parametrize(("host", "local"), [("http://127.0.0.1:8080", True), (None, False)])
def test_the_emulator_is_local_and_sendgrid_is_not(host, local):
    assert connection(host=host).is_local is local


@pytest.mark.parametrize(("region", "base_url"), list(API_HOSTS.items()))
def test_a_region_stands_for_its_host(region, base_url):
    assert with_extra(region=region).base_url == base_url


def test_a_host_wins_over_the_region():
    assert connection(host="gateway.example", extra={"region": "eu"}).base_url == "https://gateway.example"


def test_an_unknown_region_is_refused_with_those_known():
    with pytest.raises(ValueError, match=r"'mars'.*global, eu"):
        with_extra(region="mars")


# --- the rest of extra


def test_a_subuser_may_be_named():
    assert with_extra(on_behalf_of=" subuser ").on_behalf_of == "subuser"


@pytest.mark.parametrize("name", ["two\nlines", "Jürgen", "a\x00b"])
def test_a_subuser_that_no_header_can_carry_is_refused(name):
    with pytest.raises(ValueError, match=r"on_behalf_of"):
        with_extra(on_behalf_of=name)


@pytest.mark.parametrize(("timeout", "seconds"), [(5, 5.0), ("2.5", 2.5), (3599, 3599.0)])
def test_a_timeout_is_in_seconds(timeout, seconds):
    assert with_extra(timeout=timeout).timeout_seconds == seconds


@pytest.mark.parametrize("timeout", [0, -1, 3600, "soon", "nan", "inf", [5]])
def test_a_timeout_that_cannot_be_right_is_refused(timeout):
    with pytest.raises(ValueError, match=r"timeout must be a number of seconds"):
        with_extra(timeout=timeout)


@pytest.mark.parametrize(
    ("value", "verify"),
    [
        (True, True),
        (False, False),
        ("true", True),
        ("False", False),
        (1, True),
        (0, False),
        ("0", False),
        ("/etc/ssl/own.pem", "/etc/ssl/own.pem"),
    ],
)
def test_verify_is_a_word_or_a_path(value, verify):
    """Airflow's forms and URIs turn booleans into text."""
    assert with_extra(verify=value).verify == verify
    assert type(with_extra(verify=value).verify) is type(verify)


@pytest.mark.parametrize("proxy", ["http://proxy.example:3128", "https://user:p4ss@proxy.example"])
def test_a_proxy_is_a_url(proxy):
    assert with_extra(proxy=proxy).proxy == proxy


@pytest.mark.parametrize(
    "proxy", ["proxy.example:3128", "user:p4ss@proxy.example", "ftp://p4ss", "http://", {"https": 1}]
)
def test_a_proxy_that_only_one_of_two_clients_understands_is_refused(proxy):
    """Requests takes a bare host name, httpx does not: a sensor would work until it is deferred."""
    with pytest.raises(ValueError, match=r"proxy must be a URL such as") as caught:
        with_extra(proxy=proxy)
    assert "p4ss" not in str(caught.value)
