"""Contacts are as messy as real ones, and always the same."""

from __future__ import annotations

import csv
import io
import json

import pytest

from airflow_provider_sendgrid.emulator.contacts import FIELDS, HEADER, ContactBook

MANY = 4_100


def csv_rows(book: ContactBook, first: int = 0, count: int = MANY) -> list[dict[str, str]]:
    text = (HEADER + book.rows("csv", first, count)).decode()
    return list(csv.DictReader(io.StringIO(text, newline="")))


def json_rows(book: ContactBook, first: int = 0, count: int = MANY) -> list[dict]:
    return [json.loads(line) for line in book.rows("json", first, count).decode().split("\n")[:-1]]


def test_the_header_is_sendgrids_with_custom_fields_between():
    """Standard fields, then the account's own, then the three that came later."""
    names = HEADER.decode().strip().replace('"', "").split(",")
    assert names[:2] == ["EMAIL", "FIRST_NAME"]
    assert names[17] == "CONTACT_ID"
    assert names[-3:] == ["PHONE_NUMBER_ID", "EXTERNAL_ID", "ANONYMOUS_ID"]
    assert all(name == name.upper() for name in names)


def test_every_row_has_every_column():
    rows = csv_rows(ContactBook())
    assert len(rows) == MANY
    assert all(tuple(row) == FIELDS and None not in row.values() for row in rows)


def test_values_hold_all_that_breaks_naive_readers():
    """Commas, quotes, line breaks, percent signs, other alphabets, emoji, words that look like nothing."""
    text = "\x00".join(value for row in csv_rows(ContactBook()) for value in row.values())
    for awkward in (",", '"', "\n", "\r\n", "%", "Müller", "美咲", "🍕", "\x00NA\x00", "\x00null\x00"):
        assert awkward in text


def test_a_few_contacts_have_no_email():
    missing = [row for row in csv_rows(ContactBook()) if not row["EMAIL"]]
    assert 0 < len(missing) < MANY / 20


def test_values_are_quoted_except_empty_ones():
    row = ContactBook().rows("csv", 0, 1).decode()
    assert ",," in row
    assert '""' not in row.replace('""Boss""', "")
    assert row.startswith('"')


def test_no_two_contacts_are_the_same():
    ids = [row["CONTACT_ID"] for row in csv_rows(ContactBook())]
    assert len(set(ids)) == MANY


def test_a_contact_is_the_same_in_whatever_block_it_is_made():
    """Blocks begin and end anywhere: the rows do not depend on it."""
    book = ContactBook(7)
    assert book.rows("csv", 0, 3_000) == b"".join(book.rows("csv", at, 250) for at in range(0, 3_000, 250))


def test_the_seed_decides_who_they_are():
    assert ContactBook(1).rows("csv", 0, 50) == ContactBook(1).rows("csv", 0, 50)
    assert ContactBook(1).rows("csv", 0, 50) != ContactBook(2).rows("csv", 0, 50)


def test_json_tells_of_the_same_contacts_and_leaves_out_what_is_absent():
    """Names in lower case, custom fields nested, no field without a value."""
    book = ContactBook(3)
    for row, found in zip(csv_rows(book), json_rows(book), strict=True):
        flat = {**found, **found["custom_fields"]}
        del flat["custom_fields"]
        assert {name.lower(): value for name, value in row.items() if value} == flat


@pytest.mark.parametrize("file_type", ["csv", "json"])
def test_no_contacts_are_no_bytes(file_type):
    assert ContactBook().rows(file_type, 0, 0) == b""
