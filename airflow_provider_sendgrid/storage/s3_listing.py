"""Listings of a bucket."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from airflow_provider_sendgrid.storage.s3_calls import S3Calls
from airflow_provider_sendgrid.storage.s3_errors import not_s3_error

_DIRECTORY_BUCKETS = ("--x-s3", "--xa-s3")


def list_objects(calls: S3Calls, beginning: str) -> Iterator[Mapping[str, Any]]:
    """All entries whose names begin like this, without a slash after that; directory buckets may list more."""
    prefix, following = listing_prefix(calls, calls.prefix + beginning), dict[str, Any]()
    what = f"list_objects_v2 of {calls.uri('')}"
    while True:
        response = calls.call("list_objects_v2", None, Delimiter="/", **prefix, **following)
        if not response.keys() & {"Name", "IsTruncated", "KeyCount", "Contents"}:
            raise not_s3_error(f"{what}: the response is no listing")
        yield from response.get("Contents") or []
        if not response.get("IsTruncated"):
            return
        token = calls.field(response, "NextContinuationToken", "list_objects_v2", "")
        if token == following.get("ContinuationToken"):
            raise not_s3_error(f"{what}: the listing has no end")
        following = {"ContinuationToken": token}


def listing_prefix(calls: S3Calls, key: str) -> dict[str, str]:
    """The argument that lists what begins with `key`; directory buckets take only a folder."""
    if calls.bucket.endswith(_DIRECTORY_BUCKETS):
        key = key[: key.rfind("/") + 1]
    return {"Prefix": key} if key else {}
