"""Operators that deliver exports to cloud storage."""
