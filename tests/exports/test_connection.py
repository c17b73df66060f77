"""What an Airflow connection may contain, and which error names a wrong setting."""

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


def test_only_the_key_is_required():
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


def test_blanks_around_a_key_are_stripped():
    assert connection(password=f" {KEY}\n").api_key == KEY


@pytest.mark.parametrize("password", [None, "", "  \n"])
def test_a_connection_without_a_key_is_refused(password):
    with pytest.raises(ValueError, match=r"'sendgrid_default' has no API key.*password"):
        connection(password=password)


@pytest.mark.parametrize("password", ["SG.a b", "SG.a\nb", "SG.ключ", "SG.a\x00b", "SG.a\tb"])
def test_a_key_that_is_no_valid_header_is_refused(password):
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
        "https://[:::]",
        "https://api.sendgrid.com:0x50",
        "api.sendgrid .com",
        "api..sendgrid.com",
        "-api.sendgrid.com",
        "https://api.sendgrid.com#p4ss",
        "2001:db8::1",
    ],
)
def test_an_invalid_host_is_refused_with_an_example(host):
    with pytest.raises(ValueError, match=r"'sendgrid_default'.*https://api\.sendgrid\.com") as caught:
        connection(host=host)
    assert "p4ss" not in str(caught.value)


def base_url_or_refusal(host):
    try:
        return connection(host=host).base_url
    except ValueError as error:
        return str(error)


@given(st.text(max_size=40) | st.from_regex(r"https?://[\[\]\w.:@?/-]{0,20}"))
def test_any_host_becomes_an_origin_or_is_refused(host):
    said = base_url_or_refusal(host)
    assert re.fullmatch(r"https?://[a-z0-9._:\[\]-]+|Connection 'sendgrid_default'.*", said)


@pytest.mark.parametrize(
    "host", ["https://proxy.example/sendgrid/", "proxy.example/p4ss", "https://api.sendgrid.com//v3"]
)
def test_a_path_that_would_be_dropped_is_refused(host):
    with pytest.raises(ValueError, match=r"'sendgrid_default': the host must have no path") as caught:
        connection(host=host)
    assert "p4ss" not in str(caught.value)


def test_the_path_of_a_uri_is_refused_too():
    """Airflow puts the path of a connection's URI into its schema."""
    with pytest.raises(ValueError, match=r"the host must have no path.*schema"):
        connection(host="proxy.example", schema="sendgrid")
    assert connection(host="proxy.example", schema="https") == connection(host="proxy.example", schema="")


def test_a_port_without_a_host_is_refused():
    with pytest.raises(ValueError, match=r"port 8443 has no host"):
        connection(port=8443)


@pytest.mark.parametrize("port", [None, 0, 443])
def test_the_port_of_https_needs_no_host(port):
    assert connection(port=port) == connection()


@pytest.mark.parametrize("host", ["http://api.sendgrid.com", "http://10.0.0.1", "http://127.0.0.1.example"])
def test_the_key_is_never_sent_unencrypted(host):
    with pytest.raises(ValueError, match=r"unencrypted; use https://"):
        connection(host=host)


@pytest.mark.parametrize(("host", "local"), [("http://127.0.0.1:8080", True), (None, False)])
def test_the_emulator_is_local_and_sendgrid_is_not(host, local):
    assert connection(host=host).is_local is local


@pytest.mark.parametrize(("region", "base_url"), list(API_HOSTS.items()))
def test_a_region_selects_its_host(region, base_url):
    assert with_extra(region=region).base_url == base_url


@pytest.mark.parametrize(
    ("region", "host"),
    [
        ("eu", "api.sendgrid.com"),
        ("eu", "https://API.sendgrid.com/v3"),
        ("eu", "api.sendgrid.com.:443"),
        ("global", "api.eu.sendgrid.com"),
    ],
)
def test_a_host_of_another_region_is_refused(region, host):
    with pytest.raises(ValueError, match=rf"the region is '{region}', but the host .* is that of the region"):
        connection(host=host, extra={"region": region})


@pytest.mark.parametrize(("region", "host"), [("eu", "api.eu.sendgrid.com"), ("global", "https://api.sendgrid.com/")])
def test_a_host_of_the_same_region_is_accepted(region, host):
    assert connection(host=host, extra={"region": region}).base_url == API_HOSTS[region]


def test_a_host_wins_over_the_region():
    assert connection(host="gateway.example", extra={"region": "eu"}).base_url == "https://gateway.example"


@pytest.mark.parametrize("region", ["EU", "europe", " eu", "Global", True, False, 0, ["eu"], {"eu": 1}])
def test_a_region_is_spelled_right_or_refused(region):
    with pytest.raises(ValueError, match=r"must be one of global, eu"):
        with_extra(region=region)


@pytest.mark.parametrize(("written", "meant"), [("EU", "eu"), ("gobal", "global")])
def test_a_misspelled_region_suggests_the_nearest(written, meant):
    with pytest.raises(ValueError, match=rf"Did you mean '{meant}'\?"):
        with_extra(region=written)


def test_an_unknown_region_is_refused_with_those_known():
    with pytest.raises(ValueError, match=r"'mars'.*global, eu"):
        with_extra(region="mars")


# --- the rest of extra


def test_a_subuser_may_be_named():
    assert with_extra(on_behalf_of=" subuser ").on_behalf_of == "subuser"


def test_an_account_may_be_named_by_its_id():
    assert with_extra(on_behalf_of="account-id 12345").on_behalf_of == "account-id 12345"


@pytest.mark.parametrize(
    "value",
    [" ", "\t\n", True, False, ["subuser"], {"name": "subuser"}, "account-id", "account-id ", "None", "null", [], {}],
)
def test_an_empty_subuser_is_refused(value):
    """Ignoring it would export the contacts of the account itself."""
    with pytest.raises(ValueError, match=r"on_behalf_of must be the user name of a subuser"):
        with_extra(on_behalf_of=value)


@pytest.mark.parametrize("name", ["two\nlines", "Jürgen", "a\x00b"])
def test_a_subuser_that_is_no_valid_header_is_refused(name):
    with pytest.raises(ValueError, match=r"on_behalf_of"):
        with_extra(on_behalf_of=name)


@pytest.mark.parametrize(("timeout", "seconds"), [(5, 5.0), ("2.5", 2.5), (3599, 3599.0)])
def test_a_timeout_is_in_seconds(timeout, seconds):
    assert with_extra(timeout=timeout).timeout_seconds == seconds


@pytest.mark.parametrize("timeout", [0, -1, 3600, "soon", "30s", "nan", "inf", [5], True, False, 10**400])
def test_an_invalid_timeout_is_refused(timeout):
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
        ("no", False),
        ("Off", False),
        ("YES", True),
        ("on", True),
        (" True ", True),
        ("/etc/ssl/own.pem", "/etc/ssl/own.pem"),
    ],
)
def test_verify_is_a_boolean_or_a_path(value, verify):
    """Airflow's forms and URIs turn booleans into text."""
    assert with_extra(verify=value).verify == verify
    assert type(with_extra(verify=value).verify) is type(verify)


@pytest.mark.parametrize("value", [2, 0.5, ["/etc/ssl/own.pem"], {}, "  "])
def test_an_invalid_verify_is_refused(value):
    with pytest.raises(ValueError, match=r"verify must be true, false, or the path"):
        with_extra(verify=value)


@pytest.mark.parametrize("proxy", ["http://proxy.example:3128", "https://user:p4ss@proxy.example"])
def test_a_proxy_is_a_url(proxy):
    assert with_extra(proxy=proxy).proxy == proxy


@pytest.mark.parametrize(
    "proxy",
    [
        "proxy.example:3128",
        "user:p4ss@proxy.example",
        "ftp://p4ss",
        "http://",
        {"https": 1},
        "http://p4ss:99999",
        "http://p4ss:0",
        "http://proxy.example:p4ss",
        "http://proxy.example/p4ss",
        "http://a b",
        "http://[p4ss",
        "socks4://p4ss",
        "http://proxy.example?p4ss",
    ],
)
def test_a_proxy_that_only_one_client_accepts_is_refused(proxy):
    """Requests takes a bare host name, httpx does not: a sensor would work until it is deferred."""
    with pytest.raises(ValueError, match=r"proxy must be a URL such as") as caught:
        with_extra(proxy=proxy)
    assert "p4ss" not in str(caught.value)


@pytest.mark.parametrize(
    "user", ["u:p#4ss", "u:p?4ss", "u:p[4ss", "u:p]4ss", "u:p\\4ss", "u:p/4ss", "u:p@4ss", "u:p€4ss"]
)
def test_a_proxys_password_must_be_percent_encoded(user):
    """Each client takes another part of it for the host."""
    with pytest.raises(ValueError, match=r"'sendgrid_default': proxy: .*percent-encode that as %") as caught:
        with_extra(proxy=f"http://{user}@proxy.example:3128")
    assert "4ss" not in str(caught.value)


@pytest.mark.parametrize(
    ("proxy", "text"),
    [
        ("http://:p4ss@proxy.example", "proxy has a password, but no user"),
        ("socks5://user@proxy.example", "proxy has a user, but no password"),
    ],
)
def test_a_proxy_with_half_of_its_credentials_is_refused(proxy, text):
    with pytest.raises(ValueError, match=text) as caught:
        with_extra(proxy=proxy)
    assert "p4ss" not in str(caught.value)


@pytest.mark.parametrize(
    ("written", "read"),
    [("token@", "token:@"), ("user:@", "user:@"), ("@", ""), ("u:p%40ss@", "u:p%40ss@"), ("u:a:b^c|d@", "u:a:b^c|d@")],
)
def test_a_proxys_credentials_have_one_form(written, read):
    assert with_extra(proxy=f"HTTP://{written}proxy.example:3128/").proxy == f"http://{read}proxy.example:3128"


# --- a key in the wrong place


@pytest.mark.parametrize("key", [KEY, "the-key-of-a-gateway"])
@pytest.mark.parametrize(
    "fields",
    [
        lambda key: {"host": key},
        lambda key: {"host": f"https://{key}.example"},
        *(
            lambda key, name=name: {"extra": {name: [key]}}
            for name in ("region", "on_behalf_of", "verify", "timeout", "proxy", "regoin")
        ),
        lambda key: {"extra": {"on_behalf_of": key}},
        lambda key: {"extra": {"timeout": key}},
        lambda key: {"extra": {f"region{key}": "x"}},
    ],
)
def test_an_error_about_a_setting_does_not_contain_the_key(fields, key):
    with pytest.raises(ValueError, match="sendgrid_default") as caught:
        connection(password=key, **fields(key))
    assert key.lower() not in str(caught.value).lower()


def test_a_key_in_the_host_field_is_refused():
    with pytest.raises(ValueError, match=r"the host contains an API key\. Put the key into the field 'API key'"):
        connection(password="another-key", host=KEY)


def test_a_warning_does_not_contain_the_key(caplog):
    connection(extra={KEY: "x"})
    assert KEY not in caplog.text


# --- keys of extra


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("regoin", "region"),
        ("Region", "region"),
        ("REGION", "region"),
        ("regions", "region"),
        ("data_region", "region"),
        ("extra__sendgrid__region", "region"),
        ("on-behalf-of", "on_behalf_of"),
        ("onBehalfOf", "on_behalf_of"),
        ("On-Behalf-Of", "on_behalf_of"),
        ("on_behalf", "on_behalf_of"),
        ("on_behalf_off", "on_behalf_of"),
        ("subuser", "on_behalf_of"),
        *(
            (key, "on_behalf_of")
            for key in (
                "subuser_name",
                "sub_user_name",
                "subUserName",
                "subuser_id",
                "sub_account_name",
                "child_account",
                "username",
                "user",
                "act_as",
                "acting-as",
                "obo",
                "impersonate_user",
                "x-on-behalf-of",
                "header_on_behalf_of",
                "subusr_name",
                "headers",
            )
        ),
        *(
            (key, "region")
            for key in (
                "use_eu",
                "isEu",
                "EU",
                "europe",
                "data_residency_region",
                "data_center",
                "sendgrid_region",
                "regoin_name",
                "location",
                " region",
                "région",
            )
        ),
        ("регион", "one of region"),
        ("extra", "its keys at the top level of extra"),
        ("__extra__", "its keys at the top level of extra"),
        ("disable_ssl", "verify"),
        ("ca_certificates", "verify"),
        ("proxy_host", "proxy"),
        ("sub_user", "on_behalf_of"),
        ("time_out", "timeout"),
        ("timout", "timeout"),
        ("timeout_seconds", "timeout"),
        ("Verify", "verify"),
        ("verfiy", "verify"),
        ("verify_ssl", "verify"),
        ("proxies", "proxy"),
        ("https_proxy", "proxy"),
        ("sub", "on_behalf_of"),
        ("host", "the field 'API host'"),
        ("api_key", r"the field 'API key' \(password\)"),
    ],
)
def test_a_misspelled_extra_key_suggests_the_right_one(key, meant):
    """Ignoring it could export another account, or from another region, than was asked for."""
    with pytest.raises(
        ValueError, match=rf"'sendgrid_default': extra has the unknown key '{key}'; did you mean {meant}.*\?"
    ):
        with_extra(**{key: "x"})


@pytest.mark.parametrize("region", ["eu", " EU ", "global"])
def test_a_region_under_an_unknown_key_is_refused(region):
    with pytest.raises(ValueError, match=r"extra has the unknown key 'environment'; did you mean region\?"):
        with_extra(environment=region)


@pytest.mark.parametrize(
    "value",
    [{"on_behalf_of": "sub"}, {"Sub-User": "sub"}, {"region": "eu"}, '{"on_behalf_of": "sub"}'],
)
def test_a_setting_within_another_key_is_refused(value):
    """It would be ignored, and another account exported."""
    with pytest.raises(ValueError, match=r"extra has '.*' within 'settings'; move it to the top level of extra"):
        with_extra(settings=value)


@pytest.mark.parametrize("value", [{"region": "eu-west-1"}, {"a": {}}, "{not JSON", [1]])
def test_other_nested_keys_are_accepted(value):
    assert with_extra(aws=value) == connection()


def test_unknown_keys_are_ignored_with_one_warning(caplog):
    for _ in range(2):
        extra = {"comment": "for the newsletter", "owner": "marketing", "from_email": "x@y.z", "user_agent": "x"}
        assert connection(extra=extra) == connection()
    [warning] = [each.getMessage() for each in caplog.records]
    assert "ignoring unknown keys in extra: comment, owner, from_email, user_agent" in warning
    assert "newsletter" not in warning


# --- what Airflow's "Test" button sends


@pytest.mark.parametrize(
    ("fields", "setting"), [({"password": "***"}, "API key"), ({"extra": {"proxy": "***"}}, "proxy")]
)
def test_a_placeholder_for_a_stored_secret_is_refused(fields, setting):
    """Airflow 3.3's "Test" of a stored connection sends the password as stars, and port 0."""
    with pytest.raises(ValueError, match=rf"{setting}.* is '\*\*\*', the placeholder that Airflow's page"):
        connection(port=0, **fields)
