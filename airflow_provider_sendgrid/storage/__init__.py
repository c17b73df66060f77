"""Knows clouds; does not know SendGrid."""
