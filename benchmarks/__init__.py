"""Our delivery beside its peers, measured in turn on one machine: ``make bench``, or ``python -m benchmarks``."""
