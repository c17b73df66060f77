"""A whole Airflow, an S3 server and SendGrid's emulator on one machine, for the demo and end-to-end tests."""
