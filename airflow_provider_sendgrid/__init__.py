"""SendGrid contact exports as Airflow tasks."""

__version__ = "0.1.0"
