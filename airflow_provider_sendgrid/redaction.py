"""Keys, signatures, passwords and queries of URLs, taken out of texts: our messages, and what HTTP libraries log.

At level DEBUG these libraries log whole URLs, and headers. A signed URL, or the URL of an upload session, lets anyone
read or write the contacts. A filter would have to be added to each of their loggers, of which some are made later; so
the records of these libraries are redacted where they are made, for all handlers.
"""

from __future__ import annotations

import logging
import re
import traceback
from base64 import b64encode
from collections.abc import Callable
from typing import Any

# Part of a URL. A single quote may be one, but not where it ends a quoted text.
_PATH, _QUERY = (rf"(?:[^\s\"'<>{end}]|'(?![\s,;:)\]}}>]|$))+" for end in ("?", ""))

_REDACTED = r"\*\*\*[).,;:\]}]*(?:[\s\"'<>]|$)"


def _without_query(match: re.Match[str]) -> str:
    text, slash = match.group(), match.group().find("/")
    query_at = text.find("?", slash) + 1 if slash >= 0 else 0
    return f"{text[:query_at]}***" if query_at else text


_SECRETS: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    # An API key: SG.<22 characters>.<43 characters>, whatever touches it; shorter ones may be cut.
    (re.compile(r"SG\.[\w-]{16,}\.[\w-]{16,}|\bSG\.[\w-]{4,}(?:\.[\w-]+)?"), "SG.***"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{4,}"), r"\1 ***"),
    # The query of a URL carries its signature; the path names the bucket only. Also of a path alone, as in a request.
    # Words without a query match as well, so that none is read again from each of its quotes on.
    (re.compile(rf"(?<![^\s\"'<>]){_PATH}(?:\?(?!{_REDACTED}){_QUERY})?"), _without_query),
    # User and password in the URL of a proxy or a host; a password may hold an @ itself.
    (re.compile(r"(://)[^\s/?#\"'<>]+@"), r"\1***@"),
    (re.compile(r"(?i)\b(x-amz-[a-z-]{1,80}|awsaccesskeyid|signature)=[^\s&\"'<>]+"), r"\1=***"),
    # A customer's key and context of encryption, as headers and as arguments; not the key's MD5.
    (
        re.compile(
            r"(?i)((?:server-side-encryption-(?:customer-key|context)|SSECustomerKey|SSEKMSEncryptionContext)"
            r"[\"']?\s*[:=,]\s*(?:bytearray\()?(?:b?[\"'])?)[^\s&\"'<>]+"
        ),
        r"\1***",
    ),
    # Signatures as headers, or in the repr of a mapping; x-amz-request-id stays, it helps the support.
    (
        re.compile(r"(?i)(x-amz-(?:signature|credential|security-token)[\"']?\s*[:=,]\s*(?:b?[\"'])?)[^\s&\"'<>]+"),
        r"\1***",
    ),
)

# By the first part of the names of their loggers.
_HTTP_LIBRARIES = frozenset(
    ("aiobotocore", "aiohttp", "azure", "boto3", "botocore", "google", "httpcore", "httpx", "requests", "s3transfer")
) | {"requests_oauthlib", "urllib3"}

# Queries that botocore logs apart from their URLs: an operation's parameters, and what it signs.
_QUERIES_APART = (
    (re.compile(r"('query_string': )\{.*?\}(?=[,}])"), r"\1***"),
    (re.compile(r"(CanonicalRequest:\n\w+\n[^\n]*\n)[^\n]+"), r"\1***"),
)


# Keys of connections, by their text: a gateway's need not look like SendGrid's.
_HIDDEN: dict[str, re.Pattern[str]] = {}
# A shorter text is part of too many words.
_LEAST_SECRET_CHARACTERS = 8
# Of bytes among a record's arguments; checksums and keys are shorter, and shown.
_LONGEST_BODY_BYTES = 64


def register_secret(secret: str) -> None:
    """Have `redact` hide this text from now on: as it is, percent-encoded, in base64, or torn apart by blanks."""
    if secret in _HIDDEN or len(secret) < _LEAST_SECRET_CHARACTERS:
        return
    letters = (f"(?:{re.escape(each)}|%{ord(each):02x})" for each in secret)
    encoded = b64encode(secret.encode()).decode().rstrip("=")
    _HIDDEN[secret] = re.compile(rf"{r'[^!-~]*'.join(letters)}|{re.escape(encoded)}=*", re.IGNORECASE)


def contains_key(text: str) -> bool:
    """Whether there is an API key in a text: one like SendGrid's, or one that is hidden."""
    return any(pattern.search(text) for pattern in (_SECRETS[0][0], *_HIDDEN.values()))


def redact(text: str) -> str:
    """`text` without API keys, signatures, security tokens, passwords in URLs and queries of URLs."""
    for pattern in tuple(_HIDDEN.values()):
        text = pattern.sub("***", text)
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def redact_logs_of_libraries() -> None:
    """Redact what HTTP libraries log from here on; safe to call again, as after somebody set another factory."""
    make_record = logging.getLogRecordFactory()
    probe = make_record("urllib3", logging.DEBUG, "", 0, "/?secret", (), None)
    if "secret" not in probe.getMessage():
        return

    def make_redacted(name: str, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make_record(name, *args, **kwargs)
        if (name or "").partition(".")[0] in _HTTP_LIBRARIES:
            _redact_record(record)
        return record

    logging.setLogRecordFactory(make_redacted)


def _without_bodies(value: Any, depth: int = 8) -> Any:
    """Arguments of a record without the bodies of requests and responses: these are contacts, and megabytes."""
    if isinstance(value, bytes | bytearray | memoryview) and len(value) > _LONGEST_BODY_BYTES:
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
    for pattern, replacement in _QUERIES_APART:
        text = pattern.sub(replacement, text)
    record.msg, record.args, record.exc_info = redact(text), (), None


redact_logs_of_libraries()
