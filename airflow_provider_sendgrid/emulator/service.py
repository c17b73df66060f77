"""The steps for a request at either listener: faults, rate limit, endpoint, request log.

Knows the order of the steps. Must not know sockets, nor what a step decides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate

from .admin import PREFIX, Admin, handle_admin_request
from .api import find_key, handle_api_request
from .connection import CountBytes
from .messages import Request, Response
from .payloads import Origins
from .rate_limit import RateLimit
from .recording import RecordedRequest
from .storage import handle_file_request


@dataclass(slots=True)
class Service:
    """Handles the requests at both listeners."""

    admin: Admin
    rate_limit: RateLimit
    observe: Callable[[RecordedRequest], None]
    own_origins: Origins
    """Where the listeners are. A client that used another host name gets that name in URLs."""

    def handle_api(self, request: Request) -> tuple[Response, CountBytes]:
        """Handle a request at SendGrid's origin."""
        if request.path.startswith(PREFIX):
            return handle_admin_request(self.admin, request), _ignore
        backend, origins = self.admin.backend, self._origins(request)

        def respond() -> Response:
            return handle_api_request(backend, request, origins)

        response = self.admin.faults.apply("api", request, lambda _: self.rate_limit.apply(backend.settings, respond))
        response = response.with_headers({"Date": formatdate(backend.clock(), usegmt=True), **response.headers})
        key = find_key(backend, request)
        return response, self._record("api", request, response, key.id if key else "")

    def handle_files(self, request: Request) -> tuple[Response, CountBytes]:
        """Handle a request at the file storage's origin."""
        response = self.admin.faults.apply(
            "files", request, lambda options: handle_file_request(self.admin.backend, request, options)
        )
        return response, self._record("files", request, response, "")

    def _origins(self, request: Request) -> Origins:
        """Return where both listeners are for this client, by its Host header."""
        host = request.headers.get("host", "")
        name, files_port = host.rpartition(":")[0] or host, self.own_origins.files.rpartition(":")[2]
        return Origins(f"http://{host}", f"http://{name}:{files_port}") if host else self.own_origins

    def _record(self, listener: str, request: Request, response: Response, key_id: str) -> CountBytes:
        status = 0 if response.send_options.drop else response.status
        entry = self.admin.log.record(self.admin.backend.clock(), listener, request, status, key_id)
        self.observe(entry)

        def count(sent: int) -> None:
            entry.bytes_sent += sent

        return count


def _ignore(_: int) -> None:
    """Admin requests are not recorded."""
