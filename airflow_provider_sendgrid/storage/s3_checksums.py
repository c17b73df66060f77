"""Proof that S3 holds the bytes that were sent: CRC32 checksums, and ETags where they are MD5s."""

from __future__ import annotations

import base64
import hashlib
import logging
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airflow_provider_sendgrid.exceptions import DestinationChangedError, DestinationError, DestinationRefusedError
from airflow_provider_sendgrid.storage.s3_calls import S3Calls

log = logging.getLogger(__name__)

_MD5 = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class EtagTrial:
    """What a trial object showed of a server's ETags.

    Attributes:
        etag: the ETag of the object or of its part.
        md5: the MD5 of its bytes.
        is_intact: whether the server returned the bytes that were sent.
    """

    etag: str
    md5: str
    is_intact: bool


class S3Checksums:
    """Checks bodies of requests and responses; safe to share among threads.

    Args:
        calls: the calls of boto3 for the bucket.
        try_etag: stores a trial object, in parts or not, and deletes it.

    Attributes:
        compares_etags: off for trial objects.
    """

    def __init__(self, calls: S3Calls, try_etag: Callable[[bool], EtagTrial]) -> None:
        self._calls = calls
        self._try_etag = try_etag
        self.compares_etags = True
        self._are_etags_md5s: dict[bool, bool] = {}
        self._lock = threading.Lock()

    def arguments(self, content: bytes | bytearray, crc32: int) -> dict[str, str]:
        """The arguments that let S3 check a body: its CRC32, or its MD5 if the client's configuration excludes that.

        Some servers need the algorithm named beside the checksum for Object Lock. S3 requires a checksum for locked
        objects, and a bucket's default retention is not known here, so without CRC32 the MD5 is sent, which every
        server knows.
        """
        if self._calls.sends_checksums:
            encoded = base64.b64encode(crc32.to_bytes(4, "big")).decode()
            return {"ChecksumAlgorithm": "CRC32", "ChecksumCRC32": encoded}
        return {"ContentMD5": base64.b64encode(md5_of(content).digest()).decode()}

    def is_damaged(
        self,
        response: Mapping[str, Any],
        content: bytes | bytearray,
        sent: Mapping[str, str],
        *,
        is_part: bool = False,
    ) -> bool:
        """Whether the response to a write shows that S3 received other bytes than `content`.

        Args:
            response: the response to the write.
            content: the body.
            sent: see `arguments`.
            is_part: whether it is a part of an upload.
        """
        checksum, returned = sent.get("ChecksumCRC32"), response.get("ChecksumCRC32")
        if checksum is not None and returned is None:
            message = "The server at %s does not confirm checksums; it may not verify them."
            self._calls.log_once("echo", logging.INFO, message, self._calls.endpoint_url)
        if checksum is not None and returned not in (None, checksum):
            return True
        return self.contradicts_etag(response, content, is_part=is_part)

    def contradicts_etag(
        self, response: Mapping[str, Any], content: bytes | bytearray, *, is_part: bool = False
    ) -> bool:
        """Whether a response over plain http has an ETag that is the MD5 of other bytes."""
        etag = bare_etag(response.get("ETag"))
        is_compared = self.compares_etags and not self._calls.is_https and _MD5.fullmatch(etag)
        if not is_compared or md5_of(content).hexdigest() == etag:
            return False
        encryption = self._encryption(response)
        if encryption not in ("", "AES256"):
            return False
        # Some servers encrypt or compress without saying so, and their ETags only look like MD5s.
        return self._are_md5s(is_part=is_part, unless_known=not encryption)

    def _are_md5s(self, *, is_part: bool, unless_known: bool) -> bool:
        """Whether this server's ETags of objects, or of parts, are MD5s; `unless_known` if the trial shows nothing."""
        with self._lock:
            if is_part not in self._are_etags_md5s:
                try:
                    trial = self._try_etag(is_part)
                except (DestinationError, DestinationRefusedError, DestinationChangedError) as error:
                    log.info("Could not find out whether the ETags of this server are MD5s: %s", error)
                    return unless_known
                if not trial.is_intact:
                    return unless_known
                self._are_etags_md5s[is_part] = trial.etag == trial.md5
                if trial.etag != trial.md5:
                    message = "The ETags of the server at %s are not MD5s; they are not compared."
                    self._calls.log_once("etags", logging.INFO, message, self._calls.endpoint_url)
            return self._are_etags_md5s[is_part]

    def _encryption(self, response: Mapping[str, Any]) -> str:
        """How an object is encrypted, by the response or the request: ETags are MD5s only with S3's own keys."""
        asked = self._calls.extra_args
        if response.get("SSECustomerAlgorithm") or asked.get("SSECustomerAlgorithm"):
            return "customer"
        return str(response.get("ServerSideEncryption") or asked.get("ServerSideEncryption") or "")


def bare_etag(etag: Any) -> str:
    """An ETag without its quotes."""
    return str(etag or "").removeprefix("W/").strip('"')


def etag_of_parts(etags: Sequence[str]) -> str:
    """The ETag of an object in parts: the MD5 of its parts' MD5s; empty if their ETags are none."""
    if not all(_MD5.fullmatch(etag) for etag in etags):
        return ""
    return f"{md5_of(bytes.fromhex(''.join(etags))).hexdigest()}-{len(etags)}"


def md5_of(content: bytes | bytearray) -> Any:
    """The MD5, as an object of hashlib."""
    return hashlib.md5(content, usedforsecurity=False)
