"""The emulator as a Python value: `with Emulator() as sendgrid: ...`.

Knows all the parts and connects them. Must not decide anything itself.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Final

from .account import Account
from .admin import Admin
from .audience import DEFAULT_MESSAGE, FAMILIES, Audience, Family, Kind, NewAudience
from .backend import DEFAULT_MAX_FILE_SIZE, Backend, ExportedFile
from .contacts import FileType
from .export import Export
from .fault_list import FaultList
from .faults import Fault
from .payloads import Origins
from .rate_limit import RateLimit
from .recording import RecordedRequest, RequestLog
from .server import Listener
from .service import Service
from .settings import Key, Settings
from .spool import Spool

DEFAULT_API_KEY: Final = f"SG.{'emulator' * 3:.22}.{'x' * 43}"
DEFAULT_LISTS: Final = (("Newsletter", 2_000), ("Customers", 500), ("Empty list", 0), ("Broken list", 10))
DEFAULT_SEGMENTS: Final = (("Active in the last month", 300), ("Customers in Germany", 120))


class Emulator:
    """SendGrid's contact-export API on this machine, between `__enter__` and `__exit__`.

    Args:
        settings: How the emulator behaves; `configure` changes them later.
        host: The address to listen on.
        port: The API's port; 0 takes a free one.
        files_port: The file storage's port; 0 takes a free one.
        api_key: A key with every scope.
        keys: More keys, each with its scopes.
        seed: Determines the contacts and the ids of lists.
        contacts: The minimum number of contacts in the account.
        populate: Whether the account starts with lists and segments (`DEFAULT_LISTS`, `DEFAULT_SEGMENTS`).
        clock: Returns the time in seconds since the epoch; tests pass a fake clock.
        observe: Called with every request as it is recorded.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        files_port: int = 0,
        api_key: str = DEFAULT_API_KEY,
        keys: Sequence[Key] = (),
        seed: int = 0,
        contacts: int = 0,
        populate: bool = True,
        clock: Callable[[], float] = time.time,
        observe: Callable[[RecordedRequest], None] = lambda _: None,
    ) -> None:
        self.api_key = api_key
        self._ports = (host, port, files_port)
        self._log = RequestLog()
        self._listeners: dict[str, Listener] = {}
        self._backend = Backend(
            account=Account(seed, contacts),
            spool=Spool(seed),
            keys={key.secret: key for key in (Key(api_key), *keys)},
            settings=settings or Settings(),
            clock=clock,
        )
        admin = Admin(self._backend, self._log, FaultList(clock))
        self._service = Service(admin, RateLimit(clock), observe, Origins("", ""))
        if populate:
            self._populate()

    def __enter__(self) -> Emulator:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> Emulator:
        """Open both ports."""
        host, port, files_port = self._ports
        try:
            self._listeners["files"] = Listener(host, files_port, self._service.handle_files)
            self._listeners["api"] = Listener(host, port, self._service.handle_api)
        except OSError:
            self.close()
            raise
        self._service.own_origins = Origins(self.url, self.files_url)
        return self

    def close(self) -> None:
        """Close both ports, end every connection and delete the files."""
        self.clear_faults()
        while self._listeners:
            self._listeners.popitem()[1].close()
        self._backend.spool.close()

    @property
    def url(self) -> str:
        """The API's origin."""
        return self._listeners["api"].url

    @property
    def files_url(self) -> str:
        """The file storage's origin."""
        return self._listeners["files"].url

    @property
    def settings(self) -> Settings:
        """The current settings."""
        return self._backend.settings

    def configure(self, **changes: Any) -> None:
        """Change some of the `Settings` from now on.

        Raises:
            ValueError: for a setting that does not exist or a value that it cannot have.
        """
        self._backend.settings = self._backend.settings.changed(changes)

    def connection_json(self, **extra: Any) -> str:
        """Return an Airflow connection to this emulator, as `AIRFLOW_CONN_SENDGRID_DEFAULT` takes it."""
        return json.dumps({"conn_type": "sendgrid", "host": self.url, "password": self.api_key, "extra": extra})

    def add_list(
        self,
        name: str,
        *,
        contacts: int = 10,
        family: Family = "marketing",
        outcome: str = "ready",
        message: str = DEFAULT_MESSAGE,
        ready_after: float | None = None,
    ) -> Any:
        """Add a list with its own contacts and return its id: a string, or an integer for `legacy`.

        `outcome` is the final status of its exports: `ready`, `failure` (with `message`), `stuck`, `expired` or
        `unknown:<status>`. `ready_after` (seconds) overrides the setting.
        """
        new = NewAudience(name, contacts, family, outcome, message, ready_after)
        return self._backend.account.add_audience("list", new).id

    def add_segment(
        self,
        name: str,
        *,
        contacts: int = 10,
        family: Family = "marketing",
        outcome: str = "ready",
        message: str = DEFAULT_MESSAGE,
        ready_after: float | None = None,
        first_api: bool = False,
    ) -> Any:
        """Add a segment, which holds the first contacts of the account, and return its id; see `add_list`.

        With `first_api` it is listed by `/v3/marketing/segments` only, like one made with the first segments API.
        """
        new = NewAudience(name, contacts, family, outcome, message, ready_after, first_api)
        return self._backend.account.add_audience("segment", new).id

    def lists(self, family: Family = "marketing") -> list[Audience]:
        """Return the lists of a family."""
        return self._backend.account.audiences(family, "list")

    def list_id(self, name: str, family: Family = "marketing") -> Any:
        """Return the id of the list of this name.

        Raises:
            KeyError: when there is none.
        """
        return {each.name: each.id for each in self._backend.account.audiences(family, "list")}[name]

    def segment_id(self, name: str, family: Family = "marketing") -> Any:
        """Return the id of the segment of this name.

        Raises:
            KeyError: when there is none.
        """
        return {each.name: each.id for each in self._backend.account.audiences(family, "segment")}[name]

    def start_export(
        self,
        list_ids: Sequence[Any] = (),
        segment_ids: Sequence[Any] = (),
        *,
        family: Family = "marketing",
        file_type: FileType = "csv",
        max_file_size: int = DEFAULT_MAX_FILE_SIZE,
    ) -> str:
        """Start an export as a user does in SendGrid's web app, and return its id.

        Raises:
            KeyError: when there is no such list or segment.
        """
        chosen = [*self._chosen(family, "list", list_ids), *self._chosen(family, "segment", segment_ids)]
        return self._backend.start_export(family, chosen, file_type, max_file_size).id

    def export_files(self, export_id: str) -> list[ExportedFile]:
        """Return the actual content of an export's files; waits until they are written.

        Raises:
            KeyError: when there is no such export.
        """
        return self._backend.exported_files(self._export(export_id))

    def requests(self, method: str = "", path_prefix: str = "", listener: str = "") -> list[RecordedRequest]:
        """Return the received requests with this method, path prefix and listener (`api`, `files`); empty means any."""
        return self._log.matching(method, path_prefix, listener)

    def count(self, method: str = "", path_prefix: str = "", listener: str = "") -> int:
        """Return the number of matching requests; see `requests`."""
        return len(self.requests(method, path_prefix, listener))

    def wait_for_requests(
        self, count: int, method: str = "", path_prefix: str = "", listener: str = "", timeout: float = 10.0
    ) -> bool:
        """Wait at most `timeout` seconds for so many matching requests; return whether they came."""
        return self._log.wait_for(count, method, path_prefix, listener, timeout)

    def leaks(self) -> list[RecordedRequest]:
        """Return the requests that sent an Authorization header to the file storage."""
        return [each for each in self.requests(listener="files") if each.leaked]

    def inject(self, *faults: Fault) -> None:
        """Install faults; matching requests are counted from now on."""
        self._service.admin.faults.add(*faults)

    def clear_faults(self) -> None:
        """Remove every fault, and end the requests that hang."""
        self._service.admin.faults.clear()

    def _populate(self) -> None:
        for family in FAMILIES:
            for name, contacts in DEFAULT_LISTS:
                outcome = "failure" if name == "Broken list" else "ready"
                self.add_list(name, contacts=contacts, family=family, outcome=outcome)
            for name, contacts in DEFAULT_SEGMENTS:
                self.add_segment(name, contacts=contacts, family=family)

    def _chosen(self, family: Family, kind: Kind, ids: Sequence[Any]) -> list[Audience]:
        known = {each.id: each for each in self._backend.account.audiences(family, kind)}
        return [known[each] for each in ids]

    def _export(self, export_id: str) -> Export:
        export = self._backend.account.export(export_id)
        if export is None:
            raise KeyError(export_id)
        return export
