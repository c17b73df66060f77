from __future__ import annotations

from types import SimpleNamespace

import pytest

from airflow_provider_sendgrid._compat import xcoms_of_run


@pytest.mark.usefixtures("airflow_database")
def test_airflow_2_reads_what_another_run_pushed(airflow_version):
    """From the database; on Airflow 3 a task asks its API server, which `tests/e2e` runs."""
    if airflow_version.number >= (3, 0):
        pytest.skip("Airflow 3 has no access to the database in tasks")
    from airflow.operators.python import PythonOperator

    pushed = {"task": "push", "id": "an export"}
    with airflow_version.dag("pushes") as dag:
        PythonOperator(task_id="push", python_callable=lambda ti: ti.xcom_push(key="mark", value=pushed))
    run = dag.test()

    assert xcoms_of_run(SimpleNamespace(dag_id="pushes"), ["push"], "mark", run.run_id) == [pushed]
