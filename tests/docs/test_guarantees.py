"""Promises and lists on the pages agree with the code."""

from __future__ import annotations

import re

from airflow_provider_sendgrid import exceptions
from airflow_provider_sendgrid.emulator.emulator import DEFAULT_API_KEY
from airflow_provider_sendgrid.exceptions import NON_RETRYABLE_ERRORS, SendGridError
from tests.docs.blocks import REPOSITORY

DOCS = REPOSITORY / "docs"


def rows_of(page):
    """The cells of all tables of a page."""
    lines = [line for line in (DOCS / page).read_text().splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if not line.startswith("|---")]


def test_every_guarantee_names_a_test():
    rows = [row for row in rows_of("guarantees.md") if row[0] != "guarantee"]

    assert len(rows) > 30
    assert [] == [row for row in rows if not re.search(r"`tests/\S+::test_\w+`", row[1])]


def test_every_error_is_listed_and_says_if_a_retry_helps():
    listed = {row[0].strip("`"): row[2] for row in rows_of("reference/errors.md") if row[0].startswith("`")}
    classes = {error.__name__: error for error in vars(exceptions).values() if is_error(error)}

    assert classes.keys() - {"SendGridError"} == listed.keys()
    assert {} == {
        name: retry
        for name, retry in listed.items()
        if issubclass(classes[name], NON_RETRYABLE_ERRORS) == ("helps" in retry)
    }


def is_error(value):
    return isinstance(value, type) and issubclass(value, SendGridError)


def test_every_import_path_in_the_reference_exists():
    for name, module in re.findall(
        r"\[`(\w+)`\]\([\w.]+\) \| `([\w.]+)`", (DOCS / "reference" / "index.md").read_text()
    ):
        assert getattr(__import__(module, fromlist=[name]), name)


def test_the_quick_start_shows_the_emulators_key():
    assert DEFAULT_API_KEY in (DOCS / "quickstart.md").read_text()
