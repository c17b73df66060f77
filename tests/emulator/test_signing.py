"""A signed path opens what it was signed for, for as long as it says."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

from airflow_provider_sendgrid.emulator.signing import refusal, sign_path

NOW = 1_700_000_000.0


def judge(signed, now=NOW, path=None, **changes):
    parts = urlsplit(signed)
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    refused = refusal("GET", path or parts.path, {**query, **changes}, now)
    return refused and refused[1]


def test_a_signed_path_is_good_until_it_ends():
    signed = sign_path("/folder/a file.csv.gzip", NOW, 300)
    assert judge(signed, NOW + 299.9) is None
    assert judge(signed, NOW + 300) == "Request has expired"


def test_it_carries_what_s3_puts_into_a_url():
    names = set(parse_qs(urlsplit(sign_path("/x", NOW, 300)).query))
    stems = ("Algorithm", "Credential", "Date", "Expires", "Security-Token", "SignedHeaders", "Signature")
    assert names == {f"X-Amz-{stem}" for stem in stems}


def test_nothing_of_it_can_be_changed():
    signed = sign_path("/x", NOW, 300)
    for changed in (
        judge(signed, path="/y"),
        judge(signed, **{"X-Amz-Expires": "3000"}),
        judge(signed, **{"X-Amz-Signature": "0" * 64}),
        judge(signed, more="1"),
    ):
        assert changed.startswith("The request signature")


def test_without_a_signature_there_is_no_access():
    assert refusal("GET", "/x", {}, NOW) == ("AccessDenied", "Access Denied")


def test_no_two_are_alike():
    assert len({sign_path("/x", NOW, 300) for _ in range(20)}) == 20
