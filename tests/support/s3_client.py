"""A separate client for the S3 server, for tests that observe or change its requests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any


def with_own_client(s3: Any) -> Any:
    """The same bucket, with a client that no other test shares."""
    import boto3

    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    return replace(s3, client=boto3.client("s3", endpoint_url=s3.url, region_name="us-east-1", **keys))
