"""Compares this provider with other programs on one machine: ``make bench``, or ``python -m benchmarks``."""
