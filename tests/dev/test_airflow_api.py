"""What is asked of Airflow 2 and 3, and how their answers are read."""

from datetime import datetime, timezone

import pytest

from dev.airflow.api import AirflowApi, AirflowApiError, TaskInstance, log_lines, native


class Answers(AirflowApi):
    """Answers as told and keeps what was asked."""

    def __init__(self, version, answers=(), errors=()):
        super().__init__("http://127.0.0.1:1", version)
        self.answers, self.errors, self.asked = list(answers), list(errors), []

    def _call(self, method, path, body=None, accept="application/json", authorized=True):
        self.asked.append((method, path, body))
        if self.errors:
            raise AirflowApiError(method, path, self.errors.pop(0), "")
        return self.answers.pop(0)


@pytest.mark.parametrize(("version", "prefix"), [("2.10.3", "/api/v1"), ("3.3.1", "/api/v2")])
def test_each_version_has_its_prefix(version, prefix):
    api = Answers(version, [{"state": "success"}])

    assert api.run_state("dag", "manual__2026-01-01T00:00:00+00:00") == "success"
    assert f"{prefix}/dags/dag/dagRuns/manual__2026-01-01T00%3A00%3A00%2B00%3A00" == api.asked[0][1]


def test_airflow_3_runs_get_a_logical_date_for_templates():
    old, new = Answers("2.11.0", [{"dag_run_id": "a"}]), Answers("3.0.6", [{"dag_run_id": "b"}])

    assert (old.trigger("dag"), new.trigger("dag", {"x": 1})) == ("a", "b")
    assert old.asked[0][2] == {"conf": {}}
    assert new.asked[0][2]["conf"] == {"x": 1}
    assert datetime.fromisoformat(new.asked[0][2]["logical_date"]).tzinfo is not None


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
    api = Answers(
        "3.3.1",
        [{"task_instances": [row] * 100, "total_entries": 101}, {"task_instances": [row], "total_entries": 101}],
    )

    tasks = api.task_instances("dag", "run")

    assert len(tasks) == 101
    start = datetime(2026, 1, 1, tzinfo=timezone.utc)
    assert TaskInstance("store", 0, "success", 1, 1.5, start, None) == tasks[0]


def test_a_stored_connection_is_replaced():
    api = Answers("3.3.1", answers=[None], errors=[409])

    api.store_connection("aws_default", {"conn_type": "aws", "extra": {"region_name": "x"}})

    assert [method for method, _, _ in api.asked] == ["POST", "PATCH"]
    assert api.asked[1][2]["extra"] == '{"region_name": "x"}'


def test_health_is_empty_while_nobody_answers():
    api = Answers("3.3.1", errors=[503])

    assert api.health() == {}


def test_not_all_parts_healthy_is_not_healthy():
    healthy, missing = {"status": "healthy"}, {"status": None}
    components = {"metadatabase": healthy, "scheduler": healthy, "triggerer": missing, "dag_processor": healthy}

    assert not Answers("3.3.1", [components]).is_healthy()


def test_the_execution_api_is_woken_before_airflow_3_counts_as_healthy():
    healthy = {"status": "healthy"}
    components = {"metadatabase": healthy, "scheduler": healthy, "triggerer": healthy, "dag_processor": healthy}
    api = Answers("3.3.1", [components, {}])

    assert api.is_healthy()
    assert api.asked[-1][1] == "/execution/health"


@pytest.mark.parametrize(
    ("value", "expected"), [('["s3://a/b"]', ["s3://a/b"]), ("6f-00", "6f-00"), ([1], [1]), (None, None)]
)
def test_xcoms_come_as_values_in_whatever_form_a_version_sends_them(value, expected):
    assert expected == native(value)


def test_structured_log_lines_are_read_with_their_errors():
    content = [
        {"event": "Task started", "level": "info"},
        {"event": "Task failed", "level": "error", "error_detail": [{"exc_type": "ValueError", "exc_value": "no"}]},
        "plain",
    ]

    assert list(log_lines(content)) == ["info Task started", "error Task failed", "ValueError: no", "plain"]
