"""The operator that brings an export into S3: against SendGrid's emulator and a real S3 server."""

from __future__ import annotations

import hashlib
import json
import re

import pytest

from airflow_provider_sendgrid._compat import AirflowFailException
from airflow_provider_sendgrid.emulator import Fault
from airflow_provider_sendgrid.exceptions import (
    DestinationConflictError,
    ExportExpiredError,
    ExportFailedError,
    ExportIncompleteError,
    SendGridAuthError,
    SendGridServerError,
)
from airflow_provider_sendgrid.transfers.sendgrid_to_s3 import SendGridToS3Operator
from tests.support.ceph import IS_WANTED as IS_CEPH

pytestmark = pytest.mark.usefixtures("no_waiting")
MIB = 1024 * 1024
PREFIX = "contacts/"
HIDDEN = {f"X-Amz-{name}=***" for name in ("Signature", "Credential", "Security-Token")}


@pytest.fixture
def deliver(s3):
    """Run the operator into the test's bucket."""

    def run(export_id, **arguments):
        places = {"s3_bucket": s3.bucket, "s3_key_prefix": PREFIX}
        return SendGridToS3Operator(task_id="store", export_id=export_id, **{**places, **arguments}).execute({})

    return run


@pytest.fixture
def assert_untouched(s3):
    """Check that nothing was published and no upload is open."""

    def check(*expected_keys):
        assert sorted(expected_keys) == s3.stored_keys()
        assert [] == s3.open_uploads()

    return check


def export_of(emulator, contacts, *, family="marketing", file_type="csv", **traits):
    """The id of a finished export."""
    found = emulator.add_list("Some", contacts=contacts, family=family, **traits)
    export_id = emulator.start_export([found], family=family, file_type=file_type)
    emulator.export_files(export_id)
    return export_id


def manifest_of(s3, prefix=PREFIX):
    return json.loads(s3.read(f"{prefix}_manifest.json"))


# Stored files


@pytest.mark.parametrize("compression", ["gzip", "none"])
@pytest.mark.parametrize("encoding", ["x-gzip", "gzip", "bare", "plain"])
@pytest.mark.parametrize(("family", "file_type"), [("marketing", "csv"), ("legacy", "json")])
def test_every_file_is_stored_unchanged(sendgrid_emulator, s3, deliver, family, file_type, encoding, compression):
    """Byte for byte, in every encoding and compression; the manifest holds the counts."""
    sendgrid_emulator.configure(encoding=encoding, contacts_per_file=40)
    export_id = export_of(sendgrid_emulator, 100, family=family, file_type=file_type)

    uris = deliver(export_id, family=family, compression=compression)

    ending = f".{file_type}" + (".gz" if compression == "gzip" else "")
    names = [f"{export_id}-{number:05d}-of-00003{ending}" for number in (1, 2, 3)]
    truth = sendgrid_emulator.export_files(export_id)
    assert [f"s3://{s3.bucket}/{PREFIX}{name}" for name in names] == uris
    assert sorted([f"{PREFIX}_manifest.json", *(PREFIX + name for name in names)]) == s3.stored_keys()
    assert [file.read() for file in truth] == [s3.read_plain(uri) for uri in uris]
    manifest = manifest_of(s3)
    assert [40, 40, 20] == [entry["meta"]["record_count"] for entry in manifest["entries"]]
    assert 100 == manifest["meta"]["record_count"]
    assert [] == sendgrid_emulator.leaks()


def test_gzip_is_not_compressed_again(sendgrid_emulator, s3, deliver):
    """The stored bytes are SendGrid's."""
    export_id = export_of(sendgrid_emulator, 1_000)

    [uri] = deliver(export_id)

    [file] = sendgrid_emulator.export_files(export_id)
    assert file.stored.path.read_bytes() == s3.read(uri)


@pytest.mark.parametrize("compression", ["gzip", "none"])
@pytest.mark.parametrize("encoding", ["x-gzip", "plain"])
def test_a_file_of_many_parts_is_stored_unchanged(sendgrid_emulator, s3, deliver, encoding, compression):
    """A multipart upload of more than two parts, which is completed."""
    sendgrid_emulator.configure(encoding=encoding)
    contacts = 200_000 if compression == "gzip" else 50_000
    export_id = export_of(sendgrid_emulator, contacts)

    [uri] = deliver(export_id, compression=compression, part_size=5 * MIB, max_concurrency=2)

    [file] = sendgrid_emulator.export_files(export_id)
    stored = s3.head(uri)
    assert "-" in stored["ETag"]
    assert stored["ContentLength"] > 10 * MIB
    assert hashlib.sha256(file.read()).digest() == hashlib.sha256(s3.read_plain(uri)).digest()
    assert contacts == manifest_of(s3)["meta"]["record_count"]
    assert [] == s3.open_uploads()


@pytest.mark.parametrize(
    ("file_type", "empty_encoding", "compression"),
    [
        ("csv", "x-gzip", "gzip"),
        ("csv", "plain", "gzip"),
        ("json", "x-gzip", "none"),
        ("json", "plain", "none"),
        ("json", "plain", "gzip"),
    ],
)
def test_an_empty_export_is_a_success_with_no_rows(
    sendgrid_emulator, s3, deliver, file_type, empty_encoding, compression
):
    """A file with only a header, or an empty one."""
    sendgrid_emulator.configure(empty_encoding=empty_encoding)
    export_id = export_of(sendgrid_emulator, 0, file_type=file_type)

    uris = deliver(export_id, compression=compression)

    assert [file.read() for file in sendgrid_emulator.export_files(export_id)] == [s3.read_plain(uri) for uri in uris]
    assert 0 == manifest_of(s3)["meta"]["record_count"]


def test_a_header_in_the_first_file_only_is_not_a_row(sendgrid_emulator, s3, deliver):
    """SendGrid does not document whether it repeats the header."""
    sendgrid_emulator.configure(contacts_per_file=40, repeat_header=False)
    export_id = export_of(sendgrid_emulator, 100)

    deliver(export_id)

    assert [40, 40, 20] == [entry["meta"]["record_count"] for entry in manifest_of(s3)["entries"]]


# Manifest and metadata


def test_the_manifest_has_redshifts_form_and_describes_the_files(sendgrid_emulator, s3, deliver):
    """`url`, `mandatory` and `meta` for COPY; rows, bytes and SHA-256 for people; the export's summary."""
    sendgrid_emulator.configure(contacts_per_file=40)
    export_id = export_of(sendgrid_emulator, 100)

    uris = deliver(export_id)

    manifest = manifest_of(s3)
    contents = [s3.read(uri) for uri in uris]
    expected = [
        {
            "url": uri,
            "mandatory": True,
            "meta": {
                "content_length": len(content),
                "record_count": rows,
                "sha256": hashlib.sha256(content).hexdigest(),
            },
        }
        for uri, content, rows in zip(uris, contents, (40, 40, 20), strict=True)
    ]
    assert expected == manifest["entries"]
    assert {"content_length": sum(map(len, contents)), "record_count": 100} == manifest["meta"]
    assert {"name": "airflow-provider-sendgrid"} == manifest["author"]
    summary = manifest["sendgrid_export"]
    assert (export_id, "ready", 100, 3) == tuple(
        summary[name] for name in ("id", "status", "contact_count", "file_count")
    )
    assert "application/json" == s3.head(f"{PREFIX}_manifest.json")["ContentType"]


@pytest.mark.parametrize("level", ["INFO", "DEBUG"])
def test_no_key_or_signature_is_stored_or_logged(sendgrid_emulator, s3, deliver, output_of_all_logs, caplog, level):
    """In manifest, metadata, result and log, even at the libraries' debug level."""
    caplog.set_level(level)
    export_id = export_of(sendgrid_emulator, 10)

    uris = deliver(export_id)

    logged = output_of_all_logs()
    assert "stored" in logged
    heads = [repr(s3.head(key)) for key in s3.stored_keys()]
    written = "\n".join([logged, *uris, *heads, s3.read(f"{PREFIX}_manifest.json").decode()])
    assert sendgrid_emulator.api_key not in written
    assert set() == {*re.findall(r"X-Amz-(?:Signature|Credential|Security-Token)=[^&\s]+", written)} - HIDDEN
    assert [] == sendgrid_emulator.leaks()


def test_object_metadata_names_export_source_and_hash(sendgrid_emulator, s3, deliver):
    export_id = export_of(sendgrid_emulator, 10)

    [uri] = deliver(export_id)

    [file] = sendgrid_emulator.export_files(export_id)
    head = s3.head(uri)
    assert "application/gzip" == head["ContentType"]
    expected = {
        "sendgrid-export-id": export_id,
        "sendgrid-file": f"/sg-contact-exports/8315072/{file.name}",
        "sha256": hashlib.sha256(s3.read(uri)).hexdigest(),
    }
    assert expected == {name: head["Metadata"].get(name) for name in expected}


@pytest.mark.parametrize(
    ("file_type", "expected"), [("csv", "text/csv; charset=utf-8"), ("json", "application/x-ndjson")]
)
def test_uncompressed_objects_have_a_content_type(sendgrid_emulator, s3, deliver, file_type, expected):
    [uri] = deliver(export_of(sendgrid_emulator, 10, file_type=file_type), compression="none")

    assert expected == s3.head(uri)["ContentType"]


def test_without_a_manifest_only_the_files_are_stored(sendgrid_emulator, s3, deliver):
    [uri] = deliver(export_of(sendgrid_emulator, 10), write_manifest=False)

    assert [uri.removeprefix(f"s3://{s3.bucket}/")] == s3.stored_keys()


# Destinations


@pytest.mark.parametrize(
    ("bucket", "prefix", "expected"),
    [
        (None, "s3://{bucket}/a/b/", "a/b/"),
        (None, "s3://{bucket}/", ""),
        (None, "s3://{bucket}", ""),
        (None, "s3://{bucket}/day=", "day=/"),
        ("{bucket}", "a/b/", "a/b/"),
        ("{bucket}", "/a/b/", "a/b/"),
        ("{bucket}", "", ""),
    ],
)
def test_the_bucket_is_named_beside_the_prefix_or_in_it(sendgrid_emulator, s3, deliver, bucket, prefix, expected):
    export_id = export_of(sendgrid_emulator, 10)

    [uri] = deliver(
        export_id, s3_bucket=bucket and bucket.format(bucket=s3.bucket), s3_key_prefix=prefix.format(bucket=s3.bucket)
    )

    assert f"s3://{s3.bucket}/{expected}{export_id}-00001-of-00001.csv.gz" == uri
    assert f"{expected}_manifest.json" in s3.stored_keys()


def test_the_bucket_may_be_that_of_the_aws_connection(sendgrid_emulator, s3, deliver, monkeypatch):
    """From `service_config`, as in S3Hook's own methods."""
    connection = s3.connection_json(service_config={"s3": {"bucket_name": s3.bucket}})
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", connection)

    [uri] = deliver(export_of(sendgrid_emulator, 10), s3_bucket=None)

    assert uri.startswith(f"s3://{s3.bucket}/{PREFIX}")


@pytest.mark.parametrize(
    ("bucket", "prefix"),
    [("lake", "s3://lake/contacts/"), (None, "contacts/"), (None, ""), ("", "contacts/"), (None, "gs://lake/a/")],
)
def test_a_bucket_named_twice_or_never_is_refused(sendgrid_emulator, deliver, bucket, prefix):
    export_id = export_of(sendgrid_emulator, 10)

    with pytest.raises(AirflowFailException, match="Name the bucket once"):
        deliver(export_id, s3_bucket=bucket, s3_key_prefix=prefix)
    assert 0 == sendgrid_emulator.count()


def test_without_an_aws_connection_boto3s_credentials_are_used(sendgrid_emulator, s3, deliver, monkeypatch):
    """Managed Airflow hides `aws_default`; its workers have a role."""
    monkeypatch.delenv("AIRFLOW_CONN_AWS_DEFAULT")
    for name, value in {
        "AWS_ENDPOINT_URL": s3.url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)

    assert 1 == len(deliver(export_of(sendgrid_emulator, 10), aws_conn_id=None))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"compression": "zip"}, "compression must be"),
        ({"part_size": MIB}, "part_size must be"),
        ({"max_concurrency": 0}, "max_concurrency must be"),
        ({"family": "modern"}, "family must be"),
        ({"family": ["marketing"]}, "family must be 'marketing' or 'legacy', not "),
        ({"family": None}, "family must be 'marketing' or 'legacy', not None"),
        ({"sendgrid_conn_id": ["main"]}, "sendgrid_conn_id must be"),
        ({"sendgrid_conn_id": None}, "sendgrid_conn_id must be"),
        ({"replace": "False"}, "replace must be True or False, not 'False'"),
        ({"verify_row_count": None}, "verify_row_count must be True or False"),
        ({"part_size": "8388608"}, "part_size must be a whole number"),
        ({"max_concurrency": True}, "max_concurrency must be a whole number"),
    ],
)
def test_wrong_arguments_are_refused_before_any_request(
    sendgrid_emulator, deliver, assert_untouched, arguments, expected
):
    with pytest.raises(AirflowFailException, match=expected):
        deliver(export_of(sendgrid_emulator, 10), **arguments)
    assert_untouched()
    assert 0 == sendgrid_emulator.count()


def test_templates_are_rendered_before_they_are_used(sendgrid_emulator, s3):
    """The constructor does not use their values."""
    operator = SendGridToS3Operator(
        task_id="store",
        export_id="{{ export }}",
        s3_bucket="{{ bucket }}",
        s3_key_prefix="ds={{ day }}/",
        aws_conn_id="aws_{{ which }}",
        extra_args={"StorageClass": "{{ storage_class }}"},
        family="{{ family }}",
        sendgrid_conn_id="sendgrid_{{ which }}",
    )
    context = {
        "export": export_of(sendgrid_emulator, 10, family="legacy"),
        "bucket": s3.bucket,
        "day": "2026-11-21",
        "which": "default",
        "storage_class": "STANDARD_IA",
        "family": "legacy",
    }

    operator.render_template_fields(context)
    [uri] = operator.execute({})

    assert uri.startswith(f"s3://{s3.bucket}/ds=2026-11-21/")
    assert "STANDARD_IA" == s3.head(uri)["StorageClass"]


# Arguments for S3


@pytest.mark.skipif(IS_CEPH, reason="Ceph RGW 16 stores AES256 unencrypted: test_s3_on_servers.py shows the refusal")
@pytest.mark.parametrize("contacts", [10, 50_000])
def test_extra_args_are_passed_to_s3(sendgrid_emulator, s3, deliver, contacts):
    """Encryption, ACL and further arguments, for small objects, multipart uploads and the manifest."""
    export_id = export_of(sendgrid_emulator, contacts)

    [uri] = deliver(
        export_id,
        encrypt=True,
        acl_policy="bucket-owner-full-control",
        extra_args={"StorageClass": "STANDARD_IA", "Tagging": "team=mail", "Metadata": {"owner": "mail"}},
        compression="none",
        part_size=5 * MIB,
    )

    keys = s3.stored_keys()
    assert 2 == len(keys)
    for key in keys:
        head = s3.head(key)
        assert ("AES256", "STANDARD_IA") == (head["ServerSideEncryption"], head["StorageClass"])
        assert ("mail", export_id) == (head["Metadata"]["owner"], head["Metadata"]["sendgrid-export-id"])
        tags = s3.client.get_object_tagging(Bucket=s3.bucket, Key=key)["TagSet"]
        assert [{"Key": "team", "Value": "mail"}] == tags
    assert ("-" in s3.head(uri)["ETag"]) == (contacts > 10)


def test_acl_policy_is_applied_to_the_objects(sendgrid_emulator, s3, deliver):
    """The grants of a public object show it."""
    [uri] = deliver(export_of(sendgrid_emulator, 10), acl_policy="public-read")

    key = uri.removeprefix(f"s3://{s3.bucket}/")
    grants = s3.client.get_object_acl(Bucket=s3.bucket, Key=key)["Grants"]
    assert any("AllUsers" in grant["Grantee"].get("URI", "") for grant in grants)


def test_a_kms_key_in_extra_args_overrides_encrypt(sendgrid_emulator, s3, deliver):
    extra = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "alias/lake"}

    [uri] = deliver(export_of(sendgrid_emulator, 10), encrypt=True, extra_args=extra)

    assert "aws:kms" == s3.head(uri)["ServerSideEncryption"]


# Incomplete files


def test_a_missing_row_publishes_nothing(sendgrid_emulator, deliver, assert_untouched):
    """SendGrid counts 100 contacts; the second of three files lacks a row."""
    sendgrid_emulator.configure(encoding="plain", contacts_per_file=40)
    export_id = export_of(sendgrid_emulator, 100, file_type="json")
    second = sendgrid_emulator.export_files(export_id)[1].read()
    without_last = second[: second.rstrip(b"\n").rindex(b"\n") + 1]
    sendgrid_emulator.inject(Fault("truncate", path="*-00002.json.gzip", at=len(without_last)))

    with pytest.raises(ExportIncompleteError, match="hold 99 rows, SendGrid counted 100"):
        deliver(export_id)
    assert_untouched()


def test_a_missing_row_in_a_multipart_file_publishes_nothing(sendgrid_emulator, deliver, assert_untouched):
    sendgrid_emulator.configure(encoding="plain")
    export_id = export_of(sendgrid_emulator, 50_000, file_type="json")
    [file] = sendgrid_emulator.export_files(export_id)
    content = file.read()
    without_last = content[: content.rstrip(b"\n").rindex(b"\n") + 1]
    sendgrid_emulator.inject(Fault("truncate", listener="files", at=len(without_last)))

    with pytest.raises(ExportIncompleteError, match="hold 49999 rows, SendGrid counted 50000"):
        deliver(export_id, compression="none", part_size=5 * MIB)
    assert_untouched()


def test_a_wrong_count_is_accepted_without_verify_row_count(sendgrid_emulator, s3, deliver):
    """Rows are not counted, and the manifest holds no count."""
    sendgrid_emulator.configure(encoding="plain")
    export_id = export_of(sendgrid_emulator, 100, file_type="json")
    [file] = sendgrid_emulator.export_files(export_id)
    half = file.read()[: file.plain_bytes // 2]
    sendgrid_emulator.inject(Fault("truncate", listener="files", at=len(half)))

    [uri] = deliver(export_id, verify_row_count=False)

    assert half == s3.read_plain(uri)
    assert "record_count" not in manifest_of(s3)["meta"]


@pytest.mark.parametrize("compression", ["gzip", "none"])
@pytest.mark.parametrize(
    "fault",
    [
        Fault("cut", listener="files"),
        Fault("cut", listener="files", with_reset=True),
        Fault("truncate", listener="files", at=5_000),
        Fault("truncate", listener="files", at=0),
        Fault("wrong_length", listener="files", at=-1_000),
        Fault("wrong_length", listener="files", at=1_000),
        Fault("corrupt", listener="files", at=5_000),
        Fault("lost", listener="files"),
        Fault("html", listener="files", status=500),
        Fault("html", listener="files", status=200),
    ],
    ids=lambda fault: f"{fault.kind} {fault.at or fault.status or ''}{' reset' if fault.with_reset else ''}",
)
def test_an_incomplete_file_publishes_nothing(sendgrid_emulator, deliver, assert_untouched, fault, compression):
    """Every response ends early, has a wrong length, or has other bytes."""
    export_id = export_of(sendgrid_emulator, 1_000)
    sendgrid_emulator.inject(fault)

    with pytest.raises(ExportIncompleteError):
        deliver(export_id, compression=compression)

    assert_untouched()
    assert [] == sendgrid_emulator.leaks()


@pytest.mark.parametrize("kind", ["truncate", "corrupt"])
def test_a_damaged_file_is_named(sendgrid_emulator, deliver, kind):
    """With the export, the file and the next step."""
    sendgrid_emulator.configure(contacts_per_file=1_000)
    export_id = export_of(sendgrid_emulator, 2_000)
    sendgrid_emulator.inject(Fault(kind, path="*-00002.csv.gzip", at=5_000))

    with pytest.raises(ExportIncompleteError, match=f"{export_id} file 2 of 2"):
        deliver(export_id)


@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_a_truncated_large_file_leaves_no_open_upload(sendgrid_emulator, deliver, assert_untouched, compression):
    """Some parts were uploaded before the download failed permanently."""
    export_id = export_of(sendgrid_emulator, 200_000)
    [file] = sendgrid_emulator.export_files(export_id)
    sendgrid_emulator.inject(Fault("truncate", listener="files", at=file.stored_bytes - 100))

    with pytest.raises(ExportIncompleteError):
        deliver(export_id, compression=compression, part_size=5 * MIB, max_concurrency=2)
    assert_untouched()


def test_a_second_file_that_fails_leaves_no_manifest(sendgrid_emulator, s3, deliver):
    """A retry delivers the rest."""
    sendgrid_emulator.configure(contacts_per_file=40)
    export_id = export_of(sendgrid_emulator, 100)
    sendgrid_emulator.inject(Fault("lost", path="*-00002.csv.gzip"))

    with pytest.raises(ExportIncompleteError):
        deliver(export_id)
    assert f"{PREFIX}_manifest.json" not in s3.stored_keys()
    assert [] == s3.open_uploads()
    sendgrid_emulator.clear_faults()

    assert 3 == len(deliver(export_id))
    assert 100 == manifest_of(s3)["meta"]["record_count"]


@pytest.mark.parametrize(
    "fault",
    [
        Fault("cut", listener="files", first=3),
        Fault("expire", listener="files", first=2),
        Fault("status", listener="files", first=3, status=503),
        Fault("lost", listener="files", first=2, with_reset=True),
        Fault("no_ranges", listener="files"),
    ],
    ids=lambda fault: fault.kind,
)
def test_a_temporary_fault_is_retried_within_the_task(sendgrid_emulator, s3, deliver, fault):
    """The download is resumed with new URLs; the stored bytes are the same."""
    export_id = export_of(sendgrid_emulator, 1_000)
    sendgrid_emulator.inject(fault)

    [uri] = deliver(export_id)

    [file] = sendgrid_emulator.export_files(export_id)
    assert file.read() == s3.read_plain(uri)


# Exports that cannot be delivered


def test_a_pending_export_names_the_sensor_that_is_missing(sendgrid_emulator, deliver, assert_untouched):
    """A retry may find it ready, so the error is retryable."""
    with pytest.raises(ExportIncompleteError, match=r"'pending'.*SendGridExportSensor"):
        deliver(export_of(sendgrid_emulator, 10, outcome="stuck"))
    assert_untouched()


@pytest.mark.parametrize(
    ("outcome", "error_class", "text"),
    [("failure", ExportFailedError, "the list is broken"), ("expired", ExportExpiredError, "expired at")],
)
def test_a_failed_or_expired_export_fails_without_a_retry(
    sendgrid_emulator, deliver, assert_untouched, outcome, error_class, text
):
    export_id = export_of(sendgrid_emulator, 10, outcome=outcome, message="the list is broken")

    with pytest.raises(AirflowFailException, match=text) as caught:
        deliver(export_id)

    assert isinstance(caught.value.__cause__, error_class)
    assert_untouched()
    assert 0 == sendgrid_emulator.count(listener="files")


def test_refused_files_are_retried_by_airflow(sendgrid_emulator, deliver, assert_untouched):
    """The storage refuses even new URLs, but the export has not expired."""
    export_id = export_of(sendgrid_emulator, 10)
    sendgrid_emulator.inject(Fault("expire", listener="files"))

    with pytest.raises(ExportIncompleteError, match="403 AccessDenied"):
        deliver(export_id)
    assert_untouched()


def test_a_refused_key_fails_without_a_retry(sendgrid_emulator, deliver, assert_untouched):
    export_id = export_of(sendgrid_emulator, 10)
    sendgrid_emulator.inject(Fault("status", listener="api", status=401))

    with pytest.raises(AirflowFailException, match="answered 401") as caught:
        deliver(export_id)

    assert isinstance(caught.value.__cause__, SendGridAuthError)
    assert_untouched()


def test_an_outage_is_retried_by_airflow(sendgrid_emulator, deliver, assert_untouched):
    export_id = export_of(sendgrid_emulator, 10)
    sendgrid_emulator.inject(Fault("status", listener="api"))

    with pytest.raises(SendGridServerError):
        deliver(export_id)
    assert_untouched()


def test_a_missing_bucket_is_named(sendgrid_emulator, deliver):
    """By boto3's own error, before any download."""
    with pytest.raises(Exception, match="NoSuchBucket"):
        deliver(export_of(sendgrid_emulator, 10), s3_bucket="no-such-bucket")
    assert 0 == sendgrid_emulator.count(listener="files")


# Replacing another export


@pytest.fixture
def earlier_export(sendgrid_emulator, s3, deliver):
    """An export that was delivered before, and an object of another program beside it."""
    sendgrid_emulator.configure(contacts_per_file=40)
    export_id = export_of(sendgrid_emulator, 100)
    deliver(export_id)
    s3.client.put_object(Bucket=s3.bucket, Key=f"{PREFIX}somebody-elses.csv", Body=b"mine")
    sendgrid_emulator.configure(contacts_per_file=0)
    return export_id


def test_another_exports_manifest_is_refused_before_any_download(sendgrid_emulator, s3, deliver, earlier_export):
    before = s3.stored_keys()
    export_id = export_of(sendgrid_emulator, 10)
    fetched = sendgrid_emulator.count(listener="files")

    with pytest.raises(AirflowFailException, match=earlier_export) as caught:
        deliver(export_id)

    assert isinstance(caught.value.__cause__, DestinationConflictError)
    assert (before, fetched) == (s3.stored_keys(), sendgrid_emulator.count(listener="files"))
    assert earlier_export == manifest_of(s3)["sendgrid_export"]["id"]


def test_replace_deletes_only_what_the_old_manifest_names(sendgrid_emulator, s3, deliver, earlier_export):
    export_id = export_of(sendgrid_emulator, 10)

    [uri] = deliver(export_id, replace=True)

    expected = [uri.removeprefix(f"s3://{s3.bucket}/"), f"{PREFIX}_manifest.json", f"{PREFIX}somebody-elses.csv"]
    assert sorted(expected) == s3.stored_keys()
    assert export_id == manifest_of(s3)["sendgrid_export"]["id"]
    assert earlier_export != export_id


def test_replace_deletes_nothing_outside_its_prefix(sendgrid_emulator, s3, deliver, earlier_export):
    """Even if the old manifest was edited."""
    other = f"elsewhere/{earlier_export}-00001-of-00001.csv.gz"
    manifest = manifest_of(s3)
    for url in (f"s3://{s3.bucket}/{other}", f"s3://{s3.bucket}/{PREFIX}somebody-elses.csv", "s3://other/x", None):
        manifest["entries"].append({"url": url, "mandatory": True})
    s3.client.put_object(Bucket=s3.bucket, Key=other, Body=b"mine")
    s3.client.put_object(Bucket=s3.bucket, Key=f"{PREFIX}_manifest.json", Body=json.dumps(manifest).encode())

    deliver(export_of(sendgrid_emulator, 10), replace=True)

    assert {other, f"{PREFIX}somebody-elses.csv"} < set(s3.stored_keys())


def test_a_failed_replacement_leaves_the_old_export(sendgrid_emulator, s3, deliver, earlier_export):
    before = {key: s3.read(key) for key in s3.stored_keys()}
    export_id = export_of(sendgrid_emulator, 10)
    sendgrid_emulator.inject(Fault("lost", listener="files"))

    with pytest.raises(ExportIncompleteError):
        deliver(export_id, replace=True)

    assert before == {key: s3.read(key) for key in s3.stored_keys()}
    assert earlier_export == manifest_of(s3)["sendgrid_export"]["id"]


@pytest.mark.parametrize("content", [b"{}", b"not json", b"[1]", b'{"entries": 7}'])
def test_a_manifest_of_another_program_is_refused(sendgrid_emulator, s3, deliver, content):
    s3.client.put_object(Bucket=s3.bucket, Key=f"{PREFIX}_manifest.json", Body=content)

    with pytest.raises(AirflowFailException, match="not a manifest of this provider"):
        deliver(export_of(sendgrid_emulator, 10))
    assert content == s3.read(f"{PREFIX}_manifest.json")


def test_the_same_export_may_be_delivered_again(sendgrid_emulator, s3, deliver):
    """As after clearing the task."""
    export_id = export_of(sendgrid_emulator, 10)
    uris = deliver(export_id)
    before = {key: s3.read(key) for key in s3.stored_keys()}

    assert uris == deliver(export_id)
    assert before == {key: s3.read(key) for key in s3.stored_keys()}


def test_the_same_export_in_another_form_replaces_the_first(sendgrid_emulator, s3, deliver):
    """Objects that only the earlier manifest names are deleted, so that no row is stored twice."""
    export_id = export_of(sendgrid_emulator, 10)
    deliver(export_id)

    [uri] = deliver(export_id, compression="none")

    assert sorted([uri.removeprefix(f"s3://{s3.bucket}/"), f"{PREFIX}_manifest.json"]) == s3.stored_keys()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"export_id": None}, "export_id is None"),
        ({"export_id": ""}, "cannot be the id"),
        ({"export_id": "None"}, "cannot be the id"),
        ({"export_id": ["an-id"]}, r"expand\(export_id"),
        ({"export_id": {"id": "an-id"}}, r"\[.id.\]"),
        ({"file_index": ""}, "file_index must be"),
        ({"file_index": "None"}, "file_index must be"),
        ({"file_index": True}, "file_index must be"),
        ({"file_index": 1.0}, "file_index must be"),
        ({"file_index": [0]}, "file_index must be"),
        ({"partition_key": ""}, "partition_key was passed but is empty"),
        ({"partition_key": ["a"]}, "partition_key must be a string"),
        ({"s3_bucket": "None"}, "s3_bucket was passed but is empty"),
        ({"s3_bucket": "  "}, "s3_bucket was passed but is empty"),
        ({"s3_bucket": 5}, "s3_bucket must be a string"),
        ({"s3_key_prefix": None}, "s3_key_prefix was passed but is empty"),
        ({"s3_key_prefix": " "}, "s3_key_prefix was passed but is empty"),
        ({"s3_key_prefix": "None"}, "s3_key_prefix was passed but is empty"),
        ({"s3_key_prefix": ["a/"]}, "s3_key_prefix must be a string"),
        ({"s3_key_prefix": "/"}, "s3_key_prefix is '/', which names no folder"),
        ({"s3_bucket": None, "s3_key_prefix": "s3://lake//"}, "which names no folder"),
        ({"aws_conn_id": ""}, "aws_conn_id was passed but is empty"),
        ({"aws_conn_id": "None"}, "aws_conn_id was passed but is empty"),
        ({"aws_conn_id": 1}, "aws_conn_id must be a string"),
        ({"s3_bucket": "{{ params.bucket }}"}, "s3_bucket contains a template that was not rendered"),
        ({"s3_key_prefix": "in/{{ ds }}/"}, "s3_key_prefix contains a template that was not rendered"),
        ({"s3_key_prefix": "{% if x %}in/{% endif %}"}, "s3_key_prefix contains a template that was not rendered"),
        ({"aws_conn_id": "{{ conn }}"}, "aws_conn_id contains a template that was not rendered"),
        ({"s3_bucket": None, "s3_key_prefix": "s3://None/in/"}, "s3://bucket/prefix/"),
        ({"s3_bucket": None, "s3_key_prefix": "s3:///in/"}, "s3://bucket/prefix/"),
        ({"extra_args": ""}, "extra_args was passed but is empty"),
        ({"extra_args": "None"}, "extra_args must be a mapping"),
        ({"extra_args": []}, "extra_args was passed but is empty"),
        ({"extra_args": "{{ params.x }}"}, "extra_args must be a mapping"),
        ({"extra_args": {"SSEKMSKeyId": "None"}}, "SSEKMSKeyId was passed but is empty"),
        ({"extra_args": {"SSEKMSKeyId": " "}}, "SSEKMSKeyId was passed but is empty"),
        ({"extra_args": {"SSEKMSKeyId": None}}, "SSEKMSKeyId was passed but is empty"),
        ({"extra_args": {"StorageClass": "{{ x }}"}}, "StorageClass contains a template that was not rendered"),
        ({"extra_args": {"Metadata": {"day": "{{ ds }}"}}}, "Metadata contains a template that was not rendered"),
    ],
)
def test_an_argument_of_the_wrong_type_sends_no_request(sendgrid_emulator, s3, arguments, expected):
    given = {"export_id": "an-id", "s3_bucket": s3.bucket, "s3_key_prefix": "here/", **arguments}
    with pytest.raises(AirflowFailException, match=expected):
        SendGridToS3Operator(task_id="store", **given).execute({})
    assert sendgrid_emulator.count("GET") == 0


def test_a_file_index_that_renders_to_nothing_is_refused(sendgrid_emulator, s3):
    operator = SendGridToS3Operator(
        task_id="store", export_id="an-id", file_index="{{ none }}", s3_bucket=s3.bucket, s3_key_prefix="here/"
    )
    operator.file_index = None  # as native rendering leaves it
    with pytest.raises(AirflowFailException, match="file_index must be"):
        operator.execute({})
    assert sendgrid_emulator.count("GET") == 0


def test_a_file_index_assigned_later_counts_as_passed(sendgrid_emulator, s3):
    operator = SendGridToS3Operator(task_id="store", export_id="an-id", s3_bucket=s3.bucket, s3_key_prefix="here/")
    operator.file_index = "{{ none }}"
    operator.render_template_fields({})
    operator.file_index = None  # as native rendering leaves it
    with pytest.raises(AirflowFailException, match="file_index must be"):
        operator.execute({})
    assert sendgrid_emulator.count("GET") == 0


@pytest.mark.parametrize("rendered", [None, "", []])
def test_extra_args_that_render_to_nothing_are_refused(sendgrid_emulator, rendered):
    """The template may have set the encryption."""
    operator = SendGridToS3Operator(
        task_id="store", export_id="an-id", s3_key_prefix="s3://lake/here/", extra_args="{{ none }}"
    )
    operator.extra_args = rendered
    with pytest.raises(AirflowFailException, match="extra_args was passed but is empty"):
        operator.execute({})
    assert sendgrid_emulator.count("GET") == 0


@pytest.mark.parametrize(
    ("passed", "expected"),
    [
        ({"s3_key_prefix": ""}, "s3_key_prefix was passed but is empty.*s3://bucket/ is the whole bucket"),
        ({"s3_key_prefix": None}, "s3_key_prefix was passed but is empty"),
        ({"s3_bucket": None}, "s3_bucket was passed but is empty"),
        ({"s3_bucket": ""}, "s3_bucket was passed but is empty"),
        ({"extra_args": None}, "extra_args was passed but is empty"),
        ({"aws_conn_id": ""}, "aws_conn_id was passed but is empty"),
    ],
)
def test_a_mapped_task_refuses_an_empty_destination(sendgrid_emulator, airflow_version, passed, expected):
    """The mapped value is empty if an upstream task returned nothing."""
    [name] = passed
    fixed = {"export_id": "an-id", "s3_bucket": "lake", "s3_key_prefix": "here/"}
    with airflow_version.dag("mapped"):
        others = {key: value for key, value in fixed.items() if key != name}
        mapped = SendGridToS3Operator.partial(task_id="store", **others).expand(**{name: ["a"]})
    with pytest.raises(AirflowFailException, match=expected):
        mapped.unmap(passed).execute({})
    assert sendgrid_emulator.count("GET") == 0


def test_a_mapped_task_may_deliver_into_a_whole_bucket(sendgrid_emulator, s3, airflow_version):
    with airflow_version.dag("mapped"):
        mapped = SendGridToS3Operator.partial(task_id="store", export_id=export_of(sendgrid_emulator, 10)).expand(
            s3_key_prefix=["s3://a/"]
        )
    [uri] = mapped.unmap({"s3_key_prefix": f"s3://{s3.bucket}/"}).execute({})
    assert uri.rpartition("/")[0] == f"s3://{s3.bucket}"


@pytest.mark.parametrize("name", ["s3_bucket", "aws_conn_id", "s3_key_prefix", "extra_args"])
def test_a_storage_argument_that_renders_to_none_is_refused(sendgrid_emulator, name):
    arguments = {"s3_bucket": "lake", "s3_key_prefix": "here/", name: "{{ none }}"}
    operator = SendGridToS3Operator(task_id="store", export_id="an-id", **arguments)
    setattr(operator, name, None)  # as native rendering leaves it
    with pytest.raises(AirflowFailException, match=f"{name} was passed but is empty"):
        operator.execute({})
    assert sendgrid_emulator.count("GET") == 0


@pytest.mark.parametrize(
    "text",
    [
        "{'SSECustomerAlgorithm': 'AES256', 'SSECustomerKey': 'a-key-of-a-customer'}",
        '{"SSECustomerKey": "a-key-of-a-customer"}',
        "{'SSECustomerKey': b'a-key-of-a-customer', oops",
        "SSECustomerKey=a-key-of-a-customer",
    ],
)
def test_a_secret_in_rendered_extra_args_is_masked(monkeypatch, text):
    """The task refuses the value, but Airflow has shown it by then."""
    masked = []
    monkeypatch.setattr("airflow_provider_sendgrid.transfers.sendgrid_to_s3.mask_secret", masked.append)
    operator = SendGridToS3Operator(task_id="s", export_id="6f", s3_key_prefix="s3://b/", extra_args="{{ params.x }}")
    operator.render_template_fields({"params": {"x": text}})
    assert "a-key-of-a-customer" in masked
