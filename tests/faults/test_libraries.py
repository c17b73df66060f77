"""The provider uses the libraries that it should."""

from __future__ import annotations

import pytest

from airflow_provider_sendgrid import compression as gunzip
from airflow_provider_sendgrid.storage import multipart
from airflow_provider_sendgrid.transfers.sendgrid_to_s3 import SendGridToS3Operator


def test_isal_unpacks_and_sums_where_it_is_installed():
    """It is several times as fast as the standard library, which replaces it if missing."""
    isal_zlib = pytest.importorskip("isal.isal_zlib")

    assert gunzip._fastest_zlib() is isal_zlib
    assert multipart.crc32 is isal_zlib.crc32


def test_airflows_s3_hook_creates_the_client(s3, monkeypatch):
    """So every setting of an AWS connection applies."""
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook

    made = []
    make = S3Hook.get_client_type
    monkeypatch.setattr(S3Hook, "get_client_type", lambda hook, **given: made.append(hook) or make(hook, **given))
    operator = SendGridToS3Operator(task_id="store", export_id="an-export", s3_bucket=s3.bucket, s3_key_prefix="in/")

    assert operator._storage().uri("") == f"s3://{s3.bucket}/in/"
    assert len(made) == 1
