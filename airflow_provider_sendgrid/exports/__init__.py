"""Knows SendGrid's contact exports; knows neither Airflow nor clouds."""
