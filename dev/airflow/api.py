"""A client of Airflow's REST API, for Airflow 2 (`/api/v1`) and 3 (`/api/v2`)."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any
from urllib.parse import quote, urlencode

from dev.airflow.settings import ADMIN, is_airflow_2

FINAL_RUN_STATES = frozenset({"success", "failed"})
PAGE_ROWS = 100
REQUEST_TIMEOUT_SECONDS = 90


@dataclass(frozen=True)
class Dialect:
    """The differences between the two APIs."""

    prefix: str
    health: str
    execution_health: str | None
    components: tuple[str, ...]
    needs_logical_date: bool
    log_type: str


DIALECT_2 = Dialect(
    prefix="/api/v1",
    health="/api/v1/health",
    execution_health=None,
    components=("metadatabase", "scheduler", "triggerer"),
    needs_logical_date=False,
    log_type="text/plain",
)
DIALECT_3 = Dialect(
    prefix="/api/v2",
    health="/api/v2/monitor/health",
    execution_health="/execution/health",
    components=("metadatabase", "scheduler", "triggerer", "dag_processor"),
    needs_logical_date=True,
    log_type="application/json",
)


def dialect_for(version: str) -> Dialect:
    return DIALECT_2 if is_airflow_2(version) else DIALECT_3


@dataclass(frozen=True)
class TaskInstance:
    """One task of one run; `map_index` is -1 if the task is not mapped."""

    task_id: str
    map_index: int
    state: str | None
    try_number: int
    seconds: float | None
    start: datetime | None
    end: datetime | None

    @classmethod
    def from_payload(cls, payload: dict[str, Any]) -> TaskInstance:
        return cls(
            task_id=payload["task_id"],
            map_index=payload["map_index"],
            state=payload["state"],
            try_number=payload["try_number"],
            seconds=payload["duration"],
            start=parse_time(payload["start_date"]),
            end=parse_time(payload["end_date"]),
        )


def parse_time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text.replace("Z", "+00:00")) if text else None


class AirflowApiError(Exception):
    """The API returned an error."""

    def __init__(self, method: str, path: str, status: int, text: str) -> None:
        super().__init__(f"{method} {path}: {status} {text[:500]}")
        self.status = status


class AirflowApi:
    """The API of one Airflow. No method waits for a state."""

    def __init__(self, url: str, version: str) -> None:
        self.url = url
        self.version = version
        self.dialect = dialect_for(version)
        self._authorization: str | None = None
        # Without a proxy, even if the environment names one.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def health(self) -> dict[str, str | None]:
        """The status of each component; empty while there is no response."""
        try:
            response = self._call("GET", self.dialect.health, authorized=False)
        except (OSError, AirflowApiError):
            return {}
        return {name: (response.get(name) or {}).get("status") for name in self.dialect.components}

    def is_healthy(self) -> bool:
        if set(self.health().values()) != {"healthy"}:
            return False
        try:
            self._warm_up_execution_api()
        except OSError:  # on a busy machine it exceeds the timeout
            return False
        return True

    def store_connection(self, connection_id: str, connection: Mapping[str, Any]) -> None:
        """Store a connection in the metadata database, or replace it.

        Command lines can be read by other users. With an environment variable, the triggerer would not read the
        database.
        """
        extra = connection.get("extra")
        body = {"connection_id": connection_id, **connection, "extra": json.dumps(extra) if extra else None}
        try:
            self.request("POST", "/connections", body)
        except AirflowApiError as error:
            if error.status != 409:
                raise
            self.request("PATCH", f"/connections/{connection_id}", body)

    def unpause(self, dag_id: str) -> None:
        self.request("PATCH", f"/dags/{dag_id}", {"is_paused": False})

    def has_dag(self, dag_id: str) -> bool:
        try:
            self.request("GET", f"/dags/{dag_id}")
        except AirflowApiError as error:
            if error.status == 404:
                return False
            raise
        return True

    def trigger(self, dag_id: str, conf: dict[str, Any] | None = None) -> str:
        """Start a run and return its id. It has a logical date, like runs started in the UI."""
        body: dict[str, Any] = {"conf": conf or {}}
        if self.dialect.needs_logical_date:
            body["logical_date"] = datetime.now(timezone.utc).isoformat()
        run_id: str = self.request("POST", f"/dags/{dag_id}/dagRuns", body)["dag_run_id"]
        return run_id

    def clear(self, dag_id: str, run_id: str, task_id: str) -> None:
        """Clear a failed task, so that its run continues."""
        body = {"dag_run_id": run_id, "task_ids": [task_id], "dry_run": False, "only_failed": True}
        self.request("POST", f"/dags/{dag_id}/clearTaskInstances", body)

    def run_state(self, dag_id: str, run_id: str) -> str:
        state: str = self.request("GET", run_path(dag_id, run_id))["state"]
        return state

    def task_instances(self, dag_id: str, run_id: str) -> list[TaskInstance]:
        """The task instances of a run, each mapped one included."""
        rows = self._pages(f"{run_path(dag_id, run_id)}/taskInstances", "task_instances")
        return [TaskInstance.from_payload(row) for row in rows]

    def xcom(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1, key: str = "return_value") -> Any:
        path = f"{run_path(dag_id, run_id)}/taskInstances/{task_id}/xcomEntries/{key}"
        query = urlencode({"map_index": map_index, "stringify": "false"})
        return parse_xcom(self.request("GET", f"{path}?{query}")["value"])

    def task_log(self, dag_id: str, run_id: str, task_id: str, try_number: int = 1, map_index: int = -1) -> str:
        path = f"{run_path(dag_id, run_id)}/taskInstances/{task_id}/logs/{try_number}"
        query = urlencode({"map_index": map_index, "full_content": "true"})
        response = self.request("GET", f"{path}?{query}", accept=self.dialect.log_type)
        return response if isinstance(response, str) else "\n".join(log_lines(response["content"]))

    def import_errors(self) -> list[str]:
        """The traceback of each DAG file that Airflow cannot import."""
        rows = self._pages("/importErrors", "import_errors")
        return [f"{row['filename']}\n{row['stack_trace']}" for row in rows]

    def request(self, method: str, path: str, body: Any = None, accept: str = "application/json") -> Any:
        """Send a request to `path` below the API's prefix. Returns JSON parsed, other content types as text."""
        return self._call(method, self.dialect.prefix + path, body, accept)

    def _warm_up_execution_api(self) -> None:
        """Its first request takes seconds, in which the first tasks would time out."""
        if self.dialect.execution_health:
            self._call("GET", self.dialect.execution_health, authorized=False)

    def _pages(self, path: str, key: str) -> Iterator[dict[str, Any]]:
        offset = 0
        while True:
            response = self.request("GET", f"{path}?limit={PAGE_ROWS}&offset={offset}")
            yield from response[key]
            offset += PAGE_ROWS
            if offset >= response["total_entries"]:
                return

    def _call(
        self,
        method: str,
        path: str,
        body: Any = None,
        accept: str = "application/json",
        authorized: bool = True,
    ) -> Any:
        headers = {"Accept": accept, "Content-Type": "application/json"}
        if authorized:
            headers["Authorization"] = self._authorize()
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with self._opener.open(request, timeout=REQUEST_TIMEOUT_SECONDS) as response:
                text = response.read().decode()
        except urllib.error.HTTPError as error:
            raise AirflowApiError(method, path, error.code, error.read().decode(errors="replace")) from error
        return json.loads(text) if text and accept == "application/json" else text

    def _authorize(self) -> str:
        if self._authorization is None:
            self._authorization = self._password() if is_airflow_2(self.version) else self._token()
        return self._authorization

    def _password(self) -> str:
        return "Basic " + base64.b64encode(f"{ADMIN}:{ADMIN}".encode()).decode()

    def _token(self) -> str:
        return "Bearer " + self._call("GET", "/auth/token", authorized=False)["access_token"]


def run_path(dag_id: str, run_id: str) -> str:
    # A run's id contains a time with a plus sign.
    return f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}"


def parse_xcom(value: Any) -> Any:
    """The value of an XCom; some versions return it as JSON text."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def log_lines(content: list[Any]) -> Iterator[str]:
    """The text of Airflow 3's structured log lines and of their errors."""
    for line in content:
        if isinstance(line, str):
            yield line
            continue
        yield f"{line.get('level', '')} {line.get('event', '')}".strip()
        for error in line.get("error_detail") or []:
            yield f"{error.get('exc_type')}: {error.get('exc_value')}"
