"""Removes keys, signatures, passwords and queries of URLs from messages and from the logs of HTTP libraries.

At level DEBUG these libraries log whole URLs and headers. Anyone can read or write the contacts with a signed URL, or
with the URL of an upload session. Some of their loggers are created late, so that filters cannot be added to all of
them; therefore the records are redacted when they are created, for all handlers.
"""

from __future__ import annotations

import logging
import re
import traceback
from base64 import b64encode
from collections.abc import Callable
from typing import Any

# Part of a URL. A single quote may belong to it, unless it ends a quoted text.
_PATH, _QUERY = (rf"(?:[^\s\"'<>{end}]|'(?![\s,;:)\]}}>]|$))+" for end in ("?", ""))

_REDACTED = r"\*\*\*[).,;:\]}]*(?:[\s\"'<>]|$)"


def _without_query(match: re.Match[str]) -> str:
    text, slash = match.group(), match.group().find("/")
    query_at = text.find("?", slash) + 1 if slash >= 0 else 0
    return f"{text[:query_at]}***" if query_at else text


_SECRETS: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    # An API key: SG.<22 characters>.<43 characters>, next to any character; shorter ones may be truncated.
    (re.compile(r"SG\.[\w-]{16,}\.[\w-]{16,}|\bSG\.[\w-]{4,}(?:\.[\w-]+)?"), "SG.***"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{4,}"), r"\1 ***"),
    # The query of a URL, which has the signature; also after a path alone, as in a request line.
    # Words without a query match as well, so that none is searched again from each of its quotes.
    (re.compile(rf"(?<![^\s\"'<>]){_PATH}(?:\?(?!{_REDACTED}){_QUERY})?"), _without_query),
    # User and password in the URL of a proxy or a host; a password may contain an @.
    (re.compile(r"(://)[^\s/?#\"'<>]+@"), r"\1***@"),
    (re.compile(r"(?i)\b(x-amz-[a-z-]{1,80}|awsaccesskeyid|signature)=[^\s&\"'<>]+"), r"\1=***"),
    # A customer's encryption key and context, as headers and as arguments; not the key's MD5.
    (
        re.compile(
            r"(?i)((?:server-side-encryption-(?:customer-key|context)|SSECustomerKey|SSEKMSEncryptionContext)"
            r"[\"']?\s*[:=,]\s*(?:bytearray\()?(?:b?[\"'])?)[^\s&\"'<>]+"
        ),
        r"\1***",
    ),
    # Signatures as headers, or in the repr of a mapping; x-amz-request-id stays, because support teams need it.
    (
        re.compile(r"(?i)(x-amz-(?:signature|credential|security-token)[\"']?\s*[:=,]\s*(?:b?[\"'])?)[^\s&\"'<>]+"),
        r"\1***",
    ),
)

# The first part of their loggers' names.
_HTTP_LIBRARIES = frozenset(
    ("aiobotocore", "aiohttp", "azure", "boto3", "botocore", "google", "httpcore", "httpx", "requests", "s3transfer")
) | {"requests_oauthlib", "urllib3"}

# Queries that botocore logs without their URLs: the parameters of an operation, and the request that it signs.
_SEPARATE_QUERIES = (
    (re.compile(r"('query_string': )\{.*?\}(?=[,}])"), r"\1***"),
    (re.compile(r"(CanonicalRequest:\n\w+\n[^\n]*\n)[^\n]+"), r"\1***"),
)


# The keys of connections. A gateway's key may look different from SendGrid's.
_REGISTERED: dict[str, re.Pattern[str]] = {}
# Shorter texts are part of too many words.
_MIN_SECRET_CHARACTERS = 8
# Longer bytes among a record's arguments are bodies; checksums and keys are shorter.
_MAX_SHOWN_BYTES = 64


def register_secret(secret: str) -> None:
    """Make `redact` hide this text: as it is, percent-encoded, in base64, or split by blanks."""
    if secret in _REGISTERED or len(secret) < _MIN_SECRET_CHARACTERS:
        return
    letters = (f"(?:{re.escape(each)}|%{ord(each):02x})" for each in secret)
    encoded = b64encode(secret.encode()).decode().rstrip("=")
    _REGISTERED[secret] = re.compile(rf"{r'[^!-~]*'.join(letters)}|{re.escape(encoded)}=*", re.IGNORECASE)


def contains_key(text: str) -> bool:
    """Whether a text contains an API key: one like SendGrid's, or a registered secret."""
    return any(pattern.search(text) for pattern in (_SECRETS[0][0], *_REGISTERED.values()))


def redact(text: str) -> str:
    """`text` without API keys, signatures, security tokens, passwords in URLs and queries of URLs."""
    for pattern in tuple(_REGISTERED.values()):
        text = pattern.sub("***", text)
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def redact_logs_of_libraries() -> None:
    """Redact the logs of HTTP libraries; safe to call again, for example after another log record factory was set."""
    make_record = logging.getLogRecordFactory()
    probe = make_record("urllib3", logging.DEBUG, "", 0, "/?secret", (), None)
    if "secret" not in probe.getMessage():
        return

    def make_redacted_record(name: str, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make_record(name, *args, **kwargs)
        if (name or "").partition(".")[0] in _HTTP_LIBRARIES:
            _redact_record(record)
        return record

    logging.setLogRecordFactory(make_redacted_record)


def _without_bodies(value: Any, depth: int = 8) -> Any:
    """A record's arguments without the bodies of requests and responses, which are large and contain contacts."""
    if isinstance(value, bytes | bytearray | memoryview) and len(value) > _MAX_SHOWN_BYTES:
        return f"<{len(value)} bytes>"
    if depth and (isinstance(value, dict) or type(value) in (list, tuple)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        cut = {key: _without_bodies(each, depth - 1) for key, each in items}
        return cut if isinstance(value, dict) else type(value)(cut.values())
    return value


def _redact_record(record: logging.LogRecord) -> None:
    record.args = _without_bodies(record.args)
    try:
        text = record.getMessage()
    except Exception:  # noqa: BLE001 - the library's format does not fit its arguments
        text = str(record.msg)
    if record.exc_info:
        text = "\n".join((text, "".join(traceback.format_exception(*record.exc_info)).rstrip()))
    for pattern, replacement in _SEPARATE_QUERIES:
        text = pattern.sub(replacement, text)
    record.msg, record.args, record.exc_info = redact(text), (), None


redact_logs_of_libraries()
