"""A proxy before a plain S3 server whose ETags are no MD5s, though they look like it: as of encrypted objects."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.support.losing_proxy import LosingProxy

_IN_HEADER = re.compile(r"(?<![0-9a-f])([0-9a-f]{32})(?![0-9a-f])")
_IN_XML = re.compile(rb'(<ETag>(?:&quot;|&#34;|")?)([0-9a-f]{32})')
_HEADERS = {"etag", "if-match"}


@dataclass
class OpaqueProxy(LosingProxy):
    """Turns the digits of each ETag round, in both directions.

    Attributes:
        encryption: if not empty, the `x-amz-server-side-encryption` of all answers.
        mark: bytes of a body of which the first is changed on its way.
        damaged: how often that happened.
    """

    is_lost: Callable[[str, str], bool] = lambda *_: False
    is_turned: bool = True
    encryption: str = ""
    mark: bytes = b""
    damaged: int = field(default=0, init=False)

    def passed_on(self, method: str, target: str, headers: dict[str, str], body: bytes):
        """Status, headers and content of the server's answer."""
        headers = {name: self._turned(name, value) for name, value in headers.items()}
        if self.mark and self.mark in body:
            body = body.replace(self.mark, b"#" + self.mark[1:])
            self.damaged += 1
        status, answered, content = super().passed_on(method, target, headers, self._turned_xml(body))
        answered = [(name, self._turned(name, value)) for name, value in answered]
        if self.encryption:
            answered.append(("x-amz-server-side-encryption", self.encryption))
        return status, answered, self._turned_xml(content)

    def _turned(self, name: str, value: str) -> str:
        is_etag = self.is_turned and name.lower() in _HEADERS
        return _IN_HEADER.sub(lambda match: match[1][::-1], value) if is_etag else value

    def _turned_xml(self, content: bytes) -> bytes:
        return _IN_XML.sub(lambda match: match[1] + match[2][::-1], content) if self.is_turned else content
