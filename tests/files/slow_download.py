"""A test that takes too long for every run: run this file by its name."""

from __future__ import annotations

from tests.support.short_lived_urls import fetch_over_short_lived_urls


def test_a_file_of_300_mb_is_complete_if_cut_every_5_mb():
    """Over URLs that live two seconds, with less than a tenth fetched twice."""
    fetch_over_short_lived_urls(contacts=1_250_000, cut_every_bytes=5_000_000)
