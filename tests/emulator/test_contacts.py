"""Generated contacts: difficult values, the same for the same seed."""

from __future__ import annotations

import csv
import io
import json

import pytest

from airflow_provider_sendgrid.emulator.contacts import FIELDS, HEADER, ContactGenerator

MANY = 4_100


def csv_rows(generator: ContactGenerator, first: int = 0, count: int = MANY) -> list[dict[str, str]]:
    text = (HEADER + generator.rows("csv", first, count)).decode()
    return list(csv.DictReader(io.StringIO(text, newline="")))


def json_rows(generator: ContactGenerator, first: int = 0, count: int = MANY) -> list[dict]:
    return [json.loads(line) for line in generator.rows("json", first, count).decode().split("\n")[:-1]]


def test_the_header_has_sendgrids_order_of_fields():
    """Standard fields, custom fields, then the three fields that were added later."""
    names = HEADER.decode().strip().replace('"', "").split(",")
    assert names[:2] == ["EMAIL", "FIRST_NAME"]
    assert names[17] == "CONTACT_ID"
    assert names[-3:] == ["PHONE_NUMBER_ID", "EXTERNAL_ID", "ANONYMOUS_ID"]
    assert all(name == name.upper() for name in names)


def test_every_row_has_every_column():
    rows = csv_rows(ContactGenerator())
    assert len(rows) == MANY
    assert all(tuple(row) == FIELDS and None not in row.values() for row in rows)


def test_values_include_characters_that_break_parsers():
    """Commas, quotes, line breaks, percent signs, other alphabets, emoji, words such as null."""
    text = "\x00".join(value for row in csv_rows(ContactGenerator()) for value in row.values())
    for awkward in (",", '"', "\n", "\r\n", "%", "Müller", "美咲", "🍕", "\x00NA\x00", "\x00null\x00"):
        assert awkward in text


def test_a_few_contacts_have_no_email():
    missing = [row for row in csv_rows(ContactGenerator()) if not row["EMAIL"]]
    assert 0 < len(missing) < MANY / 20


def test_values_are_quoted_except_empty_ones():
    row = ContactGenerator().rows("csv", 0, 1).decode()
    assert ",," in row
    assert '""' not in row.replace('""Boss""', "")
    assert row.startswith('"')


def test_contact_ids_are_unique():
    ids = [row["CONTACT_ID"] for row in csv_rows(ContactGenerator())]
    assert len(set(ids)) == MANY


def test_rows_do_not_depend_on_the_size_of_blocks():
    generator = ContactGenerator(7)
    assert generator.rows("csv", 0, 3_000) == b"".join(generator.rows("csv", at, 250) for at in range(0, 3_000, 250))


def test_the_seed_determines_the_contacts():
    assert ContactGenerator(1).rows("csv", 0, 50) == ContactGenerator(1).rows("csv", 0, 50)
    assert ContactGenerator(1).rows("csv", 0, 50) != ContactGenerator(2).rows("csv", 0, 50)


def test_json_holds_the_same_contacts_without_empty_fields():
    """Names in lower case, custom fields nested, no field without a value."""
    generator = ContactGenerator(3)
    for row, found in zip(csv_rows(generator), json_rows(generator), strict=True):
        flat = {**found, **found["custom_fields"]}
        del flat["custom_fields"]
        assert {name.lower(): value for name, value in row.items() if value} == flat


@pytest.mark.parametrize("file_type", ["csv", "json"])
def test_zero_contacts_are_zero_bytes(file_type):
    assert ContactGenerator().rows(file_type, 0, 0) == b""
