"""Makes the environment of the benchmarks: this package with an Airflow and its peers, as `dev.environment` does.

The aws command gets one of its own beside it, for its pins contradict Airflow's; without it that peer is missing.

    python3 -m benchmarks.environment .lab/bench --airflow 3.3.1
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from dev.environment import Wish, create_venv, make, say

AWS_FOLDER = "bench-aws"


def make_aws(folder: Path) -> None:
    python = create_venv(folder, Path(sys.executable))
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "awscli"]
    if subprocess.run(command, check=False).returncode != 0:
        say("There will be no aws command: awscli could not be installed")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--airflow", required=True, metavar="VERSION")
    given = parser.parse_args()
    make_aws(given.folder.parent / AWS_FOLDER)
    make(Wish(given.folder, given.airflow, group="bench"))


if __name__ == "__main__":
    main()
