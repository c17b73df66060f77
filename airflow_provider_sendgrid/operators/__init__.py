"""Operators that call SendGrid's API."""
