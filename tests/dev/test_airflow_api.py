"""Requests to Airflow 2 and 3, and their responses."""

from datetime import datetime, timezone

import pytest

from dev.airflow.api import AirflowApi, AirflowApiError, TaskInstance, log_lines, parse_xcom


class FakeApi(AirflowApi):
    """Returns given responses and records the requests."""

    def __init__(self, version, responses=(), errors=()):
        super().__init__("http://127.0.0.1:1", version)
        self.responses, self.errors, self.requests = list(responses), list(errors), []

    def _call(self, method, path, body=None, accept="application/json", authorized=True):
        self.requests.append((method, path, body))
        if self.errors:
            raise AirflowApiError(method, path, self.errors.pop(0), "")
        return self.responses.pop(0)


@pytest.mark.parametrize(("version", "prefix"), [("2.10.3", "/api/v1"), ("3.3.1", "/api/v2")])
def test_each_version_has_its_own_prefix(version, prefix):
    api = FakeApi(version, [{"state": "success"}])

    assert api.run_state("dag", "manual__2026-01-01T00:00:00+00:00") == "success"
    assert f"{prefix}/dags/dag/dagRuns/manual__2026-01-01T00%3A00%3A00%2B00%3A00" == api.requests[0][1]


def test_runs_of_airflow_3_get_a_logical_date():
    old, new = FakeApi("2.11.0", [{"dag_run_id": "a"}]), FakeApi("3.0.6", [{"dag_run_id": "b"}])

    assert (old.trigger("dag"), new.trigger("dag", {"x": 1})) == ("a", "b")
    assert old.requests[0][2] == {"conf": {}}
    assert new.requests[0][2]["conf"] == {"x": 1}
    assert datetime.fromisoformat(new.requests[0][2]["logical_date"]).tzinfo is not None


def test_all_pages_of_task_instances_are_read():
    row = {
        "task_id": "store",
        "map_index": 0,
        "state": "success",
        "try_number": 1,
        "duration": 1.5,
        "start_date": "2026-01-01T00:00:00Z",
        "end_date": None,
    }
    api = FakeApi(
        "3.3.1",
        [{"task_instances": [row] * 100, "total_entries": 101}, {"task_instances": [row], "total_entries": 101}],
    )

    tasks = api.task_instances("dag", "run")

    assert len(tasks) == 101
    start = datetime(2026, 1, 1, tzinfo=timezone.utc)
    assert TaskInstance("store", 0, "success", 1, 1.5, start, None) == tasks[0]


def test_a_stored_connection_is_replaced():
    api = FakeApi("3.3.1", responses=[None], errors=[409])

    api.store_connection("aws_default", {"conn_type": "aws", "extra": {"region_name": "x"}})

    assert [method for method, _, _ in api.requests] == ["POST", "PATCH"]
    assert api.requests[1][2]["extra"] == '{"region_name": "x"}'


def test_health_is_empty_without_a_response():
    api = FakeApi("3.3.1", errors=[503])

    assert api.health() == {}


def test_one_missing_component_is_not_healthy():
    healthy, missing = {"status": "healthy"}, {"status": None}
    components = {"metadatabase": healthy, "scheduler": healthy, "triggerer": missing, "dag_processor": healthy}

    assert not FakeApi("3.3.1", [components]).is_healthy()


def test_airflow_3_is_healthy_with_its_execution_api():
    healthy = {"status": "healthy"}
    components = {"metadatabase": healthy, "scheduler": healthy, "triggerer": healthy, "dag_processor": healthy}
    api = FakeApi("3.3.1", [components, {}])

    assert api.is_healthy()
    assert api.requests[-1][1] == "/execution/health"


@pytest.mark.parametrize(
    ("value", "expected"), [('["s3://a/b"]', ["s3://a/b"]), ("6f-00", "6f-00"), ([1], [1]), (None, None)]
)
def test_xcoms_are_parsed_from_text_and_values(value, expected):
    assert expected == parse_xcom(value)


def test_structured_log_lines_include_their_errors():
    content = [
        {"event": "Task started", "level": "info"},
        {"event": "Task failed", "level": "error", "error_detail": [{"exc_type": "ValueError", "exc_value": "no"}]},
        "plain",
    ]

    assert list(log_lines(content)) == ["info Task started", "error Task failed", "ValueError: no", "plain"]
