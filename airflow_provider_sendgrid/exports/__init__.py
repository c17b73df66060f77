"""SendGrid's API for contact exports; knows neither Airflow nor clouds."""
