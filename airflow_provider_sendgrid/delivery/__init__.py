"""One export delivered: every file stored, then the manifest; knows neither Airflow nor a particular cloud."""
