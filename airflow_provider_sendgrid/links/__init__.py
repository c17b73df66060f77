"""Links from a task in Airflow to its export and its objects."""
