"""Signed file URLs in the form of S3's (SigV4, temporary credentials), and their verification.

Knows signatures. Must not know exports, accounts or clocks.
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
_DATE_FORMAT: Final = "%Y%m%dT%H%M%SZ"


def sign_path(path: str, now: float, lifetime_seconds: int) -> str:
    """Return the path with a query that signs it until `now + lifetime_seconds`; each is unique."""
    moment = datetime.fromtimestamp(now, timezone.utc)
    query = {
        "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
        "X-Amz-Credential": f"ASIAEMULATOREMULATOR/{moment:%Y%m%d}/us-east-1/s3/aws4_request",
        "X-Amz-Date": moment.strftime(_DATE_FORMAT),
        "X-Amz-Expires": str(lifetime_seconds),
        "X-Amz-Security-Token": secrets.token_urlsafe(48),
        "X-Amz-SignedHeaders": "host",
    }
    return f"{path}?{urlencode({**query, _SIGNATURE: _signature(path, query)})}"


def signature_error(method: str, path: str, query: Mapping[str, str], now: float) -> tuple[str, str] | None:
    """Return S3's error code and message for an invalid URL, or None.

    S3 signs the method too; these URLs are signed for GET.
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
    if now >= expires_at(query):
        return "AccessDenied", "Request has expired"
    return None


def expires_at(query: Mapping[str, str]) -> float:
    """Return when a signed URL expires, as an epoch."""
    signed = datetime.strptime(query["X-Amz-Date"], _DATE_FORMAT).replace(tzinfo=timezone.utc)
    return signed.timestamp() + int(query["X-Amz-Expires"])


def _signature(path: str, query: Mapping[str, str]) -> str:
    canonical = "&".join(f"{quote(name)}={quote(query[name], safe='')}" for name in sorted(query))
    return hmac.new(_SECRET, f"{path}\n{canonical}".encode(), hashlib.sha256).hexdigest()
