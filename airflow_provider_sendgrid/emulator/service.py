"""What happens to a request at either listener: faults, rate limit, endpoint, record.

Knows the order of these. Must not know sockets, nor what any of them decides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate

from .admin import PREFIX, Admin, answer_admin
from .api import answer_api, key_of
from .connection import Count
from .messages import Answer, Request
from .payloads import Origins
from .rate_limit import RateLimit
from .recording import RecordedRequest
from .storage import answer_file


@dataclass(slots=True)
class Service:
    """Both listeners' answers."""

    admin: Admin
    rate_limit: RateLimit
    observe: Callable[[RecordedRequest], None]
    own: Origins
    """Where the listeners are; a client that came by another name gets that name back."""

    def answer_api(self, request: Request) -> tuple[Answer, Count]:
        """Answer at SendGrid's origin."""
        if request.path.startswith(PREFIX):
            return answer_admin(self.admin, request), _ignore
        backend, origins = self.admin.backend, self._origins(request)

        def respond() -> Answer:
            return answer_api(backend, request, origins)

        answer = self.admin.faults.spoiled("api", request, lambda _: self.rate_limit.limited(backend.settings, respond))
        answer = answer.with_headers({"Date": formatdate(backend.clock(), usegmt=True), **answer.headers})
        key = key_of(backend, request)
        return answer, self._record("api", request, answer, key.id if key else "")

    def answer_files(self, request: Request) -> tuple[Answer, Count]:
        """Answer at the file storage's origin."""
        answer = self.admin.faults.spoiled(
            "files", request, lambda treatment: answer_file(self.admin.backend, request, treatment)
        )
        return answer, self._record("files", request, answer, "")

    def _origins(self, request: Request) -> Origins:
        """Return where both listeners are for this client, as its Host header tells."""
        host = request.headers.get("host", "")
        name, files_port = host.rpartition(":")[0] or host, self.own.files.rpartition(":")[2]
        return Origins(f"http://{host}", f"http://{name}:{files_port}") if host else self.own

    def _record(self, listener: str, request: Request, answer: Answer, key_id: str) -> Count:
        status = 0 if answer.sending.drop else answer.status
        entry = self.admin.log.record(self.admin.backend.clock(), listener, request, status, key_id)
        self.observe(entry)

        def count(sent: int) -> None:
            entry.bytes_sent += sent

        return count


def _ignore(_: int) -> None:
    """Admin requests are not recorded."""
