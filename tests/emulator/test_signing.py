"""Signed URLs."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

from airflow_provider_sendgrid.emulator.signing import sign_path, signature_error

NOW = 1_700_000_000.0


def message_for(signed, now=NOW, path=None, **changes):
    parts = urlsplit(signed)
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    refused = signature_error("GET", path or parts.path, {**query, **changes}, now)
    return refused and refused[1]


def test_a_signed_path_is_valid_until_it_expires():
    signed = sign_path("/folder/a file.csv.gzip", NOW, 300)
    assert message_for(signed, NOW + 299.9) is None
    assert message_for(signed, NOW + 300) == "Request has expired"


def test_a_signed_path_has_the_parameters_of_s3():
    names = set(parse_qs(urlsplit(sign_path("/x", NOW, 300)).query))
    stems = ("Algorithm", "Credential", "Date", "Expires", "Security-Token", "SignedHeaders", "Signature")
    assert names == {f"X-Amz-{stem}" for stem in stems}


def test_a_changed_path_or_query_is_refused():
    signed = sign_path("/x", NOW, 300)
    for changed in (
        message_for(signed, path="/y"),
        message_for(signed, **{"X-Amz-Expires": "3000"}),
        message_for(signed, **{"X-Amz-Signature": "0" * 64}),
        message_for(signed, more="1"),
    ):
        assert changed.startswith("The request signature")


def test_a_path_without_a_signature_is_refused():
    assert signature_error("GET", "/x", {}, NOW) == ("AccessDenied", "Access Denied")


def test_signatures_are_unique():
    assert len({sign_path("/x", NOW, 300) for _ in range(20)}) == 20
