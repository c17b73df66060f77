"""Programs for developers: environments, servers, a whole Airflow, the demo and the release."""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
WORK_FOLDER = REPOSITORY / ".lab"


def inherited_environment() -> dict[str, str]:
    """This shell's variables, without the one that makes every airflow command compile thousands of modules again."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
