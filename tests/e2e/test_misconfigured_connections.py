"""A wrong key, a missing connection, a host without a response: in a worker and in the triggerer."""

from __future__ import annotations

import socket

import pytest

DAG_ID = "misconfigured"
WRONG_KEY = "SG.wrong-wrong-wrong-wrong.never-seen-before-never-seen-before-never-se"
BOUND_SECONDS = 180
MESSAGES = {
    "wrong_key": "Check the API key in the connection's password",
    "missing": "There is no connection 'missing', or Airflow's secrets backend did not return it",
    "silent": "Check that the host answers from here",
}
NAMES = sorted(MESSAGES)


@pytest.fixture(scope="module")
def silent_url():
    """A port that accepts connections and never responds."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture(scope="module")
def run_id(services, silent_url):
    """A run in which every task fails."""
    store = services.airflow.api.store_connection
    store("wrong_key", {"conn_type": "sendgrid", "host": services.sendgrid.url, "password": WRONG_KEY})
    store("silent", {"conn_type": "sendgrid", "host": silent_url, "password": WRONG_KEY, "extra": {"timeout": 2}})
    run_id = services.airflow.trigger(DAG_ID, {"connections": NAMES})
    assert "failed" == services.airflow.wait_for_run(DAG_ID, run_id, seconds=2 * BOUND_SECONDS)
    return run_id


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("task_id", ["in_a_worker", "in_the_triggerer"])
def test_the_task_fails_in_time_with_the_next_step(services, run_id, task_id, name):
    task = services.tasks(DAG_ID, run_id, task_id)[NAMES.index(name)]
    log = services.log(DAG_ID, run_id, task)

    assert "failed" == task.state
    assert MESSAGES[name] in log
    assert WRONG_KEY not in log
    assert (task.end - task.start).total_seconds() < BOUND_SECONDS


@pytest.mark.usefixtures("run_id")
def test_the_triggerer_keeps_running(services):
    """On Airflow 3.0, reading a connection in the wrong way would end it."""
    assert services.airflow.components["triggerer"].is_running()
    assert "healthy" == services.airflow.api.health()["triggerer"]
