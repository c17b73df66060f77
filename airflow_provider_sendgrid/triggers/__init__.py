"""Triggers that wait for SendGrid exports."""
