"""The state store that Airflow 3.3 gives to tasks and assets, in memory."""

from __future__ import annotations

import json


class StateStore:
    """JSON values by key, kept over tries of a task and restarts of the triggerer.

    Attributes:
        kept: the JSON text of each value, by key.
        failures: errors that the next calls of `get` and `set` raise, the last one first.
    """

    def __init__(self):
        self.kept = {}
        self.failures = []

    def get(self, key, default=None):
        self._fail()
        return json.loads(self.kept[key]) if key in self.kept else default

    def set(self, key, value):
        self._fail()
        assert value is not None, "Airflow's stores refuse None"
        self.kept[key] = json.dumps(value)

    def delete(self, key):
        self.kept.pop(key, None)

    def _fail(self):
        if self.failures:
            raise self.failures.pop()
