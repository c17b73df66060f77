"""Signed file URLs that look like S3's (SigV4, temporary credentials) and are really verified.

Knows how to sign and to judge a URL. Must not know exports, accounts or the time: it is told.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Final
from urllib.parse import quote, urlencode

_SECRET: Final = secrets.token_bytes(32)
_SIGNATURE: Final = "X-Amz-Signature"
_STAMP: Final = "%Y%m%dT%H%M%SZ"


def sign_path(path: str, now: float, lifetime_seconds: int) -> str:
    """Return the path with a query that opens it until `now + lifetime_seconds`; no two are alike."""
    moment = datetime.fromtimestamp(now, timezone.utc)
    query = {
        "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
        "X-Amz-Credential": f"ASIAEMULATOREMULATOR/{moment:%Y%m%d}/us-east-1/s3/aws4_request",
        "X-Amz-Date": moment.strftime(_STAMP),
        "X-Amz-Expires": str(lifetime_seconds),
        "X-Amz-Security-Token": secrets.token_urlsafe(48),
        "X-Amz-SignedHeaders": "host",
    }
    return f"{path}?{urlencode({**query, _SIGNATURE: _signature(path, query)})}"


def refusal(method: str, path: str, query: Mapping[str, str], now: float) -> tuple[str, str] | None:
    """Return S3's error code and message for a URL that is not good, or None for one that is.

    The method is part of what S3 signs, and these URLs are signed for GET.
    """
    unsigned = {name: value for name, value in query.items() if name != _SIGNATURE}
    if _SIGNATURE not in query:
        return "AccessDenied", "Access Denied"
    is_signed = hmac.compare_digest(_signature(path, unsigned).encode(), query[_SIGNATURE].encode())
    if not is_signed or method != "GET":
        return (
            "SignatureDoesNotMatch",
            "The request signature we calculated does not match the signature you provided.",
        )
    if now >= signed_until(query):
        return "AccessDenied", "Request has expired"
    return None


def signed_until(query: Mapping[str, str]) -> float:
    """Return the epoch at which a signed URL ends."""
    signed = datetime.strptime(query["X-Amz-Date"], _STAMP).replace(tzinfo=timezone.utc)
    return signed.timestamp() + int(query["X-Amz-Expires"])


def _signature(path: str, query: Mapping[str, str]) -> str:
    canonical = "&".join(f"{quote(name)}={quote(query[name], safe='')}" for name in sorted(query))
    return hmac.new(_SECRET, f"{path}\n{canonical}".encode(), hashlib.sha256).hexdigest()
