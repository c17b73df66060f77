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
    """Nothing was published, and nothing lies half done in the bucket."""

    def check(*expected_keys):
        assert sorted(expected_keys) == s3.stored_keys()
        assert [] == s3.open_uploads()

    return check


def export_of(emulator, contacts, *, family="marketing", file_type="csv", **traits):
    """The id of an export that is as ready as it will ever be."""
    found = emulator.add_list("Some", contacts=contacts, family=family, **traits)
    export_id = emulator.start_export([found], family=family, file_type=file_type)
    emulator.export_files(export_id)
    return export_id


def manifest_of(s3, prefix=PREFIX):
    return json.loads(s3.read(f"{prefix}_manifest.json"))


# What arrives


@pytest.mark.parametrize("compression", ["gzip", "none"])
@pytest.mark.parametrize("encoding", ["x-gzip", "gzip", "bare", "plain"])
@pytest.mark.parametrize(("family", "file_type"), [("marketing", "csv"), ("legacy", "json")])
def test_every_file_arrives_as_it_was(sendgrid_emulator, s3, deliver, family, file_type, encoding, compression):
    """Byte for byte, however SendGrid sends it and however it is stored; the manifest proves it."""
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


def test_gzip_passes_through_untouched(sendgrid_emulator, s3, deliver):
    """The stored bytes are SendGrid's, so that nothing is compressed twice."""
    export_id = export_of(sendgrid_emulator, 1_000)

    [uri] = deliver(export_id)

    [file] = sendgrid_emulator.export_files(export_id)
    assert file.stored.path.read_bytes() == s3.read(uri)


@pytest.mark.parametrize("compression", ["gzip", "none"])
@pytest.mark.parametrize("encoding", ["x-gzip", "plain"])
def test_a_file_of_many_parts_arrives_as_it_was(sendgrid_emulator, s3, deliver, encoding, compression):
    """Larger than two parts, so that it is a multipart upload; none stays open."""
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
    """A file of a header alone, or of nothing at all."""
    sendgrid_emulator.configure(empty_encoding=empty_encoding)
    export_id = export_of(sendgrid_emulator, 0, file_type=file_type)

    uris = deliver(export_id, compression=compression)

    assert [file.read() for file in sendgrid_emulator.export_files(export_id)] == [s3.read_plain(uri) for uri in uris]
    assert 0 == manifest_of(s3)["meta"]["record_count"]


def test_a_header_that_only_the_first_file_has_is_no_row(sendgrid_emulator, s3, deliver):
    """Nobody knows which of the two SendGrid does."""
    sendgrid_emulator.configure(contacts_per_file=40, repeat_header=False)
    export_id = export_of(sendgrid_emulator, 100)

    deliver(export_id)

    assert [40, 40, 20] == [entry["meta"]["record_count"] for entry in manifest_of(s3)["entries"]]


# The proof


def test_the_manifest_is_redshifts_and_says_what_lies_there(sendgrid_emulator, s3, deliver):
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
    told = manifest["sendgrid_export"]
    assert (export_id, "ready", 100, 3) == tuple(told[name] for name in ("id", "status", "contact_count", "file_count"))
    assert "application/json" == s3.head(f"{PREFIX}_manifest.json")["ContentType"]


@pytest.mark.parametrize("level", ["INFO", "DEBUG"])
def test_neither_key_nor_signature_stands_anywhere(sendgrid_emulator, s3, deliver, output_of_all_logs, caplog, level):
    """Not in manifest, metadata, result or log, also of an Airflow that logs what its libraries say."""
    caplog.set_level(level)
    export_id = export_of(sendgrid_emulator, 10)

    uris = deliver(export_id)

    logged = output_of_all_logs()
    assert "stored" in logged
    heads = [repr(s3.head(key)) for key in s3.stored_keys()]
    told = "\n".join([logged, *uris, *heads, s3.read(f"{PREFIX}_manifest.json").decode()])
    assert sendgrid_emulator.api_key not in told
    assert set() == {*re.findall(r"X-Amz-(?:Signature|Credential|Security-Token)=[^&\s]+", told)} - HIDDEN
    assert [] == sendgrid_emulator.leaks()


def test_each_object_names_its_export_its_source_and_its_hash(sendgrid_emulator, s3, deliver):
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
def test_plain_objects_say_what_they_are(sendgrid_emulator, s3, deliver, file_type, expected):
    [uri] = deliver(export_of(sendgrid_emulator, 10, file_type=file_type), compression="none")

    assert expected == s3.head(uri)["ContentType"]


def test_without_a_manifest_only_the_files_are_stored(sendgrid_emulator, s3, deliver):
    [uri] = deliver(export_of(sendgrid_emulator, 10), write_manifest=False)

    assert [uri.removeprefix(f"s3://{s3.bucket}/")] == s3.stored_keys()


# Where to


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
    """As S3Hook's own methods take it: from `service_config`."""
    connection = s3.connection_json(service_config={"s3": {"bucket_name": s3.bucket}})
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", connection)

    [uri] = deliver(export_of(sendgrid_emulator, 10), s3_bucket=None)

    assert uri.startswith(f"s3://{s3.bucket}/{PREFIX}")


@pytest.mark.parametrize(
    ("bucket", "prefix"),
    [("lake", "s3://lake/contacts/"), (None, "contacts/"), (None, ""), ("", "contacts/"), (None, "gs://lake/a/")],
)
def test_a_bucket_named_twice_or_never_is_refused_before_anything_is_asked(sendgrid_emulator, deliver, bucket, prefix):
    export_id = export_of(sendgrid_emulator, 10)

    with pytest.raises(AirflowFailException, match="Name the bucket once"):
        deliver(export_id, s3_bucket=bucket, s3_key_prefix=prefix)
    assert 0 == sendgrid_emulator.count()


def test_without_an_aws_connection_boto3_finds_its_own_way(sendgrid_emulator, s3, deliver, monkeypatch):
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
def test_arguments_that_cannot_be_right_are_refused_before_anything_is_asked(
    sendgrid_emulator, deliver, assert_untouched, arguments, expected
):
    with pytest.raises(AirflowFailException, match=expected):
        deliver(export_of(sendgrid_emulator, 10), **arguments)
    assert_untouched()
    assert 0 == sendgrid_emulator.count()


def test_templates_are_rendered_before_anything_looks_at_them(sendgrid_emulator, s3):
    """The constructor takes them as they are."""
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


# What S3 is told


@pytest.mark.skipif(IS_CEPH, reason="Ceph RGW 16 stores AES256 unencrypted: test_s3_on_servers.py shows the refusal")
@pytest.mark.parametrize("contacts", [10, 50_000])
def test_what_users_say_to_s3_is_passed_on(sendgrid_emulator, s3, deliver, contacts):
    """Encryption, ACL and further arguments: for small objects, for uploads in parts, for the manifest."""
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


def test_the_acl_reaches_the_objects(sendgrid_emulator, s3, deliver):
    """Seen at the grants of one that everybody may read."""
    [uri] = deliver(export_of(sendgrid_emulator, 10), acl_policy="public-read")

    key = uri.removeprefix(f"s3://{s3.bucket}/")
    grants = s3.client.get_object_acl(Bucket=s3.bucket, Key=key)["Grants"]
    assert any("AllUsers" in grant["Grantee"].get("URI", "") for grant in grants)


def test_a_kms_key_of_extra_args_wins_over_encrypt(sendgrid_emulator, s3, deliver):
    extra = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "alias/lake"}

    [uri] = deliver(export_of(sendgrid_emulator, 10), encrypt=True, extra_args=extra)

    assert "aws:kms" == s3.head(uri)["ServerSideEncryption"]


# Whole or not at all


def test_a_row_too_few_publishes_nothing(sendgrid_emulator, deliver, assert_untouched):
    """SendGrid counts 100 contacts; the second of its three files was stored there with a row less."""
    sendgrid_emulator.configure(encoding="plain", contacts_per_file=40)
    export_id = export_of(sendgrid_emulator, 100, file_type="json")
    second = sendgrid_emulator.export_files(export_id)[1].read()
    without_last = second[: second.rstrip(b"\n").rindex(b"\n") + 1]
    sendgrid_emulator.inject(Fault("truncate", path="*-00002.json.gzip", at=len(without_last)))

    with pytest.raises(ExportIncompleteError, match="hold 99 rows, SendGrid counted 100"):
        deliver(export_id)
    assert_untouched()


def test_a_row_too_few_in_a_file_of_many_parts_publishes_nothing(sendgrid_emulator, deliver, assert_untouched):
    sendgrid_emulator.configure(encoding="plain")
    export_id = export_of(sendgrid_emulator, 50_000, file_type="json")
    [file] = sendgrid_emulator.export_files(export_id)
    content = file.read()
    without_last = content[: content.rstrip(b"\n").rindex(b"\n") + 1]
    sendgrid_emulator.inject(Fault("truncate", listener="files", at=len(without_last)))

    with pytest.raises(ExportIncompleteError, match="hold 49999 rows, SendGrid counted 50000"):
        deliver(export_id, compression="none", part_size=5 * MIB)
    assert_untouched()


def test_a_wrong_count_is_taken_when_told_so(sendgrid_emulator, s3, deliver):
    """verify_row_count=False: then nothing is counted, and the manifest claims nothing."""
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
def test_a_file_that_does_not_come_whole_publishes_nothing(
    sendgrid_emulator, deliver, assert_untouched, fault, compression
):
    """Every request ends early, lies about its length, or brings other bytes."""
    export_id = export_of(sendgrid_emulator, 1_000)
    sendgrid_emulator.inject(fault)

    with pytest.raises(ExportIncompleteError):
        deliver(export_id, compression=compression)

    assert_untouched()
    assert [] == sendgrid_emulator.leaks()


@pytest.mark.parametrize("kind", ["truncate", "corrupt"])
def test_a_damaged_file_is_named(sendgrid_emulator, deliver, kind):
    """Which export, which of its files, and what to do."""
    sendgrid_emulator.configure(contacts_per_file=1_000)
    export_id = export_of(sendgrid_emulator, 2_000)
    sendgrid_emulator.inject(Fault(kind, path="*-00002.csv.gzip", at=5_000))

    with pytest.raises(ExportIncompleteError, match=f"{export_id} file 2 of 2"):
        deliver(export_id)


@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_a_large_file_that_ends_early_leaves_no_open_upload(sendgrid_emulator, deliver, assert_untouched, compression):
    """Parts were uploaded already when it broke for good."""
    export_id = export_of(sendgrid_emulator, 200_000)
    [file] = sendgrid_emulator.export_files(export_id)
    sendgrid_emulator.inject(Fault("truncate", listener="files", at=file.stored_bytes - 100))

    with pytest.raises(ExportIncompleteError):
        deliver(export_id, compression=compression, part_size=5 * MIB, max_concurrency=2)
    assert_untouched()


def test_a_second_file_that_cannot_be_had_leaves_no_manifest(sendgrid_emulator, s3, deliver):
    """The next try finds its way; what counts as proof is not there."""
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
def test_a_passing_trouble_is_overcome(sendgrid_emulator, s3, deliver, fault):
    """Resumed where it broke, with fresh URLs, byte for byte the same."""
    export_id = export_of(sendgrid_emulator, 1_000)
    sendgrid_emulator.inject(fault)

    [uri] = deliver(export_id)

    [file] = sendgrid_emulator.export_files(export_id)
    assert file.read() == s3.read_plain(uri)


# Exports that cannot be delivered


def test_a_pending_export_names_the_sensor_that_is_missing(sendgrid_emulator, deliver, assert_untouched):
    """Another try may find it ready, so that it is not failed for good."""
    with pytest.raises(ExportIncompleteError, match=r"'pending'.*SendGridExportSensor"):
        deliver(export_of(sendgrid_emulator, 10, outcome="stuck"))
    assert_untouched()


@pytest.mark.parametrize(
    ("outcome", "error_class", "text"),
    [("failure", ExportFailedError, "the list is broken"), ("expired", ExportExpiredError, "expired at")],
)
def test_an_export_that_will_never_be_ready_fails_without_another_try(
    sendgrid_emulator, deliver, assert_untouched, outcome, error_class, text
):
    export_id = export_of(sendgrid_emulator, 10, outcome=outcome, message="the list is broken")

    with pytest.raises(AirflowFailException, match=text) as caught:
        deliver(export_id)

    assert isinstance(caught.value.__cause__, error_class)
    assert_untouched()
    assert 0 == sendgrid_emulator.count(listener="files")


def test_files_that_are_refused_fail_with_another_try(sendgrid_emulator, deliver, assert_untouched):
    """The storage refuses even freshly signed URLs, but the export has not expired."""
    export_id = export_of(sendgrid_emulator, 10)
    sendgrid_emulator.inject(Fault("expire", listener="files"))

    with pytest.raises(ExportIncompleteError, match="403 AccessDenied"):
        deliver(export_id)
    assert_untouched()


def test_a_refused_key_fails_without_another_try(sendgrid_emulator, deliver, assert_untouched):
    export_id = export_of(sendgrid_emulator, 10)
    sendgrid_emulator.inject(Fault("status", listener="api", status=401))

    with pytest.raises(AirflowFailException, match="answered 401") as caught:
        deliver(export_id)

    assert isinstance(caught.value.__cause__, SendGridAuthError)
    assert_untouched()


def test_an_outage_fails_so_that_airflow_tries_again(sendgrid_emulator, deliver, assert_untouched):
    export_id = export_of(sendgrid_emulator, 10)
    sendgrid_emulator.inject(Fault("status", listener="api"))

    with pytest.raises(SendGridServerError):
        deliver(export_id)
    assert_untouched()


def test_a_bucket_that_is_not_there_is_named(sendgrid_emulator, deliver):
    """By boto3's own error; nothing was fetched."""
    with pytest.raises(Exception, match="NoSuchBucket"):
        deliver(export_of(sendgrid_emulator, 10), s3_bucket="no-such-bucket")
    assert 0 == sendgrid_emulator.count(listener="files")


# In the place of another


@pytest.fixture
def standing(sendgrid_emulator, s3, deliver):
    """An export that was delivered yesterday, and a file of somebody else beside it."""
    sendgrid_emulator.configure(contacts_per_file=40)
    export_id = export_of(sendgrid_emulator, 100)
    deliver(export_id)
    s3.client.put_object(Bucket=s3.bucket, Key=f"{PREFIX}somebody-elses.csv", Body=b"mine")
    sendgrid_emulator.configure(contacts_per_file=0)
    return export_id


def test_another_exports_manifest_is_refused_before_any_download(sendgrid_emulator, s3, deliver, standing):
    before = s3.stored_keys()
    export_id = export_of(sendgrid_emulator, 10)
    fetched = sendgrid_emulator.count(listener="files")

    with pytest.raises(AirflowFailException, match=standing) as caught:
        deliver(export_id)

    assert isinstance(caught.value.__cause__, DestinationConflictError)
    assert (before, fetched) == (s3.stored_keys(), sendgrid_emulator.count(listener="files"))
    assert standing == manifest_of(s3)["sendgrid_export"]["id"]


def test_replace_deletes_what_the_old_manifest_names_and_nothing_else(sendgrid_emulator, s3, deliver, standing):
    export_id = export_of(sendgrid_emulator, 10)

    [uri] = deliver(export_id, replace=True)

    expected = [uri.removeprefix(f"s3://{s3.bucket}/"), f"{PREFIX}_manifest.json", f"{PREFIX}somebody-elses.csv"]
    assert sorted(expected) == s3.stored_keys()
    assert export_id == manifest_of(s3)["sendgrid_export"]["id"]
    assert standing != export_id


def test_replace_deletes_nothing_outside_its_prefix(sendgrid_emulator, s3, deliver, standing):
    """Whatever the old manifest says: somebody may have edited it."""
    other = f"elsewhere/{standing}-00001-of-00001.csv.gz"
    manifest = manifest_of(s3)
    for url in (f"s3://{s3.bucket}/{other}", f"s3://{s3.bucket}/{PREFIX}somebody-elses.csv", "s3://other/x", None):
        manifest["entries"].append({"url": url, "mandatory": True})
    s3.client.put_object(Bucket=s3.bucket, Key=other, Body=b"mine")
    s3.client.put_object(Bucket=s3.bucket, Key=f"{PREFIX}_manifest.json", Body=json.dumps(manifest).encode())

    deliver(export_of(sendgrid_emulator, 10), replace=True)

    assert {other, f"{PREFIX}somebody-elses.csv"} < set(s3.stored_keys())


def test_a_replacement_that_fails_leaves_what_stands(sendgrid_emulator, s3, deliver, standing):
    before = {key: s3.read(key) for key in s3.stored_keys()}
    export_id = export_of(sendgrid_emulator, 10)
    sendgrid_emulator.inject(Fault("lost", listener="files"))

    with pytest.raises(ExportIncompleteError):
        deliver(export_id, replace=True)

    assert before == {key: s3.read(key) for key in s3.stored_keys()}
    assert standing == manifest_of(s3)["sendgrid_export"]["id"]


@pytest.mark.parametrize("content", [b"{}", b"not json", b"[1]", b'{"entries": 7}'])
def test_a_manifest_that_is_not_ours_is_refused(sendgrid_emulator, s3, deliver, content):
    s3.client.put_object(Bucket=s3.bucket, Key=f"{PREFIX}_manifest.json", Body=content)

    with pytest.raises(AirflowFailException, match="not a manifest of this provider"):
        deliver(export_of(sendgrid_emulator, 10))
    assert content == s3.read(f"{PREFIX}_manifest.json")


def test_the_same_export_may_be_delivered_again(sendgrid_emulator, s3, deliver):
    """A task that was cleared: the same objects, no conflict."""
    export_id = export_of(sendgrid_emulator, 10)
    uris = deliver(export_id)
    before = {key: s3.read(key) for key in s3.stored_keys()}

    assert uris == deliver(export_id)
    assert before == {key: s3.read(key) for key in s3.stored_keys()}


def test_the_same_export_stored_otherwise_takes_its_own_place(sendgrid_emulator, s3, deliver):
    """What only the manifest before names is removed: no row is there twice."""
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
        ({"s3_bucket": "{{ params.bucket }}"}, "s3_bucket holds a template that was not rendered"),
        ({"s3_key_prefix": "in/{{ ds }}/"}, "s3_key_prefix holds a template that was not rendered"),
        ({"s3_key_prefix": "{% if x %}in/{% endif %}"}, "s3_key_prefix holds a template that was not rendered"),
        ({"aws_conn_id": "{{ conn }}"}, "aws_conn_id holds a template that was not rendered"),
        ({"s3_bucket": None, "s3_key_prefix": "s3://None/in/"}, "s3://bucket/prefix/"),
        ({"s3_bucket": None, "s3_key_prefix": "s3:///in/"}, "s3://bucket/prefix/"),
        ({"extra_args": ""}, "extra_args was passed but is empty"),
        ({"extra_args": "None"}, "extra_args must be a mapping"),
        ({"extra_args": []}, "extra_args was passed but is empty"),
        ({"extra_args": "{{ params.x }}"}, "extra_args must be a mapping"),
        ({"extra_args": {"SSEKMSKeyId": "None"}}, "SSEKMSKeyId was passed but is empty"),
        ({"extra_args": {"SSEKMSKeyId": " "}}, "SSEKMSKeyId was passed but is empty"),
        ({"extra_args": {"SSEKMSKeyId": None}}, "SSEKMSKeyId was passed but is empty"),
        ({"extra_args": {"StorageClass": "{{ x }}"}}, "StorageClass holds a template that was not rendered"),
        ({"extra_args": {"Metadata": {"day": "{{ ds }}"}}}, "Metadata holds a template that was not rendered"),
    ],
)
def test_an_argument_that_renders_to_the_wrong_type_asks_nobody(sendgrid_emulator, s3, arguments, expected):
    given = {"export_id": "an-id", "s3_bucket": s3.bucket, "s3_key_prefix": "here/", **arguments}
    with pytest.raises(AirflowFailException, match=expected):
        SendGridToS3Operator(task_id="store", **given).execute({})
    assert sendgrid_emulator.count("GET") == 0


def test_a_file_index_that_renders_to_nothing_does_not_mean_all_files(sendgrid_emulator, s3):
    operator = SendGridToS3Operator(
        task_id="store", export_id="an-id", file_index="{{ none }}", s3_bucket=s3.bucket, s3_key_prefix="here/"
    )
    operator.file_index = None  # as native rendering leaves it
    with pytest.raises(AirflowFailException, match="file_index must be"):
        operator.execute({})
    assert sendgrid_emulator.count("GET") == 0


def test_a_file_index_that_is_assigned_later_counts_as_passed(sendgrid_emulator, s3):
    operator = SendGridToS3Operator(task_id="store", export_id="an-id", s3_bucket=s3.bucket, s3_key_prefix="here/")
    operator.file_index = "{{ none }}"
    operator.render_template_fields({})
    operator.file_index = None  # as native rendering leaves it
    with pytest.raises(AirflowFailException, match="file_index must be"):
        operator.execute({})
    assert sendgrid_emulator.count("GET") == 0


@pytest.mark.parametrize("rendered", [None, "", []])
def test_extra_args_that_render_to_nothing_do_not_mean_none(sendgrid_emulator, rendered):
    """They may have asked for encryption."""
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
def test_a_mapped_task_takes_nothing_empty_for_a_destination(sendgrid_emulator, airflow_version, passed, expected):
    """The mapped value may be empty where an upstream task returned nothing."""
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
def test_a_storage_argument_that_renders_to_none_means_no_default(sendgrid_emulator, name):
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
def test_a_secret_is_masked_that_a_template_renders_to_a_text(monkeypatch, text):
    """It is refused when the task runs; Airflow has shown it by then."""
    masked = []
    monkeypatch.setattr("airflow_provider_sendgrid.transfers.sendgrid_to_s3.mask_secret", masked.append)
    operator = SendGridToS3Operator(task_id="s", export_id="6f", s3_key_prefix="s3://b/", extra_args="{{ params.x }}")
    operator.render_template_fields({"params": {"x": text}})
    assert "a-key-of-a-customer" in masked
