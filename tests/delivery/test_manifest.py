"""The proof of a delivery: what was stored, counted and hashed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_sendgrid.delivery.manifest import KnownManifest, manifest_content
from airflow_provider_sendgrid.delivery.stored_file import StoredFile
from airflow_provider_sendgrid.files.rows import RecordCount

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda values: (
        st.lists(values, max_size=3)
        | st.dictionaries(st.sampled_from(["entries", "url", "sendgrid_export", "id", "x"]), values, max_size=3)
    ),
    max_leaves=8,
)
REPLACED = {"s3://lake/in/5e-00001-of-00001.csv.gz": "v1"}
SUMMARY = {"id": "6f", "status": "ready", "contact_count": 3, "file_count": 2}


def file(number: int, rows: int | None) -> StoredFile:
    name = f"6f-0000{number}-of-00002.csv.gz"
    count = None if rows is None else RecordCount(rows + 1, "ab")
    return StoredFile(name, 100 * number, f"{number}" * 64, count, uri=f"s3://lake/in/{name}", rows=rows)


def test_a_manifest_has_the_form_that_redshift_reads():
    """https://docs.aws.amazon.com/redshift/latest/dg/loading-data-files-using-manifest.html, and further keys."""
    assert {
        "entries": [
            {
                "url": "s3://lake/in/6f-00001-of-00002.csv.gz",
                "mandatory": True,
                "meta": {"content_length": 100, "record_count": 2, "sha256": "1" * 64},
            },
            {
                "url": "s3://lake/in/6f-00002-of-00002.csv.gz",
                "mandatory": True,
                "meta": {"content_length": 200, "record_count": 1, "sha256": "2" * 64},
            },
        ],
        "meta": {"content_length": 300, "record_count": 3},
        "author": {"name": "airflow-provider-sendgrid"},
        "sendgrid_export": SUMMARY,
        "facts": {
            "6f-00001-of-00002.csv.gz": {
                "size": "100",
                "sha256": "1" * 64,
                "records": "3",
                "first-record-sha256": "ab",
            },
            "6f-00002-of-00002.csv.gz": {
                "size": "200",
                "sha256": "2" * 64,
                "records": "2",
                "first-record-sha256": "ab",
            },
        },
        "replaces": list(REPLACED),
        "replaced_versions": REPLACED,
    } == json.loads(manifest_content([file(1, 2), file(2, 1)], SUMMARY, REPLACED))


def test_no_total_is_claimed_where_a_file_was_not_counted():
    manifest = json.loads(manifest_content([file(1, 2), file(2, None)], SUMMARY))
    assert {"content_length": 300} == manifest["meta"]
    assert [True, False] == ["record_count" in entry["meta"] for entry in manifest["entries"]]


def test_an_export_without_files_has_a_manifest_without_entries():
    manifest = json.loads(manifest_content([], SUMMARY))
    assert ([], {"content_length": 0, "record_count": 0}) == (manifest["entries"], manifest["meta"])


def test_a_manifest_is_known_again():
    files = [file(1, 2), file(2, 1)]
    known = KnownManifest.from_content(manifest_content(files, SUMMARY, REPLACED))
    by_name = {each.name: each for each in files}
    assert KnownManifest("6f", (files[0].uri, files[1].uri), by_name, REPLACED, rows=3) == known


def test_a_manifest_of_an_earlier_version_is_known_too():
    """It had neither facts nor replaced objects."""
    earlier = json.loads(manifest_content([file(1, 2)], SUMMARY, REPLACED))
    del earlier["facts"], earlier["replaces"]
    assert KnownManifest("6f", (file(1, 2).uri,), rows=2) == KnownManifest.from_content(json.dumps(earlier).encode())


@given(st.binary(max_size=50) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_content_of_a_manifest_is_read_without_an_error(content):
    """It may be anything: another tool's manifest, half a file, an image."""
    known = KnownManifest.from_content(content)
    assert isinstance(known.export_id, str)
    assert all(isinstance(uri, str) for uri in known.uris)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"null",
        b"[]",
        b"7",
        b"{",
        b"[" * 100_000,
        b'{"sendgrid_export": {"id": 7}}',
        b'{"entries": 1}',
    ],
)
def test_what_is_no_manifest_of_ours_has_no_owner(content):
    assert KnownManifest("", ()) == KnownManifest.from_content(content)


@given(
    st.builds(
        StoredFile,
        st.just("6f-00001-of-00001.csv"),
        st.integers(0, 2**50),
        st.text("0123456789abcdef", min_size=64, max_size=64),
        st.none() | st.builds(RecordCount, st.integers(0, 2**40), has_header=st.booleans()),
    )
)
def test_facts_survive_an_objects_metadata(file):
    """Metadata hold only short texts."""
    metadata = file.to_metadata()
    assert all(isinstance(value, str) and value.isascii() for value in metadata.values())
    assert file == StoredFile.parse(file.name, metadata)


def test_the_first_record_is_known_again():
    """It shows whether a later file repeats the header."""
    file = StoredFile("6f-00001-of-00001.csv", 1, "ab", RecordCount(3, "cd"))
    assert file == StoredFile.parse(file.name, file.to_metadata())


@pytest.mark.parametrize(
    "metadata",
    [{}, {"size": "1"}, {"sha256": "ab"}, {"size": "x", "sha256": "ab"}, {"size": "1", "sha256": "ab", "records": "x"}],
)
def test_an_incomplete_description_is_ignored(metadata):
    assert None is StoredFile.parse("6f-00001-of-00001.csv", metadata)
